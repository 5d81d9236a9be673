//! Which blocks a span or segment touches: what has to be dirty if it is lost.

use towline_block::{BlockRange, VolumeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    pub volume: VolumeId,
    pub first_block: u64,
    pub blocks: u32,
}

impl Touched {
    pub fn new(volume: VolumeId, blocks: BlockRange) -> Touched {
        // A record touches at most 4 GiB, which is 65537 blocks.
        let count = u32::try_from(blocks.count).unwrap_or(u32::MAX);
        Touched { volume, first_block: blocks.first, blocks: count }
    }

    pub fn range(&self) -> BlockRange {
        BlockRange::new(self.first_block, u64::from(self.blocks))
    }

    fn end(&self) -> u64 {
        self.first_block + u64::from(self.blocks)
    }

    /// Joins what overlaps or adjoins.
    fn absorb(&mut self, other: &Touched) -> bool {
        let apart = self.volume != other.volume
            || other.first_block > self.end()
            || self.first_block > other.end();
        let (first, end) = (self.first_block.min(other.first_block), self.end().max(other.end()));
        let Ok(blocks) = u32::try_from(end - first) else { return false };
        if apart {
            return false;
        }
        (self.first_block, self.blocks) = (first, blocks);
        true
    }
}

/// Adds to a short list; false when it would exceed `count_max`.
pub fn add(list: &mut Vec<Touched>, new: Touched, count_max: usize) -> bool {
    if list.iter_mut().rev().any(|known| known.absorb(&new)) {
        return true;
    }
    if list.len() >= count_max {
        return false;
    }
    list.push(new);
    true
}

/// The ranges of a segment; merged whenever they have doubled.
#[derive(Clone, Debug, Default)]
pub struct TouchedSet {
    ranges: Vec<Touched>,
    merged: usize,
}

/// Merging sooner would cost more than it saves.
const MERGE_FROM: usize = 1024;

impl TouchedSet {
    pub fn extend(&mut self, more: &[Touched]) {
        self.ranges.extend_from_slice(more);
        if self.ranges.len() > MERGE_FROM.max(2 * self.merged) {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable();
        let mut merged: Vec<Touched> = Vec::with_capacity(self.merged.max(16));
        for range in self.ranges.drain(..) {
            if !merged.last_mut().is_some_and(|last| last.absorb(&range)) {
                merged.push(range);
            }
        }
        self.merged = merged.len();
        self.ranges = merged;
    }

    /// Ordered, none overlapping another.
    pub fn merged(&self) -> Vec<Touched> {
        let mut all = self.clone();
        all.merge();
        all.ranges
    }

    pub fn ranges(&self) -> &[Touched] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(volume: u16, first: u64, count: u64) -> Touched {
        Touched::new(VolumeId(volume), BlockRange::new(first, count))
    }

    #[test]
    fn merging_loses_no_block_and_adds_none() {
        let mut set = TouchedSet::default();
        let mut plain = std::collections::BTreeSet::new();
        for round in 0..5000u64 {
            let range = touched((round % 3) as u16, round * 7919 % 4096, round % 5 + 1);
            plain.extend((range.first_block..range.end()).map(|block| (range.volume.0, block)));
            set.extend(&[range]);
        }
        let kept: std::collections::BTreeSet<_> = set
            .ranges()
            .iter()
            .flat_map(|r| (r.first_block..r.end()).map(|block| (r.volume.0, block)))
            .collect();
        assert_eq!(kept, plain);
        assert!(set.ranges().len() <= 5000);
    }

    #[test]
    fn a_full_list_still_takes_what_it_covers() {
        let mut list = Vec::new();
        assert!(add(&mut list, touched(0, 10, 2), 1));
        assert!(add(&mut list, touched(0, 12, 1), 1));
        assert!(!add(&mut list, touched(1, 12, 1), 1));
        assert_eq!(list, [touched(0, 10, 3)]);
    }
}
