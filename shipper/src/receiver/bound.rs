//! What a receiver has once a group is bound to it, and where the group's streams stand.

use super::applier::Applier;
use super::handover::{Handover, Ready};
use super::lacking::Lacking;
use super::staging::{SEGMENT_BYTES_MAX, Staging};
use super::state::{Books, Takeover};
use super::stream::Stream;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use towline_block::Epoch;

/// What a clerk has once a group is bound.
pub struct Bound {
    pub books: Arc<Books>,
    pub staging: Staging,
    pub applier: Applier,
    /// Admitted; may not be durable yet.
    pub received: Stream,
    pub durable: Stream,
    pub applied: Stream,
    /// Applied without being staged, see the table above.
    pub is_direct: bool,
    pub handover: Handover,
    /// Opened batches to be handed over once staging is synced.
    pub fresh: Vec<Ready>,
    /// Not admitted yet, for lack of room or until staging may begin.
    pub waiting: VecDeque<(Vec<u8>, OwnedSemaphorePermit)>,
    pub stalled: bool,
    /// Of packs that were lost on their way.
    pub lacking: Option<Lacking>,
    /// Batches of an older one are refused.
    pub epoch: Epoch,
    pub sizes: Vec<u64>,
    pub promoted: Option<Takeover>,
    /// What the target serves since it took over; `None` while it does not.
    pub exports: Option<Vec<String>>,
}

impl Bound {
    /// Of the batch that is to come next.
    pub fn next_number(&self) -> u64 {
        self.received.number + self.waiting.len() as u64 + 1
    }

    /// Whether the next batch can be admitted now. Staging begins once all that was
    /// handed over directly is applied, so that no durable batch has a gap before it.
    pub fn may_admit(&mut self) -> bool {
        if !self.is_direct {
            return true;
        }
        if self.received.point.is_none() {
            return self.handover.has_room();
        }
        self.is_direct = self.received.number != self.durable.number;
        !self.is_direct
    }

    /// Staging found no room: the oldest marks let go of what a segment takes.
    pub fn make_room(&mut self) {
        let mut apply = self.applier.halt();
        let is_broken = !apply.applied().whole || !self.durable.whole;
        let kept = apply.applied().point.filter(|_| is_broken).map(|point| point.number);
        match apply.marks.make_room(SEGMENT_BYTES_MAX, kept) {
            Ok(bytes) => tracing::warn!(bytes, "staging has no room: marks let go of so much"),
            Err(error) => {
                tracing::error!(%error, "staging has no room, and no mark can be given up")
            }
        }
        drop(apply);
        self.applier.resume();
    }

    /// What was lacking and is applied now; true when the shipper has to hear of the rest.
    pub fn account_for_lacking(&mut self) -> bool {
        let Some(lacking) = &mut self.lacking else { return false };
        let tell_again = lacking.applied(self.applied.number).unwrap_or_else(|error| {
            tracing::error!(%error, "blocks that came may come once more");
            false
        });
        if lacking.is_over() {
            tracing::info!("nothing of lost packs is lacking any more");
            self.lacking = None;
        }
        tell_again
    }

    /// Everything that was received is durable.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.received.number == self.durable.number
    }

    /// The sender of what is neither applied nor staged is gone: back to what is durable.
    /// Waits for the group in work.
    pub fn settle(&mut self) {
        self.waiting.clear();
        if self.is_settled() {
            return;
        }
        let mut apply = self.applier.halt();
        apply.drop_unstaged();
        self.applied = apply.applied().clone();
        drop(apply);
        self.applier.resume();
        self.durable = self.applied.clone();
        self.received = self.durable.clone();
        // What is applied by now was counted before.
        self.account_for_lacking();
        self.lacking.iter_mut().for_each(Lacking::revert);
    }
}
