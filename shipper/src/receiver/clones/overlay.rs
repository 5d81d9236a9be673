//! What a clone wrote to one volume: a sparse file of the volume's size, and which pieces of it count.
//! Forgotten with the clone.

use crate::error::Result;
use std::path::Path;
use std::time::Duration;
use towline_block::{Access, Extent, FileDisk};

/// Taken over from the target as a whole when a part of it is written: what guests write mostly.
pub const PIECE_BYTES: u64 = 4096;

pub struct Overlay {
    disk: FileDisk,
    /// One bit a piece.
    has: Vec<u64>,
    pieces: u64,
}

impl Overlay {
    /// A new one; what lies there from a former clone goes.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Overlay> {
        if path.exists() {
            // Owned alone for a moment: a clone that lives keeps its overlay.
            FileDisk::open(path, Access::Own { wait: Duration::ZERO })?;
            std::fs::remove_file(path).map_err(|e| {
                crate::Error::storage(format!("cannot remove {}", path.display()), e)
            })?;
        }
        let disk =
            FileDisk::open_or_create(path, size_bytes, Access::Own { wait: Duration::ZERO })?;
        let words = size_bytes.div_ceil(PIECE_BYTES).div_ceil(64);
        Ok(Overlay { disk, has: vec![0; words as usize], pieces: 0 })
    }

    pub fn disk(&self) -> &FileDisk {
        &self.disk
    }

    /// Bytes that count.
    pub fn bytes(&self) -> u64 {
        self.pieces * PIECE_BYTES
    }

    pub fn has(&self, piece: u64) -> bool {
        let word = self.has.get((piece / 64) as usize).copied().unwrap_or(0);
        word >> (piece % 64) & 1 == 1
    }

    /// The extent's pieces count from now on; their content has been written.
    pub fn count(&mut self, extent: Extent) {
        for piece in extent.offset / PIECE_BYTES..extent.end().div_ceil(PIECE_BYTES) {
            if let Some(word) = self.has.get_mut((piece / 64) as usize) {
                let bit = 1 << (piece % 64);
                self.pieces += u64::from(*word & bit == 0);
                *word |= bit;
            }
        }
    }

    /// How far from `offset`, at most to `end`, it is the same: here, or not.
    pub fn run(&self, offset: u64, end: u64) -> (bool, u64) {
        let first = offset / PIECE_BYTES;
        let here = self.has(first);
        let other = (first + 1..end.div_ceil(PIECE_BYTES)).find(|piece| self.has(*piece) != here);
        (here, other.map_or(end, |piece| piece * PIECE_BYTES))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // A clone that is killed leaves it; the next one in its place removes it.
        let _ = std::fs::remove_file(self.disk.path());
    }
}
