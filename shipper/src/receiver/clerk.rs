//! The one that decides: a thread through which every hello, batch and request
//! passes, so that there is one order of events and no lock to hold for it.
//!
//! What waits in its inbox is handled in one go; all batches among it share one
//! fdatasync and are acknowledged together.
//!
//! | | staged | direct |
//! |---|---|---|
//! | when | there is or was a point, a mark is kept, or something is staged | else: the baseline, from the start of the receiver on |
//! | durable once | fdatasync of staging | written to the targets, these flushed, `applied` in `state.json` |
//! | to the applier | by staging, and opened where there is room | opened, always; without room it waits at the clerk |
//! | next | for good | staged, once all up to the first point is applied |

use super::applier::Applier;
use super::apply::check_bounds;
use super::bound::Bound;
use super::counters::{Counters, add};
use super::handover::Ready;
use super::lanes::Lanes;
use super::medium::Medium;
use super::note::note;
use super::order::{Inbox, Order, Outbox, Progress};
use super::promote::{Pending, Promote};
use super::recovery::Store;
use super::stream::Stream;
use super::{Layout, Limits};
use crate::batch::{Batch, Keyring};
use crate::error::{Error, ErrorKind};
use crate::ids::SessionId;
use crate::wire::{Join, Message, Refusal, RefusalCode};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use towline_block::{Epoch, GroupName, VolumeName};

/// Orders handled before the batches among them are made durable.
const ORDERS_MAX: usize = 1024;

/// Durable and not applied, at which the applier does not pause: half a group.
const APPLY_AT_BYTES: u64 = super::apply::GROUP_BYTES_MAX as u64 / 2;

/// Pause between two attempts to serve a promoted target.
const SERVE_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// What the clerk is told once.
pub struct Desk {
    pub layout: Layout,
    pub medium: Medium,
    pub limits: Limits,
    pub group: Option<GroupName>,
    pub targets: Vec<(VolumeName, PathBuf)>,
    pub keys: Keyring,
    pub promote: Arc<dyn Promote>,
    pub counters: Arc<Counters>,
    pub inbox: Inbox,
}

/// The session that may send now.
pub struct Current {
    pub connection: u64,
    pub session: SessionId,
    pub outbox: Outbox,
    pub lanes: Lanes,
}

impl Current {
    /// All its connections hear why.
    pub fn end(self, refusal: Refusal) {
        self.lanes.end(&refusal);
        let _ = self.outbox.send(Message::Error(refusal));
    }
}

pub struct Clerk {
    pub desk: Desk,
    pub bound: Option<Bound>,
    pub current: Option<Current>,
    pub pending: Option<Pending>,
    progress: watch::Sender<Progress>,
    /// Memory of what was handled since the last commit.
    memory: Vec<OwnedSemaphorePermit>,
    noted: Option<String>,
}

impl Clerk {
    pub fn new(desk: Desk, store: Option<Store>, progress: watch::Sender<Progress>) -> Clerk {
        let (current, pending) = (None, None);
        let (memory, noted) = Default::default();
        let mut clerk = Clerk { desk, bound: None, current, pending, progress, memory, noted };
        if let Some(store) = store {
            clerk.bind(store);
        }
        clerk
    }

    pub fn bind(&mut self, store: Store) {
        let state = store.books.get();
        let (inbox, counters) = (self.desk.inbox.clone(), Arc::clone(&self.desk.counters));
        let applied = store.apply.applied().clone();
        let handover = store.apply.handover().clone();
        let is_direct = store.durable.point.is_none()
            && store.durable.number == applied.number
            && !store.apply.marks.is_recording();
        let applier = Applier::start(store.apply, inbox, Arc::clone(&store.books), counters);
        if state.promoted.is_none() {
            applier.wake(true);
        }
        self.bound = Some(Bound {
            books: store.books,
            staging: store.staging,
            applier,
            received: store.durable.clone(),
            durable: store.durable,
            applied,
            is_direct,
            handover,
            fresh: Vec::new(),
            waiting: VecDeque::new(),
            stalled: false,
            lacking: store.lacking,
            epoch: state.epoch,
            sizes: state.volumes.iter().map(|volume| volume.size_bytes).collect(),
            promoted: state.promoted,
            exports: None,
        });
        self.publish();
    }

    pub fn run(mut self, orders: std_mpsc::Receiver<Order>) {
        while let Some(order) = self.next(&orders) {
            let more = std::iter::from_fn(|| orders.try_recv().ok()).take(ORDERS_MAX);
            let stop = std::iter::once(order).chain(more).any(|order| !self.handle(order));
            self.commit();
            if stop {
                break;
            }
            self.advance_promotion();
        }
        if let Some(bound) = &mut self.bound {
            bound.applier.stop();
        }
    }

    /// Meanwhile what failed is tried again.
    fn next(&mut self, orders: &std_mpsc::Receiver<Order>) -> Option<Order> {
        while self.owes_serving() {
            match orders.recv_timeout(SERVE_AGAIN_EVERY) {
                Ok(order) => return Some(order),
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(std_mpsc::RecvTimeoutError::Timeout) => self.make_up_for_serving(),
            }
        }
        orders.recv().ok()
    }

    /// False to end.
    fn handle(&mut self, order: Order) -> bool {
        match order {
            Order::Hello { connection, hello, outbox } => self.hello(connection, *hello, outbox),
            Order::Join { connection, join, outbox } => self.join(connection, &join, outbox),
            Order::Batch { connection, bytes, memory } => {
                if self.carries(connection)
                    && let Err(refusal) = self.take(bytes, memory)
                {
                    self.refuse(refusal);
                }
            }
            Order::Promote { connection, request, memory } => {
                self.memory.push(memory);
                self.commit();
                if self.speaks(connection) {
                    self.promote(request);
                }
            }
            Order::Abort { connection, request, memory } => {
                self.memory.push(memory);
                self.commit();
                if self.speaks(connection) {
                    self.abort(request);
                }
            }
            Order::Gone { connection } => {
                if self.speaks(connection) {
                    self.current = None;
                    self.forget_waiting();
                } else if self.carries(connection) {
                    let what = "a connection of the session is gone: connect again";
                    self.refuse(Refusal::new(RefusalCode::OutOfOrder, what));
                }
            }
            Order::Applied { applied, stalled } => {
                let told = self.applied(*applied, stalled);
                if let Err(refusal) = told.and_then(|()| self.admit_waiting()) {
                    self.refuse(refusal);
                }
            }
            Order::Hydrated { state, done } => {
                let _ = done.send(self.hydrated(*state));
            }
            Order::Compared(verdict) => {
                if let Some(current) = &self.current {
                    let _ = current.outbox.send(Message::Compared(verdict));
                }
            }
            Order::Stop => return false,
        }
        true
    }

    fn speaks(&self, connection: u64) -> bool {
        self.current.as_ref().is_some_and(|current| current.connection == connection)
    }

    fn carries(&self, connection: u64) -> bool {
        let is_lane = |current: &Current| current.lanes.has(connection);
        self.speaks(connection) || self.current.as_ref().is_some_and(is_lane)
    }

    /// A further connection for the batches of the current session.
    fn join(&mut self, connection: u64, join: &Join, outbox: Outbox) {
        let current = self.current.as_mut().filter(|current| current.session == join.session);
        let refusal = match current {
            Some(current) => match current.lanes.add(join.join, connection, outbox.clone()) {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            None => Refusal::new(RefusalCode::Superseded, "the session to join is over"),
        };
        add(&self.desk.counters.refused, 1);
        let _ = outbox.send(Message::Error(refusal));
    }

    /// Ends the current session with a sentence.
    fn refuse(&mut self, refusal: Refusal) {
        add(&self.desk.counters.refused, 1);
        self.forget_waiting();
        if let Some(current) = self.current.take() {
            tracing::warn!(session = %current.session, code = ?refusal.code, "{}", refusal.message);
            current.end(refusal);
        }
    }

    fn forget_waiting(&mut self) {
        if let Some(bound) = &mut self.bound {
            bound.waiting.clear();
        }
    }

    fn applied(&mut self, applied: Stream, stalled: bool) -> Result<(), Refusal> {
        let Some(bound) = &mut self.bound else { return Ok(()) };
        if applied.number > bound.durable.number {
            count_durable(&self.desk.counters, &bound.durable, &applied);
            bound.durable = applied.clone();
        }
        bound.applied = applied;
        bound.stalled = stalled;
        let tell_again = bound.account_for_lacking();
        self.publish();
        match tell_again {
            false => Ok(()),
            true => {
                let what =
                    "blocks of packs that were lost are lacking: connect again, WELCOME names them";
                Err(Refusal::new(RefusalCode::OutOfOrder, what))
            }
        }
    }

    /// A batch of the current session: admitted now, or when its turn comes.
    fn take(&mut self, bytes: Vec<u8>, memory: OwnedSemaphorePermit) -> Result<(), Refusal> {
        if self.pending.is_some() {
            let what = "a batch came while the takeover was being decided";
            return Err(Refusal::new(RefusalCode::Protocol, what));
        }
        let (Some(bound), Some(current)) = (&self.bound, &mut self.current) else { return Ok(()) };
        let Some(early) = current.lanes.in_turn((bytes, memory), bound.next_number())? else {
            return Ok(());
        };
        let mut next = Some(early);
        while let Some((bytes, memory)) = next {
            self.queue(bytes, memory)?;
            let (Some(bound), Some(current)) = (&self.bound, &mut self.current) else { break };
            next = current.lanes.next(bound.next_number());
        }
        Ok(())
    }

    fn queue(&mut self, bytes: Vec<u8>, memory: OwnedSemaphorePermit) -> Result<(), Refusal> {
        let Some(bound) = &mut self.bound else { return Ok(()) };
        if bound.waiting.is_empty() && bound.may_admit() {
            return self.admit(bytes, memory);
        }
        bound.waiting.push_back((bytes, memory));
        Ok(())
    }

    fn admit_waiting(&mut self) -> Result<(), Refusal> {
        while let Some(bound) = &mut self.bound
            && bound.may_admit()
            && let Some((bytes, memory)) = bound.waiting.pop_front()
        {
            self.admit(bytes, memory)?;
        }
        Ok(())
    }

    fn admit(&mut self, bytes: Vec<u8>, memory: OwnedSemaphorePermit) -> Result<(), Refusal> {
        let (Some(bound), Some(current)) = (&mut self.bound, &self.current) else { return Ok(()) };
        if let Some(takeover) = &bound.promoted {
            let what = format!(
                "the target took over in epoch {} and takes no more batches",
                takeover.epoch.0
            );
            return Err(Refusal::new(RefusalCode::AlreadyPromoted, what));
        }
        let damaged = |error: Error| {
            if error.kind() == ErrorKind::NotAuthorised {
                return Refusal::new(RefusalCode::NoKey, error.to_string());
            }
            let what = format!("{error}: connect again and go on from WELCOME");
            Refusal::new(RefusalCode::Damaged, what)
        };
        let opened = Batch::open(bytes, &self.desk.keys).map_err(damaged)?;
        if !opened.is_sealed() && self.desk.keys.newest().is_some() {
            return Err(super::hello::unsealed());
        }
        let batch = opened.view();
        if batch.session() != current.session {
            let what = format!(
                "batch {} is of session {}, this connection of {}",
                batch.number(),
                batch.session(),
                current.session
            );
            return Err(Refusal::new(RefusalCode::Protocol, what));
        }
        let epoch = batch.position().epoch;
        if epoch < bound.epoch {
            return Err(old_epoch(epoch, bound.epoch));
        }
        let after = bound.received.follow(bound.books.group_uuid(), &batch)?;
        check_bounds(&batch, &bound.sizes).map_err(damaged)?;
        let after = match &mut bound.lacking {
            Some(lacking) => lacking.admit(&batch, after),
            None => after,
        };
        if bound.is_direct {
            bound.received = after.clone();
            bound.handover.put(Ready::direct(opened, after, memory));
            return Ok(());
        }
        if let Err(error) = bound.staging.append(batch.number(), opened.bytes()) {
            return Err(self.staging_failed(&error));
        }
        self.memory.push(memory);
        bound.received = after.clone();
        bound.fresh.push(Ready::staged(opened, after));
        Ok(())
    }

    /// Makes everything admitted durable, and tells everybody.
    pub fn commit(&mut self) {
        self.memory.clear();
        let Some(bound) = &mut self.bound else { return };
        if bound.received.number == bound.durable.number {
            return;
        }
        if bound.is_direct {
            return bound.applier.wake(true);
        }
        if let Err(error) = bound.staging.sync() {
            let refusal = self.staging_failed(&error);
            return self.refuse(refusal);
        }
        self.note(None);
        let Some(bound) = &mut self.bound else { return };
        let counters = &self.desk.counters;
        add(&counters.stage_syncs, 1);
        count_durable(counters, &bound.durable, &bound.received);
        bound.durable = bound.received.clone();
        for ready in bound.fresh.drain(..) {
            // Without room it is read from staging, later.
            if bound.handover.has_room() {
                bound.handover.put(ready);
            }
        }
        let backlog = bound.durable.stream_bytes - bound.applied.stream_bytes;
        let urgent = backlog >= APPLY_AT_BYTES || bound.durable.sealed.is_some();
        bound.applier.wake(urgent);
        self.publish();
    }

    /// Back to what is durable; the session ends and the shipper comes again.
    fn staging_failed(&mut self, error: &Error) -> Refusal {
        add(&self.desk.counters.storage_errors, 1);
        self.note(Some(error.to_string()));
        if let Some(bound) = &mut self.bound {
            bound.staging.give_up();
            bound.fresh.clear();
            bound.received = bound.durable.clone();
            if error.kind() == ErrorKind::NoSpace {
                bound.make_room();
            }
        }
        refusal_of(error)
    }

    /// Why nothing is received, for `status`.
    pub fn note(&mut self, why: Option<String>) {
        if self.noted != why {
            note(&self.desk.layout, why.as_deref());
            self.noted = why;
        }
    }

    pub fn publish(&self) {
        let Some(bound) = &self.bound else { return };
        let backlog_bytes = bound.durable.stream_bytes.saturating_sub(bound.applied.stream_bytes);
        self.desk.counters.backlog_bytes.store(backlog_bytes, Relaxed);
        self.progress.send_replace(Progress {
            durable: bound.durable.clone(),
            applied_number: bound.applied.number,
            backlog_bytes,
        });
    }
}

fn count_durable(counters: &Counters, before: &Stream, after: &Stream) {
    add(&counters.batches, after.number - before.number);
    add(&counters.batch_bytes, after.stream_bytes - before.stream_bytes);
}

/// The outside failed on the receiver's side.
pub fn refusal_of(error: &Error) -> Refusal {
    let code = match error.kind() {
        ErrorKind::NoSpace => RefusalCode::NoSpace,
        _ => RefusalCode::Storage,
    };
    Refusal::new(code, format!("the receiver cannot go on now: {error}"))
}

pub fn old_epoch(theirs: Epoch, ours: Epoch) -> Refusal {
    let what = format!(
        "epoch {} is over, the group is in epoch {}: somebody else writes it now",
        theirs.0, ours.0
    );
    Refusal::new(RefusalCode::OldEpoch, what)
}
