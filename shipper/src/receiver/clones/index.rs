//! What the marks' files hold from one mark on, and where: the content of a block at the mark is in
//! the oldest of these files that has it.

use super::super::marks::{self, MarkHeader, PreImage, Seen};
use super::super::medium::{LogFile, Medium};
use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Where a block's content at the mark is.
#[derive(Clone)]
pub enum Place {
    Zero,
    /// The entry at this offset.
    Data(Arc<LogFile>, u64),
}

/// Of which volume, and which block.
pub type Block = (u16, u64);

#[derive(Default)]
pub struct Index {
    seen: Seen,
    files: Vec<Scanned>,
    places: HashMap<Block, (u32, u64)>,
}

/// A mark's file, read up to `at`.
struct Scanned {
    number: u64,
    log: Arc<LogFile>,
    at: u64,
}

/// In place of an offset: the block was zero.
const ZERO: u64 = 0;

impl Index {
    /// Everything that lies in `dir` from the mark at batch `number` on.
    pub fn build(dir: &Path, number: u64, sizes: &[u64], seen: Seen) -> Result<Index> {
        let mut index = Index { seen, ..Index::default() };
        index.add_files(dir, number, sizes)?;
        Ok(index)
    }

    pub fn get(&self, block: Block) -> Option<Place> {
        let (file, at) = *self.places.get(&block)?;
        match at {
            ZERO => Some(Place::Zero),
            at => self.files.get(file as usize).map(|file| Place::Data(Arc::clone(&file.log), at)),
        }
    }

    /// Blocks that were overwritten since the mark.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Learns what was saved since the last look. False when it has to be built anew.
    pub fn refresh(&mut self, dir: &Path, number: u64, sizes: &[u64], seen: Seen) -> Result<bool> {
        if seen.rewinds != self.seen.rewinds {
            return Ok(false);
        }
        self.scan_newest(sizes)?;
        if seen.files != self.seen.files {
            self.add_files(dir, number, sizes)?;
            self.seen = seen;
        }
        Ok(true)
    }

    fn add_files(&mut self, dir: &Path, number: u64, sizes: &[u64]) -> Result<()> {
        let from = self.files.last().map_or(number, |file| file.number + 1);
        for number in marks::numbers(dir)?.into_iter().filter(|number| *number >= from) {
            let log = Arc::new(Medium::view(&marks::file_path(dir, number))?);
            self.files.push(Scanned { number, log, at: size_of::<MarkHeader>() as u64 });
            self.scan_newest(sizes)?;
        }
        if self.files.first().is_none_or(|file| file.number != number) && from == number {
            return Err(Error::new(ErrorKind::Damaged, "the file of the clone's mark is gone"));
        }
        Ok(())
    }

    /// Entries that were appended. One that is not whole yet was built upon by nobody.
    fn scan_newest(&mut self, sizes: &[u64]) -> Result<()> {
        let number = self.files.len().saturating_sub(1) as u32;
        let Some(newest) = self.files.last_mut() else { return Ok(()) };
        let end = newest.log.length()?;
        while newest.at < end
            && let Some((entry, next)) = marks::read_entry(&newest.log, newest.at, end, sizes)?
        {
            let place = if entry.data_bytes.get() == 0 { ZERO } else { newest.at };
            for block in blocks(&entry) {
                self.places.entry((entry.volume.get(), block)).or_insert((number, place));
            }
            newest.at = next;
        }
        Ok(())
    }
}

fn blocks(entry: &PreImage) -> std::ops::Range<u64> {
    let first = entry.first_block.get();
    first..first + u64::from(entry.blocks.get())
}

/// The content of `block` in the entry at `at`; `None` when something else lies there by now.
pub fn saved(log: &LogFile, at: u64, block: Block, sizes: &[u64]) -> Result<Option<Vec<u8>>> {
    let end = log.length()?;
    let Some((entry, _)) = marks::read_entry(log, at, end, sizes)? else { return Ok(None) };
    if (entry.volume.get(), entry.first_block.get()) != block {
        return Ok(None);
    }
    let mut data = Vec::new();
    Ok(marks::read_data(log, at, &entry, &mut data)?.then_some(data))
}
