//! Replies, simple and structured, from whatever pieces the socket delivers.
//!
//! Bytes go through one buffer; the payload of a large read goes straight to where
//! it belongs. Everything the server says is checked against what was asked.

use super::{Completion, Cookie, ReplyError};
use crate::error::{Error, ErrorKind, Result};
use std::collections::VecDeque;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;

const CHUNK_FLAG_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_ERROR_BIT: u16 = 1 << 15;

const BUFFER_BYTES: usize = 256 << 10;

/// A payload with at least this much to come is received in place.
const DIRECT_BYTES_MIN: usize = 64 << 10;

/// Longest error chunk read: number, text of at most 4096 bytes, offset, and room.
const ERROR_BYTES_MAX: usize = 8 << 10;

/// Low bits of a cookie are its slot, the rest tells a slot's users apart.
const SLOT_BITS: u32 = 20;

/// What a reply is matched with.
#[derive(Debug)]
pub(super) struct Flight {
    cookie: u64,
    is_read: bool,
    offset: u64,
    buf: Vec<u8>,
    /// Bytes of `buf` that chunks have delivered.
    filled: usize,
    error: Option<ReplyError>,
}

impl Flight {
    pub(super) fn read(offset: u64, buf: Vec<u8>) -> Flight {
        Flight { cookie: 0, is_read: true, offset, buf, filled: 0, error: None }
    }

    pub(super) fn plain() -> Flight {
        Flight { cookie: 0, is_read: false, offset: 0, buf: Vec::new(), filled: 0, error: None }
    }
}

/// Payload that is on its way into a flight's buffer.
#[derive(Clone, Copy, Debug)]
struct Payload {
    slot: usize,
    at: usize,
    left: usize,
    /// The reply is complete once the payload is.
    last: bool,
}

#[derive(Debug)]
pub(super) struct Receiver {
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    generation: u64,
    in_flight: usize,
    ready: VecDeque<Completion>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    payload: Option<Payload>,
    /// The space last handed out was the flight's own buffer.
    direct: bool,
}

impl Receiver {
    pub(super) fn new() -> Receiver {
        Receiver {
            flights: Vec::new(),
            free: Vec::new(),
            generation: 0,
            in_flight: 0,
            ready: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            payload: None,
            direct: false,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight + self.ready.len()
    }

    pub(super) fn expect(&mut self, mut flight: Flight) -> Cookie {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        assert!(slot < 1 << SLOT_BITS, "{slot} requests in flight on one connection");
        self.generation += 1;
        flight.cookie = self.generation << SLOT_BITS | slot as u64;
        let cookie = Cookie(flight.cookie);
        self.flights[slot] = Some(flight);
        self.in_flight += 1;
        cookie
    }

    pub(super) fn take(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    /// Where the next bytes from the socket go; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.direct = false;
        if let Some(payload) = self.payload
            && self.start == self.end
            && payload.left >= DIRECT_BYTES_MIN
            && let Some(flight) = self.flights[payload.slot].as_mut()
        {
            self.direct = true;
            return &mut flight.buf[payload.at..payload.at + payload.left];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < DIRECT_BYTES_MIN {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// `n` bytes were put into [`Receiver::space`].
    pub(super) fn received(&mut self, n: usize) -> Result<()> {
        if self.direct {
            if let Some(payload) = self.payload.as_mut() {
                payload.at += n;
                payload.left -= n;
            }
        } else {
            self.end += n;
        }
        while self.step()? {}
        Ok(())
    }

    /// Takes one thing out of the buffer; says whether there may be another.
    fn step(&mut self) -> Result<bool> {
        if let Some(payload) = self.payload {
            return Ok(self.step_payload(payload));
        }
        let bytes = &self.buffer[self.start..self.end];
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok(false) };
        match u32::from_be_bytes(*magic) {
            SIMPLE_MAGIC => self.step_simple(),
            CHUNK_MAGIC => self.step_chunk(),
            magic => Err(protocol(format!("a reply begins with {magic:#010x}"))),
        }
    }

    fn step_payload(&mut self, payload: Payload) -> bool {
        let n = payload.left.min(self.end - self.start);
        if let Some(flight) = self.flights[payload.slot].as_mut() {
            flight.buf[payload.at..payload.at + n]
                .copy_from_slice(&self.buffer[self.start..self.start + n]);
        }
        self.start += n;
        let rest = Payload { at: payload.at + n, left: payload.left - n, ..payload };
        if rest.left > 0 {
            self.payload = Some(rest);
            return false;
        }
        self.payload = None;
        if payload.last {
            self.finish(payload.slot);
        }
        true
    }

    fn step_simple(&mut self) -> Result<bool> {
        let bytes = &self.buffer[self.start..self.end];
        let Some(header) = bytes.first_chunk::<SIMPLE_BYTES>() else { return Ok(false) };
        let errno = be32(&header[4..8]);
        let slot = self.slot_of(be64(&header[8..16]))?;
        self.start += SIMPLE_BYTES;
        let Some(flight) = self.flights[slot].as_mut() else { return Ok(true) };
        if errno != 0 {
            flight.error = Some(ReplyError { errno, text: String::new() });
        } else if flight.is_read && !flight.buf.is_empty() {
            flight.filled = flight.buf.len();
            self.payload = Some(Payload { slot, at: 0, left: flight.filled, last: true });
            return Ok(true);
        }
        self.finish(slot);
        Ok(true)
    }

    fn step_chunk(&mut self) -> Result<bool> {
        let bytes = &self.buffer[self.start..self.end];
        let Some(header) = bytes.first_chunk::<CHUNK_BYTES>() else { return Ok(false) };
        let (flags, kind) = (be16(&header[4..6]), be16(&header[6..8]));
        let (cookie, len) = (be64(&header[8..16]), be32(&header[16..20]) as usize);
        let last = flags & CHUNK_FLAG_DONE != 0;
        let slot = self.slot_of(cookie)?;
        // What must be in the buffer before the chunk can be taken.
        let body_bytes = match kind {
            CHUNK_OFFSET_DATA => 8.min(len),
            _ if len <= ERROR_BYTES_MAX => len,
            _ => return Err(protocol(format!("a chunk of type {kind} with {len} bytes"))),
        };
        let Some(body) = bytes.get(CHUNK_BYTES..CHUNK_BYTES + body_bytes) else {
            return Ok(false);
        };
        let Some(flight) = self.flights[slot].as_mut() else { return Ok(false) };
        match kind {
            CHUNK_NONE => {}
            CHUNK_OFFSET_DATA if len > 8 => {
                let at = place(flight, be64(body), len - 8)?;
                self.payload = Some(Payload { slot, at, left: len - 8, last });
            }
            CHUNK_OFFSET_HOLE if len == 12 => {
                let hole = be32(&body[8..12]) as usize;
                let at = place(flight, be64(&body[..8]), hole)?;
                flight.buf[at..at + hole].fill(0);
            }
            kind if kind & CHUNK_ERROR_BIT != 0 && len >= 6 => {
                let text_len = usize::from(be16(&body[4..6]));
                let text = body.get(6..6 + text_len).unwrap_or_default();
                let text = String::from_utf8_lossy(text).into_owned();
                flight.error.get_or_insert(ReplyError { errno: be32(&body[..4]), text });
            }
            kind => return Err(protocol(format!("a chunk of type {kind} with {len} bytes"))),
        }
        self.start += CHUNK_BYTES + body_bytes;
        if last && self.payload.is_none() {
            self.finish(slot);
        }
        Ok(true)
    }

    fn slot_of(&self, cookie: u64) -> Result<usize> {
        let slot = (cookie & ((1 << SLOT_BITS) - 1)) as usize;
        match self.flights.get(slot) {
            Some(Some(flight)) if flight.cookie == cookie => Ok(slot),
            _ => Err(protocol(format!("a reply to {cookie:#x}, which nobody asked"))),
        }
    }

    fn finish(&mut self, slot: usize) {
        let Some(flight) = self.flights[slot].take() else { return };
        self.free.push(slot);
        self.in_flight -= 1;
        let incomplete = flight.is_read && flight.filled != flight.buf.len();
        let result = match flight.error {
            Some(error) => Err(error),
            None if incomplete => Err(ReplyError {
                errno: libc::EPROTO as u32,
                text: format!("{} of {} bytes delivered", flight.filled, flight.buf.len()),
            }),
            None => Ok(flight.buf),
        };
        self.ready.push_back(Completion { cookie: Cookie(flight.cookie), result });
    }
}

/// Where in the buffer of a read the `len` bytes from `offset` go.
fn place(flight: &mut Flight, offset: u64, len: usize) -> Result<usize> {
    let outside = || protocol(format!("{len} bytes at {offset}, which were not asked"));
    let at = offset.checked_sub(flight.offset).ok_or_else(outside)?;
    let at = usize::try_from(at).map_err(|_| outside())?;
    let end = at.checked_add(len).ok_or_else(outside)?;
    if !flight.is_read || end > flight.buf.len() || flight.filled + len > flight.buf.len() {
        return Err(outside());
    }
    flight.filled += len;
    Ok(at)
}

fn protocol(what: String) -> Error {
    Error::new(ErrorKind::Protocol, what)
}

// Callers pass slices of exactly the width, or longer ones to read the front of.
fn be16(bytes: &[u8]) -> u16 {
    bytes.iter().take(2).fold(0, |n, b| n << 8 | u16::from(*b))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}
