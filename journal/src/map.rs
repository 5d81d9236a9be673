//! The change map: three bits a block, in the ring file.
//!
//! *dirty*: the target lacks the block and the journal does not hold it.
//! *claimed*: its content is on the way. Both: it changed again past the journal
//! after it was claimed. *suspect*, beside one of the others: it is compared with
//! the target before it is sent (docs/design/0003). Bits become dirty on the volume's I/O thread or under the
//! append lock; they change by atomic operations, and the counters follow exactly.

mod parts;

pub(crate) use parts::PartMap;
pub use parts::{PART_BYTES, PARTS_BLOCKS_MAX, Parts, ranges_of};

use crate::format::Counter;
use crate::ring::Ring;
use crate::sys::sync::{AtomicU64, Ordering};
use towline_block::{BlockRange, VolumeId};

/// Which of a volume's bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Dirty,
    Claimed,
    Suspect,
}

impl Bits {
    fn counter(self) -> Counter {
        match self {
            Bits::Dirty => Counter::DirtyBlocks,
            Bits::Claimed => Counter::ClaimedBlocks,
            Bits::Suspect => Counter::SuspectBlocks,
        }
    }
}

/// The map of one volume, as a view of its ring.
#[derive(Clone, Copy)]
pub(crate) struct VolumeMap<'a> {
    ring: &'a Ring,
    volume: usize,
}

impl<'a> VolumeMap<'a> {
    pub fn new(ring: &'a Ring, volume: VolumeId) -> VolumeMap<'a> {
        VolumeMap { ring, volume: volume.index() }
    }

    pub fn all(self) -> BlockRange {
        BlockRange::new(0, self.ring.blocks(self.volume))
    }

    fn word_at(self, bits: Bits, index: u64) -> &'a AtomicU64 {
        let entry = &self.ring.volumes[self.volume];
        let base = match bits {
            Bits::Dirty => entry.dirty_offset.get(),
            Bits::Claimed => entry.claimed_offset.get(),
            Bits::Suspect => entry.suspect_offset.get(),
        };
        debug_assert!(index < entry.words.get());
        self.ring.word(base + index * 8)
    }

    /// Whether every block of the range has the bit. True for an empty range.
    pub fn all_set(self, bits: Bits, blocks: BlockRange) -> bool {
        words(blocks)
            .all(|(index, mask)| self.word_at(bits, index).load(Ordering::Acquire) & mask == mask)
    }

    /// Whether any block of the range is dirty or claimed.
    pub fn is_pending(self, blocks: BlockRange) -> bool {
        words(blocks).any(|(index, mask)| {
            let dirty = self.word_at(Bits::Dirty, index).load(Ordering::Acquire);
            let claimed = self.word_at(Bits::Claimed, index).load(Ordering::Acquire);
            (dirty | claimed) & mask != 0
        })
    }

    /// Sets the bit; returns how many blocks did not have it.
    pub fn set(self, bits: Bits, blocks: BlockRange) -> u64 {
        let mut changed = 0;
        for (index, mask) in words(blocks) {
            let before = self.word_at(bits, index).fetch_or(mask, Ordering::AcqRel);
            changed += u64::from((mask & !before).count_ones());
        }
        self.ring.counter(bits.counter()).fetch_add(changed, Ordering::AcqRel);
        changed
    }

    /// Clears the bit; returns how many blocks had it.
    pub fn clear(self, bits: Bits, blocks: BlockRange) -> u64 {
        let mut changed = 0;
        for (index, mask) in words(blocks) {
            let before = self.word_at(bits, index).fetch_and(!mask, Ordering::AcqRel);
            changed += u64::from((mask & before).count_ones());
        }
        self.ring.counter(bits.counter()).fetch_sub(changed, Ordering::AcqRel);
        changed
    }

    /// The first run of at most `count_max` blocks, at or after `from`, that are
    /// dirty and not claimed, all suspect or none; searches to the end of the volume.
    pub fn claimable(self, from: u64, count_max: u64) -> Option<(BlockRange, bool)> {
        let total = self.all().count;
        let (first, suspect) = self.first_claimable(from.min(total), total)?;
        let mut count = 0;
        while first + count < total && count < count_max {
            let at = first + count;
            let rest = self.claimable_word(at / 64, suspect) >> (at % 64);
            let ones = u64::from(rest.trailing_ones()).min(64 - at % 64);
            count += ones.min(count_max - count).min(total - at);
            if ones < 64 - at % 64 {
                break;
            }
        }
        (count > 0).then_some((BlockRange::new(first, count), suspect))
    }

    fn first_claimable(self, from: u64, total: u64) -> Option<(u64, bool)> {
        let mut at = from;
        while at < total {
            let (plain, suspect) =
                (self.claimable_word(at / 64, false), self.claimable_word(at / 64, true));
            let rest = (plain | suspect) >> (at % 64);
            if rest != 0 {
                let first = at + u64::from(rest.trailing_zeros());
                return (first < total).then_some((first, suspect >> (first % 64) & 1 == 1));
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Blocks of one word that are dirty, not claimed, and suspect or not.
    fn claimable_word(self, index: u64, suspect: bool) -> u64 {
        let load = |bits| self.word_at(bits, index).load(Ordering::Acquire);
        let suspects = load(Bits::Suspect);
        load(Bits::Dirty) & !load(Bits::Claimed) & if suspect { suspects } else { !suspects }
    }

    /// Adds this volume's set bits to the counters, which the first volume resets.
    /// `pending` grows by the blocks that are dirty or claimed.
    pub fn recount(self, pending: &mut u64) {
        for bits in [Bits::Dirty, Bits::Claimed, Bits::Suspect] {
            let counter = self.ring.counter(bits.counter());
            if self.volume == 0 {
                counter.store(0, Ordering::Release);
            }
            let words = 0..self.ring.volumes[self.volume].words.get();
            let ones = words.map(|index| {
                u64::from(self.word_at(bits, index).load(Ordering::Acquire).count_ones())
            });
            let count = ones.sum();
            counter.fetch_add(count, Ordering::AcqRel);
            *pending += if bits == Bits::Suspect { 0 } else { count };
        }
    }

    /// The first run of claimed blocks at or after `from`, within one word of the map.
    pub fn next_claimed(self, from: u64) -> Option<BlockRange> {
        let total = self.all().count;
        let mut at = from;
        while at < total {
            let (index, shift) = (at / 64, at % 64);
            let rest = self.word_at(Bits::Claimed, index).load(Ordering::Acquire) >> shift;
            if rest != 0 {
                let first = at + u64::from(rest.trailing_zeros());
                let ones = u64::from((rest >> rest.trailing_zeros()).trailing_ones());
                return Some(BlockRange::new(first, ones.min(total - first)));
            }
            at = (index + 1) * 64;
        }
        None
    }

    /// Words of dirty-or-claimed bits, for saving.
    pub fn pending_words(self) -> Vec<u64> {
        (0..self.ring.volumes[self.volume].words.get())
            .map(|index| {
                self.word_at(Bits::Dirty, index).load(Ordering::Acquire)
                    | self.word_at(Bits::Claimed, index).load(Ordering::Acquire)
            })
            .collect()
    }
}

/// The words a range touches, each with the mask of its bits.
fn words(blocks: BlockRange) -> impl Iterator<Item = (u64, u64)> {
    let (first, end) = (blocks.first, blocks.end());
    let last_word = end.div_ceil(64);
    (first / 64..last_word).filter(move |_| first < end).map(move |index| {
        let low = first.saturating_sub(index * 64).min(63);
        let high = (end - index * 64).min(64);
        let mask = if high == 64 { u64::MAX } else { (1 << high) - 1 };
        (index, mask & (u64::MAX << low))
    })
}

/// Set bits of saved words as runs of blocks.
pub(crate) fn runs_of(words: &[u64], total: u64) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for block in 0..total {
        let word = words.get((block / 64) as usize).copied().unwrap_or(0);
        if word == 0 && block % 64 == 0 {
            continue;
        }
        if word >> (block % 64) & 1 == 0 {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end() == block => run.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
