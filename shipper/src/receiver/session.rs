//! One connection: handshake, HELLO, then frames in and messages out.
//!
//! Reading and writing are two futures that live as long as the connection, so
//! that neither is ever dropped halfway through a frame. A peer that is refused
//! hears why before the connection ends.

use super::counters::{Counters, add};
use super::door::{Room, Rooms};
use super::order::{Order, Outbox};
use crate::batch::BATCH_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::security::{Acceptor, BoxedConnection};
use crate::wire::{
    Hello, JSON_BYTES_MAX, Join, Message, Refusal, RefusalCode, read_message, write_message,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Sleep, timeout};
use towline_block::GroupName;

/// Handshake and HELLO of a peer that means it.
pub const HELLO_TIME_MAX: Duration = Duration::from_secs(10);

/// Silence after which a peer that sends KEEPALIVE every 5 s is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// How long a refused peer is listened to, so that its unread bytes do not reset
/// the connection before it has read why.
const LINGER: Duration = Duration::from_secs(2);

/// Received and not yet handled by the clerk, all connections together.
pub const MEMORY_BYTES_MAX: usize = 4 * BATCH_BYTES_MAX;

/// Permits count in this unit: a semaphore's permits are 32 bits to take.
const MEMORY_UNIT: usize = 1024;

pub fn memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MEMORY_BYTES_MAX.div_ceil(MEMORY_UNIT)))
}

/// For one lane: a batch that waits for others, and one that arrives.
fn lane_memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(2 * BATCH_BYTES_MAX.div_ceil(MEMORY_UNIT)))
}

/// Permits for a message of so many bytes.
pub fn memory_units(bytes: usize) -> u32 {
    bytes.div_ceil(MEMORY_UNIT) as u32
}

/// What all sessions share.
#[derive(Clone)]
pub struct Hall {
    pub acceptor: Acceptor,
    pub rooms: Rooms,
    pub counters: Arc<Counters>,
}

/// Runs a connection to its end.
pub async fn run(hall: Hall, tcp: TcpStream, connection: u64) {
    let address = tcp.peer_addr().map_or_else(|_| "a peer".to_owned(), |a| a.to_string());
    let introduced = timeout(HELLO_TIME_MAX, introduce(&hall, tcp)).await;
    let (stream, first, room) = match introduced {
        Ok(Ok(Some(introduced))) => introduced,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            add(&hall.counters.refused, 1);
            return tracing::warn!(%address, %error, "refused");
        }
        Err(_) => {
            add(&hall.counters.refused, 1);
            return tracing::warn!(%address, "no HELLO in time");
        }
    };
    let (outbox, letters) = mpsc::unbounded_channel();
    let is_lane = matches!(first, First::Join(_));
    let (order, room) = match first {
        First::Hello(hello) => {
            tracing::info!(%address, group = %hello.group, session = %hello.session, "hello");
            (Order::Hello { connection, hello, outbox: outbox.clone() }, room)
        }
        First::Join(join) => {
            tracing::info!(%address, group = %join.group, session = %join.session, "join");
            let room = Room { memory: lane_memory(), ..room };
            (Order::Join { connection, join, outbox: outbox.clone() }, room)
        }
    };
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = Watched::new(reader);
    if room.inbox.send(order).is_err() {
        return;
    }
    let refused = {
        let reading = read_all(&room, &mut reader, connection, outbox);
        let writing = write_all(&room, &mut writer, letters, !is_lane);
        tokio::select! {
            () = reading => false,
            refused = writing => refused,
        }
    };
    let _ = room.inbox.send(Order::Gone { connection });
    if refused {
        let _ = writer.shutdown().await;
        let _ = timeout(LINGER, tokio::io::copy(&mut reader.inner, &mut tokio::io::sink())).await;
    }
    tracing::info!(%address, "connection ended");
}

/// How a peer introduces itself.
enum First {
    Hello(Box<Hello>),
    Join(Join),
}

impl First {
    fn group(&self) -> &GroupName {
        match self {
            First::Hello(hello) => &hello.group,
            First::Join(join) => &join.group,
        }
    }
}

/// Handshake, HELLO or JOIN, and the right to the group it names. `None`: refused, and told.
async fn introduce(hall: &Hall, tcp: TcpStream) -> Result<Option<(BoxedConnection, First, Room)>> {
    let mut peer = hall.acceptor.accept(tcp).await?;
    add(&hall.counters.connections, 1);
    let first = match read_message(&mut peer.connection).await {
        Ok(Some(Message::Hello(hello))) => Ok(First::Hello(Box::new(hello))),
        Ok(Some(Message::Join(join))) => Ok(First::Join(join)),
        Ok(Some(other)) => {
            let what = format!("a {:?} frame came where HELLO belongs", other.kind());
            Err(Refusal::new(RefusalCode::Protocol, what))
        }
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::Protocol => {
            Err(Refusal::new(RefusalCode::Protocol, error.to_string()))
        }
        Err(error) => return Err(error),
    };
    let admitted = first.and_then(|first| {
        let not_authorised =
            |error: Error| Refusal::new(RefusalCode::NotAuthorised, error.to_string());
        peer.authorise(first.group()).map_err(not_authorised)?;
        let room = hall.rooms.find(first.group())?;
        Ok((first, room))
    });
    let refusal = match admitted {
        Ok((first, room)) => return Ok(Some((peer.connection, first, room))),
        Err(refusal) => refusal,
    };
    let error = Error::new(ErrorKind::NotAuthorised, refusal.message.clone());
    let mut stream = peer.connection;
    write_message(&mut stream, &Message::Error(refusal)).await?;
    let _ = stream.shutdown().await;
    let _ = timeout(LINGER, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    Err(error)
}

/// Hands what the peer sends to the clerk; ends when the peer is gone.
async fn read_all(
    room: &Room,
    reader: &mut Watched<ReadHalf<BoxedConnection>>,
    connection: u64,
    outbox: Outbox,
) {
    let mut progress = room.progress.clone();
    let limit = room.limits.staging_bytes_max.max(1);
    loop {
        // Back-pressure: what is not read fills the peer's window.
        if progress.wait_for(|progress| progress.backlog_bytes < limit).await.is_err() {
            return;
        }
        reader.touch();
        let refusal = match read_message(reader).await {
            Ok(None) => return,
            Ok(Some(message)) => match forward(room, connection, message).await {
                Ok(true) => continue,
                Ok(false) => return,
                Err(refusal) => refusal,
            },
            Err(error) if error.kind() == ErrorKind::Protocol => {
                Refusal::new(RefusalCode::Protocol, error.to_string())
            }
            Err(error) => return tracing::info!(%error, "connection lost"),
        };
        // The writer tells the peer and ends the connection.
        let _ = outbox.send(Message::Error(refusal));
        return std::future::pending().await;
    }
}

/// False when the receiver is ending.
async fn forward(
    room: &Room,
    connection: u64,
    message: Message,
) -> std::result::Result<bool, Refusal> {
    let bytes = match &message {
        Message::KeepAlive => return Ok(true),
        Message::Batch(bytes) => bytes.len(),
        _ => JSON_BYTES_MAX,
    };
    let units = memory_units(bytes);
    let Ok(memory) = Arc::clone(&room.memory).acquire_many_owned(units).await else {
        return Ok(false);
    };
    let order = match message {
        Message::Batch(bytes) => Order::Batch { connection, bytes, memory },
        Message::Promote(request) => Order::Promote { connection, request, memory },
        Message::Abort(request) => Order::Abort { connection, request, memory },
        other => {
            let what = format!("a {:?} frame is not for a receiver", other.kind());
            return Err(Refusal::new(RefusalCode::Protocol, what));
        }
    };
    Ok(room.inbox.send(order).is_ok())
}

/// Sends what the clerk says, acknowledgements and keep-alives. True when the
/// peer was refused and told.
async fn write_all(
    room: &Room,
    writer: &mut WriteHalf<BoxedConnection>,
    mut letters: mpsc::UnboundedReceiver<Message>,
    tells_progress: bool,
) -> bool {
    let mut progress = room.progress.clone();
    let mut welcomed = false;
    let mut alive = tokio::time::interval(KEEPALIVE_EVERY);
    alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            biased;
            letter = letters.recv() => match letter {
                Some(letter) => letter,
                None => return false,
            },
            changed = progress.changed(), if welcomed && tells_progress => match changed {
                Ok(()) => Message::Ack(progress.borrow_and_update().ack()),
                Err(_) => return false,
            },
            _ = alive.tick(), if welcomed => Message::KeepAlive,
        };
        welcomed |= matches!(message, Message::Welcome(_) | Message::KeepAlive);
        if write_message(writer, &message).await.is_err() {
            return false;
        }
        if let Message::Error(refusal) = &message
            && refusal.code != RefusalCode::NotReady
        {
            return true;
        }
    }
}

/// A reader that fails when its peer is silent for too long.
struct Watched<R> {
    inner: R,
    deadline: Pin<Box<Sleep>>,
}

impl<R> Watched<R> {
    fn new(inner: R) -> Watched<R> {
        Watched { inner, deadline: Box::pin(tokio::time::sleep(SILENCE_MAX)) }
    }

    /// The silence begins now.
    fn touch(&mut self) {
        self.deadline.as_mut().reset(Instant::now() + SILENCE_MAX);
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            self.touch();
            return Poll::Ready(result);
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}
