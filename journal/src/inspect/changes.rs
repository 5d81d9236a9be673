//! The change map as a picture: how much of each stretch of a volume the target
//! lacks, and on which way it will get it.

use super::GroupView;
use crate::activity::EXTENT_BYTES;
use crate::format::Kind;
use std::sync::atomic::Ordering;
use towline_block::{BLOCK_BYTES, BlockRange};

const BLOCKS_PER_EXTENT: u64 = EXTENT_BYTES / BLOCK_BYTES;

/// Blocks of one stretch of a volume. A block can count as several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub blocks: u64,
    /// The journal holds a change of it.
    pub journaled: u64,
    pub dirty: u64,
    pub claimed: u64,
    pub suspect: u64,
    /// The target lacks it: journaled, dirty or claimed.
    pub pending: u64,
    /// In an extent that is hot in the activity map: compared after a power loss.
    pub hot: u64,
}

impl Cell {
    fn add(&mut self, other: Cell) {
        self.blocks += other.blocks;
        self.journaled += other.journaled;
        self.dirty += other.dirty;
        self.claimed += other.claimed;
        self.suspect += other.suspect;
        self.pending += other.pending;
        self.hot += other.hot;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeChanges {
    pub name: String,
    pub size_bytes: u64,
    /// Blocks of a cell; the last cell may have fewer.
    pub cell_blocks: u64,
    pub cells: Vec<Cell>,
    pub total: Cell,
    /// Whether there is an activity map to tell what is hot.
    pub activity_known: bool,
}

impl GroupView {
    /// The map of a volume in at most `cells_max` cells.
    pub fn changes(&self, volume: usize, cells_max: u64) -> VolumeChanges {
        let mut result = VolumeChanges {
            name: self.volume_names().get(volume).cloned().unwrap_or_default(),
            size_bytes: self.volume_size_bytes(volume),
            ..VolumeChanges::default()
        };
        let blocks = self.volume_blocks(volume).count;
        result.cell_blocks = blocks.div_ceil(cells_max.max(1)).max(1);
        let Some(layers) = self.layers(volume, blocks) else { return result };
        result.activity_known = layers.activity_known;
        for first in (0..blocks).step_by(result.cell_blocks as usize) {
            let cell = layers.cell(first, (first + result.cell_blocks).min(blocks));
            result.total.add(cell);
            result.cells.push(cell);
        }
        result
    }

    /// Extents of all volumes that a power loss now would compare; `None` without a sound
    /// activity map.
    pub fn hot_extents(&self) -> Option<u64> {
        let volumes = 0..self.volume_names().len();
        volumes.map(|volume| Some(self.activity(volume)?.len() as u64)).sum()
    }

    /// Numbers of a volume's hot extents; `None` without a sound activity map.
    fn activity(&self, volume: usize) -> Option<Vec<u64>> {
        let ring = self.ring.as_ref()?;
        let sizes: Vec<u64> = ring.volumes.iter().map(|v| v.size_bytes.get()).collect();
        let (path, group) = (self.dir.activity_path(), self.state.group_uuid.0);
        let found = crate::activity::find(&path, group, ring.incarnation(), &sizes).ok()??;
        let words = found.hot.get(volume)?;
        let extents = sizes.get(volume)?.div_ceil(EXTENT_BYTES);
        let is_hot = |extent: &u64| {
            words.get((extent / 64) as usize).is_some_and(|w| w >> (extent % 64) & 1 == 1)
        };
        Some((0..extents).filter(is_hot).collect())
    }

    fn layers(&self, volume: usize, blocks: u64) -> Option<Layers> {
        let ring = self.ring.as_ref()?;
        let entry = ring.volumes.get(volume)?;
        let copy = |offset: u64| -> Vec<u64> {
            (0..entry.words.get())
                .map(|index| ring.word(offset + index * 8).load(Ordering::Acquire))
                .collect()
        };
        let mut journaled = vec![0; blocks.div_ceil(64) as usize];
        for record in self.records(self.pending()) {
            let changes = matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim);
            if changes && record.volume.index() == volume {
                mark(&mut journaled, BlockRange::touching(record.extent));
            }
        }
        let activity = self.activity(volume);
        let mut hot = vec![0; journaled.len()];
        for extent in activity.iter().flatten() {
            let first = extent * BLOCKS_PER_EXTENT;
            let count = BLOCKS_PER_EXTENT.min(blocks.saturating_sub(first));
            mark(&mut hot, BlockRange::new(first, count));
        }
        Some(Layers {
            activity_known: activity.is_some(),
            hot,
            journaled,
            dirty: copy(entry.dirty_offset.get()),
            claimed: copy(entry.claimed_offset.get()),
            suspect: copy(entry.suspect_offset.get()),
        })
    }
}

/// One bit a block each.
struct Layers {
    activity_known: bool,
    hot: Vec<u64>,
    journaled: Vec<u64>,
    dirty: Vec<u64>,
    claimed: Vec<u64>,
    suspect: Vec<u64>,
}

impl Layers {
    /// Counts blocks `first` to `end`, a word at a time: volumes have millions.
    fn cell(&self, first: u64, end: u64) -> Cell {
        let mut cell = Cell { blocks: end - first, ..Cell::default() };
        for (index, mask) in words(BlockRange::new(first, end - first)) {
            let bits = |layer: &[u64]| layer.get(index).map_or(0, |word| word & mask);
            let ones = |bits: u64| u64::from(bits.count_ones());
            let (journaled, dirty) = (bits(&self.journaled), bits(&self.dirty));
            let claimed = bits(&self.claimed);
            cell.journaled += ones(journaled);
            cell.dirty += ones(dirty);
            cell.claimed += ones(claimed);
            cell.suspect += ones(bits(&self.suspect));
            cell.hot += ones(bits(&self.hot));
            cell.pending += ones(journaled | dirty | claimed);
        }
        cell
    }
}

/// Sets the bits of a range, as far as there are words for them.
fn mark(layer: &mut [u64], blocks: BlockRange) {
    for (index, mask) in words(blocks) {
        let Some(word) = layer.get_mut(index) else { return };
        *word |= mask;
    }
}

/// The words that a range touches, each with the mask of its bits.
fn words(blocks: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let (mut block, end) = (blocks.first, blocks.end());
    std::iter::from_fn(move || {
        if block >= end {
            return None;
        }
        let (index, shift) = (block / 64, block % 64);
        let stop = end.min((index + 1) * 64);
        let ones = match stop - block {
            64 => u64::MAX,
            count => (1 << count) - 1,
        };
        block = stop;
        Some((index as usize, ones << shift))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_ranges_are_exact_across_words() {
        for (first, count) in [(0, 1), (63, 2), (5, 0), (10, 150), (64, 64), (190, 100)] {
            let mut words = vec![0u64; 3];
            mark(&mut words, BlockRange::new(first, count));
            let set: Vec<u64> =
                (0..192).filter(|b| words[(b / 64) as usize] >> (b % 64) & 1 == 1).collect();
            let wanted: Vec<u64> = (first..(first + count).min(192)).collect();
            assert_eq!(set, wanted, "{first} + {count}");
        }
    }
}
