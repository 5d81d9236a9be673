//! What the drain does with the stream: begins it, fills it, hears.

use super::{CutBatch, NEARLY_APPLIED, News, Stream, TIMED_MAX};
use crate::batch::{Chain, Sealed};
use crate::wire::{Ack, Message, Welcome};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Stream {
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
        let oldest = inner.cut_at.iter().find(|cut| cut.number > inner.ack.applied);
        cut <= inner.ack.applied || oldest.is_some_and(|cut| cut.at.elapsed() < NEARLY_APPLIED)
    }

    /// For how long the target, which is connected, has had batches and applied none.
    pub fn stalled_for(&self) -> Duration {
        let inner = self.lock();
        match inner.connected && inner.ack.applied < inner.ack.number {
            true => inner.applied_at.elapsed(),
            false => Duration::ZERO,
        }
    }

    /// From the cut of a batch to its durable acknowledgement, as of late.
    pub fn round_trip(&self) -> Option<Duration> {
        self.lock().durable_s.map(Duration::from_secs_f64)
    }

    /// The shortest that it ever took.
    pub fn least_round_trip(&self) -> Option<Duration> {
        self.lock().least_s.map(Duration::from_secs_f64)
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
            let Sealed { number, position, .. } = sealed;
            inner.cut_at.push_back(CutBatch { number, position, at: Instant::now() });
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
}
