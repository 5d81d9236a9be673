//! Sets of change-map blocks of all volumes of a group.

use serde::{Deserialize, Serialize};
use towline_block::{BlockRange, Extent, VolumeId};

const WORD_BITS: u64 = 64;

/// Blocks of one volume that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u16, u64, u64)", into = "(u16, u64, u64)")]
pub struct BlockRun {
    pub volume: VolumeId,
    pub blocks: BlockRange,
}

impl From<(u16, u64, u64)> for BlockRun {
    fn from((volume, first, count): (u16, u64, u64)) -> BlockRun {
        BlockRun { volume: VolumeId(volume), blocks: BlockRange { first, count } }
    }
}

impl From<BlockRun> for (u16, u64, u64) {
    fn from(run: BlockRun) -> (u16, u64, u64) {
        (run.volume.0, run.blocks.first, run.blocks.count)
    }
}

impl BlockRun {
    /// Whether it lies inside its volume.
    pub fn is_within(&self, sizes: &[u64]) -> bool {
        let size = sizes.get(self.volume.index());
        let end = self.blocks.first.checked_add(self.blocks.count);
        size.zip(end).is_some_and(|(size, end)| end <= BlockRange::of_volume(*size).count)
    }
}

/// One bit a block. Memory is taken where bits are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSet {
    volumes: Vec<Blocks>,
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Blocks {
    size_bytes: u64,
    words: Vec<u64>,
}

impl BlockSet {
    /// An empty set over volumes of these sizes.
    pub fn new(sizes: &[u64]) -> BlockSet {
        let volume = |size_bytes: &u64| {
            let blocks = BlockRange::of_volume(*size_bytes).count;
            Blocks { size_bytes: *size_bytes, words: vec![0; blocks.div_ceil(WORD_BITS) as usize] }
        };
        BlockSet { volumes: sizes.iter().map(volume).collect(), count: 0 }
    }

    /// What of the run lies outside its volume is left out.
    pub fn insert(&mut self, run: &BlockRun) {
        self.change(run, |word, mask| *word |= mask);
    }

    pub fn remove(&mut self, run: &BlockRun) {
        self.change(run, |word, mask| *word &= !mask);
    }

    fn change(&mut self, run: &BlockRun, change: impl Fn(&mut u64, u64)) {
        let Some(volume) = self.volumes.get_mut(run.volume.index()) else { return };
        let end = run.blocks.first.saturating_add(run.blocks.count).min(volume.all().count);
        let mut at = run.blocks.first;
        while at < end {
            let (index, bit) = (at / WORD_BITS, at % WORD_BITS);
            let count = (WORD_BITS - bit).min(end - at);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            if let Some(word) = volume.words.get_mut(index as usize) {
                let before = word.count_ones();
                change(word, mask);
                self.count = self.count + u64::from(word.count_ones()) - u64::from(before);
            }
            at += count;
        }
    }

    /// All blocks that a range of bytes touches.
    pub fn insert_touched(&mut self, volume: VolumeId, extent: Extent) {
        self.insert(&BlockRun { volume, blocks: BlockRange::touching(extent) });
    }

    /// The blocks that lie in a range of bytes as a whole; the last one of a volume may be
    /// short.
    pub fn whole(&self, volume: VolumeId, extent: Extent) -> Option<BlockRun> {
        let size = self.volumes.get(volume.index())?.size_bytes;
        let first = extent.offset.div_ceil(towline_block::BLOCK_BYTES);
        let end = match extent.end() >= size {
            true => BlockRange::of_volume(size).count,
            false => extent.end() / towline_block::BLOCK_BYTES,
        };
        (first < end).then(|| BlockRun { volume, blocks: BlockRange::new(first, end - first) })
    }

    /// What of a run is in the set.
    pub fn within(&self, run: &BlockRun) -> Vec<BlockRun> {
        let Some(volume) = self.volumes.get(run.volume.index()) else { return Vec::new() };
        let (mut at, mut found) = (run.blocks.first, Vec::new());
        while let Some(blocks) = volume.next_run(at).filter(|next| next.first < run.blocks.end()) {
            let end = blocks.end().min(run.blocks.end());
            let blocks = BlockRange::new(blocks.first, end - blocks.first);
            found.push(BlockRun { volume: run.volume, blocks });
            at = end;
        }
        found
    }

    pub fn contains(&self, volume: VolumeId, block: u64) -> bool {
        let words = self.volumes.get(volume.index()).map(|volume| &volume.words);
        let word = words.and_then(|words| words.get((block / WORD_BITS) as usize));
        word.is_some_and(|word| word >> (block % WORD_BITS) & 1 == 1)
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn clear(&mut self) {
        for volume in &mut self.volumes {
            volume.words.fill(0);
        }
        self.count = 0;
    }

    /// Bytes of the volumes that are in the set.
    pub fn bytes(&self) -> u64 {
        let bytes = |run: BlockRun| {
            let size = self.volumes.get(run.volume.index()).map_or(0, |volume| volume.size_bytes);
            run.blocks.extent(size).len
        };
        self.runs().map(bytes).sum()
    }

    /// In order, none adjoining the next.
    pub fn runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        self.volumes.iter().enumerate().flat_map(|(index, volume)| {
            let mut at = 0;
            std::iter::from_fn(move || {
                let blocks = volume.next_run(at)?;
                at = blocks.end();
                Some(BlockRun { volume: VolumeId(index as u16), blocks })
            })
        })
    }
}

impl Blocks {
    fn all(&self) -> BlockRange {
        BlockRange::of_volume(self.size_bytes)
    }

    fn next_run(&self, from: u64) -> Option<BlockRange> {
        let first = self.next(from, |word| word)?;
        let end = self.next(first, |word| !word).unwrap_or(u64::MAX).min(self.all().count);
        Some(BlockRange::new(first, end - first))
    }

    /// The first block at or after `from` whose bit is set in its word as `seen`.
    fn next(&self, from: u64, seen: impl Fn(u64) -> u64) -> Option<u64> {
        let mut index = (from / WORD_BITS) as usize;
        let mut word = seen(*self.words.get(index)?) & (u64::MAX << (from % WORD_BITS));
        while word == 0 {
            index += 1;
            word = seen(*self.words.get(index)?);
        }
        Some(index as u64 * WORD_BITS + u64::from(word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use towline_block::BLOCK_BYTES;

    const SIZES: [u64; 2] = [200 * BLOCK_BYTES, 64 * BLOCK_BYTES + 1];

    fn run(volume: u16, first: u64, count: u64) -> BlockRun {
        BlockRun::from((volume, first, count))
    }

    #[test]
    fn a_set_is_what_a_plain_set_is() {
        let (mut set, mut plain) = (BlockSet::new(&SIZES), BTreeSet::new());
        for round in 0..3000u64 {
            let volume = (round % 2) as u16;
            let blocks = [200, 65][volume as usize];
            let first = round * 7919 % blocks;
            let count = (round * 31 % 90).min(blocks - first);
            let all = (first..first + count).map(|block| (volume, block));
            if round % 3 == 0 {
                set.remove(&run(volume, first, count));
                all.for_each(|block| {
                    plain.remove(&block);
                });
            } else {
                set.insert(&run(volume, first, count));
                plain.extend(all);
            }
            let of_runs: BTreeSet<(u16, u64)> = set
                .runs()
                .flat_map(|r| (r.blocks.first..r.blocks.end()).map(move |b| (r.volume.0, b)))
                .collect();
            assert_eq!(of_runs, plain);
            assert_eq!(set.count(), plain.len() as u64);
            assert_eq!(set.contains(VolumeId(volume), first), plain.contains(&(volume, first)));
        }
    }

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut set = BlockSet::new(&SIZES);
        for outside in [run(2, 0, 1), run(0, 200, 5), run(1, u64::MAX, u64::MAX)] {
            assert!(!outside.is_within(&SIZES));
            set.insert(&outside);
            assert!(set.is_empty());
        }
        set.insert(&run(1, 60, u64::MAX));
        assert_eq!(set.runs().collect::<Vec<_>>(), [run(1, 60, 5)]);
        assert_eq!(set.bytes(), 4 * BLOCK_BYTES + 1);
    }

    #[test]
    fn a_block_is_whole_only_if_all_of_it_is_written() {
        let set = BlockSet::new(&SIZES);
        let whole = |volume, offset, len| set.whole(VolumeId(volume), Extent::new(offset, len));
        assert_eq!(whole(0, 0, BLOCK_BYTES), Some(run(0, 0, 1)));
        assert_eq!(whole(0, 1, BLOCK_BYTES), None);
        assert_eq!(whole(0, 1, 2 * BLOCK_BYTES), Some(run(0, 1, 1)));
        assert_eq!(whole(1, 64 * BLOCK_BYTES, 1), Some(run(1, 64, 1)));
        assert_eq!(whole(7, 0, BLOCK_BYTES), None);
    }
}
