//! What the spill holds, in memory, and the handle by which appender, acknowledger
//! and persister meet.

use super::device::Device;
use super::joint::Medium;
use super::layout::SEGMENT_BYTES;
use super::runs::{self, Run};
use super::span::Built;
use super::store::Store;
use super::stretch::Stretches;
use super::touched::{Touched, TouchedSet};
use super::{Durability, SpillOptions};
use crate::format::Counter;
use crate::ring::Ring;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::Duration;

/// One use of a segment file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Number of its file.
    pub file: u32,
    pub serial: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// Bytes written so far.
    pub bytes: u64,
    /// Times of its first and last span.
    pub first_ns: u64,
    pub last_ns: u64,
    /// Its records without the gaps.
    pub runs: Vec<Run>,
    /// What its records are in bytes and time.
    pub stretches: Stretches,
    pub touched: TouchedSet,
}

impl Segment {
    /// A segment without spans yet.
    pub fn new(file: u32, serial: u64) -> Segment {
        Segment {
            file,
            serial,
            first_seq: 0,
            last_seq: 0,
            bytes: 0,
            first_ns: 0,
            last_ns: 0,
            runs: Vec::new(),
            stretches: Stretches::default(),
            touched: TouchedSet::default(),
        }
    }

    pub fn add(&mut self, span: &SpanFigures<'_>) {
        if self.bytes == 0 {
            (self.first_seq, self.first_ns) = (span.first_seq, span.unix_ns);
        }
        (self.last_seq, self.last_ns) = (span.last_seq, span.unix_ns);
        self.bytes += span.bytes;
        self.stretches.push(span);
        runs::push(&mut self.runs, Run { first: span.first_seq, last: span.last_seq });
        self.touched.extend(span.touched);
    }
}

/// What a segment learns of a span.
pub struct SpanFigures<'a> {
    pub first_seq: u64,
    pub last_seq: u64,
    pub bytes: u64,
    pub unix_ns: u64,
    /// Time of its last record; where that is not known, of its first.
    pub last_ns: u64,
    pub touched: &'a [Touched],
}

impl<'a> SpanFigures<'a> {
    pub fn of(built: &'a Built) -> SpanFigures<'a> {
        SpanFigures {
            first_seq: built.first_seq,
            last_seq: built.last_seq,
            bytes: built.bytes as u64,
            unix_ns: built.unix_ns,
            last_ns: built.last_ns,
            touched: &built.touched,
        }
    }
}

/// All segments. `live` is ordered by number of records.
#[derive(Debug, Default)]
pub struct Segments {
    pub live: VecDeque<Segment>,
    /// What the incarnation before left, until the target has passed it.
    pub history: Vec<Segment>,
    /// Files that hold nothing needed.
    pub free: Vec<u32>,
    /// Files there are, numbered from 0.
    pub files: u32,
    pub next_serial: u64,
    /// Serial of the segment that is being filled.
    pub current: Option<u64>,
}

impl Segments {
    /// Frees segments whose records the target has, but the one that is being filled.
    pub fn release(&mut self, acked: u64) -> bool {
        let mut released = false;
        while let Some(front) = self.live.front()
            && front.last_seq <= acked
            && self.current != Some(front.serial)
        {
            self.free.extend(self.live.pop_front().map(|segment| segment.file));
            released = true;
        }
        released
    }

    fn is_full(&self, segments_max: u32) -> bool {
        self.live.len() + self.history.len() >= segments_max as usize
    }

    /// Bytes that hold records above `acked`.
    fn used_bytes(&self, acked: u64) -> u64 {
        let used = |segment: &Segment| match segment.first_seq > acked {
            true => segment.bytes,
            false => segment.stretches.bytes_above(acked),
        };
        self.live.iter().map(used).sum()
    }

    /// About the time of the oldest record above `acked`; 0 without one.
    fn oldest_ns(&self, acked: u64) -> u64 {
        let mut oldest =
            self.live.iter().filter_map(|segment| segment.stretches.oldest_ns_above(acked));
        oldest.next().unwrap_or(0)
    }
}

/// What comes of looking for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// This file may be overwritten.
    Reuse(u32),
    /// This file is to be made.
    Make(u32),
    /// Every segment holds records that the target lacks.
    Full,
}

/// Where the segments are, and what keeps others away.
pub struct Place {
    pub store: Store,
    pub device: Option<Device>,
}

type Listener = Box<dyn Fn() + Send + Sync>;

/// Shared by the journal and its persister.
pub struct Spill {
    pub store: Store,
    /// Held as long as it may be written.
    _device: Option<Device>,
    pub durability: Durability,
    /// Answers wait for the disk without bound.
    pub strict: bool,
    pub start_percent: u64,
    /// Set where a source's flush can be the spill's.
    pub medium: Option<Medium>,
    segments_max: u32,
    segments: Mutex<Segments>,
    /// Records up to here are wanted on disk, and synced by the persister.
    wanted: AtomicU64,
    wanted_synced: AtomicU64,
    /// Records up to here are durable with the next flush of the device, or already.
    pub flushable: AtomicU64,
    /// The persister sleeps and wants to know of the next finished record.
    pub idle: AtomicBool,
    /// It leaves records to the flushes that write them (`lone.rs`).
    pub lazy: AtomicBool,
    pub stopping: AtomicBool,
    /// The persister looks again when something is acknowledged.
    pub watches_acks: AtomicBool,
    thread: Mutex<Option<Thread>>,
    progress: (Mutex<u64>, Condvar),
    listeners: Mutex<Vec<Listener>>,
}

impl Spill {
    /// `None` when the size is less than one segment and nothing needed is there.
    pub fn new(place: Place, bytes: u64, options: &SpillOptions, found: Segments) -> Option<Spill> {
        let Place { store, device } = place;
        let SpillOptions { durability, strict, start_percent, .. } = *options;
        let segments_max = u32::try_from(bytes / SEGMENT_BYTES).unwrap_or(u32::MAX);
        let is_needed = !found.live.is_empty() || !found.history.is_empty();
        (segments_max > 0 || is_needed).then(|| Spill {
            medium: Medium::of_folder(store.path()).filter(|_| durability != Durability::Process),
            store,
            _device: device,
            durability,
            strict,
            start_percent,
            segments_max,
            segments: Mutex::new(found),
            wanted: AtomicU64::new(0),
            wanted_synced: AtomicU64::new(0),
            flushable: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            lazy: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            watches_acks: AtomicBool::new(false),
            thread: Mutex::new(None),
            progress: (Mutex::new(0), Condvar::new()),
            listeners: Mutex::new(Vec::new()),
        })
    }

    pub fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().expect("the index's users never panic")
    }

    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.segments_max) * SEGMENT_BYTES
    }

    pub fn set_persister(&self, thread: Thread) {
        *self.thread.lock().expect("thread lock") = Some(thread);
    }

    pub fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().expect("thread lock") {
            thread.unpark();
        }
    }

    /// Asks for records on disk; `synced`: and a sync of the persister behind them.
    pub fn want(&self, seq: u64, synced: bool) {
        let rises = self.wanted.fetch_max(seq, Ordering::SeqCst) < seq;
        let rises_too = synced && self.wanted_synced.fetch_max(seq, Ordering::SeqCst) < seq;
        if rises || rises_too {
            self.wake();
        }
    }

    pub fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }

    pub fn wanted_synced(&self) -> u64 {
        self.wanted_synced.load(Ordering::SeqCst)
    }

    /// Records are written as they come, so that a flush finds them on disk.
    pub fn is_eager(&self) -> bool {
        self.durability != Durability::Process
    }

    /// A record has its outcome.
    pub fn finished(&self) {
        if !self.is_eager() {
            return;
        }
        // Between the caller's *done* and this load; the persister has one, too, between
        // setting it and looking at *done*.
        fence(Ordering::SeqCst);
        let may_wait = self.lazy.load(Ordering::Relaxed) || !self.idle.load(Ordering::Relaxed);
        if !may_wait && self.idle.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// A flush of the device has ended that was issued when `flushable` was `covered`.
    /// A failed one may have lost all that was written before it.
    pub fn flushed(&self, covered: u64, succeeded: bool, ring: &Ring) {
        if !succeeded {
            let spilled = ring.get(Counter::Spilled);
            ring.counter(Counter::SpillLost).fetch_max(spilled, Ordering::SeqCst);
            return;
        }
        if ring.get(Counter::Acked) >= ring.get(Counter::SpillLost)
            && ring.counter(Counter::SpillDurable).fetch_max(covered, Ordering::SeqCst) < covered
        {
            self.progressed();
        }
    }

    /// A place for the next segment.
    pub fn room(&self) -> Room {
        let mut segments = self.segments();
        if segments.is_full(self.segments_max) {
            return Room::Full;
        }
        match segments.free.pop() {
            Some(file) => Room::Reuse(file),
            // A device has no more than it has; one may be in hand and without a span yet.
            None if !self.store.is_elastic() => Room::Full,
            None => {
                segments.files += 1;
                Room::Make(segments.files - 1)
            }
        }
    }

    /// A file that [`Spill::room`] gave could not be used.
    pub fn give_back(&self, room: Room) {
        match room {
            Room::Reuse(file) | Room::Make(file) => self.segments().free.push(file),
            Room::Full => {}
        }
    }

    pub fn has_room(&self) -> bool {
        !self.segments().is_full(self.segments_max)
    }

    /// At least half of it is free: a HEAL would not break again at once.
    pub fn is_half_free(&self) -> bool {
        let segments = self.segments();
        let used = segments.live.len() + segments.history.len();
        used as u64 * 2 <= u64::from(self.segments_max).max(2)
    }

    pub fn acked(&self, seq: u64, ring: &Ring) {
        let released = self.segments().release(seq);
        self.publish(ring);
        if released || self.watches_acks.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Figures for status and metrics.
    pub fn publish(&self, ring: &Ring) {
        let acked = ring.get(Counter::Acked);
        let segments = self.segments();
        ring.set(Counter::SpillUsedBytes, segments.used_bytes(acked));
        ring.set(Counter::SpillOldestNs, segments.oldest_ns(acked));
        let history = segments.history.iter().map(|segment| segment.bytes).sum();
        ring.set(Counter::HistoryBytes, history);
        ring.set(Counter::SpillBytes, self.capacity_bytes());
    }

    /// The segment that holds record `seq`: its last record and what it touches.
    pub fn damage_at(&self, seq: u64) -> Option<(u64, Vec<Touched>)> {
        let segments = self.segments();
        let segment = segments.live.iter().find(|s| (s.first_seq..=s.last_seq).contains(&seq))?;
        Some((segment.last_seq, segment.touched.ranges().to_vec()))
    }

    /// Everything touched by records above `acked`, at the grain of segments.
    pub fn touched_above(&self, acked: u64) -> Vec<Touched> {
        let segments = self.segments();
        let above = segments.live.iter().filter(|segment| segment.last_seq > acked);
        above.flat_map(|segment| segment.touched.ranges().iter().copied()).collect()
    }

    /// What the history's segments touch that hold records from `seq` on.
    pub fn history_touches(&self, seq: u64) -> Vec<Touched> {
        let segments = self.segments();
        let rest = segments.history.iter().filter(|segment| segment.last_seq >= seq);
        rest.flat_map(|segment| segment.touched.ranges().iter().copied()).collect()
    }

    /// The target has passed the history: its segments are free.
    pub fn free_history(&self) {
        let mut segments = self.segments();
        let files: Vec<u32> = segments.history.drain(..).map(|segment| segment.file).collect();
        segments.free.extend(files);
        drop(segments);
        self.wake();
    }

    /// Calls `listener` whenever more is durable, on the persister's thread.
    pub fn listen(&self, listener: Listener) {
        self.listeners.lock().expect("listeners lock").push(listener);
    }

    /// Something was spilled or synced.
    pub fn progressed(&self) {
        *self.progress.0.lock().expect("progress lock") += 1;
        self.progress.1.notify_all();
        for listener in self.listeners.lock().expect("listeners lock").iter() {
            listener();
        }
    }

    /// Waits until `reached` holds, looking after every progress.
    pub fn wait(&self, limit: Duration, reached: impl Fn() -> bool) -> bool {
        let progress = self.progress.0.lock().expect("progress lock");
        let (_progress, waited) = self
            .progress
            .1
            .wait_timeout_while(progress, limit, |_| !reached())
            .expect("progress lock");
        !waited.timed_out()
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }
}
