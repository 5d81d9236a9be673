//! Applying batches to the targets, in order, a group at a time:
//! pre-images durable (while there is a mark) -> all targets written -> all targets
//! flushed -> `applied` durable -> spent staging removed.
//!
//! A crash anywhere before `applied` is durable repeats the whole group, from staging,
//! or, before the first point, from the shipper, who was not told that it is here:
//! writes in order are idempotent.

use super::gather::{Gather, Room};
use super::handover::{Handover, Ready};
use super::marks::{Mark, MarkKind, Marks, unix_ns};
use super::medium::{Medium, Target};
use super::staging::Reader;
use super::state::Books;
use super::stream::Stream;
use crate::batch::{Batch, BatchView, Keyring, Op};
use crate::error::{Error, Result};
use crate::wire::{Compared, Differing};
use std::sync::Arc;
use std::time::Duration;
use towline_block::VolumeId;

/// Batches applied under one flush of all targets: enough to make flushing
/// cheap, little enough to hold in memory while a failing disk is retried.
pub const GROUP_BYTES_MAX: usize = 32 << 20;

/// How long a clone's wish waits until everything durable is applied.
const GRANT_WITHIN: Duration = Duration::from_secs(2);

pub struct Apply {
    pub targets: Vec<Target>,
    pub marks: Marks,
    books: Arc<Books>,
    reader: Reader,
    /// What the clerk has opened already.
    pub handover: Handover,
    medium: Medium,
    keys: Keyring,
    applied: Stream,
    /// Not yet applied: kept over failures.
    group: Vec<Ready>,
    /// Belongs to the group after.
    peeked: Option<Ready>,
    /// Verdicts of the group that was applied last.
    compared: Vec<Compared>,
    room: Room,
    /// The targets hold `applied` and nothing of what follows it.
    is_exact: bool,
    /// Since when a clone asks for a mark, by the target's clock.
    wanted_since: Option<u64>,
}

impl Apply {
    pub fn new(
        targets: Vec<Target>,
        marks: Marks,
        books: Arc<Books>,
        reader: Reader,
        medium: Medium,
        keys: Keyring,
    ) -> Apply {
        let applied = books.get().applied;
        let (group, peeked) = (Vec::new(), None);
        // A former process may have ended in the middle of a group.
        let (compared, is_exact) = (Vec::new(), false);
        let handover = Handover::default();
        Apply {
            targets,
            marks,
            books,
            reader,
            handover,
            medium,
            keys,
            applied,
            group,
            peeked,
            compared,
            room: Room::default(),
            is_exact,
            wanted_since: None,
        }
    }

    /// What the targets hold.
    pub fn applied(&self) -> &Stream {
        &self.applied
    }

    /// Forgets what was admitted and is neither applied nor staged: its sender is gone.
    /// What of it was written stays, and comes again: before the first point nobody
    /// may look at the targets yet.
    pub fn drop_unstaged(&mut self) {
        self.handover.clear();
        if self.group.iter().chain(&self.peeked).any(|ready| !ready.is_staged) {
            self.group.clear();
            self.peeked = None;
        }
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
        self.targets.iter().for_each(|target| target.disk.start_over());
        self.is_exact |= self.group.is_empty();
        self.grant_wanted()?;
        let Some(last) = self.group.last().map(|next| next.after.clone()) else {
            return Ok(None);
        };
        self.protect(&last)?;
        self.is_exact = false;
        self.write()?;
        self.targets.iter().try_for_each(Target::sync)?;
        let now = unix_ns();
        let mark = self.mark_due(&last, now);
        let prepared = mark.map(|mark| self.marks.prepare(mark)).transpose()?;
        let durable = self.marks.durable();
        self.books.update(|state| {
            state.applied = last.clone();
            state.marks_durable = durable;
            state.last_error = None;
        })?;
        prepared.into_iter().for_each(|prepared| self.marks.commit(prepared));
        self.applied = last.clone();
        self.group.clear();
        self.is_exact = true;
        self.marks.prune(&last, now)?;
        self.reader.remove_applied(&self.medium, last.number)?;
        Ok(Some(last))
    }

    /// Makes the mark that a clone asks for: once everything durable is applied, or where the targets
    /// stand when that does not come to be.
    fn grant_wanted(&mut self) -> Result<()> {
        if !self.is_exact || !self.marks.is_wanted() {
            return Ok(());
        }
        let now = unix_ns();
        let since = *self.wanted_since.get_or_insert(now);
        if self.group.is_empty() || u128::from(now.saturating_sub(since)) > GRANT_WITHIN.as_nanos()
        {
            self.marks.grant(&self.applied)?;
            self.wanted_since = None;
        }
        Ok(())
    }

    /// The mark that is made where this group ends.
    fn mark_due(&self, last: &Stream, now: u64) -> Option<Mark> {
        if !last.whole {
            return None;
        }
        let named = self.group.last().and_then(|next| next.mark.clone()).map(MarkKind::Named);
        let due = self.marks.is_due(last.number, now).then_some(MarkKind::Periodic);
        let stream = Stream { sealed: None, ..last.clone() };
        named.or(due).map(|kind| Mark { kind, unix_ns: now, stream })
    }

    /// Reads the next group. It ends where the group's wholeness changes, so that
    /// saving pre-images begins and ends between groups, and at a mark.
    fn collect(&mut self) -> Result<()> {
        let mut bytes: usize = self.group.iter().map(|next| next.batch.memory_bytes()).sum();
        if self.group.last().is_some_and(|next| next.mark.is_some()) {
            return Ok(());
        }
        while bytes < GROUP_BYTES_MAX {
            let Some(next) = self.peek()? else { break };
            let before = self.group.last().map_or(&self.applied, |last| &last.after);
            if !self.group.is_empty() && before.whole != next.after.whole {
                self.peeked = Some(next);
                break;
            }
            bytes += next.batch.memory_bytes();
            let is_mark = next.mark.is_some();
            self.group.push(next);
            if is_mark {
                break;
            }
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<Ready>> {
        if let Some(next) = self.peeked.take() {
            return Ok(Some(next));
        }
        let before = self.group.last().map_or(&self.applied, |last| &last.after);
        if let Some(ready) = self.handover.take(before.number + 1) {
            if ready.is_staged {
                self.reader.pass(ready.batch.bytes().len() as u64);
            }
            return Ok(Some(ready));
        }
        let Some(bytes) = self.reader.next()? else { return Ok(None) };
        let batch = Batch::open(bytes, &self.keys)?;
        let view = batch.view();
        let after = before.follow(view.group(), &view).map_err(|refusal| {
            Error::damaged(format!("staging is out of order: {}", refusal.message))
        })?;
        Ok(Some(Ready::staged(batch, after)))
    }

    /// While the group is broken and has a point, or becomes so or whole again in
    /// this group, and while a mark is kept: what will be overwritten is saved first.
    fn protect(&mut self, last: &Stream) -> Result<()> {
        let breaks = self.applied.point.is_some() && !(self.applied.whole && last.whole);
        if breaks {
            self.marks.hold(&self.applied)?;
        }
        if !self.marks.is_recording() {
            return Ok(());
        }
        let mut ranges = Vec::new();
        for next in &self.group {
            ranges.extend(next.batch.view().ops().filter_map(|entry| entry.op.touches()));
        }
        self.marks.save(&self.targets, &ranges, &self.applied, breaks)
    }

    fn write(&mut self) -> Result<()> {
        let mut gather = Gather::new(&mut self.room);
        let mut verdicts = Vec::new();
        for next in &self.group {
            let view = next.batch.view();
            let mut verdict = None;
            for entry in view.ops() {
                if let Op::Write { volume, offset, payload } = entry.op {
                    gather.put(volume, target(&self.targets, volume)?, offset, payload)?;
                    continue;
                }
                gather.finish()?;
                match entry.op {
                    Op::Zero { volume, extent, keep_allocated } => {
                        target(&self.targets, volume)?.zero(extent, keep_allocated)?;
                    }
                    Op::Trim { volume, extent } => {
                        target(&self.targets, volume)?.zero(extent, false)?;
                    }
                    Op::Compare { volume, extent, digest } => {
                        let verdict = verdict.get_or_insert_with(|| Compared {
                            number: view.number(),
                            claim: view.claim_id().unwrap_or_default(),
                            differs: Vec::new(),
                        });
                        if !target(&self.targets, volume)?.has_digest(extent, digest)? {
                            let (offset, len) = (extent.offset, extent.len);
                            verdict.differs.push(Differing { volume: volume.0, offset, len });
                        }
                    }
                    Op::Write { .. } | Op::Barrier | Op::Mark { .. } | Op::Control { .. } => {}
                }
            }
            verdicts.extend(verdict);
        }
        gather.finish()?;
        self.compared = verdicts;
        Ok(())
    }
}

fn target(targets: &[Target], volume: VolumeId) -> Result<&Target> {
    targets.get(volume.index()).ok_or_else(|| {
        Error::damaged(format!("a batch names volume {volume}, the group has fewer"))
    })
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
