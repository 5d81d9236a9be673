//! The window between drain and session: batches in order, from the oldest that is
//! not durable at the target to the newest that was cut.

mod window;

use super::pace::Pace;
use crate::batch::{Chain, Sealed};
use crate::device::BlockRun;
use crate::ids::{BatchHash, SessionId};
use crate::wire::{Ack, Compared, Decision, Message, Welcome};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
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
    /// When batches were cut, until they are applied.
    cut_at: VecDeque<(u64, Instant)>,
    /// Smoothed times from the cut to durable and to applied, seconds.
    durable_s: Option<f64>,
    applied_s: Option<f64>,
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

    // Drain's side.

    /// Waits for a change or the time limit.
    pub fn wait(&self, limit: Duration) {
        let inner = self.lock();
        if inner.stopping || !inner.news.is_empty() {
            return;
        }
        let _ = self.changed.wait_timeout(inner, limit).expect("stream lock");
    }

    pub fn news(&self) -> Option<News> {
        self.lock().news.pop_front()
    }

    pub fn connected(&self) -> bool {
        self.lock().connected
    }

    /// Where the target serves, if it said that it has taken over.
    pub fn exports(&self) -> Option<Vec<String>> {
        Some(self.lock().welcome.as_ref()?.promoted.as_ref()?.exports.clone())
    }

    /// Whether the stream that the drain feeds still continues what the target has.
    pub fn established(&self) -> bool {
        self.lock().established
    }

    pub fn ack(&self) -> Ack {
        self.lock().ack
    }

    /// Nothing is on its way.
    #[cfg(test)]
    pub fn is_drained(&self) -> bool {
        self.lock().window.is_empty()
    }

    /// The target has written all but the last moment's batches to its disks.
    pub fn is_nearly_applied(&self) -> bool {
        let inner = self.lock();
        let cut = inner.window.back().map_or(inner.ack.number, |newest| newest.number);
        let oldest = inner.cut_at.iter().find(|(number, _)| *number > inner.ack.applied);
        cut <= inner.ack.applied || oldest.is_some_and(|(_, at)| at.elapsed() < NEARLY_APPLIED)
    }

    /// From the cut of a batch to its durable acknowledgement, as of late.
    pub fn round_trip(&self) -> Option<Duration> {
        self.lock().durable_s.map(Duration::from_secs_f64)
    }

    /// From durable to applied, as of late.
    pub fn apply_time(&self) -> Option<Duration> {
        let inner = self.lock();
        let beyond = inner.applied_s? - inner.durable_s?;
        Some(Duration::from_secs_f64(beyond.max(0.0)))
    }

    /// Whether the window takes another batch.
    pub fn has_room(&self) -> bool {
        let inner = self.lock();
        inner.window_bytes < inner.sizing.bytes()
    }

    /// What the target has, if it is connected and nothing is on its way: the moment
    /// at which a stream may begin.
    pub fn beginning(&self) -> Option<Welcome> {
        let inner = self.lock();
        let on_its_way = !inner.window.is_empty() || inner.handed > inner.base.0;
        if !inner.connected || on_its_way {
            return None;
        }
        let mut welcome = inner.welcome.clone()?;
        if inner.established {
            // The welcome is older than what was shipped since on this connection.
            welcome.number = inner.base.0;
            welcome.hash = inner.base.1;
            welcome.position = inner.ack.position;
            welcome.claims_upto = inner.ack.claims_upto;
            welcome.stream_bytes = inner.ack.stream_bytes;
        }
        Some(welcome)
    }

    /// The drain begins a stream behind `chain`. False when the target changed
    /// meanwhile: look at [`Stream::beginning`] again.
    pub fn establish(&self, chain: &Chain) -> bool {
        let mut inner = self.lock();
        let base = match (&inner.welcome, inner.established) {
            (_, true) => inner.base,
            (Some(welcome), false) => (welcome.number, welcome.hash),
            (None, false) => return false,
        };
        if !inner.connected || base != (chain.number, chain.hash) {
            return false;
        }
        inner.established = true;
        inner.base = base;
        inner.next = 0;
        true
    }

    /// Appends a cut batch. Dropped when the stream was cut off meanwhile: the drain
    /// then begins anew.
    pub fn push(&self, sealed: Sealed) {
        let mut inner = self.lock();
        if !inner.established {
            return;
        }
        inner.window_bytes += sealed.bytes.len() as u64;
        if inner.cut_at.len() < TIMED_MAX {
            inner.cut_at.push_back((sealed.number, Instant::now()));
        }
        inner.window.push_back(Arc::new(sealed));
        drop(inner);
        self.ready.notify_one();
        self.cut.notify_waiters();
    }

    /// Memory of a batch that is durable, for the next one to be cut.
    pub fn spare(&self) -> Vec<u8> {
        self.lock().spare.pop().unwrap_or_default()
    }

    /// How full the window is: 1 when the target is what shipping waits for.
    pub fn fill(&self) -> f64 {
        let inner = self.lock();
        inner.window_bytes as f64 / inner.sizing.bytes().max(1) as f64
    }

    /// Sends a frame once all batches of the window were sent.
    pub fn say(&self, message: Message) {
        self.lock().messages.push_back(message);
        self.ready.notify_one();
    }

    // Session's side.

    pub async fn wait_ready(&self) {
        self.ready.notified().await;
    }

    /// A session stands; the target has what `welcome` says.
    pub fn welcome(&self, welcome: Welcome) {
        let mut inner = self.lock();
        let known = inner.window.iter().position(|sealed| sealed.number == welcome.number);
        let continues = inner.established
            && match known {
                Some(index) => inner.window[index].hash == welcome.hash,
                None => (welcome.number, welcome.hash) == inner.base,
            };
        let sent = self.progress.get(Figure::SentStreamBytes);
        if continues || welcome.number > 0 && !inner.established {
            self.progress.add(Figure::ResentBytes, sent.saturating_sub(welcome.stream_bytes));
        }
        self.progress.set(Figure::SentStreamBytes, welcome.stream_bytes);
        if continues {
            inner.drop_durable(welcome.number);
        } else {
            inner.window.clear();
            inner.cut_at.clear();
            inner.window_bytes = 0;
            inner.established = false;
        }
        inner.ack = Ack {
            number: welcome.number,
            position: welcome.position,
            claims_upto: welcome.claims_upto,
            applied: inner.ack.applied.min(welcome.number),
            stream_bytes: welcome.stream_bytes,
            point: welcome.point,
            broken: welcome.broken,
        };
        inner.base = (welcome.number, welcome.hash);
        inner.handed = welcome.number;
        inner.sizing.reconnected();
        inner.next = 0;
        // Frames of the lost connection are stale: whoever waits asks again on NetBack.
        inner.messages.clear();
        inner.connected = true;
        inner.welcome = Some(welcome);
        inner.news.push_back(News::NetBack);
        self.publish(&inner);
        drop(inner);
        self.progress.set(Figure::Connected, 1);
        self.progress.add(Figure::Sessions, 1);
        self.changed.notify_all();
    }

    /// What the target said that it lacks, of what its WELCOME says.
    pub fn lacks(&self) -> Vec<BlockRun> {
        self.lock().lacks.clone()
    }

    pub fn set_lacks(&self, lacks: Vec<BlockRun>) {
        self.lock().lacks = lacks;
    }

    pub fn lost(&self) {
        let mut inner = self.lock();
        if inner.connected {
            inner.connected = false;
            inner.news.push_back(News::NetLost);
        }
        drop(inner);
        self.progress.set(Figure::Connected, 0);
        self.changed.notify_all();
    }

    /// Over how many connections besides the first this session's batches go.
    pub fn set_lanes(&self, lanes: usize) {
        let mut inner = self.lock();
        inner.is_parallel = lanes > 0;
        inner.sizing.set_lanes(lanes);
    }

    pub fn next(&self) -> Option<Next> {
        let mut inner = self.lock();
        if let Some(sealed) = Self::take_batch(&mut inner) {
            return Some(Next::Batch(sealed));
        }
        // What another connection carries may arrive after a frame of this one.
        if inner.is_parallel && !inner.window.is_empty() {
            return None;
        }
        inner.messages.pop_front().map(Next::Message)
    }

    /// The next batch, for a lane.
    pub async fn next_batch(&self) -> Arc<Sealed> {
        loop {
            let mut cut = std::pin::pin!(self.cut.notified());
            // From here on no batch is missed.
            cut.as_mut().enable();
            if let Some(sealed) = Self::take_batch(&mut self.lock()) {
                return sealed;
            }
            cut.await;
        }
    }

    fn take_batch(inner: &mut Inner) -> Option<Arc<Sealed>> {
        let sealed = inner.window.get(inner.next).cloned()?;
        inner.next += 1;
        Some(sealed)
    }

    /// Its first byte is about to leave: what may have arrived counts as sent.
    pub fn sending(&self, sealed: &Sealed) {
        let sent = self.progress.get(Figure::SentStreamBytes);
        self.progress.set(Figure::SentStreamBytes, sent.max(sealed.stream_bytes));
    }

    pub fn acked(&self, ack: Ack) {
        let mut inner = self.lock();
        if ack.number < inner.ack.number {
            return;
        }
        inner.drop_durable(ack.number);
        inner.time(&ack);
        inner.ack = ack;
        self.publish(&inner);
        let may_speak = inner.window.is_empty() && !inner.messages.is_empty();
        drop(inner);
        self.changed.notify_all();
        if may_speak {
            self.ready.notify_one();
        }
    }

    /// Batches up to this one are where they need not be kept here any more, and yet are
    /// not durable. No other stream begins before they are, or are lost
    /// ([`Stream::rewind`]).
    pub fn handed(&self, number: u64) {
        let mut inner = self.lock();
        let base = inner.base;
        inner.drop_durable(number);
        (inner.base, inner.handed) = (base, number);
    }

    /// What was handed over is durable up to here.
    pub fn closed(&self, ack: Ack, hash: BatchHash) {
        self.lock().base = (ack.number, hash);
        self.acked(ack);
    }

    /// What was handed over is lost: the stream begins anew behind `welcome`.
    pub fn rewind(&self, welcome: Welcome) {
        self.lock().established = false;
        self.welcome(welcome);
    }

    pub fn tell(&self, news: News) {
        self.lock().news.push_back(news);
        self.changed.notify_all();
    }

    fn publish(&self, inner: &Inner) {
        let ack = &inner.ack;
        self.progress.set(Figure::DurableStreamBytes, ack.stream_bytes);
        self.progress.set(Figure::DurableNumber, ack.number);
        self.progress.set(Figure::WindowBytes, inner.sizing.bytes());
        self.progress.set(Figure::DurableIncarnation, u64::from(ack.position.incarnation.0));
        self.progress.set(Figure::DurableSeq, ack.position.seq.0);
        self.progress.set(Figure::PointSeq, ack.point.map_or(0, |point| point.seq.0));
        self.progress.set(Figure::HasPoint, u64::from(ack.point.is_some()));
    }

    /// Nothing will come of trying again: the target refused for good.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
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
            cut_at: VecDeque::new(),
            durable_s: None,
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
        let age = |cut_at: &VecDeque<(u64, Instant)>, number: u64| {
            let newest = cut_at.iter().rev().find(|(cut, _)| *cut <= number)?;
            Some(now.duration_since(newest.1).as_secs_f64())
        };
        let blend = |old: &mut Option<f64>, new: f64| {
            *old = Some(old.map_or(new, |old| old * 0.8 + new * 0.2));
        };
        if ack.number > self.ack.number
            && let Some(seconds) = age(&self.cut_at, ack.number)
        {
            blend(&mut self.durable_s, seconds);
            self.sizing.acked(now, ack.stream_bytes, Duration::from_secs_f64(seconds));
        }
        if ack.applied > self.ack.applied
            && let Some(seconds) = age(&self.cut_at, ack.applied)
        {
            blend(&mut self.applied_s, seconds);
        }
        while self.cut_at.front().is_some_and(|(number, _)| *number <= ack.applied) {
            self.cut_at.pop_front();
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
