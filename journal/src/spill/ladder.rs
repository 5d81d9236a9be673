//! The rules of the ladder: ring -> spill -> change map -> back. Pure; `sim/tests/ladder.rs`
//! drives them with links that hover at the write rate and proves that they do not flap.
//!
//! ```text
//!            ring more than half full (1)                    BREAK
//!    Ring ─────────────────────────────> Spill ─────────────────────────> Map
//!      ^   spill empty and ring less than  │ ^   HEAL, spill not empty or   │
//!      ├────────── a quarter full ─────────┘ └── ring a quarter full ───────┤
//!      └────────────────────────── HEAL ────────────────────────────────────┘
//! ```
//! (1) Or whatever `spill_start` says; "a quarter" is then half of that.
//!
//! Between two steps Ring -> Spill a quarter of the ring is appended; between two BREAKs
//! for lack of room half a ring, or [`HEAL_WAIT_MAX`] passes.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Percent of the ring, slots or payload, at which spilling begins.
pub const SPILL_START_PERCENT: u64 = 50;
/// What the operator may choose instead. Less would spill in the steady state; beyond it a
/// burst finds the ring full before the disk has taken anything.
pub const SPILL_START_PERCENTS: RangeInclusive<u64> = 10..=90;

/// Fill up to which HEAL need not wait: half a ring away from the next BREAK.
pub const HEAL_FILL_PERCENT_MAX: u64 = 50;
/// Longest wait of a HEAL for that fill. A ripple of a few megabytes on a nearly full ring
/// costs two BREAKs a minute at most; without any limit there would be no points at all
/// while the link is exactly as fast as the guest.
pub const HEAL_WAIT_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(HEAL_FILL_PERCENT_MAX <= 50);

/// Where the group's changes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u64)]
pub enum Rung {
    #[default]
    Ring = 0,
    Spill = 1,
    Map = 2,
}

impl Rung {
    pub fn from_code(code: u64) -> Rung {
        match code {
            1 => Rung::Spill,
            2 => Rung::Map,
            _ => Rung::Ring,
        }
    }
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Fill of the ring, 0 to 100.
    pub fill_percent: u64,
    /// Records that the target lacks are in the spill.
    pub backlog: bool,
    /// The stream holds every change (no BREAK without a HEAL).
    pub whole: bool,
    /// The spill has room and its disk works.
    pub able: bool,
}

/// What HEAL's rule looks at, once nothing is dirty or claimed any more.
#[derive(Clone, Copy, Debug)]
pub struct HealSeen {
    /// Fill of the ring, 0 to 100.
    pub fill_percent: u64,
    /// At least half of the spill is free, or there is none.
    pub spill_half_free: bool,
    /// How long HEAL has been asked for.
    pub waited: Duration,
}

/// Whether the stream may be whole again: where the next BREAK is far, or after a while,
/// so that a link which is never faster than the guest still gives points.
pub fn may_heal(seen: &HealSeen) -> bool {
    let is_far = seen.fill_percent <= HEAL_FILL_PERCENT_MAX;
    seen.spill_half_free && (is_far || seen.waited >= HEAL_WAIT_MAX)
}

#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    rung: Rung,
    spilling: bool,
    start_percent: u64,
}

impl Default for Ladder {
    fn default() -> Ladder {
        Ladder::starting_at(Rung::Ring, SPILL_START_PERCENT)
    }
}

impl Ladder {
    /// Begins at `rung`; the ring is spilled beyond `start_percent`.
    pub fn starting_at(rung: Rung, start_percent: u64) -> Ladder {
        let (least, most) = SPILL_START_PERCENTS.into_inner();
        Ladder { rung, spilling: false, start_percent: start_percent.clamp(least, most) }
    }

    pub fn start_percent(&self) -> u64 {
        self.start_percent
    }

    /// Fill below which spilling ends. The distance is the hysteresis.
    fn stop_percent(&self) -> u64 {
        self.start_percent / 2
    }

    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether the oldest records of the ring are to be written now. While changes
    /// bypass the journal anyway, the spill only empties: what is overwritten in the
    /// map meanwhile need not be shipped at all.
    pub fn is_spilling(&self) -> bool {
        self.spilling
    }

    /// Takes a step if one is due: (from, to).
    pub fn observe(&mut self, seen: &Observed) -> Option<(Rung, Rung)> {
        self.spilling = seen.whole
            && seen.able
            && match seen.fill_percent {
                fill if fill > self.start_percent => true,
                fill if fill < self.stop_percent() => false,
                _ => self.spilling,
            };
        let stays = self.rung != Rung::Ring && seen.fill_percent >= self.stop_percent();
        let to = if !seen.whole {
            Rung::Map
        } else if self.spilling || seen.backlog || stays {
            Rung::Spill
        } else {
            Rung::Ring
        };
        let from = std::mem::replace(&mut self.rung, to);
        (from != to).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spilling_begins_beyond_the_chosen_fill_and_ends_below_half_of_it() {
        for start in SPILL_START_PERCENTS {
            let mut ladder = Ladder::starting_at(Rung::Ring, start);
            let at =
                |fill_percent| Observed { fill_percent, backlog: false, whole: true, able: true };
            assert_eq!(ladder.observe(&at(start)), None);
            assert_eq!(ladder.observe(&at(start + 1)), Some((Rung::Ring, Rung::Spill)));
            assert_eq!(ladder.observe(&at(start / 2)), None);
            assert!(ladder.is_spilling(), "{start}");
            assert_eq!(ladder.observe(&at(start / 2 - 1)), Some((Rung::Spill, Rung::Ring)));
        }
    }

    #[test]
    fn every_step_has_its_reason() {
        let mut ladder = Ladder::default();
        let seen = Observed { fill_percent: 51, backlog: false, whole: true, able: true };
        let idle = Observed { fill_percent: 10, ..seen };
        assert_eq!(ladder.observe(&idle), None);
        assert_eq!(ladder.observe(&seen), Some((Rung::Ring, Rung::Spill)));
        assert!(ladder.is_spilling());
        let half = Observed { fill_percent: 30, ..seen };
        assert_eq!((ladder.observe(&half), ladder.is_spilling()), (None, true));
        let backlog = Observed { backlog: true, ..idle };
        assert_eq!((ladder.observe(&backlog), ladder.is_spilling()), (None, false));
        assert_eq!(ladder.observe(&half), None, "empty, but the ring is not: no step yet");
        let broken = Observed { whole: false, ..seen };
        assert_eq!(ladder.observe(&broken), Some((Rung::Spill, Rung::Map)));
        assert!(!ladder.is_spilling());
        assert_eq!(ladder.observe(&half), Some((Rung::Map, Rung::Spill)), "not yet at rest");
        assert_eq!(ladder.observe(&broken), Some((Rung::Spill, Rung::Map)));
        assert_eq!(ladder.observe(&idle), Some((Rung::Map, Rung::Ring)));
        let unable = Observed { able: false, ..seen };
        assert_eq!((ladder.observe(&unable), ladder.is_spilling()), (None, false));
    }

    #[test]
    fn a_heal_waits_for_half_a_ring_and_half_a_spill_but_for_a_ring_not_for_ever() {
        let may = |fill_percent, spill_half_free, waited| {
            may_heal(&HealSeen { fill_percent, spill_half_free, waited })
        };
        let (now, late) = (Duration::ZERO, HEAL_WAIT_MAX);
        assert!(may(50, true, now) && may(0, true, now) && may(50, true, late));
        assert!(!may(51, true, now) && !may(100, true, late - Duration::from_nanos(1)));
        assert!(may(51, true, late) && may(100, true, late));
        assert!(!may(0, false, now) && !may(51, false, late) && !may(50, false, late));
    }
}
