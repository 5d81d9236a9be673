//! What a guest did: every write with its place in one order over all volumes.

use super::{STAMP_BYTES, Seen, Stamp};
use crate::error::{Error, ErrorKind, Result};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks one prefill write covers.
const PREFILL_BLOCKS: u64 = 64;

/// One counter for issues and acknowledgements of all volumes. If A's
/// acknowledgement has a smaller number than B's issue, then A was acknowledged
/// before B was sent.
#[derive(Debug)]
pub struct Order(AtomicU64);

impl Default for Order {
    fn default() -> Order {
        Order(AtomicU64::new(1))
    }
}

impl Order {
    /// The next number. 0 is never given: it stands for "before everything".
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    /// Write zeroes: its blocks read as zero.
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In flight, or its reply never came: may or may not have happened, block by block.
    Unknown,
    /// Acknowledged at this place in the order.
    Acked(u64),
    /// Declined because the group is sealed: must never be seen.
    Refused,
}

/// One write of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its place of issue in the order, and the id in its stamps.
    pub id: u64,
    pub kind: Kind,
    pub first_block: u64,
    pub block_count: u32,
    /// Asked to be durable when acknowledged.
    pub fua: bool,
    pub outcome: Outcome,
}

impl Op {
    pub fn blocks(&self) -> std::ops::Range<u64> {
        self.first_block..self.first_block + u64::from(self.block_count)
    }

    pub fn acked_at(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Acked(at) => Some(at),
            _ => None,
        }
    }
}

/// A flush that was acknowledged: all that was acknowledged before `issued_at`
/// outlives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushPoint {
    pub issued_at: u64,
    pub acked_at: u64,
}

/// The writes of one volume. No two that were in flight together share a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeHistory {
    /// Number in the stamps.
    pub volume: u32,
    pub name: String,
    pub block_count: u64,
    /// By rising id.
    pub ops: Vec<Op>,
    pub flushes: Vec<FlushPoint>,
}

/// Whole volumes that were written through one [`Order`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub volumes: Vec<VolumeHistory>,
}

impl History {
    pub fn volume(&self, name: &str) -> Option<&VolumeHistory> {
        self.volumes.iter().find(|volume| volume.name == name)
    }
}

impl VolumeHistory {
    /// A volume of zeroes. A tail shorter than a block is left alone.
    pub fn new(volume: u32, name: &str, size_bytes: u64) -> VolumeHistory {
        VolumeHistory {
            volume,
            name: name.into(),
            block_count: size_bytes / STAMP_BYTES as u64,
            ops: Vec::new(),
            flushes: Vec::new(),
        }
    }

    /// A volume whose image at `path` gets stamped contents now, before anything
    /// serves it: every second run of 64 blocks, the rest stays a hole.
    pub fn prefilled(volume: u32, name: &str, path: &Path, order: &Order) -> Result<VolumeHistory> {
        let failed = |e| Error::io(ErrorKind::Io, format!("cannot fill {}", path.display()), e);
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let mut history = VolumeHistory::new(volume, name, size_bytes);
        let mut buf = vec![0; PREFILL_BLOCKS as usize * STAMP_BYTES];
        let mut first_block = 0;
        while first_block < history.block_count {
            let count = PREFILL_BLOCKS.min(history.block_count - first_block);
            let id = order.tick();
            let bytes = &mut buf[..count as usize * STAMP_BYTES];
            fill(bytes, id, volume, first_block);
            file.write_all_at(bytes, first_block * STAMP_BYTES as u64).map_err(failed)?;
            history.ops.push(Op {
                id,
                kind: Kind::Write,
                first_block,
                block_count: count as u32,
                fua: true,
                outcome: Outcome::Acked(order.tick()),
            });
            first_block += 2 * PREFILL_BLOCKS;
        }
        file.sync_all().map_err(failed)?;
        Ok(history)
    }

    pub fn acked_ops(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| op.acked_at().is_some())
    }

    /// When the latest flush that was acknowledged was issued; 0 without one.
    pub fn flushed_up_to(&self) -> u64 {
        self.flushes.iter().map(|flush| flush.issued_at).max().unwrap_or(0)
    }

    /// The history that is left when a power cut made the image at `path` all there is: each
    /// block's writer, as far as it is known, acknowledged now; ids go on.
    pub fn settled(&self, path: &Path, order: &Order) -> Result<VolumeHistory> {
        let mut left = VolumeHistory { ops: Vec::new(), flushes: Vec::new(), ..self.clone() };
        let at = order.tick();
        crate::check::scan(self, path, |block, seen| {
            if let Seen::Stamp(stamp) = seen {
                left.ops.push(Op {
                    id: stamp.id,
                    kind: Kind::Write,
                    first_block: block,
                    block_count: 1,
                    fua: true,
                    outcome: Outcome::Acked(at),
                });
            }
        })?;
        left.ops.sort_by_key(|op| op.id);
        Ok(left)
    }
}

/// Stamps consecutive blocks from `first_block` on.
pub(super) fn fill(bytes: &mut [u8], id: u64, volume: u32, first_block: u64) {
    for (index, chunk) in bytes.chunks_exact_mut(STAMP_BYTES).enumerate() {
        Stamp { id, volume, block: first_block + index as u64 }.fill(chunk);
    }
}
