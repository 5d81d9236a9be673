//! What to do at start: one total, pure table over what is found. The caller
//! gathers the findings, this module decides, `journal.rs` carries it out.

/// What `state.json` shows. (Damaged or newer state is refused before this table.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFound {
    Absent,
    Present,
}

/// What is at the place where the ring should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFound {
    Absent,
    /// The ring that `state.json` names, sound.
    Intact,
    /// A file, but not that ring, or its superblock fails its checks.
    Unusable,
    /// Written by a newer Towline.
    Newer,
}

/// What the orderly stop left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedFound {
    Absent,
    /// Belongs to the ring that `state.json` names and to an orderly stop.
    Valid,
    Unusable,
}

/// What the activity map can say after the ring is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityFound {
    /// Of this incarnation, sound: exactly its hot extents may differ.
    Sound,
    Unusable,
}

/// Whether the sources are what the journal last saw (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFound {
    /// Same disks, and not changed since our last write as far as can be told.
    Same,
    /// Same disks, but nothing tells whether they were changed (block devices).
    Unknown,
    /// Changed behind our back, or other disks under the same names.
    Changed,
}

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AttachPolicy {
    /// Trust a source only where it can be shown unchanged, or where the ring
    /// survived and nothing speaks against it.
    #[default]
    Auto,
    /// The operator vouches that the sources were not changed by anyone else.
    Trust,
    /// The operator wants everything sent again.
    Resync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// First start: a new group, everything dirty.
    Create,
    /// Same incarnation: scan the slots, close what was left open.
    UseRing,
    /// New incarnation whose change map is the saved one.
    RestoreSaved,
    /// New incarnation; what was active when the ring was lost is compared.
    CompareHot,
    /// New incarnation, everything dirty; the reason is for the operator.
    Restart(&'static str),
    /// Touch nothing; the reason is for the operator.
    Refuse(&'static str),
}

pub fn decide(
    state: StateFound,
    ring: RingFound,
    saved: SavedFound,
    activity: ActivityFound,
    source: SourceFound,
    policy: AttachPolicy,
) -> Decision {
    if state == StateFound::Absent {
        return Decision::Create;
    }
    if ring == RingFound::Newer {
        return Decision::Refuse("its ring was written by a newer Towline: use that one");
    }
    if policy == AttachPolicy::Resync {
        return Decision::Restart("the operator asked for it (--attach resync)");
    }
    if source == SourceFound::Changed && policy != AttachPolicy::Trust {
        return Decision::Restart(
            "a source was changed or replaced while no proxy ran (--attach trust overrules this)",
        );
    }
    match (ring, saved) {
        (RingFound::Intact, _) => Decision::UseRing,
        _ if source == SourceFound::Unknown && policy == AttachPolicy::Auto => Decision::Restart(
            "the ring is lost, and nothing tells whether a source was changed while no proxy ran \
             (--attach trust overrules this)",
        ),
        (_, SavedFound::Valid) => Decision::RestoreSaved,
        _ if activity == ActivityFound::Sound => Decision::CompareHot,
        _ => Decision::Restart("the ring is lost (power loss?), and with it what was active"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RINGS: [RingFound; 4] =
        [RingFound::Absent, RingFound::Intact, RingFound::Unusable, RingFound::Newer];
    const SAVED: [SavedFound; 3] = [SavedFound::Absent, SavedFound::Valid, SavedFound::Unusable];
    const ACTIVITIES: [ActivityFound; 2] = [ActivityFound::Sound, ActivityFound::Unusable];
    const SOURCES: [SourceFound; 3] =
        [SourceFound::Same, SourceFound::Unknown, SourceFound::Changed];
    const POLICIES: [AttachPolicy; 3] =
        [AttachPolicy::Auto, AttachPolicy::Trust, AttachPolicy::Resync];

    /// Walks all 432 combinations and states what must hold, not what the code says.
    #[test]
    fn every_combination_keeps_the_promises() {
        for state in [StateFound::Absent, StateFound::Present] {
            for ring in RINGS {
                for saved in SAVED {
                    for activity in ACTIVITIES {
                        for source in SOURCES {
                            for policy in POLICIES {
                                let found = (state, ring, saved, activity, source, policy);
                                let decision = decide(state, ring, saved, activity, source, policy);
                                check(found, decision);
                            }
                        }
                    }
                }
            }
        }
    }

    type Found = (StateFound, RingFound, SavedFound, ActivityFound, SourceFound, AttachPolicy);

    fn check(found: Found, decision: Decision) {
        let (state, ring, saved, activity, source, policy) = found;
        let ctx = format!("{found:?} -> {decision:?}");
        assert_eq!(decision == Decision::Create, state == StateFound::Absent, "{ctx}");
        if state == StateFound::Absent {
            return;
        }
        assert_eq!(matches!(decision, Decision::Refuse(_)), ring == RingFound::Newer, "{ctx}");
        let continues =
            matches!(decision, Decision::UseRing | Decision::RestoreSaved | Decision::CompareHot);
        if continues {
            assert_ne!(policy, AttachPolicy::Resync, "{ctx}");
            let vouched = policy == AttachPolicy::Trust;
            assert!(source != SourceFound::Changed || vouched, "{ctx}");
        }
        if decision == Decision::UseRing {
            assert_eq!(ring, RingFound::Intact, "{ctx}");
        }
        if decision == Decision::RestoreSaved {
            assert!(ring != RingFound::Intact && saved == SavedFound::Valid, "{ctx}");
            assert!(source == SourceFound::Same || policy == AttachPolicy::Trust, "{ctx}");
        }
        if decision == Decision::CompareHot {
            assert!(ring != RingFound::Intact && saved != SavedFound::Valid, "{ctx}");
            assert_eq!(activity, ActivityFound::Sound, "{ctx}");
            assert!(source == SourceFound::Same || policy == AttachPolicy::Trust, "{ctx}");
        }
        // Never start over without need: an intact ring under an unchanged source goes on.
        let sound = ring == RingFound::Intact && source == SourceFound::Same;
        if sound && policy != AttachPolicy::Resync {
            assert_eq!(decision, Decision::UseRing, "{ctx}");
        }
    }
}
