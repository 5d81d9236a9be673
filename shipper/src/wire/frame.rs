//! Frames: header, kinds, limits, reading and writing.

use super::ack::ACK_BYTES;
use crate::batch::BATCH_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::spare;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use towline_block::crc32c;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "TWLF" as it lies on the wire.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TWLF");

/// A JSON body. A HELLO with [`super::VOLUMES_MAX`] volumes of longest names fits.
pub const JSON_BYTES_MAX: usize = 64 << 10;

/// A frame up to this size is sent in one write: an acknowledgement is one packet.
const ONE_WRITE_BYTES_MAX: usize = 16 << 10;

/// At most so many bytes are given to or taken from a socket by one system call. A kernel
/// that does not preempt itself gives the core to a guest's thread only between two.
const CALL_BYTES_MAX: usize = 128 << 10;

/// A body's buffer has room for so much until that has arrived, then for all of it: a peer which
/// only announces a large body costs nothing, and no body is copied as its buffer grows.
const READ_PIECE_BYTES: usize = 256 << 10;

#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct FrameHeader {
    pub magic: U32,
    pub kind: U16,
    pub flags: U16,
    pub len: U32,
    pub crc32c: U32,
}

pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();
const _: () = assert!(FRAME_HEADER_BYTES == 16);

/// What the header's checksum covers: all before it.
const CRC_COVERS: usize = std::mem::offset_of!(FrameHeader, crc32c);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    Hello,
    Welcome,
    Batch,
    Ack,
    Promote,
    Abort,
    Decision,
    KeepAlive,
    Error,
    Compared,
    Lacks,
    Join,
}

impl FrameKind {
    pub const ALL: [FrameKind; 12] = [
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Batch,
        FrameKind::Ack,
        FrameKind::Promote,
        FrameKind::Abort,
        FrameKind::Decision,
        FrameKind::KeepAlive,
        FrameKind::Error,
        FrameKind::Compared,
        FrameKind::Lacks,
        FrameKind::Join,
    ];

    pub fn number(self) -> u16 {
        match self {
            FrameKind::Hello => 1,
            FrameKind::Welcome => 2,
            FrameKind::Batch => 3,
            FrameKind::Ack => 4,
            FrameKind::Promote => 5,
            FrameKind::Abort => 6,
            FrameKind::Decision => 7,
            FrameKind::KeepAlive => 8,
            FrameKind::Error => 9,
            FrameKind::Compared => 10,
            FrameKind::Lacks => 11,
            FrameKind::Join => 12,
        }
    }

    pub fn body_bytes_max(self) -> usize {
        match self {
            FrameKind::Batch => BATCH_BYTES_MAX,
            FrameKind::Ack => ACK_BYTES,
            FrameKind::KeepAlive => 0,
            _ => JSON_BYTES_MAX,
        }
    }
}

impl FrameHeader {
    pub fn new(kind: FrameKind, len: u32) -> FrameHeader {
        let mut header = FrameHeader {
            magic: FRAME_MAGIC.into(),
            kind: kind.number().into(),
            flags: 0.into(),
            len: len.into(),
            crc32c: 0.into(),
        };
        header.crc32c = crc32c(header.as_bytes().split_at(CRC_COVERS).0).into();
        header
    }

    /// Kind and body length of a header that passed all checks.
    pub fn check(&self) -> Result<(FrameKind, usize)> {
        let wrong = |what: String| Err(Error::new(ErrorKind::Protocol, what));
        if self.magic.get() != FRAME_MAGIC {
            return wrong("the peer does not speak Towline's protocol (wrong magic)".into());
        }
        if crc32c(self.as_bytes().split_at(CRC_COVERS).0) != self.crc32c.get() {
            return wrong("a frame header arrived damaged".into());
        }
        let number = self.kind.get();
        let Some(kind) = FrameKind::ALL.into_iter().find(|kind| kind.number() == number) else {
            return wrong(format!("frame kind {number} is not known to this version"));
        };
        if self.flags.get() != 0 {
            return wrong(format!("frame flags {:#x} are not known to this version", self.flags));
        }
        let len = self.len.get() as usize;
        if len > kind.body_bytes_max() {
            let max = kind.body_bytes_max();
            return wrong(format!("a {kind:?} frame of {len} bytes: at most {max} are allowed"));
        }
        Ok((kind, len))
    }
}

fn lost(what: &str, error: io::Error) -> Error {
    Error::caused(ErrorKind::Unreachable, format!("the connection was lost {what}"), error)
}

/// Sends one frame and flushes it.
pub async fn write_frame<W>(writer: &mut W, kind: FrameKind, body: &[u8]) -> Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let len = match u32::try_from(body.len()) {
        Ok(len) if body.len() <= kind.body_bytes_max() => len,
        _ => {
            let what = format!("a {kind:?} frame of {} bytes cannot be sent", body.len());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
    };
    let header = FrameHeader::new(kind, len);
    let send = async {
        if body.len() <= ONE_WRITE_BYTES_MAX {
            writer.write_all(&[header.as_bytes(), body].concat()).await?;
        } else {
            writer.write_all(header.as_bytes()).await?;
            write_pieces(writer, body).await?;
        }
        writer.flush().await
    };
    send.await.map_err(|e| lost("while sending", e))
}

async fn write_pieces<W>(writer: &mut W, bytes: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    for piece in bytes.chunks(CALL_BYTES_MAX) {
        writer.write_all(piece).await?;
    }
    Ok(())
}

/// A frame whose body is sent in pieces.
pub struct FrameWriter<'a, W: ?Sized> {
    writer: &'a mut W,
    rest: usize,
}

impl<'a, W: AsyncWrite + Unpin + ?Sized> FrameWriter<'a, W> {
    /// Sends the header of a frame of `len` bytes.
    pub async fn begin(
        writer: &'a mut W,
        kind: FrameKind,
        len: usize,
    ) -> Result<FrameWriter<'a, W>> {
        assert!(len <= kind.body_bytes_max(), "{len} bytes are no {kind:?} frame");
        let header = FrameHeader::new(kind, len as u32);
        writer.write_all(header.as_bytes()).await.map_err(|e| lost("while sending", e))?;
        Ok(FrameWriter { writer, rest: len })
    }

    /// Sends and flushes the next piece of the body.
    pub async fn push(&mut self, piece: &[u8]) -> Result<()> {
        assert!(piece.len() <= self.rest, "more bytes than the frame's header says");
        self.rest -= piece.len();
        let send = async {
            write_pieces(self.writer, piece).await?;
            self.writer.flush().await
        };
        send.await.map_err(|e| lost("while sending", e))
    }
}

/// Receives one frame; `None` when the peer closed between frames. Not safe to
/// cancel: a dropped future has eaten part of the stream.
pub async fn read_frame<R>(reader: &mut R) -> Result<Option<(FrameKind, Vec<u8>)>>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut filled = 0;
    while filled < header.len() {
        let Some(free) = header.get_mut(filled..) else { break };
        match reader.read(free).await.map_err(|e| lost("while waiting for a frame", e))? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(lost("inside a frame header", io::ErrorKind::UnexpectedEof.into())),
            n => filled += n,
        }
    }
    let header = FrameHeader::read_from_bytes(&header)
        .map_err(|_| Error::new(ErrorKind::Protocol, "a frame header was cut off"))?;
    let (kind, len) = header.check()?;
    let mut body = spare::take(len);
    body.clear();
    body.reserve_exact(len.min(READ_PIECE_BYTES));
    while body.len() < len {
        let rest = len - body.len();
        if body.len() == body.capacity() {
            body.reserve_exact(rest);
        }
        let mut piece = (&mut *reader).take(rest.min(CALL_BYTES_MAX) as u64);
        if piece.read_buf(&mut body).await.map_err(|e| lost("inside a frame", e))? == 0 {
            return Err(lost("inside a frame", io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Some((kind, body)))
}
