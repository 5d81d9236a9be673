//! Starting and stopping: recovery, then the threads, then the door opens.

use super::clerk::{Clerk, Desk, Inbox, Order, Progress};
use super::counters::Counters;
use super::follow::{self, Seat};
use super::medium::Medium;
use super::session::{self, Hall};
use super::state::{State, load};
use super::{Layout, ReceiveConfig, recovery, room, target};
use crate::error::{Error, ErrorKind, Result};
use crate::security::{Acceptor, Security};
use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections at once, refused ones that linger included. One group has one
/// shipper; the rest is room for its reconnects.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a former receiver of the directory may take to end.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// A running receiver; it ends when dropped.
pub struct Receiver {
    address: Option<SocketAddr>,
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
        let layout = Layout::of(&config.state_dir);
        for dir in [&layout.stage, &layout.marks] {
            std::fs::create_dir_all(dir)
                .map_err(|e| Error::storage(format!("cannot create {}", dir.display()), e))?;
        }
        let lock = lock(&layout)?;
        super::import::check_none_under_way(&layout)?;
        let door = config.listen.as_deref().map(|at| Door::open(at, &config.security));
        let door = door.transpose()?;
        let address = door.as_ref().map(|door| door.address);
        match load(&layout.state)? {
            Some(state) => check_config(&config, &state)?,
            None => look_at_targets(&config)?,
        }
        let mut store = recovery::open(&layout, &medium, &config.limits, &config.keys)?;
        if let Some(store) = &store {
            room::warn(&layout, &store.apply.targets, &config.limits);
        }
        if let Some(store) = &mut store
            && store.books.get().promoted.is_none()
            && let Err(error) = store.redo()
        {
            tracing::error!(%error, "cannot apply what is staged yet; trying again");
        }
        let (inbox, orders) = std::sync::mpsc::channel();
        let (progress, watcher) = watch::channel(Progress::default());
        let counters = Arc::new(Counters::default());
        let desk = Desk {
            layout,
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
            };
            let closed = closed.clone();
            threads.push(spawn("towline-follow", move || {
                on_runtime(follow::run(follow, seat, closed));
            })?);
        }
        if let Some(Door { listener, acceptor, address }) = door {
            let hall = Hall {
                acceptor,
                inbox: inbox.clone(),
                progress: watcher,
                memory,
                limits: config.limits,
                counters: Arc::clone(&counters),
            };
            threads.push(spawn("towline-receive", move || {
                on_runtime(accept_all(listener, hall, closed));
            })?);
            tracing::info!(%address, "receiving");
        }
        Ok(Receiver { address, counters, inbox, closing, threads, _lock: lock })
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
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
        self.closing.send_replace(true);
        let _ = self.inbox.send(Order::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a receiver thread ended by a panic");
            }
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|e| Error::storage(format!("cannot start thread {name}"), e))
}

/// What no shipper could ever be received into is told at once; a server that does not answer
/// may come.
fn look_at_targets(config: &ReceiveConfig) -> Result<()> {
    for (name, path) in &config.targets {
        match target::look(path) {
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
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

/// Where shippers connect.
struct Door {
    listener: StdListener,
    acceptor: Acceptor,
    address: SocketAddr,
}

impl Door {
    fn open(listen: &str, security: &Security) -> Result<Door> {
        let acceptor = Acceptor::new(security)?;
        let failed = |e| {
            let what = format!("cannot listen on {listen}: give HOST:PORT of this machine");
            Error::caused(ErrorKind::InvalidInput, what, e)
        };
        let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(failed)?.collect();
        addresses.iter().try_for_each(|address| acceptor.check_listen(*address))?;
        let listener = StdListener::bind(addresses.as_slice()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Door { listener, acceptor, address })
    }
}

/// A thread's own runtime, to the end of what it runs.
fn on_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => tracing::error!(%error, "cannot start a runtime of the receiver"),
    }
}

async fn accept_all(listener: StdListener, hall: Hall, mut closed: watch::Receiver<bool>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sessions = JoinSet::new();
    let mut connection = 0;
    loop {
        let accepted = tokio::select! {
            _ = closed.wait_for(|closed| *closed) => break,
            Some(_) = sessions.join_next() => continue,
            accepted = accept(&listener, &seats) => accepted,
        };
        match accepted {
            Ok((tcp, seat)) => {
                connection += 1;
                let hall = hall.clone();
                sessions.spawn(async move {
                    session::run(hall, tcp, connection).await;
                    drop(seat);
                });
            }
            Err(error) => {
                // Out of descriptors, usually: give those in use time to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    sessions.shutdown().await;
}

/// A seat first, then a connection for it.
async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let seat = Arc::clone(seats).acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    Ok((tcp, seat))
}
