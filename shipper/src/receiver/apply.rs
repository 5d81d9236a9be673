//! Applying batches to the targets, in order, a group at a time:
//! pre-images durable (while there is a mark) -> all targets written -> all targets
//! flushed -> `applied` durable -> spent staging removed.
//!
//! A crash anywhere before `applied` is durable repeats the whole group, from staging,
//! or, before the first point, from the shipper, who was not told that it is here:
//! writes in order are idempotent.

use super::gather::{Gather, Room};
use super::handover::{Handover, Ready};
use super::marks::{Ages, Mark, MarkKind, Marks, unix_ns};
use super::medium::{Medium, Target};
use super::scan::Scanner;
use super::staging::Reader;
use super::state::Books;
use super::stream::Stream;
use crate::batch::{Batch, BatchView, Keyring, Op};
use crate::error::{Error, Result};
use crate::wire::{Compared, Differing};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
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
    source: Source,
    medium: Medium,
    applied: Stream,
    /// Not yet applied: kept over failures.
    group: Vec<Ready>,
    /// Belongs to the groups after; a failure to read on is the last of it.
    ahead: VecDeque<Result<Ready>>,
    /// The last group was as large as one may be: more is waiting.
    was_full: bool,
    /// Of a group, and of what is read ahead of the next one.
    pub group_bytes_max: usize,
    /// Verdicts of the group that was applied last.
    compared: Vec<Compared>,
    room: Room,
    /// The targets hold `applied` and nothing of what follows it.
    is_exact: bool,
    ages: Ages,
    /// Since when a clone asks for a mark.
    wanted_since: Option<Instant>,
}

/// Where batches come from: what the clerk has opened already, else staging.
struct Source {
    reader: Reader,
    /// While staging is read for the first time after a start, in place of `reader`.
    scanner: Option<Scanner>,
    handover: Handover,
    keys: Keyring,
}

impl Source {
    /// The batch that follows `before`.
    fn next(&mut self, before: &Stream) -> Result<Option<Ready>> {
        if let Some(ready) = self.handover.take(before.number + 1) {
            if ready.is_staged {
                self.reader.pass(ready.batch.bytes().len() as u64);
            }
            return Ok(Some(ready));
        }
        self.next_staged(before)
    }

    fn next_staged(&mut self, before: &Stream) -> Result<Option<Ready>> {
        if let Some(scanner) = &mut self.scanner {
            let next = scanner.next()?;
            return match &next {
                Some(ready) if ready.after.number != before.number + 1 => {
                    Err(Error::damaged(format!(
                        "batch {} was read from staging where batch {} belongs: start the receiver again",
                        ready.after.number,
                        before.number + 1
                    )))
                }
                _ => Ok(next),
            };
        }
        let Some(bytes) = self.reader.next()? else { return Ok(None) };
        let batch = Batch::open(bytes, &self.keys)?;
        let view = batch.view();
        let after = before.follow(view.group(), &view).map_err(|refusal| {
            Error::damaged(format!("staging is out of order: {}", refusal.message))
        })?;
        Ok(Some(Ready::staged(batch, after)))
    }

    fn has_more_staged(&self) -> bool {
        match &self.scanner {
            Some(scanner) => !scanner.is_over(),
            None => self.reader.has_more(),
        }
    }

    /// What follows `before` and only staging has, up to a limit or the first failure.
    fn read_ahead(&mut self, mut before: Stream, bytes_max: usize) -> VecDeque<Result<Ready>> {
        let (mut ahead, mut bytes) = (VecDeque::new(), 0);
        while bytes < bytes_max && !self.handover.has(before.number + 1) {
            match self.next_staged(&before).transpose() {
                Some(Ok(ready)) => {
                    bytes += ready.batch.memory_bytes();
                    before = ready.after.clone();
                    ahead.push_back(Ok(ready));
                }
                Some(Err(error)) => {
                    ahead.push_back(Err(error));
                    break;
                }
                None => break,
            }
        }
        ahead
    }
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
        let (group, ahead) = (Vec::new(), VecDeque::new());
        // A former process may have ended in the middle of a group.
        let (compared, is_exact) = (Vec::new(), false);
        let source = Source { reader, scanner: None, handover: Handover::default(), keys };
        Apply {
            targets,
            marks,
            books,
            source,
            medium,
            applied,
            group,
            ahead,
            was_full: false,
            group_bytes_max: GROUP_BYTES_MAX,
            compared,
            room: Room::default(),
            is_exact,
            ages: Ages::new(Instant::now(), unix_ns()),
            wanted_since: None,
        }
    }

    /// What the targets hold.
    pub fn applied(&self) -> &Stream {
        &self.applied
    }

    /// What the clerk has opened, for the applier.
    pub fn handover(&self) -> &Handover {
        &self.source.handover
    }

    /// Takes batches from what finds them, until [`Apply::end_scan`] takes it back.
    pub fn scan(&mut self, scanner: Option<Scanner>) {
        self.source.scanner = scanner;
    }

    pub fn end_scan(&mut self) -> Option<Scanner> {
        self.source.scanner.take()
    }

    /// Reads staging from there on; what was taken before stays.
    pub fn read_from(&mut self, reader: Reader) {
        self.source.reader = reader;
    }

    /// What the targets hold is `applied` by definition: nothing of what was taken is.
    pub fn start_at(&mut self, applied: Stream) {
        self.group.clear();
        self.ahead.clear();
        self.applied = applied;
        self.is_exact = false;
    }

    /// More was waiting when the last group was made.
    pub fn is_behind(&self) -> bool {
        self.was_full || !self.ahead.is_empty()
    }

    /// Forgets what was admitted and is neither applied nor staged: its sender is gone.
    /// What of it was written stays, and comes again: before the first point nobody
    /// may look at the targets yet.
    pub fn drop_unstaged(&mut self) {
        self.source.handover.clear();
        let read = self.ahead.iter().filter_map(|read| read.as_ref().ok());
        if self.group.iter().chain(read).any(|ready| !ready.is_staged) {
            self.group.clear();
            self.ahead.clear();
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
        self.write_and_read_ahead(&last)?;
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
        self.group.drain(..).for_each(|ready| ready.batch.retire());
        self.is_exact = true;
        self.marks.prune(&last, self.ages.unix_ns(Instant::now(), now))?;
        self.remove_spent()?;
        Ok(Some(last))
    }

    /// Removes what is applied from staging.
    pub fn remove_spent(&mut self) -> Result<()> {
        self.source.reader.remove_applied(&self.medium, self.applied.number)
    }

    /// Writes the group and flushes all targets; meanwhile another thread reads and checks what
    /// comes after it, where that has to come from staging: as after a restart.
    fn write_and_read_ahead(&mut self, last: &Stream) -> Result<()> {
        let may_read = self.ahead.is_empty()
            && self.group.iter().all(|ready| ready.is_staged)
            && !self.source.handover.has(last.number + 1)
            && self.source.has_more_staged();
        let bytes_max = self.group_bytes_max;
        let Apply { targets, group, room, source, .. } = self;
        let mut write = || {
            let compared = write(targets, group, room)?;
            targets.iter().try_for_each(Target::sync)?;
            Result::Ok(compared)
        };
        self.compared = match may_read {
            false => write()?,
            true => {
                let (written, read) = std::thread::scope(|scope| {
                    let builder = std::thread::Builder::new().name("towline-ahead".into());
                    let read = || source.read_ahead(last.clone(), bytes_max);
                    let reading = builder.spawn_scoped(scope, read);
                    // Without another thread it is read when it is needed.
                    (write(), reading.ok().and_then(|reading| reading.join().ok()))
                });
                self.ahead.extend(read.unwrap_or_default());
                written?
            }
        };
        Ok(())
    }

    /// Makes the mark that a clone asks for: once everything durable is applied, or where the targets
    /// stand when that does not come to be.
    fn grant_wanted(&mut self) -> Result<()> {
        if !self.is_exact || !self.marks.is_wanted() {
            return Ok(());
        }
        let since = *self.wanted_since.get_or_insert_with(Instant::now);
        if self.group.is_empty() || since.elapsed() > GRANT_WITHIN {
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
        while bytes < self.group_bytes_max {
            let before = self.group.last().map_or(&self.applied, |last| &last.after);
            let next = match self.ahead.pop_front() {
                Some(read) => read?,
                None => match self.source.next(before)? {
                    Some(next) => next,
                    None => break,
                },
            };
            if !self.group.is_empty() && before.whole != next.after.whole {
                self.ahead.push_front(Ok(next));
                break;
            }
            bytes += next.batch.memory_bytes();
            let is_mark = next.mark.is_some();
            self.group.push(next);
            if is_mark {
                break;
            }
        }
        self.was_full = bytes >= self.group_bytes_max;
        Ok(())
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
}

/// Writes a group to the targets; what was compared, with its verdicts.
fn write(targets: &[Target], group: &[Ready], room: &mut Room) -> Result<Vec<Compared>> {
    std::thread::scope(|scope| write_by(Gather::new(room, scope), targets, group))
}

fn write_by<'env>(
    mut gather: Gather<'_, '_, 'env>,
    targets: &'env [Target],
    group: &'env [Ready],
) -> Result<Vec<Compared>> {
    let mut verdicts = Vec::new();
    for next in group {
        let view = next.batch.view();
        let mut verdict = None;
        for entry in view.ops() {
            if let Op::Write { volume, offset, payload } = entry.op {
                gather.put(volume, target(targets, volume)?, offset, payload)?;
                continue;
            }
            gather.finish()?;
            match entry.op {
                Op::Zero { volume, extent, keep_allocated } => {
                    target(targets, volume)?.zero(extent, keep_allocated)?;
                }
                Op::Trim { volume, extent } => target(targets, volume)?.zero(extent, false)?,
                Op::Compare { volume, extent, digest } => {
                    let verdict = verdict.get_or_insert_with(|| Compared {
                        number: view.number(),
                        claim: view.claim_id().unwrap_or_default(),
                        differs: Vec::new(),
                    });
                    if !target(targets, volume)?.has_digest(extent, digest)? {
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
    Ok(verdicts)
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
