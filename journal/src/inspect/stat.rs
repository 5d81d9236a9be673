//! What the workload in the ring is like: how often it overwrites itself, how much
//! of a volume it touches in how much time, and where it is hottest.
//!
//! Written means writes and zeroes written, not trims. Unique bytes are counted in
//! blocks of [`UNIQUE_BLOCK_BYTES`], the unit in which guests' file systems write.

use super::GroupView;
use super::mix::{Counting, Mix, is_written};
use crate::format::Kind;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use towline_block::{BLOCK_BYTES, BlockRange, Extent};

/// The block of the overwrite factor.
pub const UNIQUE_BLOCK_BYTES: u64 = 4096;
/// Lengths of time for which unique bytes are counted: from a batch to a long outage.
const INTERVALS_S: [u64; 7] = [1, 5, 10, 30, 60, 300, 1800];

/// What [`GroupView::stat`] counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stat {
    pub mix: Mix,
    pub volumes: Vec<VolumeStat>,
    /// Shortest first; up to the first that covers everything.
    pub intervals: Vec<Interval>,
    /// Hottest first.
    pub hottest: Vec<Hot>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumeStat {
    pub volume: usize,
    pub records: u64,
    /// Writes and zeroes.
    pub writes: u64,
    pub written_bytes: u64,
    pub trimmed_bytes: u64,
    /// In blocks of [`UNIQUE_BLOCK_BYTES`].
    pub unique_bytes: u64,
    /// In blocks of the change map.
    pub map_bytes: u64,
}

impl VolumeStat {
    /// Written bytes for each unique byte; `None` without a write.
    pub fn overwrite_factor(&self) -> Option<f64> {
        (self.unique_bytes > 0).then(|| self.written_bytes as f64 / self.unique_bytes as f64)
    }
}

/// Unique bytes dirtied in windows of one length, all volumes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    pub seconds: u64,
    /// Windows that saw a write.
    pub windows: u64,
    pub written_bytes: u64,
    /// Sum of the unique bytes of each window: what a target that is sent to once a
    /// window has to be sent.
    pub unique_bytes: u64,
    pub unique_bytes_max: u64,
}

/// A block of the change map that many writes went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    pub volume: usize,
    pub offset: u64,
    pub len: u64,
    pub writes: u64,
    pub bytes: u64,
}

/// A write, as far as it is counted here.
#[derive(Clone, Copy)]
struct Written {
    unix_ns: u64,
    volume: usize,
    extent: Extent,
}

impl GroupView {
    /// Counts the records of a range; names the `hottest_max` hottest blocks.
    pub fn stat(&self, range: RangeInclusive<u64>, hottest_max: usize) -> Stat {
        let mut counting = Counting::default();
        let mut volumes: Vec<VolumeStat> = (0..self.volume_names().len())
            .map(|volume| VolumeStat { volume, ..VolumeStat::default() })
            .collect();
        let mut written = Vec::new();
        let mut heat: HashMap<(usize, u64), (u64, u64)> = HashMap::new();
        for record in self.records(range) {
            counting.add(&record);
            let volume = record.volume.index();
            let Some(of_volume) = volumes.get_mut(volume) else { continue };
            if matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim) {
                of_volume.records += 1;
            }
            if record.kind == Kind::Trim {
                of_volume.trimmed_bytes += record.extent.len;
            }
            if !is_written(&record) {
                continue;
            }
            of_volume.writes += 1;
            of_volume.written_bytes += record.extent.len;
            written.push(Written { unix_ns: record.unix_ns, volume, extent: record.extent });
            // Zeroes may be as long as the volume and heat nothing.
            if record.kind == Kind::Write {
                heat_blocks(&mut heat, volume, record.extent);
            }
        }
        for of_volume in &mut volumes {
            let own = |w: &&Written| w.volume == of_volume.volume;
            let extents: Vec<Extent> = written.iter().filter(own).map(|w| w.extent).collect();
            of_volume.unique_bytes = unique_bytes(extents.clone(), UNIQUE_BLOCK_BYTES);
            of_volume.map_bytes = unique_bytes(extents, BLOCK_BYTES);
        }
        let mix = counting.end();
        let intervals = intervals(&mix, &written);
        Stat { mix, volumes, intervals, hottest: self.hottest(heat, hottest_max) }
    }

    fn hottest(&self, heat: HashMap<(usize, u64), (u64, u64)>, max: usize) -> Vec<Hot> {
        let hot = |((volume, block), (writes, bytes))| {
            let extent = BlockRange::new(block, 1).extent(self.volume_size_bytes(volume));
            Hot { volume, offset: extent.offset, len: extent.len, writes, bytes }
        };
        let mut hottest: Vec<Hot> = heat.into_iter().map(hot).collect();
        hottest.sort_by_key(|h| (std::cmp::Reverse((h.writes, h.bytes)), h.volume, h.offset));
        hottest.truncate(max);
        hottest
    }
}

fn heat_blocks(heat: &mut HashMap<(usize, u64), (u64, u64)>, volume: usize, extent: Extent) {
    let blocks = BlockRange::touching(extent);
    for block in blocks.first..blocks.end() {
        let from = extent.offset.max(block * BLOCK_BYTES);
        let to = extent.end().min((block + 1) * BLOCK_BYTES);
        let entry = heat.entry((volume, block)).or_default();
        *entry = (entry.0 + 1, entry.1 + (to - from));
    }
}

/// Bytes of the blocks of `block_bytes` that the extents touch, each counted once.
fn unique_bytes(mut extents: Vec<Extent>, block_bytes: u64) -> u64 {
    extents.retain(|extent| !extent.is_empty());
    extents.sort_unstable();
    let (mut blocks, mut counted_to) = (0, 0);
    for extent in extents {
        let first = (extent.offset / block_bytes).max(counted_to);
        let end = (extent.end() - 1) / block_bytes + 1;
        blocks += end.saturating_sub(first);
        counted_to = counted_to.max(end);
    }
    blocks * block_bytes
}

fn intervals(mix: &Mix, written: &[Written]) -> Vec<Interval> {
    let mut all = Vec::new();
    let Some(first_ns) = written.iter().map(|w| w.unix_ns).min() else { return all };
    let span_ns = mix.last_ns.saturating_sub(first_ns);
    for seconds in INTERVALS_S {
        all.push(interval(seconds, first_ns, written));
        if span_ns < seconds * 1_000_000_000 {
            break;
        }
    }
    all
}

fn interval(seconds: u64, first_ns: u64, written: &[Written]) -> Interval {
    // A volume of a window is a group of its own.
    let mut groups: HashMap<(u64, usize), Vec<Extent>> = HashMap::new();
    let window = |w: &Written| w.unix_ns.saturating_sub(first_ns) / (seconds * 1_000_000_000);
    for write in written {
        groups.entry((window(write), write.volume)).or_default().push(write.extent);
    }
    let mut windows: HashMap<u64, u64> = HashMap::new();
    for ((window, _), extents) in groups {
        *windows.entry(window).or_default() += unique_bytes(extents, UNIQUE_BLOCK_BYTES);
    }
    Interval {
        seconds,
        windows: windows.len() as u64,
        written_bytes: written.iter().map(|w| w.extent.len).sum(),
        unique_bytes: windows.values().sum(),
        unique_bytes_max: windows.values().copied().max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_and_neighbouring_writes_count_each_block_once() {
        let extents = |list: &[(u64, u64)]| -> Vec<Extent> {
            list.iter().map(|(offset, len)| Extent::new(*offset, *len)).collect()
        };
        assert_eq!(unique_bytes(extents(&[]), 4096), 0);
        assert_eq!(unique_bytes(extents(&[(0, 1), (5, 1), (4095, 1)]), 4096), 4096);
        assert_eq!(unique_bytes(extents(&[(8192, 4096), (0, 4096)]), 4096), 8192);
        assert_eq!(unique_bytes(extents(&[(0, 20_000), (4096, 1), (8192, 9)]), 4096), 20_480);
        assert_eq!(unique_bytes(extents(&[(4095, 2), (0, 0)]), 4096), 8192);
    }

    #[test]
    fn a_rewrite_in_another_window_counts_again_and_in_the_same_one_not() {
        let at = |second: u64| Written {
            unix_ns: second * 1_000_000_000,
            volume: 0,
            extent: Extent::new(0, 4096),
        };
        let written = [at(100), at(101), at(112)];
        let short = interval(1, 100_000_000_000, &written);
        assert_eq!((short.windows, short.unique_bytes, short.unique_bytes_max), (3, 12_288, 4096));
        let long = interval(60, 100_000_000_000, &written);
        assert_eq!((long.windows, long.unique_bytes, long.written_bytes), (1, 4096, 12_288));
    }
}
