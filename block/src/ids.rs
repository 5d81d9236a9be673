//! Numbers that name things. All are newtypes so that an offset is never taken
//! for a sequence number.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Index of a volume in its group, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(pub u16);

impl VolumeId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Number of a record in its group's journal: gapless within an incarnation,
/// starting at 1. 0 means "before the first record".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    pub const NONE: Seq = Seq(0);

    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    #[must_use]
    pub fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

/// Who may write the group: rises at every cutover and failback. Starts at 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// Rises durably whenever a ring is created anew. Starts at 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

/// A place in a group's history that never repeats. Ordered by epoch, then
/// incarnation, then sequence number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    pub seq: Seq,
}

impl Position {
    pub fn new(epoch: Epoch, incarnation: Incarnation, seq: Seq) -> Position {
        Position { epoch, incarnation, seq }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch.0, self.incarnation.0, self.seq.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_order_by_epoch_then_incarnation_then_seq() {
        let at = |e, i, s| Position::new(Epoch(e), Incarnation(i), Seq(s));
        assert!(at(1, 1, 9) < at(1, 2, 1));
        assert!(at(1, 9, 9) < at(2, 1, 1));
        assert!(at(2, 1, 1) < at(2, 1, 2));
        assert_eq!(at(3, 4, 5).to_string(), "3.4.5");
    }
}
