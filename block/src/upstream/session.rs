//! One connection's requests: bytes to send, bytes received, answers by cookie. Does no I/O.
//!
//! A request that was asked stays here with its buffer until it is answered, or until
//! [`Session::lost`] gives it back: after a lost connection nobody knows what became of it.

use super::handshake::Terms;
use super::proto::{REQUEST_MAGIC, RequestFrame, command, command_flag};
use super::replies::Part;
use crate::Extent;
use crate::copy::append;
use crate::sys::uring::Window;
use std::io;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32, U64};

/// Requests of one connection at a time: those of a volume, and a flush.
const ASKED_MAX: u32 = 1024;
/// A sent buffer of more is not kept.
const KEEP_BYTES_MAX: usize = 1 << 20;
/// Parts of a read's answer that do not touch; servers send them in order.
const PARTS_MAX: usize = 64;

/// What a server is asked.
#[derive(Debug)]
pub enum Ask {
    /// Fills the window; short where the server's largest payload is.
    Read {
        offset: u64,
        window: Window,
    },
    /// Writes the window; short where the server's largest payload is.
    Write {
        offset: u64,
        window: Window,
        fua: bool,
    },
    /// Writes what the sender sends behind the bytes of this request; aligned, and no more
    /// than the server's largest payload.
    Post {
        extent: Extent,
    },
    /// Makes the range read as zero.
    Zero {
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
    },
    Flush,
}

impl Ask {
    pub fn is_change(&self) -> bool {
        matches!(self, Ask::Write { .. } | Ask::Post { .. } | Ask::Zero { .. })
    }

    /// The buffer, where it has one.
    pub fn into_window(self) -> Window {
        match self {
            Ask::Read { window, .. } | Ask::Write { window, .. } => window,
            Ask::Post { .. } | Ask::Zero { .. } | Ask::Flush => Window::default(),
        }
    }
}

/// An answered request.
#[derive(Debug)]
pub struct Ended {
    pub id: u32,
    /// Bytes moved, or the server's error.
    pub result: io::Result<usize>,
    pub ask: Ask,
}

/// What came is not the protocol, or tells that nothing more will come: the connection is
/// of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

pub(super) struct Waiting {
    pub ask: Ask,
    /// Bytes asked for, or written.
    pub len: usize,
    /// Of a read, what has come: sorted, disjoint, not touching.
    parts: Vec<(usize, usize)>,
    pub error: Option<i32>,
}

pub struct Session {
    pub(super) terms: Terms,
    pub(super) waiting: Vec<Option<Waiting>>,
    pub(super) part: Part,
    out: Vec<u8>,
}

impl Session {
    pub fn new(terms: Terms) -> Session {
        Session { terms, waiting: Vec::new(), part: Part::default(), out: Vec::new() }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Asks; the answer carries `id`.
    ///
    /// # Panics
    /// When an id is in use, or a request breaks the terms.
    pub fn ask(&mut self, id: u32, ask: Ask) {
        assert!(id < ASKED_MAX, "request {id} of at most {ASKED_MAX}");
        let most = self.terms.payload_bytes_max as usize;
        let fua_flag = |fua| if fua { command_flag::FUA } else { 0 };
        let (kind, flags, extent) = match &ask {
            Ask::Read { offset, window } => {
                (command::READ, 0, Extent::new(*offset, window.len.min(most) as u64))
            }
            Ask::Write { offset, window, fua } => {
                let extent = Extent::new(*offset, window.len.min(most) as u64);
                (command::WRITE, fua_flag(*fua), extent)
            }
            Ask::Post { extent } => (command::WRITE, 0, *extent),
            Ask::Zero { extent, keep_allocated, fua } => {
                let keep = if *keep_allocated { command_flag::NO_HOLE } else { 0 };
                (command::WRITE_ZEROES, fua_flag(*fua) | keep, *extent)
            }
            Ask::Flush => (command::FLUSH, 0, Extent::new(0, 0)),
        };
        let align = u64::from(self.terms.align);
        let is_aligned = extent.offset.is_multiple_of(align) && extent.len.is_multiple_of(align);
        let is_payload = !matches!(ask, Ask::Post { .. }) || extent.len <= most as u64;
        let is_inside = is_aligned && is_payload && extent.within(self.terms.size_bytes);
        assert!(is_inside, "{extent:?} breaks the terms");
        let frame = RequestFrame {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(flags),
            command: U16::new(kind),
            cookie: U64::new(u64::from(id)),
            offset: U64::new(extent.offset),
            length: U32::new(u32::try_from(extent.len).expect("a piece of a request")),
        };
        self.out.extend_from_slice(frame.as_bytes());
        if let Ask::Write { window, .. } = &ask {
            append(&mut self.out, &window.buf[window.start..][..extent.len as usize]);
        }
        let slot = id as usize;
        if self.waiting.len() <= slot {
            self.waiting.resize_with(slot + 1, || None);
        }
        assert!(self.waiting[slot].is_none(), "request {id} was asked twice");
        let len = extent.len as usize;
        self.waiting[slot] = Some(Waiting { ask, len, parts: Vec::new(), error: None });
    }

    /// Bytes to send, in order; the caller takes them for good.
    pub fn take_unsent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    pub fn has_unsent(&self) -> bool {
        !self.out.is_empty()
    }

    /// Keeps the memory of what was sent.
    pub fn recycle(&mut self, mut sent: Vec<u8>) {
        if self.out.is_empty() && sent.capacity() <= KEEP_BYTES_MAX {
            sent.clear();
            self.out = sent;
        }
    }

    /// Ends the session: everything that was asked and not answered.
    pub fn lost(self) -> Vec<(u32, Ask)> {
        let asked = self.waiting.into_iter().enumerate();
        asked.filter_map(|(id, waiting)| Some((id as u32, waiting?.ask))).collect()
    }
}

impl Waiting {
    /// Notes that so many bytes from `at` have come; false when they were not asked for,
    /// or came before.
    pub fn cover(&mut self, at: usize, len: usize) -> bool {
        let Some(end) = at.checked_add(len).filter(|end| *end <= self.len && len > 0) else {
            return false;
        };
        let next = self.parts.partition_point(|part| part.0 < at);
        if next > 0 && self.parts[next - 1].1 > at {
            return false;
        }
        if self.parts.get(next).is_some_and(|part| part.0 < end) {
            return false;
        }
        let joins_next = self.parts.get(next).is_some_and(|part| part.0 == end);
        let joins_last = next > 0 && self.parts[next - 1].1 == at;
        match (joins_last, joins_next) {
            (true, true) => self.parts[next - 1].1 = self.parts.remove(next).1,
            (true, false) => self.parts[next - 1].1 = end,
            (false, true) => self.parts[next].0 = at,
            (false, false) => self.parts.insert(next, (at, end)),
        }
        self.parts.len() <= PARTS_MAX
    }

    /// Every byte of a read has come.
    pub fn is_covered(&self) -> bool {
        self.len == 0 || self.parts == [(0, self.len)]
    }

    /// The part of a read's buffer that an answer fills.
    pub fn space(&mut self, at: usize, len: usize) -> &mut [u8] {
        match &mut self.ask {
            Ask::Read { window, .. } => &mut window.buf[window.start + at..][..len],
            _ => &mut [],
        }
    }
}

#[cfg(test)]
mod tests;
