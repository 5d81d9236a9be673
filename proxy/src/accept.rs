//! Accepts clients and haggles with them, on one thread for all listeners; whoever
//! has agreed goes to the thread of the volume.
//!
//! A client that dawdles, floods or breaks the protocol costs a bounded handshake
//! and nothing else.

use crate::engine::NewConnection;
use crate::error::{Error, ErrorKind, Result as StartResult};
use crate::listen::{Bound, SocketFile};
use crate::nbd::handshake::{Agreed, Broken, Export, Negotiation, Next, OptionHead, greeting};
use crate::nbd::proto::{OPTION_FRAME_BYTES, option_reply};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Time from accept to transmission. Clients need milliseconds; people who try a
/// handshake by hand some seconds.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(30);
/// Clients in their handshake at a time, over all listeners.
const HANDSHAKES_MAX: usize = 64;
/// Connections in transmission a volume: 16 for each of some migration tools and a
/// guest, at about 1 MiB each.
pub const CONNECTIONS_MAX: usize = 128;
/// Wait after a failed accept: out of descriptors, which others must return.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Silence after which a TCP client's host is asked for a sign of life, so that a
/// host that vanished does not keep its connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A volume as the accepting side sees it.
pub struct Door {
    /// Takes who has agreed.
    pub enter: Box<dyn Fn(NewConnection) -> io::Result<()> + Send + Sync>,
    pub open: Arc<AtomicUsize>,
}

/// What all handshakes share.
#[derive(Default)]
pub struct Lobby {
    pub exports: Arc<[Export]>,
    pub doors: Vec<Door>,
    /// Clients that never reached transmission because of a limit or a broken rule.
    pub refused: AtomicU64,
}

/// One of a volume's connections; given back when dropped.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(open: &Arc<AtomicUsize>) -> Option<Permit> {
        let more = |n| (n < CONNECTIONS_MAX).then_some(n + 1);
        open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Permit(open.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The accepting thread.
pub struct Accepting {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Accepting {
    pub fn start(bound: Vec<Bound>, lobby: Arc<Lobby>) -> StartResult<Accepting> {
        let failed =
            |error| Error::caused(ErrorKind::System, "cannot start the accepting thread", error);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || runtime.block_on(run(bound, lobby, stopped)))
            .map_err(failed)?;
        Ok(Accepting { stop, thread })
    }

    /// No new clients; those in their handshake are dropped.
    pub fn end(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
    }
}

/// Serves all listeners until `stop` changes or its sender is gone.
async fn run(bound: Vec<Bound>, lobby: Arc<Lobby>, stop: watch::Receiver<bool>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let tasks = bound.into_iter().map(|bound| {
        let accept = listen(bound, lobby.clone(), handshakes.clone());
        let mut stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                result = accept => {
                    if let Err(error) = result {
                        tracing::error!(%error, "a listener ended");
                    }
                }
                _ = stop.changed() => {}
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        let _ = task.await;
    }
}

async fn listen(bound: Bound, lobby: Arc<Lobby>, limit: Arc<Semaphore>) -> io::Result<()> {
    match bound {
        Bound::Unix { listener, path } => {
            let _removed_at_the_end: SocketFile = path;
            let listener = UnixListener::from_std(listener)?;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => lobby.clone().greet(&limit, stream, |s| s.into_std()),
                    Err(error) => accept_failed(error).await,
                }
            }
        }
        Bound::Tcp { listener, .. } => {
            let listener = TcpListener::from_std(listener)?;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if let Err(error) = prepare_tcp(&stream) {
                            tracing::warn!(%error, "cannot prepare a TCP connection");
                        }
                        lobby.clone().greet(&limit, stream, |s| s.into_std());
                    }
                    Err(error) => accept_failed(error).await,
                }
            }
        }
    }
}

fn prepare_tcp(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

async fn accept_failed(error: io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

impl Lobby {
    /// Starts the handshake of one client, if there is room for another.
    fn greet<S, T>(
        self: Arc<Lobby>,
        limit: &Arc<Semaphore>,
        stream: S,
        into_std: impl FnOnce(S) -> io::Result<T> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: Into<OwnedFd> + 'static,
    {
        match limit.clone().try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(self.welcome(permit, stream, into_std));
            }
            Err(_) => self.refuse("too many clients in their handshake"),
        }
    }

    fn refuse(&self, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(why, "client refused");
    }

    async fn welcome<S, T>(
        self: Arc<Lobby>,
        _permit: OwnedSemaphorePermit,
        mut stream: S,
        into_std: impl FnOnce(S) -> io::Result<T>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
        T: Into<OwnedFd>,
    {
        let outcome = tokio::time::timeout(HANDSHAKE_WAIT, self.haggle(&mut stream)).await;
        match outcome {
            Err(_) => self.refuse("handshake not finished in time"),
            Ok(Err(End::Broken(Broken(why)))) => self.refuse(why),
            Ok(Err(End::Left)) | Ok(Ok(None)) => {}
            Ok(Ok(Some((agreed, permit)))) => {
                let handed = into_std(stream)
                    .and_then(|stream| self.hand_over(stream.into(), agreed, permit));
                if let Err(error) = handed {
                    tracing::warn!(%error, "cannot hand a connection to its volume");
                }
            }
        }
    }

    fn hand_over(&self, fd: OwnedFd, agreed: Agreed, permit: Permit) -> io::Result<()> {
        // io_uring waits for data only on a socket that blocks.
        SockRef::from(&fd).set_nonblocking(false)?;
        let new = NewConnection { fd, terms: agreed.terms, permit: Box::new(permit) };
        (self.doors[agreed.export].enter)(new)
    }

    /// Haggles to the end: an agreement, or a client that took its leave.
    async fn haggle<S>(&self, stream: &mut S) -> Result<Option<(Agreed, Permit)>, End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        stream.write_all(&greeting()).await?;
        let mut flags = [0; 4];
        stream.read_exact(&mut flags).await?;
        let mut negotiation = Negotiation::new(self.exports.clone(), flags)?;
        let (mut data, mut out) = (Vec::new(), Vec::new());
        loop {
            let mut frame = [0; OPTION_FRAME_BYTES];
            stream.read_exact(&mut frame).await?;
            let head = OptionHead::parse(&frame)?;
            out.clear();
            let mut next = if head.is_too_big() {
                skip(stream, u64::from(head.length)).await?;
                negotiation.too_big(&head, &mut out)?
            } else {
                data.resize(head.length as usize, 0);
                stream.read_exact(&mut data).await?;
                negotiation.option(&head, &data, &mut out)?
            };
            let mut permit = None;
            if let Next::Enter(agreed) = next {
                permit = Permit::take(&self.doors[agreed.export].open);
                if permit.is_none() {
                    self.refuse("too many connections to the volume");
                    let text = "this export has as many connections as it takes";
                    next = negotiation.refuse_entry(
                        &head,
                        option_reply::ERR_POLICY,
                        text,
                        &mut out,
                    )?;
                }
            }
            // Not every client waits for its ABORT to be acknowledged.
            let sent = stream.write_all(&out).await;
            match (next, permit) {
                (Next::Close, _) => return Ok(None),
                (Next::Enter(agreed), Some(permit)) => {
                    sent?;
                    return Ok(Some((agreed, permit)));
                }
                _ => sent?,
            }
        }
    }
}

async fn skip<S: AsyncRead + Unpin>(stream: &mut S, bytes: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(bytes), &mut tokio::io::sink()).await?;
    if skipped < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Why a handshake ended without agreement.
enum End {
    Broken(Broken),
    /// The client has gone, or its connection.
    Left,
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Left
    }
}
