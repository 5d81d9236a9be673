//! The smallest disks on which the rules can break: two volumes, four blocks, and two cells
//! to a block, so that a write can cover part of a block, a whole one, or two.
//! A cell is the unit of a torn write; value 0 is zero, every write has its own value.

use crate::rng::Rng;

pub const VOLUMES: usize = 2;
pub const BLOCKS: usize = 4;
pub const CELLS: usize = 8;
pub const CELLS_PER_BLOCK: usize = CELLS / BLOCKS;
pub const CELLS_PER_VOLUME: usize = CELLS / VOLUMES;

/// Content of all volumes of one side.
pub type Content = [u32; CELLS];
/// One flag a block.
pub type BlockSet = [bool; BLOCKS];

pub fn volume_of_block(block: usize) -> usize {
    block * VOLUMES / BLOCKS
}

pub fn block_of(cell: usize) -> usize {
    cell / CELLS_PER_BLOCK
}

pub fn cells_of(block: usize) -> std::ops::Range<usize> {
    block * CELLS_PER_BLOCK..(block + 1) * CELLS_PER_BLOCK
}

/// A disk behind a page cache: a kill keeps what was written, a power loss only what was flushed.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub now: Content,
    flushed: Content,
}

impl Disk {
    pub fn flush_volume(&mut self, volume: usize) {
        let cells = volume * CELLS_PER_VOLUME..(volume + 1) * CELLS_PER_VOLUME;
        self.flushed[cells.clone()].copy_from_slice(&self.now[cells]);
    }

    pub fn flush(&mut self) {
        self.flushed = self.now;
    }

    /// Each unflushed cell is there or not, as the power supply likes it.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for cell in 0..CELLS {
            if rng.chance(50) {
                self.now[cell] = self.flushed[cell];
            }
        }
        self.flushed = self.now;
    }
}
