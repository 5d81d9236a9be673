//! Follows a store in place of a shipper's connection: batches pass the clerk exactly as
//! from the network, so everything that is checked there is checked here.
//!
//! A shipper that connects takes over, as from any other session; following then ends.
//! Before that one feeds what the store has, because the chain is the same.

use super::Limits;
use super::hydrate::Ground;
use super::note::note;
use super::order::{Inbox, Order, Progress};
use crate::batch::{Batch, HEADER_BYTES, Header};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{KeyId, SessionId};
use crate::store::{Base, Bucket, Found, GroupFile, Reader, StoreUrl};
use crate::wire::{Hello, Message, PROTOCOL, Refusal, RefusalCode, Welcome};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use towline_block::{Epoch, GroupName};
use zerocopy::FromBytes;

/// How often a store that has nothing new is looked at.
const POLL: Duration = Duration::from_millis(500);
/// How often it is looked whether that store is still there.
const LOOK_FOR_STORE_EVERY: Duration = Duration::from_secs(5);
/// Pause after a failure; where the store answers and what it has cannot be used, doubled up to the
/// longest: each attempt reads the same again.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_LAST: Duration = Duration::from_secs(60);
/// Connections of the network count up from 1.
const CONNECTION: u64 = u64::MAX;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Follow {
    pub url: StoreUrl,
    pub group: GroupName,
}

/// What a follower shares with the sessions.
pub(super) struct Seat {
    pub inbox: Inbox,
    pub progress: watch::Receiver<Progress>,
    pub memory: Arc<Semaphore>,
    pub limits: Limits,
    pub ground: Ground,
}

/// Follows until `closed`, or until somebody else ships.
pub(super) async fn run(follow: Follow, seat: Seat, mut closed: watch::Receiver<bool>) {
    let (session, letters, is_wary, noted) = Default::default();
    let mut follower = Follower { follow, seat, session, letters, is_wary, noted };
    tokio::select! {
        _ = closed.wait_for(|closed| *closed) => {}
        () = follower.run() => {}
    }
}

struct Follower {
    follow: Follow,
    seat: Seat,
    /// Whose batches the clerk takes on our connection.
    session: Option<SessionId>,
    letters: Option<mpsc::UnboundedReceiver<Message>>,
    /// The clerk found a batch damaged: each is looked at here from now on, where it is known which
    /// object it is of.
    is_wary: bool,
    /// What `status` shows.
    noted: Option<String>,
}

/// Why following pauses or ends.
enum Halt {
    /// Somebody else ships now, or the clerk is gone.
    Over(String),
    /// Worth trying again.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Failed(error)
    }
}

impl Follower {
    async fn run(&mut self) {
        let mut pause = RETRY;
        loop {
            match self.follow().await {
                Ok(never) => match never {},
                Err(Halt::Over(why)) => {
                    tracing::info!(from = %self.follow.url, "the store is not followed any more: {why}");
                    self.note(None);
                    return;
                }
                Err(Halt::Failed(error)) => {
                    self.is_wary |= error.kind() == ErrorKind::Damaged;
                    let is_away = error.kind() == ErrorKind::Unreachable;
                    let text = format!("store {}: {error}", self.follow.url);
                    let is_new = self.noted.as_ref() != Some(&text);
                    if is_new {
                        tracing::warn!("{text}; trying again");
                    }
                    pause = if is_new || is_away { RETRY } else { (pause * 2).min(RETRY_LAST) };
                    self.note(Some(text));
                }
            }
            self.leave();
            sleep(pause).await;
        }
    }

    fn note(&mut self, why: Option<String>) {
        if why != self.noted {
            note(&self.seat.ground.layout, why.as_deref());
            self.noted = why;
        }
    }

    /// The clerk forgets us, so that the next hello begins from what is durable.
    fn leave(&mut self) {
        if self.session.take().is_some() {
            let _ = self.seat.inbox.send(Order::Gone { connection: CONNECTION });
        }
        self.letters = None;
    }

    async fn follow(&mut self) -> std::result::Result<std::convert::Infallible, Halt> {
        let bucket = self.follow.url.open(&self.follow.group, false)?;
        let file = self.group(&bucket).await?;
        if self.seat.ground.is_new()
            && let Some(base) = Base::newest(&*bucket, file.group_uuid).await?
        {
            self.hydrate(&bucket, &file, base).await?;
        }
        let next = self.seat.progress.borrow().durable.number + 1;
        let mut reader = Reader::open(bucket.clone(), file.group_uuid, next).await?;
        tracing::info!(from = %self.follow.url, batch = next, "following the store");
        let mut looked = Instant::now();
        loop {
            match reader.next().await? {
                Found::Batches(batches) => {
                    for batch in batches {
                        let named = |e: Error| e.of(format_args!("object {}", reader.object()));
                        if self.is_wary {
                            let opened = Batch::open(batch.to_vec(), &self.seat.ground.keys);
                            opened.map_err(named)?;
                        }
                        self.feed(&file, batch).await?;
                    }
                }
                Found::Nothing => {
                    self.idle().await?;
                    if looked.elapsed() >= LOOK_FOR_STORE_EVERY {
                        self.check_there(&bucket, &file).await?;
                        looked = Instant::now();
                    }
                    let url = &self.follow.url;
                    self.note(reader.hole().map(|name| {
                        format!(
                            "store {url}: object {name} is not there, though later ones are: it was removed, \
                             or its shipper ended before it was written; a shipper that starts goes on behind \
                             what is there"
                        )
                    }));
                }
            }
        }
    }

    /// Nothing new, or nothing there any more? The folder may be another one by now.
    async fn check_there(&self, bucket: &Arc<dyn Bucket>, file: &GroupFile) -> Result<()> {
        if GroupFile::load(&**bucket, &self.follow.group).await?.as_ref() == Some(file) {
            return Ok(());
        }
        let what =
            "the store that was followed is not there any more: it was unmounted, moved or emptied";
        Err(Error::new(ErrorKind::Unreachable, what))
    }

    /// A new target begins with the base, not with the first batch.
    async fn hydrate(
        &self,
        bucket: &Arc<dyn Bucket>,
        file: &GroupFile,
        base: Base,
    ) -> std::result::Result<(), Halt> {
        let state = self.seat.ground.hydrate(bucket, file, base, &self.follow).await?;
        let (done, told) = oneshot::channel();
        let over = || Halt::Over("the receiver ends".into());
        let order = Order::Hydrated { state: Box::new(state), done };
        self.seat.inbox.send(order).map_err(|_| over())?;
        told.await.map_err(|_| over())??;
        Ok(())
    }

    async fn group(&self, bucket: &Arc<dyn Bucket>) -> Result<GroupFile> {
        GroupFile::load(&**bucket, &self.follow.group).await?.ok_or_else(|| {
            let (url, group) = (&self.follow.url, &self.follow.group);
            let what = format!("nothing of group {group} was ever shipped to {url}");
            Error::new(ErrorKind::Unreachable, what)
        })
    }

    /// Gives the clerk one batch.
    async fn feed(&mut self, file: &GroupFile, batch: Bytes) -> std::result::Result<(), Halt> {
        let header = batch.get(..HEADER_BYTES).and_then(|head| Header::read_from_bytes(head).ok());
        let header = header.ok_or_else(|| Error::damaged("a batch in the store is cut off"))?;
        let session = SessionId(header.session);
        if self.session != Some(session) {
            self.wait_durable(header.number.get().saturating_sub(1)).await?;
            self.hello(file, &header).await?;
        }
        let limit = self.seat.limits.staging_bytes_max.max(1);
        let room = self.seat.progress.wait_for(|progress| progress.backlog_bytes < limit);
        if room.await.is_err() {
            return Err(Halt::Over("the receiver ends".into()));
        }
        let units = super::session::memory_units(batch.len());
        let memory = Arc::clone(&self.seat.memory).acquire_many_owned(units).await;
        let memory = memory.map_err(|_| Halt::Over("the receiver ends".into()))?;
        let order = Order::Batch { connection: CONNECTION, bytes: batch.to_vec(), memory };
        if self.seat.inbox.send(order).is_err() {
            return Err(Halt::Over("the receiver ends".into()));
        }
        self.hear()
    }

    /// A HELLO goes on from what is durable: what the session before it brought has to be.
    async fn wait_durable(&mut self, number: u64) -> std::result::Result<(), Halt> {
        while self.session.is_some() {
            let durable = self.seat.progress.wait_for(|progress| progress.durable.number >= number);
            match timeout(POLL, durable).await.map(|waited| waited.is_ok()) {
                Ok(true) => break,
                Ok(false) => return Err(Halt::Over("the receiver ends".into())),
                Err(_) => self.hear()?,
            }
        }
        Ok(())
    }

    /// Takes the place of the shipper whose batch comes next.
    async fn hello(&mut self, file: &GroupFile, header: &Header) -> std::result::Result<(), Halt> {
        let (outbox, mut letters) = mpsc::unbounded_channel();
        let key = KeyId(header.key_id);
        let hello = Hello {
            version: PROTOCOL,
            group: file.group.clone(),
            group_uuid: file.group_uuid,
            session: SessionId(header.session),
            epoch: Epoch(header.epoch.get()),
            key: (key != KeyId::default()).then_some(key),
            volumes: file.volumes.clone(),
        };
        let order = Order::Hello { connection: CONNECTION, hello: Box::new(hello), outbox };
        if self.seat.inbox.send(order).is_err() {
            return Err(Halt::Over("the receiver ends".into()));
        }
        let welcome = loop {
            match letters.recv().await {
                Some(Message::Welcome(welcome)) => break welcome,
                Some(Message::Error(refusal)) => return Err(halt(refusal.code, refusal.message)),
                Some(_) => {}
                None => return Err(Halt::Over("the receiver ends".into())),
            }
        };
        self.session = Some(SessionId(header.session));
        self.letters = Some(letters);
        check_welcome(&welcome, header)
    }

    /// What the clerk says meanwhile.
    fn hear(&mut self) -> std::result::Result<(), Halt> {
        let Some(letters) = &mut self.letters else { return Ok(()) };
        while let Ok(letter) = letters.try_recv() {
            if let Message::Error(refusal) = letter {
                return Err(halt(refusal.code, refusal.message));
            }
        }
        Ok(())
    }

    async fn idle(&mut self) -> std::result::Result<(), Halt> {
        self.hear()?;
        sleep(POLL).await;
        self.hear()
    }
}

/// The clerk may stand elsewhere than where reading began: then it begins anew.
fn check_welcome(welcome: &Welcome, header: &Header) -> std::result::Result<(), Halt> {
    if welcome.promoted.is_some() {
        return Err(Halt::Over("the target has taken over".into()));
    }
    if welcome.number + 1 == header.number.get() {
        return Ok(());
    }
    let (has, number) = (welcome.number, header.number);
    let what = format!("the receiver has {has} batches, the store goes on with batch {number}");
    Err(Halt::Failed(Error::new(ErrorKind::Protocol, what)))
}

fn halt(code: RefusalCode, message: String) -> Halt {
    match code {
        RefusalCode::Superseded | RefusalCode::AlreadyPromoted => Halt::Over(message),
        RefusalCode::OutOfOrder => {
            let what = format!(
                "{message} (if this stays, the target was shipped to from elsewhere since the store was: \
                 ship to it over the network, or begin with an empty state directory)"
            );
            Halt::Failed(Error::new(ErrorKind::Protocol, what))
        }
        _ => Halt::Failed(Refusal::new(code, message).into()),
    }
}
