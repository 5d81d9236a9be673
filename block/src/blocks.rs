//! Arithmetic of the change map's blocks.

use crate::Extent;

/// Granularity of the change map. 64 KiB: the largest asynchronous background
/// read that leaves a guest's write latency untouched (docs/design/0001), and
/// 2 x 2 MiB of map for a volume of 1 TiB.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// `count` change-map blocks from block number `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    pub first: u64,
    pub count: u64,
}

impl BlockRange {
    pub const fn new(first: u64, count: u64) -> BlockRange {
        BlockRange { first, count }
    }

    /// All blocks that `extent` touches, even in part.
    pub const fn touching(extent: Extent) -> BlockRange {
        if extent.len == 0 {
            return BlockRange { first: extent.offset / BLOCK_BYTES, count: 0 };
        }
        let first = extent.offset / BLOCK_BYTES;
        let last = (extent.end() - 1) / BLOCK_BYTES;
        BlockRange { first, count: last - first + 1 }
    }

    /// All blocks of a volume of `size_bytes`; the last one may be partial.
    pub const fn of_volume(size_bytes: u64) -> BlockRange {
        BlockRange { first: 0, count: size_bytes.div_ceil(BLOCK_BYTES) }
    }

    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// The bytes of these blocks, cut at the end of the volume.
    pub fn extent(self, size_bytes: u64) -> Extent {
        let offset = self.first * BLOCK_BYTES;
        let end = (self.end() * BLOCK_BYTES).min(size_bytes);
        Extent::new(offset, end.saturating_sub(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_blocks_count_whole() {
        assert_eq!(BlockRange::touching(Extent::new(BLOCK_BYTES - 1, 2)), BlockRange::new(0, 2));
        assert_eq!(BlockRange::touching(Extent::new(BLOCK_BYTES, 1)), BlockRange::new(1, 1));
        assert_eq!(BlockRange::touching(Extent::new(7, 0)).count, 0);
    }

    #[test]
    fn the_last_block_ends_with_the_volume() {
        let size = BLOCK_BYTES + 512;
        let all = BlockRange::of_volume(size);
        assert_eq!(all.count, 2);
        assert_eq!(BlockRange::new(1, 1).extent(size), Extent::new(BLOCK_BYTES, 512));
    }
}
