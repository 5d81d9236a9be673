//! Where shippers connect: one listener for all groups of a process. HELLO names the group, and the
//! connection goes on in its room; nothing of one room waits for another.

use super::Limits;
use super::counters::Counters;
use super::order::{Inbox, Progress};
use super::server::{on_runtime, spawn};
use super::session;
use crate::error::{Error, ErrorKind, Result};
use crate::security::{Acceptor, Security};
use crate::wire::{Refusal, RefusalCode};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use towline_block::GroupName;

/// Connections at once, refused ones that linger included. One group has one shipper; the rest is
/// room for their reconnects.
pub const CONNECTIONS_MAX: usize = 64;
/// More for each group of several.
const CONNECTIONS_PER_GROUP: usize = 4;

/// What the sessions of one group share.
#[derive(Clone)]
pub struct Room {
    pub inbox: Inbox,
    pub progress: watch::Receiver<Progress>,
    pub memory: Arc<Semaphore>,
    pub limits: Limits,
    pub counters: Arc<Counters>,
}

pub enum Entry {
    Open(Box<Room>),
    /// Why the group is not received now.
    Closed(String),
}

/// Who receives which group; `None`: any.
#[derive(Clone, Default)]
pub struct Rooms(Arc<Mutex<BTreeMap<Option<GroupName>, Entry>>>);

impl Rooms {
    pub fn set(&self, group: Option<GroupName>, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(group, entry);
    }

    pub fn find(&self, group: &GroupName) -> std::result::Result<Room, Refusal> {
        let rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match rooms.get(&Some(group.clone())).or_else(|| rooms.get(&None)) {
            Some(Entry::Open(room)) => Ok((**room).clone()),
            Some(Entry::Closed(why)) => {
                let what = format!("group {group} is not received now: {why}");
                Err(Refusal::new(RefusalCode::Storage, what))
            }
            None => {
                let known: Vec<&str> = rooms.keys().flatten().map(GroupName::as_str).collect();
                let what = format!("this receiver is for groups {}, not {group}", known.join(", "));
                Err(Refusal::new(RefusalCode::WrongGroup, what))
            }
        }
    }
}

/// A listener and the thread that serves it; closed when dropped.
pub struct Door {
    address: SocketAddr,
    rooms: Rooms,
    counters: Arc<Counters>,
    /// Until it is started.
    bound: Option<(StdListener, Acceptor)>,
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Binds; nobody is let in before [`Door::start`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the address cannot be listened on, or not without
    /// certificates.
    pub fn open(listen: &str, security: &Security, counters: Arc<Counters>) -> Result<Door> {
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
        let (closing, _) = watch::channel(false);
        let (rooms, bound, thread) = (Rooms::default(), Some((listener, acceptor)), None);
        Ok(Door { address, rooms, counters, bound, closing, thread })
    }

    pub fn start(&mut self) -> Result<()> {
        let Some((listener, acceptor)) = self.bound.take() else { return Ok(()) };
        let (rooms, counters) = (self.rooms.clone(), Arc::clone(&self.counters));
        let groups = rooms.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        let seats = CONNECTIONS_MAX + groups.saturating_sub(1) * CONNECTIONS_PER_GROUP;
        let hall = session::Hall { acceptor, rooms, counters };
        let closed = self.closing.subscribe();
        self.thread = Some(spawn("towline-receive", move || {
            on_runtime(accept_all(listener, hall, seats, closed));
        })?);
        tracing::info!(address = %self.address, "receiving");
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn rooms(&self) -> Rooms {
        self.rooms.clone()
    }

    /// Why a group is not received now.
    pub fn close_room(&self, group: &GroupName, why: impl Into<String>) {
        self.rooms.set(Some(group.clone()), Entry::Closed(why.into()));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the receiver's accepting thread ended by a panic");
        }
    }
}

async fn accept_all(
    listener: StdListener,
    hall: session::Hall,
    seats: usize,
    mut closed: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    let seats = Arc::new(Semaphore::new(seats));
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
