//! Where a stream goes on (R3, R6): the one pure rule, given what the target
//! durably has and what the ring still holds.

use crate::spill::Run;
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

/// What the spill has of the incarnation before this one, whose ring was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub incarnation: u32,
    /// Ordered, with gaps between them.
    pub runs: Vec<Run>,
}

/// What the ring can continue.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub history: Option<History>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Ship these records of the incarnation before, then this one from its first.
    History(Run),
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
/// | same or older | that of the history | nothing acked here yet, its next record in a run that reaches the base | history to the run's end, then from 1 |
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
    if fresh && let Some(run) = ring.history_for(target, reaches) {
        return Resume::History(run);
    }
    if fresh && reaches {
        return Resume::From(1);
    }
    Resume::Resync("the target lacks changes that the journal no longer holds")
}

impl Holding {
    /// The part of the history that brings this target further: its next record is in
    /// it, and its end lies at or beyond the base, if the target itself does not.
    fn history_for(&self, target: Durable, reaches: bool) -> Option<Run> {
        let history = self.history.as_ref().filter(|h| h.incarnation == target.incarnation)?;
        let next = target.seq.checked_add(1)?;
        let run = history.runs.iter().find(|run| run.holds(next))?;
        let base = &self.base;
        let leads_to_base = base.incarnation == history.incarnation
            && run.last >= base.seq
            && target.claims >= base.claims;
        (reaches || leads_to_base).then_some(Run { first: next, last: run.last })
    }
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
        history: None,
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

    #[test]
    fn a_history_brings_a_target_to_the_base_or_is_not_used() {
        let run = |first, last| Run { first, last };
        let resync = |r| matches!(r, Resume::Resync(_));
        let with = |runs: &[Run]| Holding {
            history: Some(History { incarnation: 4, runs: runs.to_vec() }),
            ..FRESH
        };
        // The base is record 7, claim 2 of incarnation 4.
        let long = with(&[run(3, 9)]);
        assert_eq!(decide(target(2, 4, 2, 2), &long), Resume::History(run(3, 9)));
        assert_eq!(decide(target(1, 4, 6, 9), &long), Resume::History(run(7, 9)));
        assert_eq!(decide(target(2, 4, 8, 2), &long), Resume::History(run(9, 9)), "past the base");
        assert_eq!(decide(target(2, 4, 9, 2), &long), Resume::From(1), "has it all");
        assert_eq!(decide(target(2, 4, 50, 2), &long), Resume::From(1), "has more than the spill");
        assert!(resync(decide(target(2, 4, 1, 2), &long)), "begins too late for it");
        assert!(resync(decide(target(2, 4, 5, 1), &long)), "lacks claims");
        assert!(resync(decide(target(2, 3, 5, 2), &long)), "stands an incarnation earlier");
        assert!(resync(decide(target(2, 4, 2, 2), &with(&[run(3, 6)]))), "ends before the base");
        let gap = with(&[run(3, 5), run(7, 9)]);
        assert!(resync(decide(target(2, 4, 2, 2), &gap)), "the run that it enters ends too early");
        assert_eq!(decide(target(2, 4, 6, 2), &gap), Resume::History(run(7, 9)));
        let begun = Holding { acked: 1, ..long.clone() };
        assert!(resync(decide(target(2, 4, 2, 2), &begun)), "a target has passed it");
        assert_eq!(decide(target(3, 4, 2, 2), &long), Resume::Superseded);
        // Everything is compared anyway: any target that the history fits is brought further.
        let unknown = Holding { base: Durable::default(), ..with(&[run(3, 4)]) };
        assert_eq!(decide(target(2, 4, 2, 0), &unknown), Resume::History(run(3, 4)));
        assert_eq!(decide(target(2, 4, 0, 0), &unknown), Resume::From(1));
        // The base lies in an incarnation before the history's, which cooled nothing.
        let base = Durable { incarnation: 3, ..FRESH.base };
        let older = Holding { base, ..with(&[run(3, 4)]) };
        assert_eq!(decide(target(2, 4, 2, 0), &older), Resume::History(run(3, 4)));
    }
}
