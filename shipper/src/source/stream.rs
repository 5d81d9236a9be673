//! The window between drain and session: batches in order, from the oldest that is
//! not durable at the target to the newest that was cut.

mod for_drain;
mod for_session;
mod window;

use super::pace::Pace;
use crate::batch::Sealed;
use crate::device::BlockRun;
use crate::ids::{BatchHash, SessionId};
use crate::wire::{Ack, Compared, Decision, Message, Welcome};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use towline_block::Position;
use towline_journal::progress::{Figure, Progress};
use window::Sizing;

/// Batches whose times are kept; more in flight are not timed.
const TIMED_MAX: usize = 4096;
/// Buffers kept for batches to come: as many as are usually cut while one is sent.
const SPARE_MAX: usize = 8;
/// How old the oldest batch that is not applied may be when a cutover begins: the pause
/// pays for what it takes. A target writes small batches together, ten times a second.
const NEARLY_APPLIED: Duration = Duration::from_millis(250);

/// What the session tells the drain.
#[derive(Debug)]
pub(crate) enum News {
    /// The target has decided an attempt.
    Decision(Decision),
    /// The target is not at the position that PROMOTE named.
    NotReady(String),
    /// What the target says of compared blocks.
    Compared(Compared),
    NetLost,
    NetBack,
}

struct Inner {
    window: VecDeque<Arc<Sealed>>,
    window_bytes: u64,
    sizing: Sizing,
    /// Index in the window of the next batch to send in this session.
    next: usize,
    /// Batches go over several connections.
    is_parallel: bool,
    /// Number and hash of the last batch known durable: where the window begins.
    base: (u64, BatchHash),
    /// Last batch that was handed over; beyond `base` it is not durable yet.
    handed: u64,
    /// Set while the drain feeds a stream that continues what the target has.
    established: bool,
    connected: bool,
    /// What the target said when it was last connected, until the drain takes it.
    welcome: Option<Welcome>,
    /// What the target lacks all the same.
    lacks: Vec<BlockRun>,
    ack: Ack,
    /// When the target applied something last, or began to lag behind what it has.
    applied_at: Instant,
    /// Batches until they are applied.
    cut_at: VecDeque<CutBatch>,
    /// Where the stream stood behind the last batch that was applied, as far as is known.
    applied_at_position: Position,
    /// Smoothed times from the cut to durable and to applied, seconds.
    durable_s: Option<f64>,
    applied_s: Option<f64>,
    /// The shortest time to durable: what no cutover goes below, whatever was slow lately.
    least_s: Option<f64>,
    /// Frames that follow all batches of the window.
    messages: VecDeque<Message>,
    news: VecDeque<News>,
    /// Memory of batches that are durable, for batches to come.
    spare: Vec<Vec<u8>>,
    /// `None` while no journal is drained.
    walked: Option<Walked>,
    stopping: bool,
    /// Set by a refusal after which trying again is no use.
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
struct CutBatch {
    number: u64,
    /// Of the stream behind it.
    position: Position,
    at: Instant,
}

pub(crate) struct Stream {
    inner: Mutex<Inner>,
    /// Wakes the drain.
    changed: Condvar,
    /// Wakes the session.
    ready: Notify,
    /// Told once: shipping was asked to stop.
    stopped: watch::Sender<bool>,
    /// Wakes all its lanes.
    cut: Notify,
    progress: Arc<Progress>,
    pace: Pace,
    session: SessionId,
    is_store: bool,
    is_device: bool,
}

/// How far the walk over the volumes is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    /// What the map has left.
    pub dirty_blocks: u64,
    /// How often it came to the end since the drain was attached.
    pub rounds: u64,
}

/// What the session sends next.
pub(crate) enum Next {
    Batch(Arc<Sealed>),
    Message(Message),
}

impl Stream {
    /// With a window of so many bytes, or one that is measured.
    pub fn new(window_bytes: Option<u64>, progress: Arc<Progress>, pace: Pace) -> Stream {
        let sizing = Sizing::new(window_bytes);
        progress.set(Figure::WindowBytes, sizing.bytes());
        Stream {
            inner: Mutex::new(Inner::new(sizing)),
            changed: Condvar::new(),
            ready: Notify::new(),
            stopped: watch::Sender::new(false),
            cut: Notify::new(),
            progress,
            pace,
            session: SessionId::random(),
            is_store: false,
            is_device: false,
        }
    }

    /// A stream into a store, which keeps what it gets and can neither compare nor decide.
    pub fn into_store(self) -> Stream {
        Stream { is_store: true, ..self }
    }

    /// A stream onto transport devices: as into a store, and batches say what they touch.
    pub fn into_device(self) -> Stream {
        Stream { is_device: true, ..self.into_store() }
    }

    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// How far the drain's walk over the volumes is.
    pub fn set_walked(&self, walked: Option<Walked>) {
        self.lock().walked = walked;
    }

    pub fn walked(&self) -> Option<Walked> {
        self.lock().walked
    }

    pub fn is_store(&self) -> bool {
        self.is_store
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the stream's lock panics")
    }

    /// This run of the shipper, for HELLO and every batch.
    pub fn session(&self) -> SessionId {
        self.session
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What is handed to the outside passes there first.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    pub fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
        self.ready.notify_one();
        self.stopped.send_replace(true);
    }

    /// Until shipping is asked to stop. Wakes nobody before: a shipper of many groups is idle mostly.
    pub async fn stop_asked(&self) {
        // Its sender lives as long as we do.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    pub fn stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Whether the target refused for good.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    fn publish(&self, inner: &Inner) {
        let ack = &inner.ack;
        self.progress.set(Figure::DurableStreamBytes, ack.stream_bytes);
        self.progress.set(Figure::DurableNumber, ack.number);
        self.progress.set(Figure::WindowBytes, inner.sizing.bytes());
        self.progress.set(Figure::DurableIncarnation, u64::from(ack.position.incarnation.0));
        self.progress.set(Figure::DurableSeq, ack.position.seq.0);
        let applied = match ack.applied == ack.number {
            true => ack.position,
            false => inner.applied_at_position,
        };
        self.progress.set(Figure::AppliedIncarnation, u64::from(applied.incarnation.0));
        self.progress.set(Figure::AppliedSeq, applied.seq.0);
        self.progress.set(Figure::PointSeq, ack.point.map_or(0, |point| point.seq.0));
        self.progress.set(Figure::HasPoint, u64::from(ack.point.is_some()));
    }
}

impl Inner {
    fn new(sizing: Sizing) -> Inner {
        Inner {
            window: VecDeque::new(),
            window_bytes: 0,
            sizing,
            next: 0,
            is_parallel: false,
            base: Default::default(),
            handed: 0,
            established: false,
            connected: false,
            welcome: None,
            lacks: Vec::new(),
            ack: Ack::default(),
            applied_at: Instant::now(),
            cut_at: VecDeque::new(),
            applied_at_position: Position::default(),
            durable_s: None,
            least_s: None,
            applied_s: None,
            messages: VecDeque::new(),
            news: VecDeque::new(),
            spare: Vec::new(),
            walked: None,
            stopping: false,
            ended: false,
        }
    }

    /// Learns how long batches take, from the newest that this ack covers.
    fn time(&mut self, ack: &Ack) {
        let now = Instant::now();
        let age = |cut_at: &VecDeque<CutBatch>, number: u64| {
            let newest = cut_at.iter().rev().find(|cut| cut.number <= number)?;
            Some(now.duration_since(newest.at).as_secs_f64())
        };
        let blend = |old: &mut Option<f64>, new: f64| {
            *old = Some(old.map_or(new, |old| old * 0.8 + new * 0.2));
        };
        if ack.number > self.ack.number
            && let Some(seconds) = age(&self.cut_at, ack.number)
        {
            blend(&mut self.durable_s, seconds);
            self.least_s = Some(self.least_s.map_or(seconds, |least| least.min(seconds)));
            self.sizing.acked(now, ack.stream_bytes, Duration::from_secs_f64(seconds));
        }
        if ack.applied > self.ack.applied
            && let Some(seconds) = age(&self.cut_at, ack.applied)
        {
            blend(&mut self.applied_s, seconds);
        }
        while let Some(cut) = self.cut_at.pop_front_if(|cut| cut.number <= ack.applied) {
            self.applied_at_position = cut.position;
        }
    }

    fn drop_durable(&mut self, number: u64) {
        while let Some(front) = self.window.front()
            && front.number <= number
        {
            self.base = (front.number, front.hash);
            self.window_bytes -= front.bytes.len() as u64;
            // Not while the session still holds it.
            let free = self.window.pop_front().and_then(Arc::into_inner);
            if let Some(batch) = free.filter(|_| self.spare.len() < SPARE_MAX) {
                self.spare.push(batch.bytes);
            }
            self.next = self.next.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
