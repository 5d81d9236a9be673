//! The persister's segment files: making them, moving on to the next, giving them back.

use super::Durability;
use super::index::Room;
use super::layout::{SEGMENT_BYTES, SPAN_ALIGN, SPAN_BYTES_MAX, SPANS_END};
use super::persister::{Current, Pen, SPANS_AT_ONCE, segment_file};
use super::trailer;
use crate::durable::{self, Event};
use crate::error::{Error, Result};
use crate::format::{Counter, PAGE_BYTES};
use crate::sys::allocate;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use towline_block::sys::uring::{Completion, Driver, Fd, Op, Window};

/// Free segments kept when the ladder is back in memory; the disk gets the rest.
const SEGMENTS_KEPT: usize = 4;

/// A segment ready to be filled.
pub(super) struct Opened {
    pub file: u32,
    pub fd: Fd,
    pub direct: File,
    /// Where it begins in the file.
    pub base: u64,
    /// A flush of its device makes durable what is written to it.
    pub plain: bool,
}

impl Pen {
    /// Sees to it that the current segment has room for a span. False: there is none.
    pub(super) fn open_segment(&mut self, driver: &mut Option<Driver>) -> Result<bool> {
        if self.current.as_ref().is_some_and(Current::has_room) {
            return Ok(true);
        }
        self.write_trailer(driver)?;
        self.close_segment();
        if let Some(spare) = self.spare.take() {
            self.begin_segment(spare);
            return Ok(true);
        }
        let room = self.spill.room();
        let (file, fresh) = match room {
            Room::Full => {
                if !self.full {
                    self.full = true;
                    self.owner.ring.set(Counter::SpillFault, 2);
                    self.spill.progressed();
                    tracing::warn!(
                        group = %self.owner.group,
                        spill_bytes = self.spill.capacity_bytes(),
                        "the spill is full: changes that the ring cannot hold go to the change map"
                    );
                }
                return Ok(false);
            }
            Room::Make(file) => (file, true),
            Room::Reuse(file) => (file, false),
        };
        match self.open_file(file, fresh, driver) {
            Ok(opened) => {
                self.begin_segment(opened);
                Ok(true)
            }
            Err(error) => {
                self.spill.give_back(room);
                Err(error)
            }
        }
    }

    /// The current segment is full: what it holds, for the next start. Nothing waits for it.
    fn write_trailer(&mut self, driver: &mut Option<Driver>) -> Result<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let place = self.place(current);
        let trailer = {
            let segments = self.spill.segments();
            let segment = segments.live.iter().find(|segment| segment.serial == current.serial);
            segment.and_then(|segment| trailer::encode(segment, &place))
        };
        // Without one, or when the target has all of it already, its headers tell.
        let Some(trailer) = trailer else { return Ok(()) };
        self.write_at(current, SPANS_END, &trailer, driver)
    }

    /// Whether the current segment can be written, found out where it holds nothing yet.
    pub(super) fn try_segment(&mut self, driver: &mut Option<Driver>) -> Result<bool> {
        if let Some(current) = self.current.as_ref().filter(|current| current.offset == 0) {
            self.write_at(current, 0, &[0; SPAN_ALIGN as usize], driver)?;
        }
        Ok(true)
    }

    /// Writes whole pages into a segment, beside its spans.
    fn write_at(
        &self,
        current: &Current,
        offset: u64,
        bytes: &[u8],
        driver: &mut Option<Driver>,
    ) -> Result<()> {
        let mut storage = vec![0; bytes.len() + PAGE_BYTES as usize];
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(PAGE_BYTES as usize) - address;
        storage[start..start + bytes.len()].copy_from_slice(bytes);
        let (at, file) = (current.base + offset, segment_file(&self.spill, current.file));
        durable::about(Event::WriteAt { file: &file, at, bytes });
        let window = Window::new(storage, start, bytes.len());
        let what = format!("cannot write {}", self.spill.store.name(current.file));
        let op = Op::Write(current.fd.clone(), at, window);
        let driver = made(driver)?;
        driver.push(0, op).map_err(|e| Error::io(what.clone(), e))?;
        for completion in wait_all(driver, &what)? {
            completion.result.map_err(|e| Error::io(what.clone(), e))?;
        }
        let written = self.owner.ring.counter(Counter::SpillWrittenBytes);
        written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn begin_segment(&mut self, opened: Opened) {
        let Opened { file, fd, direct, base, plain } = opened;
        let mut segments = self.spill.segments();
        let serial = segments.next_serial.max(1);
        segments.next_serial = serial + 1;
        segments.current = Some(serial);
        drop(segments);
        self.current = Some(Current { file, serial, fd, direct, base, plain, offset: 0 });
    }

    /// Makes the next segment while nobody waits.
    pub(super) fn prepare(&mut self, driver: &mut Option<Driver>) {
        let is_soon = self.current.as_ref().is_none_or(|c| c.offset > SEGMENT_BYTES / 2);
        if self.spill.durability == Durability::Process || self.spare.is_some() || !is_soon {
            return;
        }
        let room = self.spill.room();
        let (Room::Make(file) | Room::Reuse(file)) = room else { return };
        match self.open_file(file, matches!(room, Room::Make(_)), driver) {
            Ok(opened) => self.spare = Some(opened),
            Err(error) => {
                self.spill.give_back(room);
                self.fault(&error);
            }
        }
    }

    /// Nothing more is written to the current segment.
    pub(super) fn close_segment(&mut self) {
        self.current = None;
        let mut segments = self.spill.segments();
        segments.current = None;
        segments.release(self.owner.ring.get(Counter::Acked));
    }

    /// Opens a segment for O_DIRECT, its room reserved.
    fn open_file(&mut self, file: u32, fresh: bool, driver: &mut Option<Driver>) -> Result<Opened> {
        let store = self.spill.store.clone();
        let failed = |e| Error::io(format!("cannot make the spill's {}", store.name(file)), e);
        let name = segment_file(&self.spill, file);
        if fresh {
            durable::about(Event::Write { file: &name, bytes: &[] });
        }
        let opened = store.open_for_writing(file).map_err(failed)?;
        let is_short = !store.is_whole(&opened).map_err(failed)?;
        let base = opened.base;
        let fd: Fd = Arc::new(opened.file.try_clone().map_err(failed)?.into());
        if fresh || is_short {
            allocate(&opened.file, SEGMENT_BYTES).map_err(failed)?;
            self.filled.remove(&file);
        }
        if self.spill.durability == Durability::Process || opened.in_place {
            return Ok(Opened { file, fd, direct: opened.file, base, plain: false });
        }
        // Writing into reserved extents converts them, which a sync then has to journal:
        // only a commit gains by the zeroes. What an earlier process did is not known.
        if !self.filled.contains(&file) {
            durable::about(Event::Write { file: &name, bytes: &[] });
            self.zero_fill(&fd, base, driver).map_err(failed)?;
            durable::about(Event::Sync { file: &name });
            opened.file.sync_all().map_err(failed)?;
            durable::about(Event::SyncDir { dir: store.path() });
            store.sync_names().map_err(failed)?;
            self.filled.insert(file);
        }
        let plain = self.spill.medium.is_some_and(|medium| medium.takes(&opened));
        Ok(Opened { file, fd, direct: opened.file, base, plain })
    }

    fn zero_fill(
        &mut self,
        fd: &Fd,
        base: u64,
        driver: &mut Option<Driver>,
    ) -> std::io::Result<()> {
        let piece = SPAN_BYTES_MAX / SPAN_ALIGN * SPAN_ALIGN;
        let driver = made(driver).map_err(std::io::Error::other)?;
        let mut offset = 0;
        while offset < SEGMENT_BYTES {
            for token in 0..SPANS_AT_ONCE as u64 {
                let bytes = piece.min(SEGMENT_BYTES - offset);
                if bytes == 0 {
                    break;
                }
                let storage = vec![0; (bytes + PAGE_BYTES) as usize];
                let address = storage.as_ptr().addr();
                let start = address.next_multiple_of(PAGE_BYTES as usize) - address;
                let window = Window::new(storage, start, bytes as usize);
                driver.push(token, Op::Write(fd.clone(), base + offset, window))?;
                offset += bytes;
            }
            let filled = &self.owner.ring.counter(Counter::SpillFilledBytes);
            for completion in wait_all(driver, "zero-filling").map_err(std::io::Error::other)? {
                let wanted = completion.window.len;
                if completion.result? != wanted {
                    return Err(std::io::ErrorKind::WriteZero.into());
                }
                filled.fetch_add(wanted as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Back in memory: all but a few free segments are removed, from the last file on.
    pub(super) fn give_disk_back(&mut self) {
        if !self.spill.store.is_elastic() {
            return;
        }
        let mut segments = self.spill.segments();
        while segments.free.len() > SEGMENTS_KEPT
            && let last = segments.files.saturating_sub(1)
            && let Some(at) = segments.free.iter().position(|file| *file == last)
        {
            if let Err(error) = self.spill.store.remove(last) {
                tracing::warn!("cannot remove {}: {error}", self.spill.store.name(last));
                return;
            }
            segments.free.swap_remove(at);
            segments.files = last;
        }
    }
}

/// The thread's io_uring, made when it is first used.
pub(super) fn made(driver: &mut Option<Driver>) -> Result<&mut Driver> {
    if driver.is_none() {
        let made = Driver::new(2 * SPANS_AT_ONCE as u32)
            .map_err(|e| Error::io("the spill's io_uring", e))?;
        *driver = Some(made);
    }
    Ok(driver.as_mut().expect("just made"))
}

pub(super) fn wait_all(driver: &mut Driver, what: &str) -> Result<Vec<Completion>> {
    let mut done = Vec::new();
    while driver.pending() > 0 {
        driver.wait(1, None, &mut done).map_err(|e| Error::io(what, e))?;
    }
    Ok(done)
}
