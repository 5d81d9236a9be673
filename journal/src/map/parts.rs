//! Which parts of a dirty block the target lacks: a bit each for 4 KiB.
//!
//! Beside the change map, in memory only: a block without bits is dirty as a whole, and so
//! is everything that a killed proxy leaves (docs/design/0018). Bits come only from changes
//! that go past the journal; whatever else makes a block dirty takes them away.

use crate::sys::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use towline_block::{BLOCK_BYTES, BlockRange, Extent};

/// What one bit stands for: what guests' file systems write at a time.
pub const PART_BYTES: u64 = 4096;
/// Parts of a block, a bit each from the lowest on; 0: the whole block.
pub type Parts = u16;
/// Blocks of a claim that has parts: its answer is one message on the link.
pub const PARTS_BLOCKS_MAX: u64 = 64;

const _: () = assert!(BLOCK_BYTES / PART_BYTES == Parts::BITS as u64);

/// Blocks of which the parts are kept together: 256 MiB of a volume in 8 KiB. At most 2 bytes
/// for 64 KiB of a volume, 32 MiB a TiB, and nothing where no part is known.
const CHUNK_BLOCKS: u64 = 4096;

/// The parts of one block that an extent touches; all of them are 0.
pub(crate) fn parts_of(block: u64, extent: Extent) -> Parts {
    let begin = block * BLOCK_BYTES;
    let first = extent.offset.saturating_sub(begin) / PART_BYTES;
    let end = (extent.end().saturating_sub(begin)).min(BLOCK_BYTES).div_ceil(PART_BYTES);
    let up_to = |count: u64| Parts::MAX.checked_shr(Parts::BITS - count as u32).unwrap_or(0);
    let mask = up_to(end) & !up_to(first);
    if mask == Parts::MAX { 0 } else { mask }
}

/// Both, where 0 is everything.
fn join(one: Parts, other: Parts) -> Parts {
    match (one, other) {
        (0, _) | (_, 0) => 0,
        (one, other) if one | other == Parts::MAX => 0,
        (one, other) => one | other,
    }
}

/// Ranges of a block that its parts stand for, from its start on.
///
/// `len`: bytes of the block, less than [`BLOCK_BYTES`] at the end of a volume.
pub fn ranges_of(parts: Parts, len: u64) -> impl Iterator<Item = Extent> {
    let mut left = if parts == 0 { Parts::MAX } else { parts };
    std::iter::from_fn(move || {
        let first = u64::from(left.trailing_zeros()) * PART_BYTES;
        if first >= len {
            return None;
        }
        let count = u64::from((left >> left.trailing_zeros()).trailing_ones());
        let end = first + count * PART_BYTES;
        left &= Parts::MAX.checked_shl((end / PART_BYTES) as u32).unwrap_or(0);
        Some(Extent::new(first, end.min(len) - first))
    })
}

/// The parts of one volume's dirty blocks.
pub(crate) struct PartMap {
    /// Blocks that have parts: whoever makes nothing but whole blocks takes no lock.
    blocks: AtomicU64,
    chunks: Mutex<Vec<Option<Chunk>>>,
}

struct Chunk {
    parts: Box<[Parts]>,
    /// Of these not 0.
    used: u32,
}

impl PartMap {
    pub fn new() -> PartMap {
        PartMap { blocks: AtomicU64::new(0), chunks: Mutex::new(Vec::new()) }
    }

    /// Held over the change of the dirty bits, so that nobody sees the one without the other.
    pub fn lock(&self) -> Locked<'_> {
        let chunks = self.chunks.lock().expect("the parts' owner never panics");
        Locked { blocks: &self.blocks, chunks }
    }

    /// Whether a block of the volume has parts. A block that the caller has seen dirty, and
    /// that has parts, counts.
    pub fn has_any(&self) -> bool {
        self.blocks.load(Ordering::Acquire) > 0
    }
}

pub(crate) struct Locked<'a> {
    blocks: &'a AtomicU64,
    chunks: MutexGuard<'a, Vec<Option<Chunk>>>,
}

impl Locked<'_> {
    pub fn get(&self, block: u64) -> Parts {
        let chunk = self.chunks.get((block / CHUNK_BLOCKS) as usize).and_then(Option::as_ref);
        chunk.map_or(0, |chunk| chunk.parts[(block % CHUNK_BLOCKS) as usize])
    }

    fn set(&mut self, block: u64, parts: Parts) {
        let (index, at) = ((block / CHUNK_BLOCKS) as usize, (block % CHUNK_BLOCKS) as usize);
        if self.chunks.len() <= index {
            if parts == 0 {
                return;
            }
            self.chunks.resize_with(index + 1, || None);
        }
        let slot = &mut self.chunks[index];
        if slot.is_none() && parts == 0 {
            return;
        }
        let chunk = slot.get_or_insert_with(|| Chunk {
            parts: vec![0; CHUNK_BLOCKS as usize].into_boxed_slice(),
            used: 0,
        });
        let before = std::mem::replace(&mut chunk.parts[at], parts);
        let (had, has) = (u32::from(before != 0), u32::from(parts != 0));
        chunk.used = chunk.used + has - had;
        if chunk.used == 0 {
            *slot = None;
        }
        self.blocks.fetch_add(u64::from(has), Ordering::AcqRel);
        self.blocks.fetch_sub(u64::from(had), Ordering::AcqRel);
    }

    /// A change of the extent goes past the journal. `is_dirty`: of a block, before it.
    pub fn changed(&mut self, extent: Extent, is_dirty: impl Fn(u64) -> bool) {
        let blocks = BlockRange::touching(extent);
        for block in blocks.first..blocks.end() {
            let parts = parts_of(block, extent);
            let parts = if is_dirty(block) { join(self.get(block), parts) } else { parts };
            self.set(block, parts);
        }
    }

    /// The blocks are dirty as a whole.
    pub fn whole(&mut self, blocks: BlockRange) {
        if self.blocks.load(Ordering::Acquire) == 0 {
            return;
        }
        let end = blocks.end().min(self.chunks.len() as u64 * CHUNK_BLOCKS);
        let mut block = blocks.first;
        while block < end {
            if self.chunks[(block / CHUNK_BLOCKS) as usize].is_none() {
                block = (block / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS;
                continue;
            }
            self.set(block, 0);
            block += 1;
        }
    }

    /// Whether a block of them has parts.
    pub fn has_any_of(&self, blocks: BlockRange) -> bool {
        self.blocks.load(Ordering::Acquire) > 0
            && (blocks.first..blocks.end()).any(|block| self.get(block) != 0)
    }

    /// Takes the parts of the blocks; empty when they have none.
    pub fn take(&mut self, blocks: BlockRange) -> Vec<Parts> {
        if !self.has_any_of(blocks) {
            return Vec::new();
        }
        let parts = (blocks.first..blocks.end()).map(|block| self.get(block)).collect();
        self.whole(blocks);
        parts
    }

    /// Blocks that were claimed are dirty again, with the parts that were taken of them.
    pub fn give_back(
        &mut self,
        blocks: BlockRange,
        taken: &[Parts],
        is_dirty: impl Fn(u64) -> bool,
    ) {
        for (index, block) in (blocks.first..blocks.end()).enumerate() {
            let taken = taken.get(index).copied().unwrap_or(0);
            let parts = if is_dirty(block) { join(self.get(block), taken) } else { taken };
            self.set(block, parts);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn an_extent_touches_these_parts() {
        for (offset, len, block, expected) in [
            (0, 1, 0, 0b1),
            (4095, 2, 0, 0b11),
            (4096, 4096, 0, 0b10),
            (60 * KIB, 8 * KIB, 0, 0x8000),
            (60 * KIB, 8 * KIB, 1, 0b1),
            (0, 64 * KIB, 0, 0),
            (63 * KIB, 66 * KIB, 1, 0),
            (1, 64 * KIB - 2, 0, 0),
            (8 * KIB, 48 * KIB, 0, 0x3ffc),
        ] {
            let extent = Extent::new(offset, len);
            assert_eq!(parts_of(block, extent), expected, "{offset}+{len}, block {block}");
        }
    }

    #[test]
    fn parts_stand_for_these_ranges() {
        let ranges = |parts, len| {
            ranges_of(parts, len).map(|r| (r.offset / KIB, r.len / KIB)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(0, BLOCK_BYTES), [(0, 64)]);
        assert_eq!(ranges(0b1, BLOCK_BYTES), [(0, 4)]);
        assert_eq!(ranges(0b1011, BLOCK_BYTES), [(0, 8), (12, 4)]);
        assert_eq!(ranges(0x8001, BLOCK_BYTES), [(0, 4), (60, 4)]);
        assert_eq!(ranges(0x8001, 10 * KIB), [(0, 4)]);
        assert_eq!(ranges(0, 10 * KIB), [(0, 10)]);
        assert_eq!(ranges(0b110, 6 * KIB), [(4, 2)]);
    }

    #[test]
    fn a_block_is_whole_until_parts_of_a_clean_one_change() {
        let map = PartMap::new();
        let mut parts = map.lock();
        // Dirty before, as a whole: a part more is nothing.
        parts.changed(Extent::new(0, 4096), |_| true);
        assert_eq!((parts.get(0), map.has_any()), (0, false));
        parts.changed(Extent::new(0, 4096), |_| false);
        parts.changed(Extent::new(8192, 4096), |_| true);
        assert_eq!((parts.get(0), map.has_any()), (0b101, true));
        // All of it, piece by piece.
        parts.changed(Extent::new(4096, 60 * KIB), |_| true);
        assert_eq!((parts.get(0), map.has_any()), (0, false));
    }

    #[test]
    fn whole_blocks_lose_their_parts_and_memory_is_returned() {
        let map = PartMap::new();
        let mut parts = map.lock();
        for block in [3, CHUNK_BLOCKS, 9 * CHUNK_BLOCKS + 1] {
            parts.changed(Extent::new(block * BLOCK_BYTES, 1), |_| false);
        }
        assert_eq!(parts.chunks.iter().flatten().count(), 3);
        parts.whole(BlockRange::new(4, 5 * CHUNK_BLOCKS));
        assert_eq!([3, CHUNK_BLOCKS].map(|block| parts.get(block)), [1, 0]);
        parts.whole(BlockRange::new(0, 1 << 40));
        assert_eq!(parts.chunks.iter().flatten().count(), 0);
        assert!(!map.has_any());
    }

    #[test]
    fn taken_parts_come_back_to_what_changed_meanwhile() {
        let map = PartMap::new();
        let mut parts = map.lock();
        let blocks = BlockRange::new(0, 4);
        assert!(parts.take(blocks).is_empty());
        for block in 0..3 {
            parts.changed(Extent::new(block * BLOCK_BYTES, 4096), |_| false);
        }
        let taken = parts.take(blocks);
        assert_eq!(taken, [1, 1, 1, 0]);
        assert!(!map.has_any());
        // Block 1 has changed in part since, block 2 as a whole.
        parts.changed(Extent::new(BLOCK_BYTES + 4096, 4096), |_| false);
        let dirty = |block| block == 1 || block == 2;
        parts.give_back(blocks, &taken, dirty);
        assert_eq!([0, 1, 2, 3].map(|block| parts.get(block)), [1, 0b11, 0, 0]);
    }
}
