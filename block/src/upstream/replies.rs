//! Replies as they come, in pieces of any size: data goes straight to its request.
//!
//! ```text
//!            ┌────────────────────────── frame: simple 16 bytes, chunk 20 ──────────┐
//!            v                                                                      │
//!  simple: error, or not a read ──────────────────────────────────────> answered   │
//!  simple: read ──> data ─────────────────────────────────────────────> answered   ├─ violation: anything else
//!  chunk: none ───────────────────────────────────────────────┐                    │
//!  chunk: data ──> offset ──> data ───────────────────────────┼─ DONE ─> answered  │
//!  chunk: hole ──> offset, length ──> zeroes ─────────────────┤                    │
//!  chunk: error ─> number ──> text, skipped ──────────────────┴─ else ─> frame ────┘
//! ```

use super::proto::{
    ChunkFrame, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC, SimpleReplyFrame,
    chunk,
};
use super::session::{Ask, Ended, Session, Violation, Waiting};
use crate::copy;
use std::io;
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

const MAGIC_BYTES: usize = 4;
const SIMPLE_BYTES: usize = size_of::<SimpleReplyFrame>();
const CHUNK_BYTES: usize = size_of::<ChunkFrame>();
/// Error number and length of the text.
const ERROR_BYTES: usize = 6;
/// Longest error chunk: number, text, offset.
const ERROR_CHUNK_BYTES_MAX: usize = ERROR_BYTES + STRING_BYTES_MAX + 8;
/// Offset and length of a hole.
const HOLE_BYTES: usize = 12;
const OFFSET_BYTES: usize = 8;

type Parsed<T> = std::result::Result<T, Violation>;

/// Whose reply is at hand, and whether this part ends it.
#[derive(Clone, Copy, Debug)]
struct Whose {
    slot: usize,
    done: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    #[default]
    Frame,
    /// Before so many bytes of data.
    Offset(Whose, usize),
    Hole(Whose),
    /// Before so many bytes of text.
    Error(Whose, usize),
    /// From this byte of the request, so many bytes.
    Data(Whose, usize, usize),
    Skip(Whose, usize),
}

/// Where in a reply the stream stands. `held` are bytes of a part that is not complete.
#[derive(Debug, Default)]
pub(super) struct Part {
    step: Step,
    held: [u8; CHUNK_BYTES],
    len: usize,
}

impl Part {
    /// Bytes that the part at hand has; `None` for data, which is never held.
    fn needed(&self) -> Option<usize> {
        match self.step {
            Step::Frame if self.len < MAGIC_BYTES => Some(MAGIC_BYTES),
            Step::Frame if self.held[..MAGIC_BYTES] == SIMPLE_REPLY_MAGIC.to_be_bytes() => {
                Some(SIMPLE_BYTES)
            }
            Step::Frame => Some(CHUNK_BYTES),
            Step::Offset(..) => Some(OFFSET_BYTES),
            Step::Hole(_) => Some(HOLE_BYTES),
            Step::Error(..) => Some(ERROR_BYTES),
            Step::Data(..) | Step::Skip(..) => None,
        }
    }
}

impl Session {
    /// Takes bytes as they came; appends what they answer.
    ///
    /// # Errors
    /// A [`Violation`]: the session must be ended with [`Session::lost`].
    pub fn feed(&mut self, mut bytes: &[u8], ended: &mut Vec<Ended>) -> Parsed<()> {
        while !bytes.is_empty() {
            match self.part.step {
                Step::Data(whose, at, left) => {
                    let now = left.min(bytes.len());
                    copy(self.waiting(whose)?.space(at, now), &bytes[..now]);
                    bytes = &bytes[now..];
                    self.go(Step::Data(whose, at + now, left - now), ended)?;
                }
                Step::Skip(whose, left) => {
                    let now = left.min(bytes.len());
                    bytes = &bytes[now..];
                    self.go(Step::Skip(whose, left - now), ended)?;
                }
                _ => bytes = self.hold(bytes, ended)?,
            }
        }
        Ok(())
    }

    fn hold<'a>(&mut self, bytes: &'a [u8], ended: &mut Vec<Ended>) -> Parsed<&'a [u8]> {
        let part = &mut self.part;
        let needed = part.needed().unwrap_or(0);
        let now = (needed - part.len).min(bytes.len());
        copy(&mut part.held[part.len..part.len + now], &bytes[..now]);
        part.len += now;
        // After the magic it is known how much more there is.
        if part.needed() == Some(part.len) {
            let held = part.held;
            part.len = 0;
            self.complete(&held, ended)?;
        }
        Ok(&bytes[now..])
    }

    /// A part is complete.
    fn complete(&mut self, held: &[u8; CHUNK_BYTES], ended: &mut Vec<Ended>) -> Parsed<()> {
        match self.part.step {
            Step::Frame => self.frame(held, ended),
            Step::Offset(whose, len) => {
                let at = self.cover(whose, number64(held), len)?;
                self.go(Step::Data(whose, at, len), ended)
            }
            Step::Hole(whose) => {
                let len = number32(&held[OFFSET_BYTES..]) as usize;
                let at = self.cover(whose, number64(held), len)?;
                self.waiting(whose)?.space(at, len).fill(0);
                self.go(Step::Skip(whose, 0), ended)
            }
            Step::Error(whose, text) => {
                let error = errno(number32(held))?;
                self.waiting(whose)?.error = Some(error);
                self.go(Step::Skip(whose, text), ended)
            }
            Step::Data(..) | Step::Skip(..) => unreachable!("data is not held"),
        }
    }

    fn frame(&mut self, held: &[u8; CHUNK_BYTES], ended: &mut Vec<Ended>) -> Parsed<()> {
        match number32(held) {
            SIMPLE_REPLY_MAGIC => self.simple(held, ended),
            STRUCTURED_REPLY_MAGIC if self.terms.structured => self.chunk(held, ended),
            _ => Err(Violation("a reply that does not begin as one")),
        }
    }

    fn simple(&mut self, held: &[u8], ended: &mut Vec<Ended>) -> Parsed<()> {
        let Ok((frame, _)) = SimpleReplyFrame::read_from_prefix(held) else {
            return Err(Violation("a reply that is too short"));
        };
        let whose = self.whose(frame.cookie.get(), true)?;
        let structured = self.terms.structured;
        let waiting = self.waiting(whose)?;
        if frame.error.get() != 0 {
            waiting.error = Some(errno(frame.error.get())?);
            return self.go(Step::Skip(whose, 0), ended);
        }
        if !matches!(waiting.ask, Ask::Read { .. }) {
            return self.go(Step::Skip(whose, 0), ended);
        }
        if structured {
            return Err(Violation("a simple reply with data where structured ones were agreed"));
        }
        let len = waiting.len;
        if len > 0 && !waiting.cover(0, len) {
            return Err(Violation("data that was not asked for"));
        }
        self.go(Step::Data(whose, 0, len), ended)
    }

    fn chunk(&mut self, held: &[u8], ended: &mut Vec<Ended>) -> Parsed<()> {
        let Ok((frame, _)) = ChunkFrame::read_from_prefix(held) else {
            return Err(Violation("a chunk that is too short"));
        };
        let (len, kind) = (frame.length.get() as usize, frame.kind.get());
        let done = frame.flags.get() & chunk::FLAG_DONE != 0;
        let whose = self.whose(frame.cookie.get(), done)?;
        match kind {
            chunk::NONE if len == 0 && done => self.go(Step::Skip(whose, 0), ended),
            chunk::OFFSET_DATA if len > OFFSET_BYTES => {
                self.go(Step::Offset(whose, len - OFFSET_BYTES), ended)
            }
            chunk::OFFSET_HOLE if len == HOLE_BYTES => self.go(Step::Hole(whose), ended),
            kind if kind & chunk::ERROR_BIT != 0
                && (ERROR_BYTES..=ERROR_CHUNK_BYTES_MAX).contains(&len) =>
            {
                self.go(Step::Error(whose, len - ERROR_BYTES), ended)
            }
            _ => Err(Violation("a chunk of an unknown kind or of a wrong length")),
        }
    }

    /// Goes to a step; where nothing is left of it, to what follows.
    fn go(&mut self, step: Step, ended: &mut Vec<Ended>) -> Parsed<()> {
        self.part.step = step;
        if let Step::Data(whose, _, 0) | Step::Skip(whose, 0) = step {
            self.part.step = Step::Frame;
            if whose.done {
                return self.answered(whose, ended);
            }
        }
        Ok(())
    }

    fn answered(&mut self, whose: Whose, ended: &mut Vec<Ended>) -> Parsed<()> {
        let slot = self.waiting.get_mut(whose.slot).and_then(Option::take);
        let Some(waiting) = slot else { return Err(UNKNOWN) };
        let result = match waiting.error {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None if matches!(waiting.ask, Ask::Read { .. }) && !waiting.is_covered() => {
                // It still stands for what was asked.
                self.waiting[whose.slot] = Some(waiting);
                return Err(Violation("the end of a read's answer before all of its data"));
            }
            None => Ok(waiting.len),
        };
        ended.push(Ended { id: whose.slot as u32, result, ask: waiting.ask });
        Ok(())
    }

    /// Notes a part of a read's answer; where it lies in the request.
    fn cover(&mut self, whose: Whose, offset: u64, len: usize) -> Parsed<usize> {
        let waiting = self.waiting(whose)?;
        let Ask::Read { offset: start, .. } = waiting.ask else {
            return Err(Violation("data in the answer to something else than a read"));
        };
        let at = offset.checked_sub(start).and_then(|at| usize::try_from(at).ok());
        match at {
            Some(at) if waiting.cover(at, len) => Ok(at),
            _ => Err(Violation("data that was not asked for, or came twice")),
        }
    }

    fn whose(&self, cookie: u64, done: bool) -> Parsed<Whose> {
        let slot = usize::try_from(cookie).map_err(|_| UNKNOWN)?;
        match self.waiting.get(slot) {
            Some(Some(_)) => Ok(Whose { slot, done }),
            _ => Err(UNKNOWN),
        }
    }

    fn waiting(&mut self, whose: Whose) -> Parsed<&mut Waiting> {
        self.waiting.get_mut(whose.slot).and_then(Option::as_mut).ok_or(UNKNOWN)
    }
}

const UNKNOWN: Violation = Violation("a reply to nothing that was asked");

fn number32(bytes: &[u8]) -> u32 {
    U32::read_from_prefix(bytes).map_or(0, |(number, _)| number.get())
}

fn number64(bytes: &[u8]) -> u64 {
    U64::read_from_prefix(bytes).map_or(0, |(number, _)| number.get())
}

/// The kernel's number for one of the wire.
///
/// # Errors
/// A server that shuts down answers nothing more of use: another will.
fn errno(wire: u32) -> Parsed<i32> {
    match wire {
        1 => Ok(libc::EPERM),
        22 => Ok(libc::EINVAL),
        28 => Ok(libc::ENOSPC),
        95 => Ok(libc::EOPNOTSUPP),
        108 => Err(Violation("the server shuts down")),
        _ => Ok(libc::EIO),
    }
}
