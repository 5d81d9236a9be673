//! Where a stream goes on (R3, R6): the one pure rule, given what the target
//! durably has and what the ring still holds.

use serde::{Deserialize, Serialize};

/// What a target durably has of a group. All zero: nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    pub epoch: u32,
    pub incarnation: u32,
    /// Last record of that incarnation.
    pub seq: u64,
    /// All claims of that incarnation up to here.
    pub claims: u64,
}

/// What the ring can continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub epoch: u32,
    pub incarnation: u32,
    /// Acknowledged so far: records above are all still there.
    pub acked: u64,
    /// Claims whose blocks were cleared because a target had them.
    pub acked_claims: u64,
    /// All records up to here have their outcome.
    pub done: u64,
    /// Where streams must stand that this incarnation continues; see
    /// [`crate::format::Superblock::base_incarnation`].
    pub base: Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Ship from this record on.
    From(u64),
    /// The target misses what the ring no longer holds: everything becomes dirty.
    Resync(&'static str),
    /// The target is ahead of this epoch: it was promoted; never write to it.
    Superseded,
}

/// The decision table:
///
/// | target's epoch | incarnation | records and claims | decision |
/// |---|---|---|---|
/// | newer | any | any | superseded |
/// | same or older | same | acked <= seq <= done, claims >= acked claims | from seq + 1 |
/// | same or older | same | otherwise | resync |
/// | same or older | older | nothing acked here yet, target at or beyond the base | from 1 |
/// | same or older | older | otherwise | resync |
/// | same or older | newer | any | resync |
pub fn decide(target: Durable, ring: &Holding) -> Resume {
    if target.epoch > ring.epoch {
        return Resume::Superseded;
    }
    if target.incarnation > ring.incarnation {
        return Resume::Resync("the target knows a later incarnation of the journal than this one");
    }
    if target.incarnation == ring.incarnation {
        if target.seq > ring.done {
            return Resume::Resync("the target stands ahead of the journal");
        }
        if target.seq < ring.acked || target.claims < ring.acked_claims {
            return Resume::Resync("the target lost what it had acknowledged, or is another one");
        }
        return Resume::From(target.seq + 1);
    }
    let fresh = ring.acked == 0 && ring.acked_claims == 0;
    let at = (target.incarnation, target.seq, target.claims);
    let base = ring.base;
    let reaches = at.0 > base.incarnation
        || at.0 == base.incarnation && at.1 >= base.seq && at.2 >= base.claims;
    if fresh && reaches {
        return Resume::From(1);
    }
    Resume::Resync("the target lacks changes that the journal no longer holds")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: Holding = Holding {
        epoch: 2,
        incarnation: 5,
        acked: 10,
        acked_claims: 3,
        done: 20,
        base: Durable { epoch: 0, incarnation: 4, seq: 7, claims: 2 },
    };
    const FRESH: Holding = Holding { acked: 0, acked_claims: 0, ..RING };

    fn target(epoch: u32, incarnation: u32, seq: u64, claims: u64) -> Durable {
        Durable { epoch, incarnation, seq, claims }
    }

    #[test]
    fn each_row_of_the_table() {
        use Resume::{From, Superseded};
        let resync = |r| matches!(r, Resume::Resync(_));
        assert_eq!(decide(target(3, 0, 0, 0), &RING), Superseded);
        assert_eq!(decide(target(2, 5, 10, 3), &RING), From(11));
        assert_eq!(decide(target(1, 5, 20, 9), &RING), From(21));
        assert!(resync(decide(target(2, 5, 21, 3), &RING)));
        assert!(resync(decide(target(2, 5, 9, 3), &RING)));
        assert!(resync(decide(target(2, 5, 10, 2), &RING)));
        assert!(resync(decide(target(2, 6, 1, 0), &RING)));
        assert!(resync(decide(target(2, 4, 7, 2), &RING)), "records were already freed");
        assert_eq!(decide(target(2, 4, 7, 2), &FRESH), From(1));
        assert_eq!(decide(target(2, 4, 8, 2), &FRESH), From(1));
        assert!(resync(decide(target(2, 4, 6, 2), &FRESH)));
        assert!(resync(decide(target(2, 4, 7, 1), &FRESH)));
        assert!(resync(decide(target(2, 3, 99, 99), &FRESH)));
        let from_nothing = Holding { base: Durable::default(), incarnation: 1, ..FRESH };
        assert_eq!(decide(Durable::default(), &from_nothing), From(1));
    }
}
