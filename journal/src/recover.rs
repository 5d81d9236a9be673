//! What to do at start: one total, pure table over what is found. The caller
//! gathers the findings, this module decides, `journal.rs` carries it out.

const ASKED_FOR: &str = "the operator asked for it (--attach resync)";
const SOURCE_CHANGED: &str =
    "a source was changed or replaced while no proxy ran (--attach trust overrules this)";
const SOURCE_UNKNOWN: &str = "the ring is lost, and nothing tells whether a source was changed while no proxy ran (--attach \
     trust overrules this)";
const ALL_LOST: &str = "the ring is lost (power loss?), and with it what was active";
/// Found only when the slots are looked at, behind this table.
pub(crate) const RECORD_DAMAGED: &str = "a record in the ring is damaged";

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
    /// Written by a newer Towline.
    Newer,
}

/// What the activity map can say after the ring is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityFound {
    /// Of this incarnation, sound: exactly its hot extents may differ.
    Sound,
    Unusable,
    /// Written by a newer Towline.
    Newer,
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

impl Decision {
    /// What the operator is told: the words that `docs/OPERATIONS.md` explains.
    pub fn sentence(&self) -> String {
        match self {
            Decision::Create => "new group: everything will be sent".into(),
            Decision::UseRing => "the journal goes on".into(),
            Decision::UseRingCompareAll => {
                "part of the spill is lost or damaged: everything will be compared with the target"
                    .into()
            }
            Decision::RestoreSaved => "the journal is restored from the orderly stop".into(),
            Decision::CompareHot { .. } => {
                "the ring is lost: what was active then will be compared with the target".into()
            }
            Decision::Restart { why, .. } => {
                format!("everything will be compared with the target: {why}")
            }
            Decision::Refuse(why) => format!("the group is left untouched: {why}"),
        }
    }
}

/// The table of `docs/formats/recovery.md`, whose rows a test compares with this.
pub fn decide(found: &Findings) -> Decision {
    if let Some(why) = newer(found) {
        return Decision::Refuse(why);
    }
    if found.state == StateFound::Absent {
        return Decision::Create;
    }
    let restart = |why| {
        // The operator who wants everything sent again gets just that.
        let wanted = found.policy != AttachPolicy::Resync;
        Decision::Restart { why, history: wanted && found.spill == SpillFound::Sound }
    };
    if found.policy == AttachPolicy::Resync {
        return restart(ASKED_FOR);
    }
    if found.source == SourceFound::Changed && found.policy != AttachPolicy::Trust {
        return restart(SOURCE_CHANGED);
    }
    if found.ring == RingFound::Intact {
        return match found.spill {
            SpillFound::Holed => Decision::UseRingCompareAll,
            _ => Decision::UseRing,
        };
    }
    if found.source == SourceFound::Unknown && found.policy == AttachPolicy::Auto {
        return restart(SOURCE_UNKNOWN);
    }
    // The saved map is exact, and as new as the spill.
    if found.saved == SavedFound::Valid {
        return Decision::RestoreSaved;
    }
    match found.activity {
        ActivityFound::Sound => Decision::CompareHot { history: found.spill == SpillFound::Sound },
        _ => restart(ALL_LOST),
    }
}

/// A file of a newer format: nothing of the group is touched, whatever else is found.
fn newer(found: &Findings) -> Option<&'static str> {
    let rows = [
        (
            found.spill == SpillFound::Newer,
            "its spill was written by a newer Towline: use that one",
        ),
        (
            found.saved == SavedFound::Newer,
            "saved.map was written by a newer Towline: use that one",
        ),
        (
            found.activity == ActivityFound::Newer,
            "activity.map was written by a newer Towline: use that one",
        ),
        (
            found.state == StateFound::Present && found.ring == RingFound::Newer,
            "its ring was written by a newer Towline: use that one",
        ),
    ];
    rows.into_iter().find_map(|(is_newer, why)| is_newer.then_some(why))
}

#[cfg(test)]
mod tests;
