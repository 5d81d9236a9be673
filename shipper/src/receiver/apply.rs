//! Applying durable batches to the targets, in order, a group at a time:
//! pre-images durable (while broken) -> all targets written -> all targets
//! flushed -> `applied` durable -> spent staging removed.
//!
//! A crash anywhere before `applied` is durable repeats the whole group from
//! staging: writes in order are idempotent.

use super::medium::{Medium, Target};
use super::staging::Reader;
use super::state::Books;
use super::stream::Stream;
use super::undo::Undo;
use crate::batch::{BatchView, Op};
use crate::error::{Error, Result};
use crate::wire::{Compared, Differing};
use std::sync::Arc;
use towline_block::VolumeId;

/// Batches applied under one flush of all targets: enough to make flushing
/// cheap, little enough to hold in memory while a failing disk is retried.
pub const GROUP_BYTES_MAX: usize = 32 << 20;

/// A batch from staging and the stream after it.
struct Next {
    bytes: Vec<u8>,
    after: Stream,
}

pub struct Apply {
    pub targets: Vec<Target>,
    pub undo: Undo,
    books: Arc<Books>,
    reader: Reader,
    medium: Medium,
    applied: Stream,
    /// Read from staging, not yet applied: kept over failures.
    group: Vec<Next>,
    /// Read from staging, belongs to the group after.
    peeked: Option<Next>,
    /// Verdicts of the group that was applied last.
    compared: Vec<Compared>,
}

impl Apply {
    pub fn new(
        targets: Vec<Target>,
        undo: Undo,
        books: Arc<Books>,
        reader: Reader,
        medium: Medium,
    ) -> Apply {
        let applied = books.get().applied;
        let (group, peeked) = (Vec::new(), None);
        let compared = Vec::new();
        Apply { targets, undo, books, reader, medium, applied, group, peeked, compared }
    }

    /// What the targets hold.
    pub fn applied(&self) -> &Stream {
        &self.applied
    }

    /// Verdicts on what was compared in the last step. Worth telling only once that
    /// step succeeded.
    pub fn take_compared(&mut self) -> Vec<Compared> {
        std::mem::take(&mut self.compared)
    }

    /// Applies the next group; `None` when nothing more is durable. After an
    /// error the same group is tried again by the next call.
    pub fn step(&mut self) -> Result<Option<Stream>> {
        self.collect()?;
        let Some(last) = self.group.last().map(|next| next.after.clone()) else {
            return Ok(None);
        };
        self.protect(&last)?;
        self.write()?;
        self.targets.iter().try_for_each(Target::sync)?;
        self.books.update(|state| {
            state.applied = last.clone();
            state.last_error = None;
        })?;
        self.applied = last.clone();
        self.group.clear();
        if last.whole {
            self.undo.discard()?;
        }
        self.reader.remove_applied(&self.medium, last.number)?;
        Ok(Some(last))
    }

    /// Reads the next group. It ends where the group's wholeness changes, so that
    /// saving pre-images begins and ends between groups.
    fn collect(&mut self) -> Result<()> {
        let mut bytes: usize = self.group.iter().map(|next| next.bytes.len()).sum();
        while bytes < GROUP_BYTES_MAX {
            let Some(next) = self.peek()? else { break };
            let before = self.group.last().map_or(&self.applied, |last| &last.after);
            if !self.group.is_empty() && before.whole != next.after.whole {
                self.peeked = Some(next);
                break;
            }
            bytes += next.bytes.len();
            self.group.push(next);
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<Next>> {
        if let Some(next) = self.peeked.take() {
            return Ok(Some(next));
        }
        let Some(bytes) = self.reader.next()? else { return Ok(None) };
        let before = self.group.last().map_or(&self.applied, |last| &last.after);
        let view = BatchView::parse(&bytes)?;
        let after = before.follow(view.group(), &view).map_err(|refusal| {
            Error::damaged(format!("staging is out of order: {}", refusal.message))
        })?;
        Ok(Some(Next { bytes, after }))
    }

    /// While the group is broken and has a point, or becomes so or whole again in
    /// this group: what will be overwritten is saved first.
    fn protect(&mut self, last: &Stream) -> Result<()> {
        let Some(point) = self.applied.point else { return Ok(()) };
        if self.applied.whole && last.whole {
            return Ok(());
        }
        self.undo.begin(point)?;
        let mut ranges = Vec::new();
        for next in &self.group {
            let view = BatchView::parse(&next.bytes)?;
            ranges.extend(view.ops().filter_map(|entry| entry.op.touches()));
        }
        self.undo.save(&self.targets, &ranges)
    }

    fn write(&mut self) -> Result<()> {
        self.compared.clear();
        let mut verdicts = Vec::new();
        for next in &self.group {
            let view = BatchView::parse(&next.bytes)?;
            let mut verdict = None;
            for entry in view.ops() {
                let Op::Compare { volume, extent, digest } = entry.op else {
                    self.write_op(entry.op)?;
                    continue;
                };
                let verdict = verdict.get_or_insert_with(|| Compared {
                    number: view.number(),
                    claim: view.claim_id().unwrap_or_default(),
                    differs: Vec::new(),
                });
                if !self.target(volume)?.has_digest(extent, digest)? {
                    let (offset, len) = (extent.offset, extent.len);
                    verdict.differs.push(Differing { volume: volume.0, offset, len });
                }
            }
            verdicts.extend(verdict);
        }
        self.compared = verdicts;
        Ok(())
    }

    fn write_op(&self, op: Op<'_>) -> Result<()> {
        match op {
            Op::Write { volume, offset, payload } => self.target(volume)?.write(offset, payload),
            Op::Zero { volume, extent, keep_allocated } => {
                self.target(volume)?.zero(extent, keep_allocated)
            }
            Op::Trim { volume, extent } => self.target(volume)?.zero(extent, false),
            Op::Compare { .. } | Op::Barrier | Op::Mark { .. } | Op::Control { .. } => Ok(()),
        }
    }

    fn target(&self, volume: VolumeId) -> Result<&Target> {
        self.targets.get(volume.index()).ok_or_else(|| {
            Error::damaged(format!("a batch names volume {volume}, the group has fewer"))
        })
    }
}

/// Whether every operation lies inside the volumes of these sizes.
pub fn check_bounds(batch: &BatchView<'_>, sizes: &[u64]) -> Result<()> {
    for (volume, extent) in batch.ops().filter_map(|entry| entry.op.range()) {
        let size = sizes.get(volume.index()).copied().unwrap_or(0);
        if !extent.within(size) {
            return Err(Error::damaged(format!(
                "batch {}: {} bytes at {} of volume {volume} are outside its {size} bytes",
                batch.number(),
                extent.len,
                extent.offset
            )));
        }
    }
    Ok(())
}
