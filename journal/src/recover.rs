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

/// What the spill shows of the ring that `state.json` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillFound {
    /// Nothing, and nothing is needed of it.
    Nothing,
    /// Records, and with an intact ring all that it relies on.
    Sound,
    /// The ring is intact, and records that it relies on are missing or damaged.
    Holed,
    /// A segment was written by a newer Towline.
    Newer,
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

/// Everything the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findings {
    pub state: StateFound,
    pub ring: RingFound,
    pub saved: SavedFound,
    pub activity: ActivityFound,
    pub spill: SpillFound,
    pub source: SourceFound,
    pub policy: AttachPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// First start: a new group, everything dirty.
    Create,
    /// Same incarnation: scan the slots, close what was left open.
    UseRing,
    /// The same, but records that only the spill had are lost: everything is compared.
    UseRingCompareAll,
    /// New incarnation whose change map is the saved one.
    RestoreSaved,
    /// New incarnation; what was active when the ring was lost is compared. With
    /// `history`, a target that can first gets what the spill has of the last one.
    CompareHot { history: bool },
    /// New incarnation, everything dirty; the reason is for the operator.
    Restart { why: &'static str, history: bool },
    /// Touch nothing; the reason is for the operator.
    Refuse(&'static str),
}

pub fn decide(found: &Findings) -> Decision {
    if found.spill == SpillFound::Newer {
        return Decision::Refuse("its spill was written by a newer Towline: use that one");
    }
    if found.state == StateFound::Absent {
        return Decision::Create;
    }
    if found.ring == RingFound::Newer {
        return Decision::Refuse("its ring was written by a newer Towline: use that one");
    }
    let restart = |why| {
        // The operator who wants everything sent again gets just that.
        let wanted = found.policy != AttachPolicy::Resync;
        Decision::Restart { why, history: wanted && found.spill == SpillFound::Sound }
    };
    if found.policy == AttachPolicy::Resync {
        return restart("the operator asked for it (--attach resync)");
    }
    if found.source == SourceFound::Changed && found.policy != AttachPolicy::Trust {
        return restart(
            "a source was changed or replaced while no proxy ran (--attach trust overrules this)",
        );
    }
    if found.ring == RingFound::Intact {
        return match found.spill {
            SpillFound::Holed => Decision::UseRingCompareAll,
            _ => Decision::UseRing,
        };
    }
    if found.source == SourceFound::Unknown && found.policy == AttachPolicy::Auto {
        return restart(
            "the ring is lost, and nothing tells whether a source was changed while no proxy ran \
             (--attach trust overrules this)",
        );
    }
    // The saved map is exact, and as new as the spill.
    if found.saved == SavedFound::Valid {
        return Decision::RestoreSaved;
    }
    match found.activity {
        ActivityFound::Sound => Decision::CompareHot { history: found.spill == SpillFound::Sound },
        _ => restart("the ring is lost (power loss?), and with it what was active"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [StateFound; 2] = [StateFound::Absent, StateFound::Present];
    const RINGS: [RingFound; 4] =
        [RingFound::Absent, RingFound::Intact, RingFound::Unusable, RingFound::Newer];
    const SAVED: [SavedFound; 3] = [SavedFound::Absent, SavedFound::Valid, SavedFound::Unusable];
    const ACTIVITIES: [ActivityFound; 2] = [ActivityFound::Sound, ActivityFound::Unusable];
    const SPILLS: [SpillFound; 4] =
        [SpillFound::Nothing, SpillFound::Sound, SpillFound::Holed, SpillFound::Newer];
    const SOURCES: [SourceFound; 3] =
        [SourceFound::Same, SourceFound::Unknown, SourceFound::Changed];
    const POLICIES: [AttachPolicy; 3] =
        [AttachPolicy::Auto, AttachPolicy::Trust, AttachPolicy::Resync];

    fn all() -> Vec<Findings> {
        let mut all = Vec::new();
        for state in STATES {
            for ring in RINGS {
                for saved in SAVED {
                    for activity in ACTIVITIES {
                        for spill in SPILLS {
                            for source in SOURCES {
                                let of = |policy| Findings {
                                    state,
                                    ring,
                                    saved,
                                    activity,
                                    spill,
                                    source,
                                    policy,
                                };
                                all.extend(POLICIES.map(of));
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// Walks all 1728 combinations and states what must hold, not what the code says.
    #[test]
    fn every_combination_keeps_the_promises() {
        let all = all();
        assert_eq!(all.len(), 2 * 4 * 3 * 2 * 4 * 3 * 3);
        for found in all {
            check(&found, decide(&found));
        }
    }

    fn check(found: &Findings, decision: Decision) {
        let ctx = format!("{found:?} -> {decision:?}");
        let Findings { state, ring, saved, activity, spill, source, policy } = *found;
        let newer = spill == SpillFound::Newer
            || (state == StateFound::Present && ring == RingFound::Newer);
        assert_eq!(matches!(decision, Decision::Refuse(_)), newer, "{ctx}");
        if newer {
            return;
        }
        assert_eq!(decision == Decision::Create, state == StateFound::Absent, "{ctx}");
        if state == StateFound::Absent {
            return;
        }
        let vouched = policy == AttachPolicy::Trust;
        if !matches!(decision, Decision::Restart { .. }) {
            assert_ne!(policy, AttachPolicy::Resync, "{ctx}");
            assert!(source != SourceFound::Changed || vouched, "{ctx}");
        }
        match decision {
            Decision::UseRing | Decision::UseRingCompareAll => {
                assert_eq!(ring, RingFound::Intact, "{ctx}");
                let holed = spill == SpillFound::Holed;
                assert_eq!(decision == Decision::UseRingCompareAll, holed, "{ctx}");
            }
            Decision::RestoreSaved | Decision::CompareHot { .. } => {
                assert_ne!(ring, RingFound::Intact, "{ctx}");
                assert!(source == SourceFound::Same || vouched, "{ctx}");
                let is_saved = saved == SavedFound::Valid;
                assert_eq!(decision == Decision::RestoreSaved, is_saved, "{ctx}");
                assert!(is_saved || activity == ActivityFound::Sound, "{ctx}");
            }
            _ => {}
        }
        // What lies on disk is shipped whenever the ring is given up, unless the operator
        // wants everything sent again, and only if it is there.
        if let Decision::CompareHot { history } | Decision::Restart { history, .. } = decision {
            let there = spill == SpillFound::Sound;
            assert_eq!(history, there && policy != AttachPolicy::Resync, "{ctx}");
        }
        // Never start over without need: an intact ring under an unchanged source goes on.
        let sound = ring == RingFound::Intact && source == SourceFound::Same;
        if sound && policy != AttachPolicy::Resync {
            let goes_on = matches!(decision, Decision::UseRing | Decision::UseRingCompareAll);
            assert!(goes_on, "{ctx}");
        }
    }
}
