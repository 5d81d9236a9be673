//! The one that decides: a thread through which every hello, batch and request
//! passes, so that there is one order of events and no lock to hold for it.
//!
//! What waits in its inbox is handled in one go; all batches among it share one
//! fdatasync and are acknowledged together.

use super::applier::Applier;
use super::apply::check_bounds;
use super::counters::{Counters, add};
use super::medium::Medium;
use super::promote::{Pending, Promote};
use super::recovery::Store;
use super::staging::Staging;
use super::state::{Books, Takeover};
use super::stream::Stream;
use super::{Layout, Limits};
use crate::batch::{Batch, Keyring};
use crate::error::{Error, ErrorKind};
use crate::ids::SessionId;
use crate::wire::{
    Abort, Ack, Compared, Hello, Message, Promote as PromoteRequest, Refusal, RefusalCode,
};
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use towline_block::{Epoch, GroupName, VolumeName};

pub type Inbox = std_mpsc::Sender<Order>;
pub type Outbox = mpsc::UnboundedSender<Message>;

/// Orders handled before the batches among them are made durable.
const ORDERS_MAX: usize = 1024;

pub enum Order {
    Hello {
        connection: u64,
        hello: Box<Hello>,
        outbox: Outbox,
    },
    Batch {
        connection: u64,
        bytes: Vec<u8>,
        memory: OwnedSemaphorePermit,
    },
    Promote {
        connection: u64,
        request: PromoteRequest,
        memory: OwnedSemaphorePermit,
    },
    Abort {
        connection: u64,
        request: Abort,
        memory: OwnedSemaphorePermit,
    },
    Gone {
        connection: u64,
    },
    Applied {
        applied: Box<Stream>,
        stalled: bool,
    },
    /// Verdict for whoever ships now; nobody: it will be asked for again.
    Compared(Compared),
    Stop,
}

/// What sessions tell their peers and regulate themselves by.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub durable: Stream,
    pub applied_number: u64,
    /// Stream bytes that are durable and not yet applied.
    pub backlog_bytes: u64,
}

impl Progress {
    pub fn ack(&self) -> Ack {
        Ack {
            number: self.durable.number,
            position: self.durable.position,
            claims_upto: self.durable.claims_upto,
            applied: self.applied_number,
            stream_bytes: self.durable.stream_bytes,
            point: self.durable.point.map(|point| point.position),
            broken: !self.durable.whole,
        }
    }
}

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
}

/// What a clerk has once a group is bound.
pub struct Bound {
    pub books: Arc<Books>,
    pub staging: Staging,
    pub applier: Applier,
    /// Admitted; may not be durable yet.
    received: Stream,
    pub durable: Stream,
    pub applied: Stream,
    pub stalled: bool,
    /// Batches of an older one are refused.
    pub epoch: Epoch,
    sizes: Vec<u64>,
    pub promoted: Option<Takeover>,
    /// What the target serves since it took over; `None` while it does not.
    pub exports: Option<Vec<String>>,
}

pub struct Clerk {
    pub desk: Desk,
    pub bound: Option<Bound>,
    pub current: Option<Current>,
    pub pending: Option<Pending>,
    progress: watch::Sender<Progress>,
    /// Memory of what was handled since the last commit.
    memory: Vec<OwnedSemaphorePermit>,
}

impl Clerk {
    pub fn new(desk: Desk, store: Option<Store>, progress: watch::Sender<Progress>) -> Clerk {
        let (current, pending) = (None, None);
        let mut clerk = Clerk { desk, bound: None, current, pending, progress, memory: Vec::new() };
        if let Some(store) = store {
            clerk.bind(store);
        }
        clerk
    }

    pub fn bind(&mut self, store: Store) {
        let state = store.books.get();
        let (inbox, counters) = (self.desk.inbox.clone(), Arc::clone(&self.desk.counters));
        let applied = store.apply.applied().clone();
        let applier = Applier::start(store.apply, inbox, Arc::clone(&store.books), counters);
        if state.promoted.is_none() {
            applier.wake();
        }
        self.bound = Some(Bound {
            books: store.books,
            staging: store.staging,
            applier,
            received: store.durable.clone(),
            durable: store.durable,
            applied,
            stalled: false,
            epoch: state.epoch,
            sizes: state.volumes.iter().map(|volume| volume.size_bytes).collect(),
            promoted: state.promoted,
            exports: None,
        });
        self.publish();
    }

    pub fn run(mut self, orders: std_mpsc::Receiver<Order>) {
        while let Ok(order) = orders.recv() {
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

    /// False to end.
    fn handle(&mut self, order: Order) -> bool {
        match order {
            Order::Hello { connection, hello, outbox } => self.hello(connection, *hello, outbox),
            Order::Batch { connection, bytes, memory } => {
                self.memory.push(memory);
                if self.speaks(connection)
                    && let Err(refusal) = self.admit(bytes)
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
                }
            }
            Order::Applied { applied, stalled } => {
                if let Some(bound) = &mut self.bound {
                    bound.applied = *applied;
                    bound.stalled = stalled;
                }
                self.publish();
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

    /// Ends the current session with a sentence.
    fn refuse(&mut self, refusal: Refusal) {
        add(&self.desk.counters.refused, 1);
        if let Some(current) = self.current.take() {
            tracing::warn!(session = %current.session, code = ?refusal.code, "{}", refusal.message);
            let _ = current.outbox.send(Message::Error(refusal));
        }
    }

    fn admit(&mut self, bytes: Vec<u8>) -> Result<(), Refusal> {
        let (Some(bound), Some(current)) = (&mut self.bound, &self.current) else { return Ok(()) };
        if let Some(takeover) = &bound.promoted {
            let what = format!(
                "the target took over in epoch {} and takes no more batches",
                takeover.epoch.0
            );
            return Err(Refusal::new(RefusalCode::AlreadyPromoted, what));
        }
        if self.pending.is_some() {
            let what = "a batch came while the takeover was being decided";
            return Err(Refusal::new(RefusalCode::Protocol, what));
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
        if let Err(error) = bound.staging.append(batch.number(), opened.bytes()) {
            return Err(self.staging_failed(&error));
        }
        bound.received = after;
        Ok(())
    }

    /// Makes everything admitted durable, and tells everybody.
    pub fn commit(&mut self) {
        self.memory.clear();
        let Some(bound) = &mut self.bound else { return };
        if bound.received.number == bound.durable.number {
            return;
        }
        if let Err(error) = bound.staging.sync() {
            let refusal = self.staging_failed(&error);
            return self.refuse(refusal);
        }
        let counters = &self.desk.counters;
        add(&counters.stage_syncs, 1);
        add(&counters.batches, bound.received.number - bound.durable.number);
        add(&counters.batch_bytes, bound.received.stream_bytes - bound.durable.stream_bytes);
        bound.durable = bound.received.clone();
        bound.applier.wake();
        self.publish();
    }

    /// Back to what is durable; the session ends and the shipper comes again.
    fn staging_failed(&mut self, error: &Error) -> Refusal {
        add(&self.desk.counters.storage_errors, 1);
        if let Some(bound) = &mut self.bound {
            bound.staging.give_up();
            bound.received = bound.durable.clone();
        }
        refusal_of(error)
    }

    pub fn publish(&self) {
        let Some(bound) = &self.bound else { return };
        self.progress.send_replace(Progress {
            durable: bound.durable.clone(),
            applied_number: bound.applied.number,
            backlog_bytes: bound.durable.stream_bytes.saturating_sub(bound.applied.stream_bytes),
        });
    }
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
