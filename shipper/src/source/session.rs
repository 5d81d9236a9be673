//! The network session: connect, HELLO, WELCOME, batches out, acknowledgements in,
//! again and again with jittered back-off.

use super::ShipConfig;
use super::complaint::{Complaint, SAY_AGAIN_AFTER};
use super::lanes;
use super::stream::{News, Next, Stream};
use super::together::until_next;
use crate::batch::{Sealed, VERSION};
use crate::device::BlockRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::security::{BoxedConnection, connect};
use crate::wire::{
    FrameKind, FrameWriter, Hello, Join, Message, PROTOCOL, RefusalCode, VolumeSize, read_message,
    write_message,
};
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep, timeout};
use towline_block::Epoch;
use towline_journal::GroupDir;

/// First and longest pause between two attempts to connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
/// The longest after a refusal that somebody has to put right: a certificate, a target's size.
const BACKOFF_REFUSED: Duration = Duration::from_secs(60);
/// Longest wait for a connection and for WELCOME.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// When nothing else was sent for so long at most, a KEEPALIVE is.
pub(super) const KEEPALIVE_AFTER: Duration = Duration::from_secs(2);
/// A target that says nothing for so long is gone: it answers every KEEPALIVE.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Wait for the first connection, when another one hears that its session is over for good.
const VERDICT_WAIT: Duration = Duration::from_secs(1);
/// How often a missing group is looked for.
const GROUP_POLL: Duration = Duration::from_millis(50);

pub(crate) fn run(stream: &Stream, config: &ShipConfig, dir: &GroupDir) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(sessions(stream, config, dir)),
        Err(e) => {
            tracing::error!("cannot start the network runtime: {e}");
            stream.end();
        }
    }
}

async fn sessions(stream: &Stream, config: &ShipConfig, dir: &GroupDir) {
    let mut backoff = BACKOFF_FIRST;
    let mut complaint = Complaint::default();
    while !stream.stopping() {
        let began = Instant::now();
        let Err(error) = one_session(stream, config, dir).await else { return };
        stream.lost();
        let what = error.to_string();
        stream.progress().set_error(&what);
        let Some(longest) = longest_pause(error.kind()) else {
            tracing::error!("shipping stopped: {what}");
            stream.end();
            return;
        };
        if began.elapsed() > CONNECT_MAX {
            backoff = BACKOFF_FIRST;
        }
        if began.elapsed() > SAY_AGAIN_AFTER {
            complaint = Complaint::default();
        }
        complaint.tell(&what, std::time::Instant::now());
        let jitter = 0.5 + rand::random::<f64>() / 2.0;
        tokio::select! {
            () = sleep(backoff.mul_f64(jitter)) => {}
            () = stream.stop_asked() => return,
        }
        backoff = (backoff * 2).min(longest);
    }
}

/// Between two attempts; `None` where another one would take a newer shipper's or epoch's place.
fn longest_pause(kind: ErrorKind) -> Option<Duration> {
    match kind {
        ErrorKind::Refused => None,
        ErrorKind::NotAuthorised
        | ErrorKind::InvalidInput
        | ErrorKind::TooNew
        | ErrorKind::NoSpace => Some(BACKOFF_REFUSED),
        _ => Some(BACKOFF_LAST),
    }
}

async fn hello(config: &ShipConfig, dir: &GroupDir, stream: &Stream) -> Result<Option<Hello>> {
    let mut is_said = false;
    while !stream.stopping() {
        let state = dir.load().map_err(super::from_journal)?;
        if state.is_none() && !is_said {
            is_said = true;
            let what = format!(
                "no proxy has ever served group {} with state directory {}: waiting for it",
                config.group,
                config.state_dir.display()
            );
            tracing::warn!("{what}");
            stream.progress().set_error(&what);
        }
        if let Some(state) = state {
            return Ok(Some(Hello {
                version: PROTOCOL,
                group: state.group,
                group_uuid: GroupUuid(state.group_uuid.0),
                session: stream.session(),
                epoch: Epoch(state.epoch),
                key: config.keys.newest().map(|key| key.id),
                volumes: state
                    .volumes
                    .into_iter()
                    .map(|v| VolumeSize { name: v.name, size_bytes: v.size_bytes })
                    .collect(),
            }));
        }
        sleep(GROUP_POLL).await;
    }
    Ok(None)
}

/// One connection, to its end. `Ok` means that the shipper was asked to stop.
async fn one_session(stream: &Stream, config: &ShipConfig, dir: &GroupDir) -> Result<()> {
    let Some(hello) = hello(config, dir, stream).await? else { return Ok(()) };
    let late = |_| Error::new(ErrorKind::Unreachable, format!("{} does not answer", config.to));
    let connecting = connect(&config.security, &config.to, &hello.group);
    let mut connection = tokio::select! {
        connected = timeout(CONNECT_MAX, connecting) => connected.map_err(late)??,
        () = stream.stop_asked() => return Ok(()),
    };
    let (group, session) = (hello.group.clone(), hello.session);
    write_message(&mut connection, &Message::Hello(hello)).await?;
    let answer = timeout(CONNECT_MAX, read_message(&mut connection)).await.map_err(late)??;
    let lanes = match answer {
        Some(Message::Welcome(welcome)) => {
            check_batch_format(welcome.batch_format)?;
            crate::device::check_travelling(dir, &welcome)?;
            tracing::info!(
                to = %config.to, number = welcome.number, position = %welcome.position,
                "connected; the target has everything up to here"
            );
            let lacks = timeout(CONNECT_MAX, lacks(&mut connection, welcome.lacks)).await;
            stream.set_lacks(lacks.map_err(late)??);
            stream.progress().set_error("");
            let lanes = match welcome.join {
                Some(join) => {
                    let join = Join { group, session, join };
                    lanes::open(config, &join, config.streams.saturating_sub(1)).await
                }
                None => Vec::new(),
            };
            stream.welcome(welcome);
            stream.set_lanes(lanes.len());
            lanes
        }
        Some(Message::Error(refusal)) => return Err(refused(refusal)),
        Some(other) => return Err(out_of_turn(&other)),
        None => return Err(closed()),
    };
    let (mut reader, mut writer) = tokio::io::split(connection);
    let mut receiving = std::pin::pin!(receive(stream, &mut reader));
    let ended = tokio::select! {
        ended = &mut receiving => return ended,
        ended = send(stream, &mut writer) => return ended,
        ended = lanes::carry(stream, lanes) => ended,
        () = stream.stop_asked() => return Ok(()),
    };
    match ended {
        Err(error) if longest_pause(error.kind()).is_none() => {
            // Nothing ends for good but by the word of the session's first connection.
            let verdict = timeout(VERDICT_WAIT, receiving).await;
            verdict.unwrap_or(Err(Error::new(ErrorKind::Unreachable, error.to_string())))
        }
        ended => ended,
    }
}

/// What the target lacks, in so many frames. What else it says meanwhile it says again.
async fn lacks(connection: &mut BoxedConnection, frames: u32) -> Result<Vec<BlockRun>> {
    let (mut runs, mut left) = (Vec::new(), frames);
    while left > 0 {
        match read_message(connection).await? {
            Some(Message::Lacks(lacks)) => {
                runs.extend(lacks.runs);
                left -= 1;
            }
            Some(Message::Ack(_) | Message::KeepAlive) => {}
            Some(Message::Error(refusal)) => return Err(refused(refusal)),
            Some(other) => return Err(out_of_turn(&other)),
            None => return Err(closed()),
        }
    }
    Ok(runs)
}

/// Batches are written in one format: a receiver that does not read it gets none.
fn check_batch_format(newest_read: u16) -> Result<()> {
    if newest_read >= VERSION {
        return Ok(());
    }
    let what = format!(
        "the receiver reads batch formats up to {newest_read}, this shipper writes {VERSION}: \
         update the receiver"
    );
    Err(Error::new(ErrorKind::TooNew, what))
}

pub(super) fn refused(refusal: crate::wire::Refusal) -> Error {
    let kind = match refusal.code {
        RefusalCode::OldEpoch | RefusalCode::Superseded => ErrorKind::Refused,
        RefusalCode::NotAuthorised | RefusalCode::NoKey => ErrorKind::NotAuthorised,
        RefusalCode::Incompatible => ErrorKind::TooNew,
        RefusalCode::NoSpace => ErrorKind::NoSpace,
        RefusalCode::WrongGroup | RefusalCode::UnknownVolume | RefusalCode::SizeMismatch => {
            ErrorKind::InvalidInput
        }
        _ => ErrorKind::Unreachable,
    };
    Error::new(kind, format!("the receiver refused: {}", refusal.message))
}

pub(super) fn out_of_turn(message: &Message) -> Error {
    Error::new(ErrorKind::Protocol, format!("the receiver sent {:?} out of turn", message.kind()))
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Unreachable, "the receiver closed the connection")
}

async fn receive(stream: &Stream, reader: &mut ReadHalf<BoxedConnection>) -> Result<()> {
    loop {
        let message = match timeout(SILENCE_MAX, read_message(reader)).await {
            Ok(message) => message?,
            Err(_) => {
                let what = format!("the receiver has said nothing for {SILENCE_MAX:?}");
                return Err(Error::new(ErrorKind::Unreachable, what));
            }
        };
        match message {
            Some(Message::Ack(ack)) => stream.acked(ack),
            Some(Message::KeepAlive) => {}
            Some(Message::Compared(verdict)) => stream.tell(News::Compared(verdict)),
            Some(Message::Decision(decision)) => stream.tell(News::Decision(decision)),
            Some(Message::Error(refusal)) if refusal.code == RefusalCode::NotReady => {
                stream.tell(News::NotReady(refusal.message));
            }
            Some(Message::Error(refusal)) => return Err(refused(refusal)),
            Some(other) => return Err(out_of_turn(&other)),
            None => return Err(closed()),
        }
    }
}

async fn send(stream: &Stream, writer: &mut WriteHalf<BoxedConnection>) -> Result<()> {
    loop {
        let Some(next) = stream.next() else {
            if timeout(until_next(KEEPALIVE_AFTER), stream.wait_ready()).await.is_err() {
                write_message(writer, &Message::KeepAlive).await?;
            }
            continue;
        };
        match next {
            Next::Message(message) => write_message(writer, &message).await?,
            Next::Batch(sealed) => send_batch(stream, writer, &sealed).await?,
        }
    }
}

/// In pieces where a limit holds it back.
pub(super) async fn send_batch(
    stream: &Stream,
    writer: &mut WriteHalf<BoxedConnection>,
    sealed: &Sealed,
) -> Result<()> {
    let pace = stream.pace();
    let first = pace.piece_bytes().min(sealed.bytes.len());
    // What the batch before took too many operations may take long: before the frame has begun
    // something can be said meanwhile.
    let mut passing = std::pin::pin!(pace.pass(first as u64, u64::from(sealed.op_count)));
    while timeout(KEEPALIVE_AFTER, &mut passing).await.is_err() {
        write_message(writer, &Message::KeepAlive).await?;
    }
    stream.sending(sealed);
    let mut frame = FrameWriter::begin(writer, FrameKind::Batch, sealed.bytes.len()).await?;
    let (piece, mut rest) = sealed.bytes.split_at(first);
    frame.push(piece).await?;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(pace.piece_bytes().min(rest.len()));
        pace.pass(piece.len() as u64, 0).await;
        frame.push(piece).await?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_does_not_read_the_batch_format_gets_no_batch() {
        assert!(check_batch_format(VERSION).is_ok());
        assert!(check_batch_format(VERSION + 1).is_ok());
        let error = check_batch_format(VERSION - 1).unwrap_err();
        assert_eq!(longest_pause(error.kind()), Some(BACKOFF_REFUSED), "{error}");
    }

    #[test]
    fn only_what_would_take_anothers_place_is_not_tried_again() {
        use RefusalCode::*;
        let after = |code| {
            let refusal = crate::wire::Refusal::new(code, "no");
            longest_pause(refused(refusal).kind())
        };
        for code in [OldEpoch, Superseded] {
            assert_eq!(after(code), None, "{code:?}");
        }
        for code in
            [NotAuthorised, NoKey, WrongGroup, UnknownVolume, SizeMismatch, Incompatible, NoSpace]
        {
            assert_eq!(after(code), Some(BACKOFF_REFUSED), "{code:?}");
        }
        for code in [OutOfOrder, Damaged, Protocol, Storage, AlreadyPromoted, Unknown] {
            assert_eq!(after(code), Some(BACKOFF_LAST), "{code:?}");
        }
    }

    #[test]
    fn a_welcome_that_says_no_batch_format_is_of_the_first() {
        let json = r#"{"version":1,"number":0,"hash":"0000000000000000000000000000000000000000000000000000000000000000",
            "position":{"epoch":0,"incarnation":0,"seq":0},"claims_upto":0,"stream_bytes":0,
            "point":null,"broken":true,"promoted":null}"#;
        let welcome: crate::wire::Welcome = serde_json::from_str(json).unwrap();
        assert_eq!(welcome.batch_format, 1);
    }
}
