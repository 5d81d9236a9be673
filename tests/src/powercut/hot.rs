//! What a power loss now would compare at most, read from an `activity.map` as its format's
//! document describes it.

use anyhow::{Context, Result, ensure};
use towline_block::crc32c;
use towline_journal::activity::file::{
    ACTIVITY_MAGIC, ActivityHeader, ActivitySector, SECTOR_BYTES, SECTOR_WORDS,
};
use zerocopy::FromBytes;

/// Bytes of volumes of these sizes, at or behind the offset `from` of each, that lie in hot
/// extents; `from` begins an extent.
pub fn hot_bytes(file: &[u8], sizes: &[u64], from: u64) -> Result<u64> {
    let (first, _) = file.split_at_checked(SECTOR_BYTES).context("shorter than a sector")?;
    let header = ActivityHeader::ref_from_bytes(first).map_err(|e| anyhow::anyhow!("{e}"))?;
    ensure!(header.magic == ACTIVITY_MAGIC, "no activity map");
    let mut sectors = file[SECTOR_BYTES..].chunks_exact(SECTOR_BYTES);
    let extent_bytes = header.extent_bytes.get();
    let mut sum = 0;
    for size in sizes {
        let extents = size.div_ceil(extent_bytes);
        let mut words = Vec::new();
        while (words.len() as u64) < extents.div_ceil(64) {
            let bytes = sectors.next().context("too few sectors")?;
            let sector =
                ActivitySector::ref_from_bytes(bytes).map_err(|e| anyhow::anyhow!("{e}"))?;
            ensure!(sector.crc.get() == crc32c(&bytes[..SECTOR_BYTES - 4]), "a damaged sector");
            words.extend(sector.words.iter().map(|word| word.get()));
        }
        ensure!(words.len().is_multiple_of(SECTOR_WORDS), "whole sectors");
        let is_hot = |extent: &u64| words[(extent / 64) as usize] >> (extent % 64) & 1 == 1;
        let len = |extent: u64| extent_bytes.min(size - extent * extent_bytes);
        ensure!(from.is_multiple_of(extent_bytes), "{from} begins no extent");
        sum += (from / extent_bytes..extents).filter(is_hot).map(len).sum::<u64>();
    }
    Ok(sum)
}
