//! Further connections of a session, which carry batches beside the first one: where packets
//! are lost, several get on where one waits.
//!
//! Whichever connection is free takes the next batch, and the receiver puts them in order
//! again (`receiver/lanes.rs`). When one ends, the session ends, and the next one sends again
//! what is not durable. What is no batch goes over the first connection, once nothing is on
//! its way.

use super::ShipConfig;
use super::session::{KEEPALIVE_AFTER, SILENCE_MAX, closed, out_of_turn, refused, send_batch};
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::security::{BoxedConnection, connect};
use crate::wire::{Join, Message, read_message, write_message};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;

type Opening<'a> = Pin<Box<dyn Future<Output = Result<BoxedConnection>> + 'a>>;

/// Longest wait for one of them.
const JOIN_MAX: Duration = Duration::from_secs(10);

/// Opens up to `count` at once; fewer where one is not to be had.
pub async fn open(config: &ShipConfig, join: &Join, count: u8) -> Vec<BoxedConnection> {
    let late = |_| Error::new(ErrorKind::Unreachable, "no answer in time");
    let mut opening: Vec<Opening<'_>> = Vec::new();
    for _ in 0..count {
        opening.push(Box::pin(async move {
            timeout(JOIN_MAX, open_one(config, join)).await.map_err(late).flatten()
        }));
    }
    let (mut lanes, mut failed) = (Vec::new(), None);
    poll_fn(|cx| {
        opening.retain_mut(|lane| match lane.as_mut().poll(cx) {
            Poll::Ready(Ok(lane)) => {
                lanes.push(lane);
                false
            }
            Poll::Ready(Err(error)) => {
                failed = Some(error);
                false
            }
            Poll::Pending => true,
        });
        if opening.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if let Some(error) = failed {
        let have = lanes.len() + 1;
        tracing::warn!(to = %config.to, "only {have} connections at a time: {error}");
    }
    lanes
}

async fn open_one(config: &ShipConfig, join: &Join) -> Result<BoxedConnection> {
    let mut connection = connect(&config.security, &config.to, &join.group).await?;
    write_message(&mut connection, &Message::Join(join.clone())).await?;
    match read_message(&mut connection).await? {
        Some(Message::KeepAlive) => Ok(connection),
        Some(Message::Error(refusal)) => Err(refused(refusal)),
        Some(other) => Err(out_of_turn(&other)),
        None => Err(closed()),
    }
}

/// Sends batches until one of the connections ends.
pub async fn carry(stream: &Stream, lanes: Vec<BoxedConnection>) -> Result<()> {
    let mut lanes: Vec<Pin<Box<dyn Future<Output = Result<()>> + '_>>> =
        lanes.into_iter().map(|lane| Box::pin(carry_one(stream, lane)) as _).collect();
    poll_fn(|cx| {
        let ended = lanes.iter_mut().find_map(|lane| match lane.as_mut().poll(cx) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        });
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

async fn carry_one(stream: &Stream, lane: BoxedConnection) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(lane);
    tokio::select! {
        ended = listen(&mut reader) => ended,
        ended = send(stream, &mut writer) => ended,
    }
}

/// The receiver says nothing here but that it is there.
async fn listen(reader: &mut ReadHalf<BoxedConnection>) -> Result<()> {
    loop {
        let message = timeout(SILENCE_MAX, read_message(reader)).await.map_err(|_| {
            let what = format!("a connection has been silent for {SILENCE_MAX:?}");
            Error::new(ErrorKind::Unreachable, what)
        })??;
        match message {
            Some(Message::KeepAlive) => {}
            Some(Message::Error(refusal)) => return Err(refused(refusal)),
            Some(other) => return Err(out_of_turn(&other)),
            None => return Err(closed()),
        }
    }
}

async fn send(stream: &Stream, writer: &mut WriteHalf<BoxedConnection>) -> Result<()> {
    loop {
        match timeout(KEEPALIVE_AFTER, stream.next_batch()).await {
            Ok(sealed) => send_batch(stream, writer, &sealed).await?,
            Err(_) => write_message(writer, &Message::KeepAlive).await?,
        }
    }
}
