//! Packs that are at the targets already, though they come later in the stream.

use super::blocks::BlockRun;
use super::ledger::Ledger;
use super::manifest::PACKS_MAX;
use super::set::DeviceSet;
use crate::error::{Error, ErrorKind, Result};
use towline_block::{BLOCK_BYTES, BlockRange, Extent, VolumeId};

const _: () = assert!(PACKS_MAX <= u16::MAX as usize);

/// Of each block the last pack that an import had begun before this run and that touches
/// it; 0: none. Empty where nothing was begun.
pub(super) struct Later {
    last: Vec<Vec<u16>>,
}

impl Later {
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the map of a pack that was begun is on none of the
    /// devices.
    pub fn of(set: &DeviceSet, ledger: &Ledger) -> Result<Later> {
        if ledger.packs.is_empty() {
            return Ok(Later { last: Vec::new() });
        }
        let blocks = |size: &u64| vec![0; BlockRange::of_volume(*size).count as usize];
        let mut later = Later { last: set.sizes().iter().map(blocks).collect() };
        // In rising order: the last one stays.
        for number in ledger.packs.keys() {
            let map = set.map(*number).ok_or_else(|| {
                let what = format!(
                    "the map of pack {number}, which was imported, is on none of these devices: add \
                     another one of the export"
                );
                Error::new(ErrorKind::Unreachable, what)
            })?;
            map.touched.iter().for_each(|run| later.fill(run, *number));
        }
        Ok(later)
    }

    fn fill(&mut self, run: &BlockRun, number: usize) {
        let range = run.blocks.first as usize..run.blocks.end() as usize;
        let blocks = self.last.get_mut(run.volume.index()).and_then(|last| last.get_mut(range));
        blocks.into_iter().for_each(|blocks| blocks.fill(number as u16));
    }

    fn is_behind(&self, volume: VolumeId, block: u64, number: usize) -> bool {
        let last = self.last.get(volume.index()).and_then(|last| last.get(block as usize));
        last.is_some_and(|last| usize::from(*last) > number)
    }

    /// Blocks of these runs that a later pack than `number` has touched.
    pub fn common(&self, runs: &[BlockRun], number: usize) -> Vec<BlockRun> {
        let mut common: Vec<BlockRun> = Vec::new();
        if self.last.is_empty() {
            return common;
        }
        for run in runs {
            for block in run.blocks.first..run.blocks.end() {
                if !self.is_behind(run.volume, block, number) {
                    continue;
                }
                match common.last_mut() {
                    Some(last) if last.volume == run.volume && last.blocks.end() == block => {
                        last.blocks.count += 1;
                    }
                    _ => common.push((run.volume.0, block, 1).into()),
                }
            }
        }
        common
    }

    /// The parts of a range that lie in no block that a later pack than `number` has
    /// touched, as few as there are.
    pub fn pieces(&self, volume: VolumeId, extent: Extent, number: usize) -> Vec<Extent> {
        if self.last.is_empty() {
            return vec![extent];
        }
        let mut pieces: Vec<Extent> = Vec::new();
        let mut at = extent.offset;
        while at < extent.end() {
            let block = at / BLOCK_BYTES;
            let end = extent.end().min((block + 1) * BLOCK_BYTES);
            if !self.is_behind(volume, block, number) {
                match pieces.last_mut() {
                    Some(last) if last.end() == at => last.len += end - at,
                    _ => pieces.push(Extent::new(at, end - at)),
                }
            }
            at = end;
        }
        pieces
    }
}
