//! The sending half of a connection: headers and payloads of all due requests in one
//! gathered send, payloads from where they lie.

use super::slots::Slots;
use super::tally::Kind;
use super::workload::Dice;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd_client::Stream;
use std::io::{self, IoSlice};
use std::sync::Arc;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const DISCONNECT: u16 = 2;

/// Slices of one gathered send, the kernel's limit.
const SLICES_MAX: usize = 1024;

/// Payloads start at multiples of this in the pool: each write has another content,
/// and copying it costs what aligned guest pages cost.
const PAYLOAD_ALIGN: u64 = 512;

#[derive(Debug)]
pub(super) struct Sender {
    stream: Stream,
    slots: Arc<Slots>,
    /// Random bytes; longer than the longest payload.
    pool: Arc<[u8]>,
    dice: Dice,
    headers: Vec<[u8; 28]>,
    /// Start and length in the pool; nothing for reads and flushes.
    payloads: Vec<(usize, usize)>,
}

impl Sender {
    pub(super) fn new(stream: Stream, slots: Arc<Slots>, pool: Arc<[u8]>, seed: u64) -> Sender {
        Sender {
            stream,
            slots,
            pool,
            dice: Dice::new(seed),
            headers: Vec::new(),
            payloads: Vec::new(),
        }
    }

    /// Gathers a request that counts from `since_ns`.
    pub(super) fn push(&mut self, slot: usize, kind: Kind, offset: u64, len: u32, since_ns: u64) {
        let (command, data) = match kind {
            Kind::Read => (0, 0),
            Kind::Write => (1, len as usize),
            Kind::Flush => (3, 0),
        };
        let room = (self.pool.len() - data) as u64 / PAYLOAD_ALIGN;
        let start = if data == 0 { 0 } else { self.dice.below(room.max(1)) * PAYLOAD_ALIGN };
        self.slots.take(slot, kind, len, since_ns);
        self.headers.push(header(command, slot as u64, offset, len));
        self.payloads.push((start as usize, data));
    }

    pub(super) fn gathered(&self) -> usize {
        self.headers.len()
    }

    /// Sends what was gathered. While the server takes nothing, `stuck` is called
    /// every few milliseconds: it may take replies, and says whether to go on.
    pub(super) fn send(&mut self, mut stuck: impl FnMut() -> Result<bool>) -> Result<()> {
        let parts = self.headers.iter().zip(&self.payloads);
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(2 * self.headers.len());
        for (header, &(start, len)) in parts {
            slices.push(IoSlice::new(header));
            if len > 0 {
                slices.push(IoSlice::new(&self.pool[start..start + len]));
            }
        }
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let most = left.len().min(SLICES_MAX);
            match self.stream.send(&left[..most]) {
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !stuck()? {
                        let what = "the server takes no more requests";
                        return Err(Error::new(ErrorKind::TimedOut, what));
                    }
                }
                Err(e) => return Err(Error::socket("cannot send requests", e)),
            }
        }
        self.headers.clear();
        self.payloads.clear();
        Ok(())
    }

    /// Says goodbye; a server that is gone already has no need of it.
    pub(super) fn disconnect(mut self) {
        let _ = self.stream.send(&[IoSlice::new(&header(DISCONNECT, 0, 0, 0))]);
    }
}

fn header(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut header = [0; 28];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&len.to_be_bytes());
    if command == 3 {
        header[24..28].fill(0);
    }
    header
}
