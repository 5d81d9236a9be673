//! What sessions do with the stream: take from it, say what became of it.

use super::{Inner, News, Next, Stream};
use crate::batch::Sealed;
use crate::device::BlockRun;
use crate::ids::BatchHash;
use crate::wire::{Ack, Welcome};
use std::sync::Arc;
use std::time::Instant;
use towline_journal::progress::Figure;

impl Stream {
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
            applied: match self.is_store {
                // It applies nothing: what it durably has counts.
                true => welcome.number,
                false => inner.ack.applied.min(welcome.number),
            },
            stream_bytes: welcome.stream_bytes,
            point: welcome.point,
            broken: welcome.broken,
        };
        inner.applied_at = Instant::now();
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
        if ack.applied > inner.ack.applied || inner.ack.applied == inner.ack.number {
            inner.applied_at = Instant::now();
        }
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

    /// Nothing will come of trying again: the target refused for good.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
