//! Everything the decision at start depends on: gathered, not judged.

use super::*;
use crate::activity::file::{ACTIVITY_MAGIC, ACTIVITY_VERSION};
use crate::saved::{SAVED_MAGIC, SAVED_VERSION};
use crate::sys::Use;
use std::io::Read;

/// How much later than the last journaled change a source may claim to have been
/// changed before it counts as changed by somebody else: file stamps are taken
/// when a write ends, ours when it begins, and a write may wait for a slow disk.
const STAMP_SLACK_NS: i128 = 2_000_000_000;

pub(crate) fn check_volumes(state: &GroupState, sources: &[Source]) -> Result<()> {
    let known: Vec<_> = state.volumes.iter().map(|v| (&v.name, v.size_bytes)).collect();
    let given: Vec<_> = sources.iter().map(|s| (&s.name, s.disk.size_bytes())).collect();
    if known == given {
        return Ok(());
    }
    let list = |volumes: &[(&VolumeName, u64)]| {
        volumes.iter().map(|(n, b)| format!("{n} ({b} bytes)")).collect::<Vec<_>>().join(", ")
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "group {} was made of {}, not of {}: volumes cannot be added, removed, renamed or \
             resized yet; give the same ones, or another --state directory for a new group",
            state.group,
            list(&known),
            list(&given)
        ),
    ))
}

/// Everything the decision depends on.
pub(crate) struct Found {
    pub(crate) ring: Option<(Ring, File)>,
    pub(crate) ring_found: RingFound,
    pub(crate) saved: Option<Saved>,
    pub(crate) saved_found: SavedFound,
    pub(crate) activity: Option<activity::Found>,
    pub(crate) activity_found: ActivityFound,
    pub(crate) scanned: Scanned,
    pub(crate) spill_found: SpillFound,
    pub(crate) source: SourceFound,
}

impl Found {
    pub(crate) fn gather(
        dir: &GroupDir,
        state: Option<&GroupState>,
        options: &Options,
        spill: &Store,
    ) -> Result<Found> {
        let mut found = Found {
            ring: None,
            ring_found: RingFound::Absent,
            saved: None,
            saved_found: SavedFound::Absent,
            activity: None,
            activity_found: ActivityFound::Unusable,
            scanned: Scanned::default(),
            spill_found: SpillFound::Nothing,
            source: SourceFound::Same,
        };
        let uuid = state.map_or([0; 16], |state| state.group_uuid.0);
        found.scanned = spill::scan(spill, &uuid);
        if let Some(path) = &found.scanned.newer {
            tracing::error!("{path} was written by a newer Towline");
            found.spill_found = SpillFound::Newer;
        }
        if is_newer(&dir.saved_path(), &SAVED_MAGIC, SAVED_VERSION) {
            found.saved_found = SavedFound::Newer;
        }
        if is_newer(&dir.activity_path(), &ACTIVITY_MAGIC, ACTIVITY_VERSION) {
            found.activity_found = ActivityFound::Newer;
        }
        let Some(state) = state else { return Ok(found) };
        match OpenOptions::new().read(true).write(true).open(&state.ring.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => found.ring_found = RingFound::Unusable,
            Ok(file) => match Ring::open(&file, Use::Write) {
                Ok(ring)
                    if ring.superblock.ring_id == state.ring.id.0
                        && ring.superblock.group_uuid == state.group_uuid.0
                        // A ring directory on disk: what came through a boot is not
                        // what was in memory.
                        && ring.superblock.boot_id == boot_id() =>
                {
                    found.ring_found = RingFound::Intact;
                    found.ring = Some((ring, file));
                }
                Ok(_) => found.ring_found = RingFound::Unusable,
                Err(e) if e.kind() == ErrorKind::Newer => found.ring_found = RingFound::Newer,
                Err(e) => {
                    tracing::error!(ring = %state.ring.path.display(), "{e}");
                    found.ring_found = RingFound::Unusable;
                }
            },
        }
        if found.spill_found != SpillFound::Newer {
            found.spill_found = found.spill(state);
        }
        if found.saved_found != SavedFound::Newer {
            found.find_saved(dir, state);
        }
        if found.activity_found != ActivityFound::Newer {
            let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
            let (uuid, incarnation) = (state.group_uuid.0, state.incarnation);
            found.activity = activity::find(&dir.activity_path(), uuid, incarnation, &sizes)?;
            if found.activity.is_some() {
                found.activity_found = ActivityFound::Sound;
            }
        }
        found.source = sources_found(state, found.ring.as_ref().map(|(r, _)| r), &options.sources)?;
        Ok(found)
    }

    fn find_saved(&mut self, dir: &GroupDir, state: &GroupState) {
        match Saved::load(&dir.saved_path()) {
            Ok(None) => {}
            Ok(Some(saved))
                if state.stopped.is_some()
                    && saved.group_uuid == state.group_uuid.0
                    && saved.ring_id == state.ring.id.0 =>
            {
                self.saved_found = SavedFound::Valid;
                self.saved = Some(saved);
            }
            Ok(Some(_)) => self.saved_found = SavedFound::Unusable,
            Err(e) => {
                tracing::error!("{e}");
                self.saved_found = SavedFound::Unusable;
            }
        }
    }

    fn spill(&self, state: &GroupState) -> SpillFound {
        let ring_id = &state.ring.id.0;
        if let Some((ring, _)) = &self.ring {
            let (acked, spilled) = (ring.get(Counter::Acked), ring.get(Counter::Spilled));
            if !self.scanned.covers(ring_id, acked, spilled) {
                return SpillFound::Holed;
            }
        }
        match self.scanned.runs(ring_id).is_empty() {
            true => SpillFound::Nothing,
            false => SpillFound::Sound,
        }
    }

    /// For the table.
    pub(crate) fn findings(&self, is_known: bool, policy: AttachPolicy) -> Findings {
        Findings {
            state: if is_known { StateFound::Present } else { StateFound::Absent },
            ring: self.ring_found,
            saved: self.saved_found,
            activity: self.activity_found,
            spill: self.spill_found,
            source: self.source,
            policy,
        }
    }
}

/// Whether the file is one of ours and of a later version: all begin with eight bytes that
/// name them and a version of four.
fn is_newer(path: &Path, magic: &[u8; 8], known: u32) -> bool {
    let mut head = [0; 12];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    let (name, version) = head.split_at(8);
    let version = version.try_into().map_or(0, u32::from_le_bytes);
    read.is_ok() && name == magic && version > known
}

pub(crate) fn sources_found(
    state: &GroupState,
    ring: Option<&Ring>,
    sources: &[Source],
) -> Result<SourceFound> {
    let mut result = SourceFound::Same;
    for (index, (source, known)) in sources.iter().zip(&state.volumes).enumerate() {
        if source.disk.identity()? != known.identity {
            tracing::warn!(volume = %source.name, "the source is another disk than before");
            return Ok(SourceFound::Changed);
        }
        let Some(now) = source.disk.stamp()? else {
            result = SourceFound::Unknown;
            continue;
        };
        let changed = match (&state.stopped, ring) {
            (Some(stopped), _) => stopped.stamps.get(index).copied().flatten() != Some(now),
            (None, Some(ring)) => is_later_than_journal(now, ring),
            // The ring went with its boot: since then nobody may have written.
            (None, None) if state.ring.boot_id.0 != boot_id() => {
                boot_unix_ns().is_none_or(|boot| now.modified_ns > boot + STAMP_SLACK_NS)
            }
            (None, None) => {
                result = SourceFound::Unknown;
                continue;
            }
        };
        if changed {
            tracing::warn!(volume = %source.name, "the source was changed while no proxy ran");
            return Ok(SourceFound::Changed);
        }
    }
    Ok(result)
}

pub(crate) fn is_later_than_journal(stamp: Stamp, ring: &Ring) -> bool {
    let last = ring.get(Counter::LastChangeNs).max(ring.superblock.created_unix_ns.get());
    stamp.modified_ns > i128::from(last) + STAMP_SLACK_NS
}
