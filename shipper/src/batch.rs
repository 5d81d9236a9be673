//! The batch: the unit of shipping (docs/formats/batch.md).
//!
//! Owns its layout, its building on the source side (coalescing, compression, sealing)
//! and its full validation on the target side. A [`BatchView`] exists only for bytes that
//! passed every check that needs no context; what needs context (chain, position, volume
//! sizes) is the receiver's [`crate::receiver::Stream`].

mod build;
mod coalesce;
mod encode;
mod header;
mod key;
pub mod keyfile;
mod layout;
mod open;
mod pack;
mod view;

pub use build::{BatchBuilder, Chain, Filled};
pub use encode::{Encoder, Gains, Sealed};
pub use header::{encoded_len, number_of};
pub use key::{GroupKey, KEY_BYTES, KEY_ID_BYTES, KeyId, Keyring, SALT_BYTES, TAG_BYTES};
pub use layout::{HEADER_BYTES, Header, MAGIC, OP_BYTES, OpEntry, VERSION};
pub use open::{Batch, check};
pub use pack::{Method, UNIT_BYTES, UNIT_BYTES_MAX, UNIT_BYTES_MIN};
pub use view::BatchView;

use crate::ids::BatchHash;
use towline_block::{Extent, Seq, VolumeId};

/// Payload of one batch. Large enough that one fdatasync a batch keeps a disk
/// busy, small enough that a window of several fits a small receiver's memory.
pub const DATA_BYTES_MAX: usize = 8 << 20;

/// Operations of one batch: a full payload of 512-byte sectors.
pub const OPS_MAX: usize = DATA_BYTES_MAX / 512;

/// A whole encoded batch.
pub const BATCH_BYTES_MAX: usize = HEADER_BYTES + OPS_MAX * OP_BYTES + DATA_BYTES_MAX + TAG_BYTES;

/// Payload of a mark or control record: a name, an attempt.
pub const NOTE_BYTES_MAX: usize = 1024;

/// A digest of BLAKE3-256.
pub const DIGEST_BYTES: usize = 32;

/// Comparisons of one batch, so that their verdict fits one frame.
pub const COMPARES_MAX: usize = 512;

/// Bytes under one digest. More would make one comparison hold up the target.
pub const COMPARE_BYTES_MAX: u32 = 1 << 20;

/// What the batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All records of a contiguous range of seqs, coalesced.
    Records,
    /// The content of claimed blocks, whole claim or a part of it.
    Blocks,
}

/// Records of the journal about the stream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// From here on the stream lacks writes; they come as blocks (rule R5).
    Break,
    /// Nothing is lacking any more (rule R4).
    Heal,
    /// What the target holds is not known; all that may differ comes as blocks (rule R6).
    Resync,
    /// The source takes no more writes: a cutover's last record.
    Seal,
}

/// One operation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    Write {
        volume: VolumeId,
        offset: u64,
        payload: &'a [u8],
    },
    /// Reads as zero afterwards; `keep_allocated` as in NBD_CMD_FLAG_NO_HOLE.
    Zero {
        volume: VolumeId,
        extent: Extent,
        keep_allocated: bool,
    },
    /// As zero: the source's trim reads back zero (rule R12).
    Trim {
        volume: VolumeId,
        extent: Extent,
    },
    /// Says nothing about what the range is to be; asks whether it has this digest
    /// when everything before was applied (rule R8).
    Compare {
        volume: VolumeId,
        extent: Extent,
        digest: &'a [u8; DIGEST_BYTES],
    },
    Barrier,
    Mark {
        label: &'a [u8],
    },
    Control {
        control: Control,
        note: &'a [u8],
    },
}

impl Op<'_> {
    /// The bytes of a volume that this operation changes.
    pub fn touches(&self) -> Option<(VolumeId, Extent)> {
        match *self {
            Op::Write { volume, offset, payload } => {
                Some((volume, Extent::new(offset, payload.len() as u64)))
            }
            Op::Zero { volume, extent, .. } | Op::Trim { volume, extent } => Some((volume, extent)),
            Op::Compare { .. } | Op::Barrier | Op::Mark { .. } | Op::Control { .. } => None,
        }
    }

    /// The bytes of a volume that this operation changes or looks at.
    pub fn range(&self) -> Option<(VolumeId, Extent)> {
        match *self {
            Op::Compare { volume, extent, .. } => Some((volume, extent)),
            other => other.touches(),
        }
    }
}

/// An operation and the seq of the record it came from; [`Seq::NONE`] in a batch
/// of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqOp<'a> {
    pub seq: Seq,
    pub op: Op<'a>,
}

/// How many bytes the stream has after `sealed`'s batch. Saturates.
fn bytes_after(before: u64, encoded: usize) -> u64 {
    before.saturating_add(encoded as u64)
}

const _: () = assert!(BATCH_BYTES_MAX < u32::MAX as usize, "lengths are u32 on the wire");
const _: () = assert!(size_of::<BatchHash>() == 32);
