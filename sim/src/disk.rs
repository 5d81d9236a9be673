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
    /// The kernel tried to write it, failed, said so once, and will not try again.
    given_up: [bool; CELLS],
    /// Flushes that failed.
    pub failures: u64,
}

impl Disk {
    pub fn write(&mut self, cell: usize, value: u32) {
        self.now[cell] = value;
        self.given_up[cell] = false;
    }

    pub fn flush_volume(&mut self, volume: usize) {
        for cell in cells_of_volume(volume).filter(|cell| !self.given_up[*cell]) {
            self.flushed[cell] = self.now[cell];
        }
    }

    pub fn flush(&mut self) {
        (0..VOLUMES).for_each(|volume| self.flush_volume(volume));
    }

    pub fn fail_flush(&mut self, volume: usize) {
        self.failures += 1;
        for cell in cells_of_volume(volume) {
            self.given_up[cell] |= self.now[cell] != self.flushed[cell];
        }
    }

    /// Each unflushed cell is there or not, as the power supply likes it.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for cell in 0..CELLS {
            if rng.chance(50) {
                self.now[cell] = self.flushed[cell];
            }
        }
        self.settle();
    }

    /// What is there now is durable.
    pub fn settle(&mut self) {
        self.flushed = self.now;
        self.given_up = [false; CELLS];
    }

    /// As read past the page cache, by a descriptor of one's own.
    pub fn flushed(&self) -> &Content {
        &self.flushed
    }
}

fn cells_of_volume(volume: usize) -> std::ops::Range<usize> {
    volume * CELLS_PER_VOLUME..(volume + 1) * CELLS_PER_VOLUME
}
