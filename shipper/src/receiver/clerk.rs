//! The one that decides: a thread through which every hello, batch and request
//! passes, so that there is one order of events and no lock to hold for it.
//!
//! What waits in its inbox is handled in one go; all batches among it share one
//! fdatasync and are acknowledged together.

use super::applier::Applier;
use super::apply::check_bounds;
use super::counters::{Counters, add};
use super::medium::{Medium, Target};
use super::promote::{Pending, Promote};
use super::recovery::{OWNER_WAIT, Store};
use super::staging::Staging;
use super::state::{Books, STATE_VERSION, State, Takeover, TargetRecord};
use super::stream::Stream;
use super::{Layout, Limits};
use crate::batch::BatchView;
use crate::error::{Error, ErrorKind};
use crate::ids::SessionId;
use crate::wire::{
    Abort, Ack, Hello, Message, PROTOCOL, Promote as PromoteRequest, Promoted, Refusal,
    RefusalCode, VOLUMES_MAX, VolumeSize, Welcome,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as std_mpsc};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use towline_block::{Access, Epoch, FileDisk, GroupName, VolumeName};

pub type Inbox = std_mpsc::Sender<Order>;
pub type Outbox = mpsc::UnboundedSender<Message>;

/// Orders handled before the batches among them are made durable.
const ORDERS_MAX: usize = 1024;

pub enum Order {
    Hello { connection: u64, hello: Box<Hello>, outbox: Outbox },
    Batch { connection: u64, bytes: Vec<u8>, memory: OwnedSemaphorePermit },
    Promote { connection: u64, request: PromoteRequest },
    Abort { connection: u64, request: Abort },
    Gone { connection: u64 },
    Applied { applied: Box<Stream>, stalled: bool },
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
    pub promote: Arc<dyn Promote>,
    pub counters: Arc<Counters>,
    pub inbox: Inbox,
}

/// The session that may send now.
pub struct Current {
    pub connection: u64,
    session: SessionId,
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
    epoch: Epoch,
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
    /// Memory of batches that were handled since the last commit.
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

    fn bind(&mut self, store: Store) {
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
                    && let Err(refusal) = self.admit(&bytes)
                {
                    self.refuse(refusal);
                }
            }
            Order::Promote { connection, request } if self.speaks(connection) => {
                self.commit();
                self.promote(request);
            }
            Order::Abort { connection, request } if self.speaks(connection) => {
                self.commit();
                self.abort(request);
            }
            Order::Promote { .. } | Order::Abort { .. } => {}
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

    fn hello(&mut self, connection: u64, hello: Hello, outbox: Outbox) {
        self.commit();
        match self.welcome(&hello) {
            Ok(welcome) => {
                if let Some(old) = self.current.take() {
                    let what = format!(
                        "session {} of group {} took over from {}: end this shipper",
                        hello.session, hello.group, old.session
                    );
                    let refusal = Refusal::new(RefusalCode::Superseded, what);
                    let _ = old.outbox.send(Message::Error(refusal));
                }
                add(&self.desk.counters.sessions, 1);
                let _ = outbox.send(Message::Welcome(welcome));
                self.current = Some(Current { connection, session: hello.session, outbox });
            }
            Err(refusal) => {
                add(&self.desk.counters.refused, 1);
                tracing::warn!(group = %hello.group, code = ?refusal.code, "{}", refusal.message);
                let _ = outbox.send(Message::Error(refusal));
            }
        }
    }

    fn welcome(&mut self, hello: &Hello) -> Result<Welcome, Refusal> {
        check_hello(hello)?;
        if let Some(group) = self.desk.group.as_ref().filter(|group| **group != hello.group) {
            let what = format!("this receiver is for group {group}, not {}", hello.group);
            return Err(Refusal::new(RefusalCode::WrongGroup, what));
        }
        if self.bound.is_none() {
            let store = self.create(hello)?;
            self.bind(store);
        }
        let Some(bound) = &mut self.bound else {
            return Err(Refusal::new(RefusalCode::Storage, "the receiver has no state"));
        };
        let state = bound.books.get();
        check_group(hello, &state)?;
        if state.promoted.is_none() {
            check_epoch(hello, bound, &state)?;
            check_volumes(hello, &state)?;
        }
        let durable = &bound.durable;
        Ok(Welcome {
            version: PROTOCOL,
            number: durable.number,
            hash: durable.hash,
            position: durable.position,
            claims_upto: durable.claims_upto,
            stream_bytes: durable.stream_bytes,
            point: durable.point.map(|point| point.position),
            broken: !durable.whole,
            promoted: bound.promoted.as_ref().map(|takeover| Promoted {
                attempt: takeover.attempt.clone(),
                epoch: takeover.epoch,
                position: takeover.position,
                exports: bound.exports.clone().unwrap_or_default(),
            }),
        })
    }

    /// Binds this receiver to the group: targets opened or created, then the state.
    fn create(&self, hello: &Hello) -> Result<Store, Refusal> {
        let open = |volume: &VolumeSize| self.open_target(volume);
        let targets: Vec<Target> = hello.volumes.iter().map(open).collect::<Result<_, _>>()?;
        let record = |target: &Target| TargetRecord {
            name: target.name.clone(),
            size_bytes: target.disk.size_bytes(),
            path: std::path::absolute(target.disk.path())
                .unwrap_or_else(|_| target.disk.path().to_owned()),
        };
        let state = State {
            version: STATE_VERSION,
            group: hello.group.clone(),
            group_uuid: hello.group_uuid,
            epoch: hello.epoch,
            volumes: targets.iter().map(record).collect(),
            applied: Stream::default(),
            decisions: Vec::new(),
            promoted: None,
            last_error: None,
        };
        let desk = &self.desk;
        Store::create(&desk.layout, &desk.medium, &desk.limits, state, targets)
            .map_err(|error| refusal_of(&error))
    }

    fn open_target(&self, volume: &VolumeSize) -> Result<Target, Refusal> {
        let given = self.desk.targets.iter().find(|(name, _)| *name == volume.name);
        let Some((name, path)) = given else {
            let what = format!(
                "the receiver has no target for volume {}: start it with --target {}=PATH",
                volume.name, volume.name
            );
            return Err(Refusal::new(RefusalCode::UnknownVolume, what));
        };
        let created = !path.exists();
        let access = Access::Own { wait: OWNER_WAIT };
        let opened = FileDisk::open_or_create(path, volume.size_bytes, access);
        let disk = opened.map_err(|error| match Error::from(error) {
            error if error.kind() == ErrorKind::InvalidInput => {
                let what = format!("volume {}: target {error}", volume.name);
                Refusal::new(RefusalCode::SizeMismatch, what)
            }
            error => refusal_of(&error),
        })?;
        if created {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            self.desk.medium.sync_dir(dir).map_err(|error| refusal_of(&error))?;
        }
        Ok(Target::new(name.clone(), disk, self.desk.medium.clone()))
    }

    fn admit(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
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
            let what = format!("{error}: connect again and go on from WELCOME");
            Refusal::new(RefusalCode::Damaged, what)
        };
        let batch = BatchView::parse(bytes).map_err(damaged)?;
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
        if let Err(error) = bound.staging.append(batch.number(), bytes) {
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

fn old_epoch(theirs: Epoch, ours: Epoch) -> Refusal {
    let what = format!(
        "epoch {} is over, the group is in epoch {}: somebody else writes it now",
        theirs.0, ours.0
    );
    Refusal::new(RefusalCode::OldEpoch, what)
}

fn check_hello(hello: &Hello) -> Result<(), Refusal> {
    if hello.version != PROTOCOL {
        let what = format!(
            "the shipper speaks protocol {}, this receiver {PROTOCOL}: update the older one",
            hello.version
        );
        return Err(Refusal::new(RefusalCode::Incompatible, what));
    }
    let count = hello.volumes.len();
    let empty = hello.volumes.iter().any(|volume| volume.size_bytes == 0);
    let mut names: Vec<_> = hello.volumes.iter().map(|volume| &volume.name).collect();
    names.sort_unstable();
    names.dedup();
    if count == 0 || count > VOLUMES_MAX || names.len() != count || empty {
        let what = format!("HELLO names {count} volumes: 1 to {VOLUMES_MAX}, each once, not empty");
        return Err(Refusal::new(RefusalCode::Protocol, what));
    }
    if hello.epoch == Epoch(0) {
        return Err(Refusal::new(RefusalCode::Protocol, "epochs start at 1"));
    }
    Ok(())
}

fn check_group(hello: &Hello, state: &State) -> Result<(), Refusal> {
    if hello.group != state.group || hello.group_uuid != state.group_uuid {
        let what = format!(
            "this receiver holds group {} ({}), not {} ({}): start another one with its own state \
             directory and targets",
            state.group, state.group_uuid, hello.group, hello.group_uuid
        );
        return Err(Refusal::new(RefusalCode::WrongGroup, what));
    }
    Ok(())
}

fn check_epoch(hello: &Hello, bound: &mut Bound, state: &State) -> Result<(), Refusal> {
    if hello.epoch < state.epoch {
        return Err(old_epoch(hello.epoch, state.epoch));
    }
    let risen = bound.books.update(|state| state.epoch = hello.epoch);
    risen.map_err(|error| refusal_of(&error))?;
    bound.epoch = hello.epoch;
    Ok(())
}

fn check_volumes(hello: &Hello, state: &State) -> Result<(), Refusal> {
    let same_names = hello.volumes.len() == state.volumes.len()
        && hello.volumes.iter().zip(&state.volumes).all(|(theirs, ours)| theirs.name == ours.name);
    if !same_names {
        let list = |names: Vec<&str>| names.join(", ");
        let what = format!(
            "the group's volumes were {} and are now {}: volumes cannot change while a group ships",
            list(state.volumes.iter().map(|volume| volume.name.as_str()).collect()),
            list(hello.volumes.iter().map(|volume| volume.name.as_str()).collect())
        );
        return Err(Refusal::new(RefusalCode::UnknownVolume, what));
    }
    for (theirs, ours) in hello.volumes.iter().zip(&state.volumes) {
        if theirs.size_bytes != ours.size_bytes {
            let what = format!(
                "volume {} has {} bytes at the source and {} at the target {}",
                ours.name,
                theirs.size_bytes,
                ours.size_bytes,
                ours.path.display()
            );
            return Err(Refusal::new(RefusalCode::SizeMismatch, what));
        }
    }
    Ok(())
}
