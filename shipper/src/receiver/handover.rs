//! Opened batches on their way from the clerk to the applier, in memory: what was
//! checked once need not be read and checked again.
//!
//! What is staged, too, may be left out here: it is then read from staging. What is
//! applied directly is nowhere else.

use super::stream::Stream;
use crate::batch::{Batch, BatchView, Op};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedSemaphorePermit;
use towline_block::MarkName;

/// Opened batches that wait for the applier: one group in work, one to follow.
pub const HANDOVER_BYTES_MAX: usize = 32 << 20;

/// A batch that was admitted, and the stream after it.
pub struct Ready {
    pub batch: Batch,
    pub after: Stream,
    /// A mark that was asked for at its end, where the group is whole.
    pub mark: Option<MarkName>,
    /// It is in staging.
    pub is_staged: bool,
    /// Memory it was received into, where nothing else bounds that.
    _memory: Option<OwnedSemaphorePermit>,
}

impl Ready {
    pub fn staged(batch: Batch, after: Stream) -> Ready {
        let mark = mark_of(&batch.view(), &after);
        Ready { batch, after, mark, is_staged: true, _memory: None }
    }

    pub fn direct(batch: Batch, after: Stream, memory: OwnedSemaphorePermit) -> Ready {
        Ready { is_staged: false, _memory: Some(memory), ..Ready::staged(batch, after) }
    }
}

/// The name of the mark that ends a batch. A label that is no name marks nothing.
fn mark_of(batch: &BatchView<'_>, after: &Stream) -> Option<MarkName> {
    let last = batch.ops().last().filter(|_| after.whole).map(|entry| entry.op);
    let Some(Op::Mark { label }) = last else { return None };
    std::str::from_utf8(label).ok()?.parse().ok()
}

#[derive(Clone, Default)]
pub struct Handover(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    ready: VecDeque<Ready>,
    bytes: usize,
}

impl Handover {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has_room(&self) -> bool {
        self.lock().bytes < HANDOVER_BYTES_MAX
    }

    /// Numbers rise from one to the next.
    pub fn put(&self, ready: Ready) {
        let mut queue = self.lock();
        queue.bytes += ready.batch.memory_bytes();
        queue.ready.push_back(ready);
    }

    /// The batch of this number, if it is the next one here; older ones are dropped.
    pub fn take(&self, number: u64) -> Option<Ready> {
        let mut queue = self.lock();
        while let Some(front) = queue.ready.front()
            && front.after.number <= number
        {
            let ready = queue.ready.pop_front()?;
            queue.bytes -= ready.batch.memory_bytes();
            if ready.after.number == number {
                return Some(ready);
            }
        }
        None
    }

    /// Whether the next batch here is the one of this number, or an older one.
    pub fn has(&self, number: u64) -> bool {
        self.lock().ready.front().is_some_and(|front| front.after.number <= number)
    }

    pub fn clear(&self) {
        let mut queue = self.lock();
        queue.ready.clear();
        queue.bytes = 0;
    }
}
