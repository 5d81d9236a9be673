//! What a read must show at least: the guest's own expectation, block by block.

use super::Seen;
use super::history::{Kind, Op, VolumeHistory};

#[derive(Clone, Copy, Debug)]
struct Block {
    acked_id: u64,
    /// Zero is right: the last acknowledged write was zeroes, or one of unknown
    /// outcome since may have been.
    may_be_zero: bool,
}

/// The newest acknowledged write of each block of one volume.
#[derive(Debug)]
pub(super) struct Known {
    volume: u32,
    blocks: Vec<Block>,
}

impl Known {
    /// After all that the history holds.
    pub(super) fn of(history: &VolumeHistory) -> Known {
        let fresh = Block { acked_id: 0, may_be_zero: true };
        let blocks = vec![fresh; history.block_count as usize];
        let mut known = Known { volume: history.volume, blocks };
        for op in history.acked_ops() {
            known.note_acked(op);
        }
        known
    }

    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub(super) fn note_acked(&mut self, op: &Op) {
        for block in op.blocks() {
            let may_be_zero = op.kind == Kind::Zero;
            self.blocks[block as usize] = Block { acked_id: op.id, may_be_zero };
        }
    }

    pub(super) fn note_unknown(&mut self, op: &Op) {
        if op.kind == Kind::Zero {
            for block in op.blocks() {
                self.blocks[block as usize].may_be_zero = true;
            }
        }
    }

    /// What is wrong with what a read of `block` showed, if anything.
    pub(super) fn judge(&self, block: u64, seen: Seen) -> Result<(), String> {
        let known = self.blocks[block as usize];
        let good = match seen {
            Seen::Zero => known.may_be_zero,
            Seen::Stamp(stamp) => {
                stamp.volume == self.volume && stamp.block == block && stamp.id >= known.acked_id
            }
            Seen::Torn => false,
        };
        if good {
            return Ok(());
        }
        let acked_id = known.acked_id;
        Err(format!("block {block} read as {seen:?}, but write {acked_id} is acknowledged"))
    }
}
