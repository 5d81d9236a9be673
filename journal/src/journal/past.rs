//! The history: what the spill has of the incarnation before this one, whose ring was
//! lost. A target that stands in it gets these records first (docs/design/0004).
//!
//! It counts until a target durably has the first record of this incarnation. Until then
//! its segments are kept, nothing heals, and no extent goes cold.

use super::*;
use crate::activity::extents_of;
use crate::resume::History;
use crate::spill::{Run, Touched};

/// The state directory is new or was lost: rings that a former group of this name left hold
/// memory until somebody removes them. They may also be another state directory's.
pub(crate) fn tell_of_left_rings(options: &Options) {
    let prefix = format!("towline-{}-", options.group);
    let Ok(entries) = std::fs::read_dir(&options.ring_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ring = name.to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(|id| {
            id.strip_suffix(".ring").is_some_and(|id| id.chars().all(|c| c.is_ascii_hexdigit()))
        });
        if is_ring {
            tracing::warn!(
                ring = %entry.path().display(),
                "a group of this name with another state directory has, or had, its ring here: if \
                 nobody needs it, remove it"
            );
        }
    }
}

/// What was found of a lost ring when the next incarnation began.
pub(crate) struct Past {
    pub(crate) ring: PastRing,
    pub(crate) runs: Vec<Run>,
    /// Blocks of all its records.
    pub(crate) touched: Vec<Touched>,
}

impl Past {
    /// Of the ring that `state` names; `None` when the spill has nothing of it.
    pub(crate) fn of(state: &GroupState, scanned: &Scanned) -> Option<Past> {
        let ring = PastRing { incarnation: state.incarnation, ring_id: state.ring.id };
        let runs = scanned.runs(&ring.ring_id.0);
        let touched = scanned.touched(&ring.ring_id.0);
        (!runs.is_empty()).then_some(Past { ring, runs, touched })
    }

    /// The least position of a target for which everything is right outside the hot
    /// extents, once those that the history touches are hot as well.
    pub(crate) fn base_before(&self, base: Base) -> Base {
        let run = self.runs.iter().find(|run| run.holds(base.seq));
        match run.filter(|_| base.incarnation == self.ring.incarnation) {
            Some(run) => Base { seq: run.first - 1, ..base },
            None => base,
        }
    }
}

impl Journal {
    /// What a target of the incarnation before can be given, while that counts.
    pub(crate) fn history(&self) -> Option<History> {
        self.history.lock().expect("history lock").as_ref().map(|(_, history)| history.clone())
    }

    pub(crate) fn history_ring(&self) -> Option<PastRing> {
        self.history.lock().expect("history lock").as_ref().map(|(ring, _)| *ring)
    }

    /// A target has passed it, or will never need it.
    pub(crate) fn end_history(&self) {
        let ended = self.history.lock().expect("history lock").take();
        if let Some((ring, _)) = ended
            && let Some(spill) = &self.spill
        {
            spill.free_history();
            spill.publish(&self.ring);
            tracing::info!(
                group = %self.group, incarnation = ring.incarnation,
                "the target has passed what the spill had of the lost ring"
            );
        }
    }

    /// A target that says it has all up to where it stands lacks these blocks (volume,
    /// first block, count) all the same: they are sent, behind a BREAK.
    pub fn target_lacks(&self, runs: &[(u16, u64, u64)]) {
        let known = |&(volume, first, count): &(u16, u64, u64)| {
            let size = self.sources.get(usize::from(volume))?.disk.size_bytes();
            let end = first.saturating_add(count).min(BlockRange::of_volume(size).count);
            (first < end).then(|| (VolumeId(volume), BlockRange::new(first, end - first), size))
        };
        let runs: Vec<_> = runs.iter().filter_map(known).collect();
        let extents: Vec<_> = runs
            .iter()
            .flat_map(|(volume, blocks, size)| {
                extents_of(volume.index(), blocks.extent(*size), *size)
            })
            .collect();
        // R7: what is dirty is hot, durably. No guest waits for this.
        if let Err(e) = self.activity.heat_now(&extents) {
            tracing::error!("{e}: a power loss before these blocks are sent may go unnoticed");
        }
        let mut cursor = self.lock_cursor();
        for (volume, blocks, _) in &runs {
            // It is known to differ.
            VolumeMap::new(&self.ring, *volume).clear(Bits::Suspect, *blocks);
            self.make_dirty(&mut cursor, *volume, *blocks);
        }
        drop(cursor);
        let blocks: u64 = runs.iter().map(|(_, blocks, _)| blocks.count).sum();
        tracing::warn!(group = %self.group, blocks, "the target lacks blocks: they are sent");
    }

    /// The history cannot be read from record `seq` on: what the rest of it may have
    /// touched is compared. The stream goes on with this incarnation's first record.
    pub fn history_damaged(&self, seq: u64) {
        if self.history_ring().is_none() {
            return;
        }
        let touched = self.spill.as_ref().map_or_else(Vec::new, |s| s.history_touches(seq));
        let mut cursor = self.lock_cursor();
        for range in &touched {
            if range.volume.index() >= self.sources.len() {
                continue;
            }
            let map = VolumeMap::new(&self.ring, range.volume);
            let end = range.range().end().min(map.all().count);
            let blocks = BlockRange::new(range.first_block, end.saturating_sub(range.first_block));
            map.set(Bits::Suspect, blocks);
            self.make_dirty(&mut cursor, range.volume, blocks);
        }
        drop(cursor);
        tracing::error!(
            group = %self.group, seq, ranges = touched.len(),
            "what the spill has of the lost ring ends here: what the rest touched is compared"
        );
    }
}
