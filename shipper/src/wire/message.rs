//! The conversation: what each frame means.

use super::ack::Ack;
use super::frame::{FrameKind, read_frame, write_frame};
use crate::device::BlockRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, KeyId, SessionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use towline_block::{Epoch, GroupName, Position, VolumeName};

/// Version of the conversation. A peer with another major answers ERROR
/// `incompatible` and closes.
pub const PROTOCOL: u32 = 1;

/// Volumes of a group: 512 longest names in a HELLO stay under the JSON limit.
pub const VOLUMES_MAX: usize = 512;

/// An attempt's id: a UUID or a short name.
pub const ATTEMPT_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSize {
    pub name: VolumeName,
    pub size_bytes: u64,
}

/// Shipper's first frame: who it is and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub group: GroupName,
    pub group_uuid: GroupUuid,
    pub session: SessionId,
    pub epoch: Epoch,
    /// The key that seals its batches from now on; none: they are not sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// In the order of their ids: volume 0 first.
    pub volumes: Vec<VolumeSize>,
}

/// Receiver's answer: what the target durably has; shipping goes on right after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u32,
    /// The newest batch format that this receiver reads. Receivers of the first one did
    /// not say.
    #[serde(default = "first_batch_format")]
    pub batch_format: u16,
    /// Number of the last durable batch, 0 for none.
    pub number: u64,
    pub hash: BatchHash,
    /// Position after that batch. The default position means that the target
    /// cannot say what it has: everything must come (again).
    pub position: Position,
    pub claims_upto: u64,
    pub stream_bytes: u64,
    pub point: Option<Position>,
    pub broken: bool,
    /// So many LACKS follow, which say what of it is not there all the same.
    #[serde(default)]
    pub lacks: u32,
    /// What a JOIN of this session has to say; none: this receiver takes one connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<u64>,
    pub promoted: Option<Promoted>,
}

/// First frame of a further connection of a session, which carries batches alone. The
/// answer is KEEPALIVE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub group: GroupName,
    pub session: SessionId,
    /// From WELCOME.
    pub join: u64,
}

fn first_batch_format() -> u16 {
    1
}

/// The target has taken over; it takes no more batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    pub attempt: String,
    /// The epoch under which the target writes now.
    pub epoch: Epoch,
    /// What the target's disks were when it took over.
    pub position: Position,
    pub exports: Vec<String>,
}

/// Shipper asks the receiver to take over at `position`, the SEAL record's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    pub attempt: String,
    pub position: Position,
    /// Take over at the last point when the group is broken. What the source
    /// acknowledged since is lost; a cutover never sets it.
    #[serde(default)]
    pub allow_rollback: bool,
}

/// Shipper asks that `attempt` never promotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    pub attempt: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Promoted,
    Aborted,
}

/// Receiver's durable, exclusive answer for an attempt; always the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub attempt: String,
    pub outcome: Outcome,
    /// Promoted: the epoch under which the target writes. Aborted: the source's, unchanged.
    pub epoch: Epoch,
    pub exports: Vec<String>,
    /// Promoted, but the volumes cannot be served yet: why. The decision stands;
    /// asking again tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A range of a volume whose digest was not the one asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    pub volume: u16,
    pub offset: u64,
    pub len: u64,
}

/// Verdict on all comparisons of one batch, once it was applied. Kept nowhere: a
/// verdict that is lost is asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub number: u64,
    pub claim: u64,
    pub differs: Vec<Differing>,
}

/// Blocks of a LACKS frame: as many as fit.
pub const LACKS_RUNS_MAX: usize = 1000;

/// Blocks that the target lacks, though the position says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacks {
    pub runs: Vec<BlockRun>,
}

/// What the peer does next, not what went wrong inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalCode {
    /// The certificate does not name the group.
    NotAuthorised,
    /// The batches are sealed with a key that the receiver does not have; connect again
    /// later: it may be given one.
    NoKey,
    /// This receiver belongs to another group, or to another of the same name.
    WrongGroup,
    /// The receiver has no target of that name, or the volumes changed.
    UnknownVolume,
    SizeMismatch,
    /// The sender's epoch is over: somebody else writes the group.
    OldEpoch,
    /// A newer session took over; this one is to end.
    Superseded,
    /// The batch does not follow the last one: connect again and go on from WELCOME.
    OutOfOrder,
    /// The batch is damaged: connect again and go on from WELCOME.
    Damaged,
    /// A frame that is not understood, or out of turn.
    Protocol,
    Incompatible,
    /// The target has no room; connect again later.
    NoSpace,
    /// The target's disks fail; connect again later.
    Storage,
    /// The target has taken over and takes no more batches.
    AlreadyPromoted,
    /// Not at the position that was asked for; nothing was decided.
    NotReady,
    /// A code of a newer version.
    #[serde(other)]
    Unknown,
}

/// ERROR: a refusal. The connection ends after it, except where docs/formats/wire.md says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: RefusalCode,
    /// What, where, what to do: for people.
    pub message: String,
}

impl Refusal {
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let kind = match refusal.code {
            RefusalCode::NotAuthorised | RefusalCode::NoKey => ErrorKind::NotAuthorised,
            RefusalCode::NoSpace => ErrorKind::NoSpace,
            RefusalCode::Storage => ErrorKind::Storage,
            RefusalCode::Damaged => ErrorKind::Damaged,
            RefusalCode::Protocol => ErrorKind::Protocol,
            _ => ErrorKind::Refused,
        };
        Error::new(kind, refusal.message)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    /// One encoded batch, not yet checked.
    Batch(Vec<u8>),
    Ack(Ack),
    Promote(Promote),
    Abort(Abort),
    Decision(Decision),
    KeepAlive,
    Error(Refusal),
    Compared(Compared),
    Lacks(Lacks),
    Join(Join),
}

impl Message {
    pub fn kind(&self) -> FrameKind {
        match self {
            Message::Hello(_) => FrameKind::Hello,
            Message::Welcome(_) => FrameKind::Welcome,
            Message::Batch(_) => FrameKind::Batch,
            Message::Ack(_) => FrameKind::Ack,
            Message::Promote(_) => FrameKind::Promote,
            Message::Abort(_) => FrameKind::Abort,
            Message::Decision(_) => FrameKind::Decision,
            Message::KeepAlive => FrameKind::KeepAlive,
            Message::Error(_) => FrameKind::Error,
            Message::Compared(_) => FrameKind::Compared,
            Message::Lacks(_) => FrameKind::Lacks,
            Message::Join(_) => FrameKind::Join,
        }
    }

    fn decode(kind: FrameKind, body: Vec<u8>) -> Result<Message> {
        Ok(match kind {
            FrameKind::Hello => Message::Hello(from_json(kind, &body)?),
            FrameKind::Welcome => Message::Welcome(from_json(kind, &body)?),
            FrameKind::Batch => Message::Batch(body),
            FrameKind::Ack => Message::Ack(Ack::decode(&body)?),
            FrameKind::Promote => Message::Promote(from_json(kind, &body)?),
            FrameKind::Abort => Message::Abort(from_json(kind, &body)?),
            FrameKind::Decision => Message::Decision(from_json(kind, &body)?),
            FrameKind::KeepAlive => Message::KeepAlive,
            FrameKind::Error => Message::Error(from_json(kind, &body)?),
            FrameKind::Compared => Message::Compared(from_json(kind, &body)?),
            FrameKind::Lacks => Message::Lacks(from_json(kind, &body)?),
            FrameKind::Join => Message::Join(from_json(kind, &body)?),
        })
    }
}

fn from_json<T: DeserializeOwned>(kind: FrameKind, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| {
        Error::caused(ErrorKind::Protocol, format!("a {kind:?} frame is not understood"), e)
    })
}

fn to_json<T: Serialize>(kind: FrameKind, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| {
        Error::caused(ErrorKind::InvalidInput, format!("a {kind:?} frame cannot be written"), e)
    })
}

/// Sends one message and flushes it.
pub async fn write_message<W>(writer: &mut W, message: &Message) -> Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let kind = message.kind();
    let json = match message {
        Message::Batch(bytes) => return write_frame(writer, kind, bytes).await,
        Message::Ack(ack) => return write_frame(writer, kind, &ack.encode()).await,
        Message::KeepAlive => return write_frame(writer, kind, &[]).await,
        Message::Hello(body) => to_json(kind, body)?,
        Message::Welcome(body) => to_json(kind, body)?,
        Message::Promote(body) => to_json(kind, body)?,
        Message::Abort(body) => to_json(kind, body)?,
        Message::Decision(body) => to_json(kind, body)?,
        Message::Error(body) => to_json(kind, body)?,
        Message::Compared(body) => to_json(kind, body)?,
        Message::Lacks(body) => to_json(kind, body)?,
        Message::Join(body) => to_json(kind, body)?,
    };
    write_frame(writer, kind, &json).await
}

/// Receives one message; `None` when the peer closed between frames. Not safe to
/// cancel, as [`read_frame`].
pub async fn read_message<R>(reader: &mut R) -> Result<Option<Message>>
where
    R: AsyncRead + Unpin + ?Sized,
{
    match read_frame(reader).await? {
        Some((kind, body)) => Message::decode(kind, body).map(Some),
        None => Ok(None),
    }
}
