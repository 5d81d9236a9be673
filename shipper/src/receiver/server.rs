//! Starting and stopping: recovery, then the threads, then the door opens.

use super::clerk::{Clerk, Desk};
use super::counters::Counters;
use super::door::{Door, Entry, Room, Rooms};
use super::follow::{self, Seat};
use super::hydrate::Ground;
use super::medium::Medium;
use super::note::note;
use super::order::{Inbox, Order, Progress};
use super::session;
use super::state::{State, load};
use super::{Layout, ReceiveConfig, recovery, room, target};
use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use towline_block::GroupName;

/// How long a former receiver of the directory may take to end.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// A running receiver; it ends when dropped.
pub struct Receiver {
    door: Option<Door>,
    rooms: Option<(Rooms, Option<GroupName>)>,
    counters: Arc<Counters>,
    inbox: Inbox,
    closing: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

impl Receiver {
    /// Recovers, serves again if the target had taken over, and listens.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another receiver has the directory;
    /// [`ErrorKind::TooNew`] when its state is of a newer version; [`ErrorKind::NotAuthorised`]
    /// when the key of a staged batch is not given; else what
    /// failed and what to do.
    pub fn start(config: ReceiveConfig) -> Result<Receiver> {
        Receiver::start_on(config, Medium::default())
    }

    /// As [`Receiver::start`], with its own way to the disk: tests observe it.
    pub fn start_on(config: ReceiveConfig, medium: Medium) -> Result<Receiver> {
        let counters = Arc::<Counters>::default();
        let lock = enter(&config.state_dir)?;
        // An address in use ends the start here, before anything is recovered.
        let door = config.listen.as_deref();
        let door = door.map(|at| Door::open(at, &config.security, Arc::clone(&counters)));
        let mut door = door.transpose()?;
        let rooms = door.as_ref().map(|door| (door.rooms(), None));
        let mut receiver = Receiver::start_in(config, medium, rooms, (counters, lock))?;
        if let Some(door) = &mut door {
            door.start()?;
        }
        receiver.door = door;
        Ok(receiver)
    }

    /// As [`Receiver::start`], behind a door that it shares with others: `config` names its group
    /// and no address.
    pub fn start_behind(config: ReceiveConfig, door: &Door) -> Result<Receiver> {
        let rooms = Some((door.rooms(), config.group.clone()));
        let lock = enter(&config.state_dir)?;
        Receiver::start_in(config, Medium::default(), rooms, (Arc::default(), lock))
    }

    fn start_in(
        config: ReceiveConfig,
        medium: Medium,
        rooms: Option<(Rooms, Option<GroupName>)>,
        (counters, lock): (Arc<Counters>, File),
    ) -> Result<Receiver> {
        config.promote.prepare()?;
        let layout = Layout::of(&config.state_dir);
        match load(&layout.state)? {
            Some(state) => check_config(&config, &state)?,
            None => look_at_targets(&config)?,
        }
        let mut opening = recovery::begin(&layout, &medium, &config.limits, &config.keys)?;
        if let Some(opening) = &mut opening {
            room::warn(&layout, &opening.apply().targets, &config.limits);
            if let Err(error) = opening.redo() {
                tracing::error!(%error, "cannot apply what is staged yet; trying again");
            }
        }
        let store = opening.map(recovery::Opening::finish).transpose()?;
        let ground = Ground {
            layout: layout.clone(),
            medium: medium.clone(),
            limits: config.limits,
            targets: config.targets.clone(),
            keys: config.keys.clone(),
        };
        let (inbox, orders) = std::sync::mpsc::channel();
        let (progress, watcher) = watch::channel(Progress::default());
        let desk = Desk {
            layout: layout.clone(),
            medium,
            limits: config.limits,
            group: config.group,
            targets: config.targets,
            keys: config.keys,
            promote: config.promote,
            counters: Arc::clone(&counters),
            inbox: inbox.clone(),
        };
        let promoted = store.as_ref().is_some_and(|store| store.books.get().promoted.is_some());
        let mut clerk = Clerk::new(desk, store, progress);
        if promoted {
            clerk.serve()?;
        }
        let memory = session::memory();
        let (closing, closed) = watch::channel(false);
        let mut threads = vec![spawn("towline-clerk", move || clerk.run(orders))?];
        if let Some(follow) = config.from {
            let seat = Seat {
                inbox: inbox.clone(),
                progress: watcher.clone(),
                memory: Arc::clone(&memory),
                limits: config.limits,
                ground,
            };
            threads.push(spawn("towline-follow", move || {
                on_runtime(follow::run(follow, seat, closed));
            })?);
        }
        if let Some((rooms, group)) = &rooms {
            let room = Room {
                inbox: inbox.clone(),
                progress: watcher,
                memory,
                limits: config.limits,
                counters: Arc::clone(&counters),
            };
            rooms.set(group.clone(), Entry::Open(Box::new(room)));
        }
        note(&layout, None);
        let door = None;
        Ok(Receiver { door, rooms, counters, inbox, closing, threads, _lock: lock })
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.door.as_ref().map(Door::address)
    }

    /// Whether a thread has ended by itself, for a reason that is in the log: only a new start helps.
    pub fn has_failed(&self) -> bool {
        self.threads.first().is_some_and(JoinHandle::is_finished)
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Ends connections and threads; what was acknowledged is durable.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Its connections first: what they bring has nowhere to go any more.
        self.door = None;
        if let Some((rooms, group)) = &self.rooms {
            rooms.set(group.clone(), Entry::Closed("its receiver has ended".to_owned()));
        }
        self.closing.send_replace(true);
        let _ = self.inbox.send(Order::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a receiver thread ended by a panic");
            }
        }
    }
}

pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|e| Error::storage(format!("cannot start thread {name}"), e))
}

/// The directory is made and locked.
fn enter(state_dir: &Path) -> Result<File> {
    let layout = Layout::of(state_dir);
    for dir in [&layout.stage, &layout.marks] {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::storage(format!("cannot create {}", dir.display()), e))?;
    }
    let lock = lock(&layout)?;
    super::import::check_none_under_way(&layout)?;
    Ok(lock)
}

/// What no shipper could be received into is told at once; a server that does not answer may come.
fn look_at_targets(config: &ReceiveConfig) -> Result<()> {
    for (name, path) in &config.targets {
        match target::look(path) {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Busy) => {
                return Err(error.of(format_args!("target {name}")));
            }
            Err(error) => {
                tracing::warn!(target = %name, "{error}; shippers are refused until it can")
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// A bound receiver goes on with what it was bound to.
fn check_config(config: &ReceiveConfig, state: &State) -> Result<()> {
    if let Some(group) = config.group.as_ref().filter(|group| **group != state.group) {
        let what = format!(
            "{} holds group {}, not {group}: give this receiver a state directory of its own",
            config.state_dir.display(),
            state.group
        );
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    for record in &state.volumes {
        let given = config.targets.iter().find(|(name, _)| *name == record.name);
        let Some((name, path)) = given else { continue };
        let path = target::place(path);
        if path != record.path {
            let what = format!(
                "target {name} is {}, not {}: what is shipped now builds on what is there; give \
                 that path again, or begin anew with an empty state directory",
                record.path.display(),
                path.display()
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
    }
    Ok(())
}

/// As [`lock`], without waiting; `None` while a receiver runs.
pub fn try_lock(layout: &Layout) -> Result<Option<File>> {
    let failed = |e| Error::storage(format!("cannot lock {}", layout.lock.display()), e);
    let file = File::options().create(true).append(true).open(&layout.lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// One receiver a directory.
pub fn lock(layout: &Layout) -> Result<File> {
    let failed = |e| Error::storage(format!("cannot lock {}", layout.lock.display()), e);
    let file = File::options().create(true).append(true).open(&layout.lock).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let what = format!(
                    "another receiver uses {}: end it, or give this one a state directory of its own",
                    layout.dir.display()
                );
                return Err(Error::new(ErrorKind::Busy, what));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A thread's own runtime, to the end of what it runs.
pub(super) fn on_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => tracing::error!(%error, "cannot start a runtime of the receiver"),
    }
}
