//! Staging: durable batches that may not be applied yet, the redo log.
//!
//! Whole encoded batches, one after the other, in segments named by their first
//! number. Each begins at a multiple of 4 KiB, so that they are written past the page
//! cache: nobody reads them again but after a crash or behind a slow target. The writer appends and syncs; the reader follows up to what is
//! durable; segments whose batches are all applied are removed.

use super::medium::{LogFile, Medium, aligned, read_at};
use crate::batch::{HEADER_BYTES, encoded_len};
use crate::error::{Error, Result};
use crate::spare;
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A segment is closed past this size; what is applied is given back in these
/// pieces.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;

pub fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// First numbers of the segments in `dir`, ascending.
pub fn list(dir: &Path) -> Result<Vec<u64>> {
    let failed = |e| Error::storage(format!("cannot list {}", dir.display()), e);
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        firsts.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// One file of staging, up to what is durable and known good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub first: u64,
    /// Last batch in it; `first - 1` while it has none.
    pub last: u64,
    pub bytes: u64,
}

/// What writer and reader share.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<VecDeque<Segment>>>);

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Segment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends batches. After a failed write or sync the segment is given up and the
/// next batch starts another: what an unfinished write left behind is never
/// built upon.
pub struct Staging {
    dir: PathBuf,
    medium: Medium,
    shelf: Shelf,
    active: Option<Active>,
    segment_bytes_max: u64,
}

struct Active {
    file: LogFile,
    first: u64,
    last: u64,
    /// Something was appended after the last sync.
    dirty: bool,
}

impl Staging {
    pub fn new(dir: &Path, medium: Medium, segment_bytes_max: u64) -> Staging {
        let (dir, shelf) = (dir.to_owned(), Shelf::default());
        Staging { dir, medium, shelf, active: None, segment_bytes_max }
    }

    /// Takes over the segments that recovery found good.
    pub fn take_over(&mut self, segments: Vec<Segment>) {
        *self.shelf.lock() = segments.into();
    }

    /// A reader that starts with the first batch of `segment` that lies at `offset`.
    pub fn reader(&self, cursor: Cursor) -> Reader {
        Reader { dir: self.dir.clone(), shelf: self.shelf.clone(), cursor, open: None }
    }

    pub fn append(&mut self, number: u64, encoded: &[u8]) -> Result<()> {
        let mut active = match self.active.take() {
            Some(active) if active.file.end() < self.segment_bytes_max => active,
            other => {
                self.active = other;
                self.sync()?;
                self.active = None;
                self.start_segment(number)?
            }
        };
        let appended = active.file.append(encoded);
        if appended.is_ok() {
            active.last = number;
            active.dirty = true;
        }
        self.active = Some(active);
        appended
    }

    fn start_segment(&self, first: u64) -> Result<Active> {
        let file = self.medium.create_passing(&segment_path(&self.dir, first))?;
        self.medium.sync_dir(&self.dir)?;
        Ok(Active { file, first, last: first.saturating_sub(1), dirty: false })
    }

    /// Makes everything appended durable and shows it to the reader.
    pub fn sync(&mut self) -> Result<()> {
        let Some(active) = self.active.as_mut().filter(|active| active.dirty) else {
            return Ok(());
        };
        active.file.sync()?;
        active.dirty = false;
        let segment = Segment { first: active.first, last: active.last, bytes: active.file.end() };
        let mut shelf = self.shelf.lock();
        match shelf.back_mut().filter(|last| last.first == segment.first) {
            Some(last) => *last = segment,
            None => shelf.push_back(segment),
        }
        Ok(())
    }

    /// Forgets what was appended after the last sync, because it failed. What can
    /// be cut off is; what cannot is overruled by the next segment's name.
    pub fn give_up(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let durable = self.shelf.lock().back().filter(|s| s.first == active.first).copied();
        let cut = match durable {
            Some(segment) => active.file.truncate(segment.bytes),
            None => self.medium.remove(active.file.path()),
        };
        if let Err(error) = cut {
            tracing::warn!(%error, "an unfinished write stays in staging; it is not used");
        }
    }

    /// Removes everything: the target has taken over.
    pub fn clear(&mut self) -> Result<()> {
        self.active = None;
        self.shelf.lock().clear();
        for first in list(&self.dir)? {
            self.medium.remove(&segment_path(&self.dir, first))?;
        }
        self.medium.sync_dir(&self.dir)
    }
}

/// Place of a batch in staging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub segment: u64,
    pub offset: u64,
}

/// Reads durable batches in order.
pub struct Reader {
    dir: PathBuf,
    shelf: Shelf,
    cursor: Cursor,
    open: Option<(u64, File)>,
}

impl Reader {
    /// The next durable batch's bytes; `None` when the end was reached.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let Some((segment, offset)) = self.locate() else { return Ok(None) };
        let path = segment_path(&self.dir, segment.first);
        if self.open.as_ref().is_none_or(|(first, _)| *first != segment.first) {
            let file = File::open(&path)
                .map_err(|e| Error::storage(format!("cannot open {}", path.display()), e))?;
            self.open = Some((segment.first, file));
        }
        let Some((_, file)) = &self.open else { return Ok(None) };
        let bytes = read_batch(file, &path, offset, segment.bytes)?;
        self.cursor =
            Cursor { segment: segment.first, offset: aligned(offset + bytes.len() as u64) };
        Ok(Some(bytes))
    }

    /// Whether staging has a batch that was neither read nor passed.
    pub fn has_more(&self) -> bool {
        self.locate().is_some()
    }

    /// The next durable batch, of `len` bytes, is known already.
    pub fn pass(&mut self, len: u64) {
        if let Some((segment, offset)) = self.locate() {
            self.cursor = Cursor { segment: segment.first, offset: aligned(offset + len) };
        }
    }

    fn locate(&self) -> Option<(Segment, u64)> {
        let shelf = self.shelf.lock();
        let at = |segment: &Segment| {
            if segment.first == self.cursor.segment { self.cursor.offset } else { 0 }
        };
        let mut rest = shelf.iter().filter(|segment| segment.first >= self.cursor.segment);
        rest.find(|segment| at(segment) < segment.bytes).map(|segment| (*segment, at(segment)))
    }

    /// Removes segments whose batches are all applied; not the last one, to which
    /// the writer may still append.
    pub fn remove_applied(&mut self, medium: &Medium, applied: u64) -> Result<()> {
        let mut removed = false;
        loop {
            let spent = {
                let shelf = self.shelf.lock();
                shelf.front().filter(|first| shelf.len() > 1 && first.last <= applied).copied()
            };
            let Some(spent) = spent else { break };
            medium.remove(&segment_path(&self.dir, spent.first))?;
            self.shelf.lock().pop_front();
            removed = true;
        }
        if removed { medium.sync_dir(&self.dir) } else { Ok(()) }
    }
}

/// One batch from `offset` of a segment that is good up to `end`. Only length and header are
/// checked here.
pub fn read_batch(file: &File, path: &Path, offset: u64, end: u64) -> Result<Vec<u8>> {
    let mut header = [0; HEADER_BYTES];
    let torn = || Error::damaged(format!("{} ends inside a batch at {offset}", path.display()));
    let is_short = offset + HEADER_BYTES as u64 > end;
    if is_short || read_at(file, path, &mut header, offset)? < HEADER_BYTES {
        return Err(torn());
    }
    let len = encoded_len(&header)?;
    if offset + len as u64 > end {
        return Err(torn());
    }
    let mut bytes = spare::take(len);
    bytes.resize(len, 0);
    if read_at(file, path, &mut bytes, offset)? < len {
        return Err(torn());
    }
    Ok(bytes)
}
