//! The thread that writes the spill: O_DIRECT, spans of about 1 MiB, a few at a time,
//! one group's records in order.
//!
//! Sleeps until the ring is filled beyond the ladder's threshold, or until somebody
//! wants records on disk. No failure here reaches a guest: without room or with a
//! broken disk the ring overflows into the change map, as without a spill.

use super::Durability;
use super::files::{Opened, made, wait_all};
use super::index::{Segment, SpanFigures, Spill};
use super::ladder::{Ladder, Observed, Rung};
use super::layout::{SPAN_BYTES_MAX, SPANS_END};
use super::lone::LAZY_FOR;
use super::owner::Owner;
use super::span::{Built, Place, SpanBuilder};
use crate::append::free_up_to;
use crate::durable::{self, Event};
use crate::error::{Error, Result};
use crate::format::{Counter, SlotState};
use crate::record::SlotFault;
use crate::ring::Ring;
use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use towline_block::sys::uring::{Driver, Fd, Op, Window};

/// Spans written at a time. Four of 1 MiB keep any disk busy.
pub(super) const SPANS_AT_ONCE: usize = 4;
/// After a fault the spill is tried again so much later.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// While there is something on disk, how often the ladder is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// While records come one after the other it looks for the next ones so often; being woken
/// would cost the thread that ends a record more than the record.
const NAP: Duration = Duration::from_micros(200);
/// How long after a write that is.
const BUSY_FOR: Duration = Duration::from_millis(2);
/// Pause when records are wanted that have no outcome yet.
const UNFINISHED_PAUSE: Duration = Duration::from_micros(200);

/// Runs until dropped.
pub struct Persister {
    pub(super) spill: Arc<Spill>,
    /// Whoever holds it writes.
    pub(super) pen: Arc<Mutex<Pen>>,
    thread: Option<JoinHandle<()>>,
}

impl Persister {
    pub fn start(spill: Arc<Spill>, owner: Owner) -> Result<Persister> {
        let group = owner.group.clone();
        let rung = match owner.ring.get(Counter::Whole) {
            0 => Rung::Map,
            _ => Rung::from_code(owner.ring.get(Counter::Rung)),
        };
        owner.ring.set(Counter::Rung, rung as u64);
        owner.ring.set(Counter::SpillFault, 0);
        let pen = Arc::new(Mutex::new(Pen {
            ladder: Ladder::starting_at(rung, spill.start_percent),
            unsynced: unsynced_before(&spill, &owner.ring),
            spill: spill.clone(),
            owner,
            memory: Vec::new(),
            current: None,
            filled: HashSet::new(),
            retry_at: None,
            due: 0,
            full: false,
            spare: None,
            lazy_until: None,
            wrote_at: None,
        }));
        let observer = durable::observer();
        let (for_thread, its_spill) = (pen.clone(), spill.clone());
        let thread = std::thread::Builder::new()
            .name("spill".into())
            .spawn(move || {
                durable::observe(observer);
                run(&its_spill, &for_thread);
            })
            .map_err(|e| Error::io(format!("cannot start the spill's thread of {group}"), e))?;
        spill.set_persister(thread.thread().clone());
        spill.wake();
        Ok(Persister { spill, pen, thread: Some(thread) })
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        self.spill.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the spill's thread panicked");
        }
    }
}

/// What writing needs. The thread's io_uring is not part of it: that never leaves the thread.
pub(super) struct Pen {
    pub spill: Arc<Spill>,
    pub owner: Owner,
    /// Memory of former spans.
    pub memory: Vec<Vec<u8>>,
    pub current: Option<Current>,
    /// Files with spans that are not durable yet.
    pub unsynced: Vec<Unsynced>,
    /// Segments that this process has filled with zeroes, durably.
    pub filled: HashSet<u32>,
    pub ladder: Ladder,
    pub retry_at: Option<Instant>,
    /// The record whose wish the next sync serves; newer wishes wait for the one after, so
    /// that they cannot put it off for ever.
    pub due: u64,
    pub full: bool,
    /// The next segment, made ahead so that no commit waits for its zeroes.
    pub spare: Option<Opened>,
    /// Until then the thread leaves records to the flushes that write them (`lone.rs`).
    pub lazy_until: Option<Instant>,
    pub wrote_at: Option<Instant>,
}

/// The segment that is being filled.
pub(super) struct Current {
    pub file: u32,
    pub serial: u64,
    pub fd: Fd,
    pub direct: File,
    /// Where the segment begins in the file.
    pub base: u64,
    pub plain: bool,
    pub offset: u64,
}

/// A segment with spans that are not durable yet.
pub(super) struct Unsynced {
    pub file: u32,
    pub fd: Fd,
    pub last_seq: u64,
    /// A flush of the device is enough (`joint.rs`).
    pub plain: bool,
}

/// What one look led to.
enum Next {
    Again,
    Pause(Duration),
    Sleep,
}

/// The thread: turns, and sleep between them.
fn run(spill: &Spill, pen: &Mutex<Pen>) {
    // Made at the first write: a group that never spills needs no io_uring for it.
    let mut driver = None;
    while !spill.stopping.load(Ordering::SeqCst) {
        let pause = {
            let mut pen = lock(pen);
            let next = pen.turn(&mut driver).unwrap_or_else(|error| {
                // Cancels what is in flight: its outcome no longer counts.
                driver = None;
                pen.fault(&error);
                Next::Pause(RETRY_AFTER)
            });
            match next {
                Next::Again => continue,
                _ if pen.is_busy() => Some(NAP),
                _ if pen.has_work() => continue,
                Next::Pause(pause) => Some(pause),
                Next::Sleep => None,
            }
        };
        match pause {
            Some(pause) => std::thread::park_timeout(pause),
            None => std::thread::park(),
        }
        spill.idle.store(false, Ordering::Relaxed);
    }
}

fn lock(pen: &Mutex<Pen>) -> MutexGuard<'_, Pen> {
    pen.lock().expect("who holds the pen never panics")
}

impl Pen {
    /// Before a sleep: asks to be woken by the next finished record, if records are written
    /// as they come. True when there is one already.
    fn has_work(&self) -> bool {
        if !self.may_write() {
            return false;
        }
        self.spill.idle.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let ring = &self.owner.ring;
        let has_work = ring.get(Counter::Done) > self.kept();
        if has_work {
            self.spill.idle.store(false, Ordering::Relaxed);
        }
        has_work
    }

    /// Records up to here are on disk or at the target.
    pub(super) fn kept(&self) -> u64 {
        let ring = &self.owner.ring;
        ring.get(Counter::Acked).max(ring.get(Counter::Spilled))
    }

    /// Records come one after the other.
    fn is_busy(&self) -> bool {
        self.may_write() && self.wrote_at.is_some_and(|at| now() < at + BUSY_FOR)
    }

    fn may_write(&self) -> bool {
        self.writes_as_they_come() && self.retry_at.is_none() && !self.full
    }

    fn writes_as_they_come(&self) -> bool {
        self.spill.is_eager() && self.lazy_until.is_none()
    }

    pub(super) fn fault(&mut self, error: &Error) {
        if self.retry_at.is_none() {
            tracing::error!(
                group = %self.owner.group,
                "the spill cannot be written: changes that the ring cannot hold go to the change \
                 map; it is tried again every second: {error}"
            );
        }
        self.close_segment();
        self.retry_at = Some(now() + RETRY_AFTER);
        self.owner.ring.set(Counter::SpillFault, 1);
        self.spill.progressed();
    }

    fn recovered(&mut self) {
        if self.retry_at.take().is_some() {
            tracing::info!(group = %self.owner.group, "the spill can be written again");
        }
        if std::mem::take(&mut self.full) {
            tracing::info!(group = %self.owner.group, "the spill has room again");
        }
        self.owner.ring.set(Counter::SpillFault, 0);
    }

    /// With nothing to write: whether a fault is over. Who waits for the disk wants to know,
    /// and who looks at the figures.
    fn look_at_fault(&mut self, driver: &mut Option<Driver>) -> Result<()> {
        let is_over = match self.retry_at {
            Some(_) => self.open_segment(driver)? && self.try_segment(driver)?,
            None => self.full && self.spill.has_room(),
        };
        if is_over {
            self.recovered();
        }
        Ok(())
    }

    /// One look at ring and wishes, and at most one round of writes.
    fn turn(&mut self, driver: &mut Option<Driver>) -> Result<Next> {
        let ring = self.owner.ring.clone();
        self.look_at_laziness();
        if self.due <= ring.get(Counter::SpillDurable).max(ring.get(Counter::Acked)) {
            self.due = self.spill.wanted();
        }
        let upto = self.upto();
        let from = self.kept() + 1;
        let done = ring.get(Counter::Done);
        if self.retry_at.is_some_and(|at| now() < at) {
            return Ok(self.rest(upto >= from));
        }
        if from <= upto.min(done) {
            if !self.spill_records(from, upto.min(done), driver)? {
                return Ok(Next::Pause(LOOK_EVERY));
            }
            // One sync for all that were wanted when the last one had been served.
            if ring.get(Counter::Spilled) >= self.due {
                self.sync_if_wanted(driver)?;
            }
            return Ok(Next::Again);
        }
        self.sync_if_wanted(driver)?;
        self.look_at_fault(driver)?;
        self.prepare(driver);
        if upto > done {
            return Ok(Next::Pause(UNFINISHED_PAUSE));
        }
        Ok(self.rest(false))
    }

    /// How far to write: what is wanted, and what the ladder says.
    fn upto(&mut self) -> u64 {
        let ring = self.owner.ring.clone();
        let (fill_percent, half) = {
            let cursor = self.owner.cursor.lock();
            let used = cursor.next_seq - 1 - cursor.freed_seq;
            (cursor.fill_percent(&ring), cursor.freed_seq + used / 2)
        };
        let seen = Observed {
            fill_percent,
            backlog: ring.get(Counter::Spilled) > ring.get(Counter::Acked)
                && self.spill.durability == Durability::Process,
            whole: ring.get(Counter::Whole) == 1,
            able: self.retry_at.is_none_or(|at| now() >= at)
                && (!self.full || self.spill.has_room()),
        };
        if let Some((from, to)) = self.ladder.observe(&seen) {
            self.owner.step(from, to, fill_percent, true);
            if to == Rung::Ring {
                self.give_disk_back();
            }
        }
        let by_ladder = if self.ladder.is_spilling() { half.max(1) } else { 0 };
        let as_they_come = if self.writes_as_they_come() { ring.get(Counter::Done) } else { 0 };
        self.spill.wanted().max(by_ladder).max(as_they_come)
    }

    /// Arms the appender's wake-up and says how to wait.
    fn rest(&mut self, waits: bool) -> Next {
        let ring = &self.owner.ring;
        let is_faulty = self.retry_at.is_some() || self.full;
        let looks = waits || is_faulty || self.ladder.rung() != Rung::Ring;
        self.spill.watches_acks.store(looks, Ordering::SeqCst);
        let mut cursor = self.owner.cursor.lock();
        let percent = self.ladder.start_percent();
        cursor.wake_payload = cursor.payload_tail + ring.payload_bytes() * percent / 100;
        cursor.wake_seq = cursor.freed_seq + ring.slots() * percent / 100;
        if self.lazy_until.is_some() {
            cursor.arm_lazy();
        }
        let is_due = cursor.is_wake_due();
        drop(cursor);
        // Unless the threshold was passed meanwhile: then nobody would wake us.
        match (looks || is_due, self.lazy_until) {
            (true, _) => Next::Pause(LOOK_EVERY),
            (false, Some(_)) => Next::Pause(LAZY_FOR),
            (false, None) => Next::Sleep,
        }
    }

    /// Writes at most one round of spans. False when there is no room.
    fn spill_records(&mut self, from: u64, upto: u64, driver: &mut Option<Driver>) -> Result<bool> {
        if !self.open_segment(driver)? {
            return Ok(false);
        }
        let built = self.build(from, upto, SPANS_AT_ONCE);
        if built.is_empty() {
            return Ok(true);
        }
        self.write(built, driver)?;
        self.recovered();
        Ok(true)
    }

    pub(super) fn place(&self, current: &Current) -> Place {
        let ring = &self.owner.ring;
        Place {
            group_uuid: ring.superblock.group_uuid,
            ring_id: ring.superblock.ring_id,
            incarnation: ring.incarnation(),
            epoch: ring.superblock.epoch.get(),
            serial: current.serial,
            offset: current.offset,
        }
    }

    /// Copies records out of the ring into spans of the current segment.
    pub(super) fn build(&mut self, from: u64, upto: u64, spans_max: usize) -> Vec<Built> {
        let ring = self.owner.ring.clone();
        let Some(current) = &self.current else { return Vec::new() };
        let mut place = self.place(current);
        let mut spans = Vec::new();
        let mut seq = from;
        while spans.len() < spans_max && seq <= upto && place.offset + SPAN_BYTES_MAX <= SPANS_END {
            let mut span = SpanBuilder::new(self.memory.pop().unwrap_or_default());
            while seq <= upto {
                match ring.slot(seq) {
                    Ok((record, slot)) if record.state.is_final() => {
                        let state = record.state;
                        let copy = |into: &mut [u8]| {
                            if state == SlotState::Done {
                                ring.copy_payload(&record, into);
                            }
                        };
                        if !span.push(&record, &slot, copy) {
                            break;
                        }
                        seq += 1;
                    }
                    fault => {
                        self.memory.push(span.into_storage());
                        let acked = ring.get(Counter::Acked);
                        if acked < seq {
                            self.unreadable(seq, fault.map(|_| ()).err());
                        }
                        return if acked < seq { spans } else { Vec::new() };
                    }
                }
            }
            let built = span.finish(&place);
            place.offset += built.bytes as u64;
            spans.push(built);
        }
        spans
    }

    /// Shared memory was overwritten: the shipper will say so when it comes there, or
    /// the appender when the ring is full. Until then nothing can be spilled.
    fn unreadable(&mut self, seq: u64, fault: Option<SlotFault>) {
        if self.retry_at.is_none() {
            tracing::error!(group = %self.owner.group, seq, ?fault, "a record is not readable");
        }
        self.retry_at = Some(now() + RETRY_AFTER);
    }

    /// Writes spans behind each other; once all are on disk they count.
    fn write(&mut self, spans: Vec<Built>, driver: &mut Option<Driver>) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let what = format!("cannot write the spill in {}", self.spill.store.path().display());
        let driver = made(driver)?;
        let mut figures = Vec::new();
        let file = segment_file(&self.spill, current.file);
        for (index, mut span) in spans.into_iter().enumerate() {
            let storage = std::mem::take(&mut span.storage);
            let bytes = &storage[span.start..span.start + span.bytes];
            let at = current.base + current.offset;
            durable::about(Event::WriteAt { file: &file, at, bytes });
            let window = Window::new(storage, span.start, span.bytes);
            driver
                .push(
                    index as u64,
                    Op::Write(current.fd.clone(), current.base + current.offset, window),
                )
                .map_err(|e| Error::io(what.clone(), e))?;
            current.offset += span.bytes as u64;
            figures.push(span);
        }
        let mut failure = None;
        for completion in wait_all(driver, &what)? {
            let wanted = completion.window.len;
            match completion.result {
                Ok(bytes) if bytes == wanted => {}
                Ok(bytes) => {
                    failure = Some(std::io::Error::other(format!("{bytes} of {wanted} bytes")));
                }
                Err(error) => failure = Some(error),
            }
            self.memory.push(completion.window.buf);
        }
        if let Some(error) = failure {
            return Err(Error::io(what, error));
        }
        self.written(&figures);
        Ok(())
    }

    /// Spans of the current segment are on disk.
    pub(super) fn written(&mut self, spans: &[Built]) {
        let Some(current) = &self.current else { return };
        let (serial, file) = (current.serial, current.file);
        self.wrote_at = Some(now());
        self.note_unsynced(spans);
        self.spilled(serial, file, spans);
    }

    fn note_unsynced(&mut self, spans: &[Built]) {
        let (Some(current), Some(last)) = (&self.current, spans.last()) else { return };
        if self.spill.durability == Durability::Process {
            return;
        }
        let durable = self.owner.ring.get(Counter::SpillDurable);
        self.unsynced.retain(|segment| segment.last_seq > durable);
        let (fd, last_seq, plain) = (current.fd.clone(), last.last_seq, current.plain);
        match self.unsynced.iter_mut().find(|segment| Arc::ptr_eq(&segment.fd, &fd)) {
            Some(segment) => segment.last_seq = last_seq,
            None => self.unsynced.push(Unsynced { file: current.file, fd, last_seq, plain }),
        }
    }

    fn spilled(&mut self, serial: u64, file: u32, spans: &[Built]) {
        let ring = &self.owner.ring;
        let Some(last) = spans.last() else { return };
        {
            let mut segments = self.spill.segments();
            if segments.live.back().is_none_or(|segment| segment.serial != serial) {
                segments.live.push_back(Segment::new(file, serial));
            }
            if let Some(segment) = segments.live.back_mut() {
                spans.iter().for_each(|span| segment.add(&SpanFigures::of(span)));
            }
        }
        let (bytes, payload) =
            spans.iter().fold((0, 0), |sum, s| (sum.0 + s.bytes as u64, sum.1 + s.payload_bytes));
        ring.counter(Counter::SpillWrittenBytes).fetch_add(bytes, Ordering::Relaxed);
        ring.counter(Counter::SpillPayloadBytes).fetch_add(payload, Ordering::Relaxed);
        {
            // Under the append lock, so that a BREAK or HEAL is never out of recovery's
            // sight before *whole* says the same.
            let _cursor = self.owner.cursor.lock();
            ring.set(Counter::Spilled, last.last_seq);
        }
        if self.spill.is_eager() && self.unsynced.iter().all(|segment| segment.plain) {
            self.spill.flushable.store(last.last_seq, Ordering::SeqCst);
        }
        free_up_to(ring, &self.owner.cursor, last.last_seq);
        self.spill.publish(ring);
        self.spill.progressed();
    }

    /// Makes what is written durable, if somebody waits for that.
    fn sync_if_wanted(&mut self, driver: &mut Option<Driver>) -> Result<()> {
        let ring = &self.owner.ring;
        let durable = ring.get(Counter::SpillDurable);
        let spilled = ring.get(Counter::Spilled);
        if self.spill.durability == Durability::Process
            || self.unsynced.is_empty()
            || self.spill.wanted() <= durable
        {
            return Ok(());
        }
        // Whoever asks for no sync brings one along, if that is enough.
        let is_enough = self.unsynced.iter().all(|segment| segment.plain);
        if is_enough && self.spill.wanted_synced() <= durable {
            return Ok(());
        }
        let driver = made(driver)?;
        let what = format!("cannot sync the spill in {}", self.spill.store.path().display());
        ring.counter(Counter::SpillSyncs).fetch_add(1, Ordering::Relaxed);
        for (index, segment) in self.unsynced.drain(..).enumerate() {
            durable::about(Event::Sync { file: &segment_file(&self.spill, segment.file) });
            driver
                .push(index as u64, Op::Datasync(segment.fd))
                .map_err(|e| Error::io(what.clone(), e))?;
        }
        for completion in wait_all(driver, &what)? {
            if let Err(error) = completion.result {
                ring.counter(Counter::SpillLost).fetch_max(spilled, Ordering::SeqCst);
                return Err(Error::io(what, error));
            }
        }
        // After a failed sync a later one says nothing of what that one lost.
        self.spill.flushed(spilled, true, ring);
        Ok(())
    }
}

/// A segment's name for who observes changes; of a spill in a folder its path.
pub(super) fn segment_file(spill: &Spill, file: u32) -> PathBuf {
    spill.store.path().join(format!("{file:05}.seg"))
}

/// Segments that an earlier process wrote and may not have synced. What cannot be opened
/// cannot be made good.
fn unsynced_before(spill: &Spill, ring: &Ring) -> Vec<Unsynced> {
    let mut unsynced = Vec::new();
    if spill.durability == Durability::Process {
        return unsynced;
    }
    let durable = ring.get(Counter::SpillDurable);
    for segment in spill.segments().live.iter().filter(|segment| segment.last_seq > durable) {
        match spill.store.open(segment.file) {
            Ok(opened) => unsynced.push(Unsynced {
                file: segment.file,
                fd: Arc::new(opened.file.into()),
                last_seq: segment.last_seq,
                plain: false,
            }),
            Err(_) => {
                ring.counter(Counter::SpillLost).fetch_max(segment.last_seq, Ordering::SeqCst);
            }
        }
    }
    unsynced
}

#[expect(clippy::disallowed_methods, reason = "how long a faulty disk is left alone is real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}
