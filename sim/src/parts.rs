//! Which cells of a dirty block the target lacks, where the proxy knows: in its memory only
//! (docs/design/0018-parts.md).

use crate::disk::{BLOCKS, CELLS_PER_BLOCK, block_of, cells_of};
use crate::world::World;

/// Of one block; `None`: all of it.
pub type Parts = Option<[bool; CELLS_PER_BLOCK]>;

/// The cells of a block among these.
fn touched(block: usize, values: &[(usize, u32)]) -> Parts {
    let mut cells = [false; CELLS_PER_BLOCK];
    for (cell, _) in values.iter().filter(|(cell, _)| block_of(*cell) == block) {
        cells[cell - cells_of(block).start] = true;
    }
    Some(cells).filter(|cells| cells.contains(&false))
}

fn joined(one: Parts, other: Parts) -> Parts {
    let cells = std::array::from_fn(|i| one.is_none_or(|c| c[i]) || other.is_none_or(|c| c[i]));
    Some(cells).filter(|cells| cells.contains(&false))
}

impl World {
    /// A change of these cells goes past the journal: the block is dirty from now on.
    pub fn dirty_parts(&mut self, block: usize, values: &[(usize, u32)]) {
        let (rules, touched) = (self.rules, touched(block, values));
        let was_dirty = self.ring_mut().dirty[block];
        let parts = &mut self.proxy.parts[block];
        *parts = match (was_dirty, *parts) {
            (false, _) => touched,
            (true, None) if rules.whole_stays_whole => None,
            (true, None) => touched,
            (true, before) if rules.parts_join => joined(before, touched),
            (true, before) => before,
        };
        self.ring_mut().set_dirty(block);
    }

    /// Something else makes it dirty: the target lacks all of it.
    pub fn dirty_whole(&mut self, block: usize) {
        if self.rules.other_dirt_is_whole {
            self.proxy.parts[block] = None;
        }
        self.ring_mut().set_dirty(block);
    }

    /// Claims that no session will finish are dirty again.
    pub fn revert_claims(&mut self) {
        let claims = std::mem::take(&mut self.proxy.claims);
        let granted = |block: usize| {
            let mut all = claims.iter().flat_map(|claim| claim.blocks.iter().zip(&claim.parts));
            all.find(|(of, _)| **of == block).and_then(|(_, parts)| *parts)
        };
        for block in 0..BLOCKS {
            if !self.ring_mut().claimed[block] {
                continue;
            }
            let (was_dirty, taken) = (self.ring_mut().dirty[block], granted(block));
            let parts = &mut self.proxy.parts[block];
            *parts = match was_dirty && self.rules.revert_joins_parts {
                true => joined(*parts, taken),
                false => taken,
            };
            self.ring_mut().set_dirty(block);
            self.ring_mut().clear_claimed(block);
        }
    }
}
