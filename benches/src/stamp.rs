//! A guest that knows every write it made.
//!
//! Each 4 KiB block written carries who wrote it: volume, block and the write's id,
//! under a checksum of the whole block. Ids rise over all volumes of a guest in the
//! order of issue, so an image alone says which writes it holds, and
//! [`history`] says which it must hold. [`crate::check`] compares the two.
//!
//! ```text
//! offset size
//!      0    8 magic
//!      8    8 id
//!     16    8 block
//!     24    4 volume
//!     28    4 crc32c of the block, computed with this field zero
//!     32 4064 filler made from id and block: incompressible, never repeats
//! ```
//! All little-endian.

pub mod choose;
pub mod guest;
pub mod history;
mod known;
mod session;
#[cfg(test)]
mod tests;

pub use choose::Pattern;
pub use guest::{Guest, GuestVolume, Plan, Progress};
pub use history::{FlushPoint, History, Kind, Op, Order, Outcome, VolumeHistory};

use towline_block::{crc32c, is_zero};

/// The unit of stamping, of in-flight exclusion and of judgement. A server must
/// never show half of one: it is written by one aligned write.
pub const STAMP_BYTES: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"TOWSTAMP");
const CRC_AT: usize = 28;
const FILLER_AT: usize = 32;

/// Who wrote a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub id: u64,
    pub volume: u32,
    pub block: u64,
}

/// What a block of an image shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All zero: never written, zeroed or trimmed.
    Zero,
    Stamp(Stamp),
    /// Neither: parts of several writes, or damage.
    Torn,
}

impl Stamp {
    /// Writes the stamped block into `block_bytes`, which has [`STAMP_BYTES`].
    pub fn fill(self, block_bytes: &mut [u8]) {
        assert_eq!(block_bytes.len(), STAMP_BYTES, "a stamp covers one block");
        block_bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        block_bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        block_bytes[16..24].copy_from_slice(&self.block.to_le_bytes());
        block_bytes[24..28].copy_from_slice(&self.volume.to_le_bytes());
        block_bytes[CRC_AT..FILLER_AT].fill(0);
        let mut state = self.id.rotate_left(32) ^ self.block;
        for word in block_bytes[FILLER_AT..].chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word.copy_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
        }
        let crc = crc32c(block_bytes);
        block_bytes[CRC_AT..FILLER_AT].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Reads what a block of [`STAMP_BYTES`] shows.
pub fn read(block_bytes: &[u8]) -> Seen {
    assert_eq!(block_bytes.len(), STAMP_BYTES, "a stamp covers one block");
    let word = |at: usize| {
        block_bytes[at..at + 8].iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    if word(0) != MAGIC {
        return if is_zero(block_bytes) { Seen::Zero } else { Seen::Torn };
    }
    let volume_and_crc = word(24);
    let crc = (volume_and_crc >> 32) as u32;
    let parts = [&block_bytes[..CRC_AT], &[0; 4], &block_bytes[FILLER_AT..]];
    if towline_block::checksum::crc32c_of(&parts) != crc {
        return Seen::Torn;
    }
    Seen::Stamp(Stamp { id: word(8), volume: volume_and_crc as u32, block: word(16) })
}
