//! Operations at an asynchronous source: their states, and the buffers they use.
//!
//! ```text
//!            enter                issue                           last completion
//!  request ────────> waiting ────────────> head ─> tail ─> body ────────────────> ended
//!              │ (overlaps one in flight)   (edges of an unaligned change are read first;
//!              └──────────────────────────>  a zero starts as `zero`, and goes on piece by
//!                                            piece as a write where the disk cannot zero)
//! ```
//! | state | completion | next |
//! |---|---|---|
//! | zero | done | next piece, or ended |
//! | zero | not offered, or not so aligned | head, tail or body of the first piece, as writes |
//! | head, tail | a whole block | tail or body |
//! | body | short | body, for the rest |
//! | body | all | next piece of a zero, or ended |
//! | any | an error, or no byte moved | ended, failed |
//!
//! A change takes its place in the journal when it is issued, not when it arrives: the
//! order of the journal is the order at the source. An operation occupies whole blocks of
//! the source's alignment in the overlap table, so that the edges it reads and writes back
//! are nobody else's meanwhile.

use super::slots::Key;
use crate::error::Result;
use crate::latency::{self, Timing};
use crate::overlap::{Arrival, Overlaps};
use crate::volume::ZERO_PIECE_BYTES_MAX;
use crossbeam::channel::Sender;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};
use towline_block::buffer::DIRECT_ALIGN;
use towline_block::sys::uring::{Window, Zeroing};
use towline_block::{AlignedBuf, Extent};
use towline_journal::{Begun, Claim};

/// Zeroes written at once where the disk cannot zero by itself.
const ZERO_WRITE_BYTES: u64 = 1 << 20;
/// Buffers kept for the next operations of a volume.
const POOL_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { fua: bool },
    Zero { fua: bool, keep: bool },
    Trim { fua: bool },
}

/// What a source takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Offset and length of reads and writes are multiples of it; at most a disk block.
    pub align: u64,
    /// It can make ranges zero by itself; it may still refuse.
    pub can_zero: bool,
    /// It can write a single request through to the medium.
    pub can_fua: bool,
}

impl Rules {
    /// Of a file or device past the page cache.
    pub const DIRECT: Rules = Rules { align: DIRECT_ALIGN as u64, can_zero: true, can_fua: false };

    /// Of reads that the page cache lacks; nothing else of a page-cache source comes here.
    pub const CACHED: Rules = Rules { align: 1, can_zero: false, can_fua: false };

    fn align_down(self, at: u64) -> u64 {
        at - at % self.align
    }

    /// The whole blocks that a range touches. The disk's size is a multiple of a block.
    pub fn whole_blocks(self, extent: Extent) -> Extent {
        let start = self.align_down(extent.offset);
        Extent::new(start, extent.end().next_multiple_of(self.align) - start)
    }
}

/// One step at the source.
#[derive(Debug)]
pub(super) enum Io {
    Read(u64, Window),
    Write(u64, Window),
    Zero(Extent, Zeroing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Zero,
    Head,
    Tail,
    Body,
}

/// What a completion led to.
#[derive(Debug)]
pub(super) enum Step {
    Next(Io),
    Ended(io::Result<()>),
}

/// One request at the source, or waiting for it.
pub(super) struct Operation {
    pub key: Key,
    pub cookie: u64,
    pub kind: Kind,
    pub extent: Extent,
    pub arrival: Arrival,
    pub received: Instant,
    pub submitted: Instant,
    pub begun: Option<Begun>,
    /// The source writes it through: no flush is needed for its FUA.
    pub fua_at_source: bool,
    /// The data, from the start of the first whole block of `piece`. Not here while the
    /// kernel has it.
    pub buf: AlignedBuf,
    /// One block, for the edges of an unaligned change.
    edge: Option<AlignedBuf>,
    state: State,
    piece: Extent,
    /// Bytes of the body done, whole blocks.
    done: usize,
    rules: Rules,
}

impl Kind {
    pub fn is_read(self) -> bool {
        self == Kind::Read
    }

    pub fn fua(self) -> bool {
        match self {
            Kind::Read => false,
            Kind::Write { fua } | Kind::Zero { fua, .. } | Kind::Trim { fua } => fua,
        }
    }

    pub fn timing(self, bytes: u64, received: Instant, source: Duration) -> Timing {
        let kind = match self {
            Kind::Read => latency::Kind::Read,
            Kind::Write { fua: false } => latency::Kind::Write,
            Kind::Write { fua: true } => latency::Kind::Fua,
            Kind::Zero { .. } | Kind::Trim { .. } => latency::Kind::Zero,
        };
        Timing::new(kind, bytes, received, source)
    }

    /// Bytes of the buffer that it needs.
    pub fn buffer_bytes(self, extent: Extent, rules: Rules) -> u64 {
        match self {
            Kind::Read | Kind::Write { .. } => rules.whole_blocks(extent).len,
            // Taken only where the disk cannot zero.
            Kind::Zero { .. } | Kind::Trim { .. } => 0,
        }
    }

    /// Bytes of its permit.
    pub fn permit_bytes(self, extent: Extent, rules: Rules) -> u64 {
        match self {
            Kind::Read | Kind::Write { .. } => rules.whole_blocks(extent).len,
            Kind::Zero { .. } | Kind::Trim { .. } => extent.len.min(ZERO_WRITE_BYTES),
        }
    }
}

impl Operation {
    pub fn new(
        (key, cookie): (Key, u64),
        (kind, extent): (Kind, Extent),
        rules: Rules,
        buf: AlignedBuf,
        received: Instant,
    ) -> Operation {
        let (state, piece) = match kind {
            Kind::Read | Kind::Write { .. } => (State::Body, extent),
            _ => (State::Zero, Extent::new(extent.offset, extent.len.min(ZERO_PIECE_BYTES_MAX))),
        };
        Operation {
            key,
            cookie,
            kind,
            extent,
            arrival: 0,
            received,
            submitted: received,
            begun: None,
            fua_at_source: false,
            buf,
            edge: None,
            state,
            piece,
            done: 0,
            rules,
        }
    }

    /// Where the request's bytes lie in the buffer.
    pub fn data_range(&self) -> std::ops::Range<usize> {
        let start = (self.extent.offset % self.rules.align) as usize;
        start..start + self.extent.len as usize
    }

    /// The first step at the source.
    pub fn start(&mut self) -> Io {
        match self.kind {
            Kind::Read => self.body(),
            Kind::Write { .. } => self.edges(),
            _ if self.rules.can_zero => self.zero(),
            _ => self.write_zeroes(self.extent.offset),
        }
    }

    /// A step at the source has ended.
    pub fn step(&mut self, result: io::Result<usize>, window: Window) -> Step {
        let bytes = match (self.state, result) {
            (State::Zero, Err(error)) if is_not_offered(&error) => {
                return Step::Next(self.write_zeroes(self.piece.offset));
            }
            (State::Zero, Ok(_)) => return self.after_piece(),
            (_, Err(error)) => return Step::Ended(Err(error)),
            (_, Ok(bytes)) => bytes,
        };
        let align = self.rules.align as usize;
        let blocks = self.rules.whole_blocks(self.piece);
        let pre = (self.piece.offset - blocks.offset) as usize;
        let post = pre + self.piece.len as usize;
        let end = blocks.len as usize;
        if self.state == State::Body {
            self.buf = AlignedBuf::take_back(window);
            self.done += bytes - bytes % align;
            return match self.done >= end {
                true => self.after_piece(),
                false if bytes < align => Step::Ended(Err(no_progress())),
                false => Step::Next(self.body()),
            };
        }
        let edge = AlignedBuf::take_back(window);
        if bytes < align {
            return Step::Ended(Err(no_progress()));
        }
        let last = end - align;
        let is_head = self.state == State::Head;
        let (at, block) = (if is_head { 0 } else { last }, &edge.as_slice()[..align]);
        let buf = self.buf.as_mut_slice();
        if is_head {
            buf[..pre].copy_from_slice(&block[..pre]);
        }
        // The one block may be both edges.
        if post > at && post < at + align {
            buf[post..at + align].copy_from_slice(&block[post - at..]);
        }
        self.edge = Some(edge);
        let has_tail = is_head && last > 0 && post < end;
        Step::Next(if has_tail { self.read_edge(State::Tail) } else { self.body() })
    }

    fn after_piece(&mut self) -> Step {
        let next = self.piece.end();
        if next >= self.extent.end() {
            return Step::Ended(Ok(()));
        }
        match self.state {
            State::Zero => {
                let left = self.extent.end() - next;
                self.piece = Extent::new(next, left.min(ZERO_PIECE_BYTES_MAX));
                Step::Next(self.zero())
            }
            _ => Step::Next(self.write_zeroes(next)),
        }
    }

    fn zero(&mut self) -> Io {
        let how = match self.kind {
            Kind::Zero { keep: true, .. } => Zeroing::KeepAllocated,
            _ => Zeroing::Deallocate,
        };
        Io::Zero(self.piece, how)
    }

    /// Writes zeroes from `at` to the end of the extent, a piece at a time.
    fn write_zeroes(&mut self, at: u64) -> Io {
        let end = self.extent.end().min(self.rules.align_down(at) + ZERO_WRITE_BYTES);
        self.piece = Extent::new(at, end - at);
        let len = self.rules.whole_blocks(self.piece).len as usize;
        match self.buf.len() < len {
            true => self.buf = AlignedBuf::new(len),
            false => self.buf.as_mut_slice()[..len].fill(0),
        }
        self.edges()
    }

    fn edges(&mut self) -> Io {
        self.done = 0;
        let align = self.rules.align;
        if !self.piece.offset.is_multiple_of(align) {
            return self.read_edge(State::Head);
        }
        match self.piece.end().is_multiple_of(align) {
            true => self.body(),
            false => self.read_edge(State::Tail),
        }
    }

    fn read_edge(&mut self, edge: State) -> Io {
        self.state = edge;
        let offset = match edge {
            State::Head => self.rules.align_down(self.piece.offset),
            _ => self.rules.align_down(self.piece.end()),
        };
        let buf = self.edge.take().unwrap_or_else(|| AlignedBuf::new(DIRECT_ALIGN));
        Io::Read(offset, buf.lend(0, self.rules.align as usize))
    }

    fn body(&mut self) -> Io {
        self.state = State::Body;
        let blocks = self.rules.whole_blocks(self.piece);
        let buf = std::mem::take(&mut self.buf);
        let window = buf.lend(self.done, blocks.len as usize - self.done);
        let offset = blocks.offset + self.done as u64;
        match self.kind {
            Kind::Read => Io::Read(offset, window),
            _ => Io::Write(offset, window),
        }
    }
}

/// The file system has no such operation, or not at this alignment.
fn is_not_offered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV))
}

fn no_progress() -> io::Error {
    io::Error::other("the source moved less than a block: it has become shorter, or is broken")
}

/// Claims that were made and wait for changes that came before them (R3).
pub(super) struct WaitingClaims {
    pub claims: Vec<Claim>,
    pub mark: Arrival,
    pub done: Sender<Result<Vec<Claim>>>,
}

/// All operations of a volume at its source.
#[derive(Default)]
pub(super) struct Pending {
    pub overlaps: Overlaps,
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// May be issued, in this order.
    pub runnable: Vec<usize>,
    /// Connections that wait for a permit, first come first served.
    pub waiters: VecDeque<Key>,
    pub claims: Vec<WaitingClaims>,
    /// By power of two of their size, from one block on.
    pool: Vec<Vec<AlignedBuf>>,
    pool_bytes: usize,
}

impl Pending {
    pub fn is_idle(&self) -> bool {
        self.overlaps.is_idle()
    }

    pub fn insert(&mut self, operation: Operation) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        self.operations[slot] = Some(operation);
        slot
    }

    /// # Panics
    /// When the slot is empty: slots are named by completions and the overlap table only.
    pub fn get(&mut self, slot: usize) -> &mut Operation {
        self.operations[slot].as_mut().expect("an operation in its slot")
    }

    /// Ends an operation; what waited for it becomes runnable.
    pub fn remove(&mut self, slot: usize) -> Operation {
        let operation = self.operations[slot].take().expect("an operation in its slot");
        self.free.push(slot);
        self.overlaps.leave(operation.arrival, &mut self.runnable);
        operation
    }

    /// A buffer of at least `bytes`; what is in it is of no consequence.
    pub fn take_buf(&mut self, bytes: u64) -> AlignedBuf {
        if bytes == 0 {
            return AlignedBuf::default();
        }
        let size = (bytes as usize).next_power_of_two().max(DIRECT_ALIGN);
        match self.pool.get_mut(size.trailing_zeros() as usize).and_then(Vec::pop) {
            Some(buf) => {
                self.pool_bytes -= size;
                buf
            }
            None => AlignedBuf::new(size),
        }
    }

    pub fn give_buf(&mut self, buf: AlignedBuf) {
        let size = buf.len();
        if !size.is_power_of_two() || self.pool_bytes + size > POOL_BYTES_MAX {
            return;
        }
        let class = size.trailing_zeros() as usize;
        if self.pool.len() <= class {
            self.pool.resize_with(class + 1, Vec::new);
        }
        self.pool_bytes += size;
        self.pool[class].push(buf);
    }
}

#[cfg(test)]
mod tests;
