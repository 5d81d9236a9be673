//! `towline device verify`: reads every pack of the devices that are here.

use super::blocks::BlockSet;
use super::set::{DeviceSet, Fate};
use crate::batch::Keyring;
use crate::error::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackState {
    Whole,
    /// On none of the devices that are here.
    Missing,
    Damaged(String),
}

/// What there is of an export.
pub struct Checked {
    /// In the order of their numbers, from 1.
    pub packs: Vec<PackState>,
    /// Blocks of which the whole packs hold all content.
    pub covered: BlockSet,
    /// Blocks that would be lacking if nothing more came; `None`: any, since the map of a
    /// pack is lost with it.
    pub lacking: Option<BlockSet>,
}

impl Checked {
    pub fn is_whole(&self) -> bool {
        self.packs.iter().all(|pack| *pack == PackState::Whole)
    }
}

/// Checks every pack against its map, `jobs` at a time. With keys, or where they are not
/// sealed, batches are opened and followed, too. `read` counts bytes.
pub fn verify(set: &DeviceSet, keys: Option<&Keyring>, jobs: usize, read: &AtomicU64) -> Checked {
    let numbers: Vec<usize> = set.manifest.numbers().collect();
    let found = Mutex::new(vec![PackState::Missing; numbers.len()]);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, numbers.len().max(1)) {
            scope.spawn(|| {
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let state = match check(set, *number, keys, read) {
                        Ok(true) => PackState::Whole,
                        Ok(false) => PackState::Missing,
                        Err(error) => PackState::Damaged(error.to_string()),
                    };
                    if let Ok(mut found) = found.lock() {
                        found[number - 1] = state;
                    }
                }
            });
        }
    });
    let packs = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut covered = BlockSet::new(set.sizes());
    for number in set.manifest.numbers().filter(|n| packs[n - 1] == PackState::Whole) {
        let map = set.map(number);
        map.iter().flat_map(|map| &map.covered).for_each(|run| covered.insert(run));
    }
    let lacking = set.lacking(|number| match packs[number - 1] {
        PackState::Whole => Fate::Applied(&[]),
        _ => Fate::Lost,
    });
    Checked { packs, covered, lacking }
}

/// False when the pack is not here.
fn check(set: &DeviceSet, number: usize, keys: Option<&Keyring>, read: &AtomicU64) -> Result<bool> {
    if !set.has(number) {
        return Ok(false);
    }
    let lost = || Error::damaged(format!("the map of pack {number} is lost or damaged"));
    let map = set.map(number).ok_or_else(lost)?;
    let Some(mut reader) = set.reader(number, &map)? else { return Ok(false) };
    // What is sealed says nothing without its key.
    let is_open = set.manifest.key.is_none() || keys.is_some();
    let none = Keyring::default();
    let keys = keys.unwrap_or(&none);
    let count = |bytes: usize| read.fetch_add(bytes as u64, Ordering::Relaxed);
    if !is_open {
        while let Some(bytes) = reader.next_bytes()? {
            count(bytes.len());
        }
        return Ok(true);
    }
    while let Some(batch) = reader.next(keys)? {
        super::import::check_batch(&batch, set, &reader)?;
        count(batch.bytes().len());
    }
    super::import::check_end(set, number, &reader)?;
    Ok(true)
}
