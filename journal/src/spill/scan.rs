//! Finds out what a spill holds: reads the trailer of full segments, span headers of the
//! rest, of many segments at a time.
//! Used at start and by tools; payloads are verified when they are shipped.

use super::index::{Segment, Segments, SpanFigures};
use super::layout::{SEGMENT_BYTES, SPAN_ALIGN, SPANS_END, TRAILER_BYTES};
use super::runs::{self, Run};
use super::span::{SpanFault, SpanHead};
use super::store::{OpenedSegment, Store};
use super::touched::Touched;
use super::trailer;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use towline_block::sys::uring::{Driver, Fd, Op, Window};

/// Segments whose headers are read at once: a segment's next header is known only when
/// the one before it is, so the disk's queue is filled with other segments.
const SEGMENTS_AT_ONCE: usize = 64;
const PAGE: usize = SPAN_ALIGN as usize;

/// What was found, of whatever ring.
#[derive(Debug, Default)]
pub struct Scanned {
    files: Vec<FileFound>,
    /// Spans whose header was read.
    pub spans: u64,
    /// A segment was written by a newer Towline: its path.
    pub newer: Option<String>,
}

/// One segment's content.
#[derive(Clone, Debug, Default)]
struct FileFound {
    file: u32,
    /// Serial of its first span, of whatever group.
    serial: u64,
    ring_id: [u8; 16],
    incarnation: u32,
    /// Set when its first span is of the group.
    segment: Option<Segment>,
    spans: u64,
    newer: bool,
}

/// How much of a segment is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    First,
    All,
}

/// Reads the headers of all segments.
pub fn scan(store: &Store, group_uuid: &[u8; 16]) -> Scanned {
    look(store, group_uuid, Depth::All)
}

/// Reads the first header of each segment: which begin where.
pub(super) fn beginnings(store: &Store, group_uuid: &[u8; 16]) -> Scanned {
    look(store, group_uuid, Depth::First)
}

fn look(store: &Store, group_uuid: &[u8; 16], depth: Depth) -> Scanned {
    let count = store.count();
    let mut scanned = Scanned::default();
    let mut files: Vec<FileFound> = match Driver::new(SEGMENTS_AT_ONCE as u32) {
        Ok(mut driver) => read_many(&mut driver, store, count, group_uuid, depth),
        // Tools also run where io_uring does not.
        Err(_) => (0..count).map(|file| read_alone(store, file, group_uuid, depth)).collect(),
    };
    files.sort_by_key(|found| found.file);
    scanned.spans = files.iter().map(|found| found.spans).sum();
    let newer = files.iter().find(|found| found.newer);
    scanned.newer = newer.map(|found| store.name(found.file));
    if store.is_newer() {
        scanned.newer = Some(store.path().display().to_string());
    }
    scanned.files = files;
    scanned
}

impl Scanned {
    /// The segments for the owner of ring `ring_id`, of which the target has all up to
    /// `acked`. What ring `history` left is kept apart; the rest is free.
    pub fn sorted(self, ring_id: &[u8; 16], acked: u64, history: Option<&[u8; 16]>) -> Segments {
        let mut segments = Segments { files: self.files.len() as u32, ..Segments::default() };
        let serials: Vec<u64> = self.files.iter().map(|found| found.serial).collect();
        segments.next_serial = serials.iter().max().unwrap_or(&0) + 1;
        let (mut live, mut kept) = (Vec::new(), Vec::new());
        for found in self.files {
            let is_history = history == Some(&found.ring_id);
            match found.segment {
                Some(segment) if found.ring_id == *ring_id && segment.last_seq > acked => {
                    live.push(segment);
                }
                Some(segment) if is_history => kept.push(segment),
                _ => segments.free.push(found.file),
            }
        }
        // What was in flight when the last owner was killed lands in its newest segment:
        // that one is used again last.
        let age = |file: &u32| serials.get(*file as usize).copied();
        segments.free.sort_by_key(|file| std::cmp::Reverse(age(file)));
        live.sort_by_key(|segment| segment.serial);
        kept.sort_by_key(|segment| segment.serial);
        segments.live = live.into();
        segments.history = kept;
        segments
    }

    /// What can be replayed of ring `ring_id`, as far as headers tell.
    pub fn runs(&self, ring_id: &[u8; 16]) -> Vec<Run> {
        let of_ring = self.files.iter().filter(|found| found.ring_id == *ring_id);
        let segments = of_ring.filter_map(|found| found.segment.as_ref());
        runs::joined(segments.flat_map(|segment| segment.runs.iter().copied()).collect())
    }

    /// Blocks that records of ring `ring_id` touch.
    pub fn touched(&self, ring_id: &[u8; 16]) -> Vec<Touched> {
        let of_ring = self.files.iter().filter(|found| found.ring_id == *ring_id);
        let segments = of_ring.filter_map(|found| found.segment.as_ref());
        segments.flat_map(|segment| segment.touched.ranges().iter().copied()).collect()
    }

    /// The segments of ring `ring_id`: the first record, serial and number of each.
    pub(super) fn begun(&self, ring_id: &[u8; 16]) -> Vec<(u64, u64, u32)> {
        let of_ring = self.files.iter().filter(|found| found.ring_id == *ring_id);
        let begun =
            |found: &FileFound| Some((found.segment.as_ref()?.first_seq, found.serial, found.file));
        of_ring.filter_map(begun).collect()
    }

    /// The newest segment of ring `ring_id` that begins at or before `seq`: its number and
    /// serial.
    pub(super) fn newest_before(&self, ring_id: &[u8; 16], seq: u64) -> Option<(u32, u64)> {
        let of_ring = self.files.iter().filter(|found| found.ring_id == *ring_id);
        let begun = of_ring
            .filter(|found| found.segment.as_ref().is_some_and(|segment| segment.first_seq <= seq));
        begun.max_by_key(|found| found.serial).map(|found| (found.file, found.serial))
    }

    /// Whether every record of `acked + 1 ..= spilled` of the ring is there.
    pub fn covers(&self, ring_id: &[u8; 16], acked: u64, spilled: u64) -> bool {
        let is_whole = |run: &Run| run.first <= acked + 1 && run.last >= spilled;
        spilled <= acked || self.runs(ring_id).iter().any(is_whole)
    }
}

/// A segment being read.
struct Reading {
    found: FileFound,
    fd: Fd,
    base: u64,
    /// Of the next header.
    offset: u64,
    /// Set while the trailer is read: the header of the first span.
    first: Option<SpanHead>,
}

impl Reading {
    fn new(file: u32, opened: OpenedSegment) -> Reading {
        let OpenedSegment { file: descriptor, base, .. } = opened;
        let found = FileFound { file, ..FileFound::default() };
        Reading { found, fd: Arc::new(descriptor.into()), base, offset: 0, first: None }
    }

    /// Where to read next, and how much.
    fn next(&self) -> (u64, usize) {
        match self.first {
            Some(_) => (self.base + SPANS_END, TRAILER_BYTES as usize),
            None => (self.base + self.offset, PAGE),
        }
    }

    /// Takes what was read there, `None` if it could not be; true when there is more to
    /// read.
    fn take(&mut self, bytes: Option<&[u8]>, group_uuid: &[u8; 16], depth: Depth) -> bool {
        if let Some(first) = self.first.take() {
            let whole = bytes.and_then(|bytes| trailer::parse(bytes, &first, self.found.file));
            let has_trailer = whole.is_some();
            self.found.segment = whole.or(self.found.segment.take());
            return !has_trailer && self.offset < SEGMENT_BYTES;
        }
        let Some(bytes) = bytes else { return false };
        let is_first = self.offset == 0;
        let more = self.found.take(bytes, &mut self.offset, group_uuid);
        if is_first && more && depth == Depth::All {
            self.first = SpanHead::parse(bytes, 0).ok();
        }
        more && depth == Depth::All
    }
}

fn read_many(
    driver: &mut Driver,
    store: &Store,
    count: u32,
    group_uuid: &[u8; 16],
    depth: Depth,
) -> Vec<FileFound> {
    let mut found = Vec::with_capacity(count as usize);
    let mut reading: Vec<Option<Reading>> = Vec::new();
    reading.resize_with(SEGMENTS_AT_ONCE.min(count as usize), || None);
    let mut next = 0;
    let mut done = Vec::new();
    // A page for each segment under way; the kernel has it while it is being filled.
    let mut free: Vec<usize> = (0..reading.len()).collect();
    while next < count || driver.pending() > 0 {
        while next < count
            && let Some(at) = free.pop()
        {
            let file = next;
            next += 1;
            let Ok(opened) = store.open(file) else {
                found.push(FileFound { file, ..FileFound::default() });
                free.push(at);
                continue;
            };
            let part = Reading::new(file, opened);
            match ask(driver, at, &part, Vec::new()) {
                true => reading[at] = Some(part),
                false => {
                    found.push(read_alone(store, file, group_uuid, depth));
                    free.push(at);
                }
            }
        }
        if driver.wait(1, None, &mut done).is_err() {
            break;
        }
        for completion in done.drain(..) {
            let at = completion.token as usize;
            let Some(mut part) = reading[at].take() else { continue };
            let window = completion.window;
            let whole = matches!(completion.result, Ok(bytes) if bytes == window.len);
            let bytes = &window.buf[window.start..window.start + window.len];
            let more = part.take(whole.then_some(bytes), group_uuid, depth);
            if more && ask(driver, at, &part, window.buf) {
                reading[at] = Some(part);
            } else {
                found.push(part.found);
                free.push(at);
            }
        }
    }
    found
}

/// `memory` is that of the read before, or empty.
fn ask(driver: &mut Driver, at: usize, part: &Reading, memory: Vec<u8>) -> bool {
    let (offset, len) = part.next();
    let memory = if memory.len() >= len + PAGE { memory } else { vec![0; len + PAGE] };
    let address = memory.as_ptr().addr();
    let window = Window::new(memory, address.next_multiple_of(PAGE) - address, len);
    driver.push(at as u64, Op::Read(part.fd.clone(), offset, window)).is_ok()
}

fn read_alone(store: &Store, file: u32, group_uuid: &[u8; 16], depth: Depth) -> FileFound {
    let Ok(opened) = store.open(file) else {
        return FileFound { file, ..FileFound::default() };
    };
    let mut part = Reading::new(file, opened);
    let mut storage = vec![0; TRAILER_BYTES as usize + PAGE];
    let start = storage.as_ptr().addr().next_multiple_of(PAGE) - storage.as_ptr().addr();
    let fd = part.fd.clone();
    let Ok(descriptor) = fd.try_clone().map(File::from) else { return part.found };
    loop {
        let (offset, len) = part.next();
        let bytes = &mut storage[start..start + len];
        let whole = descriptor.read_exact_at(bytes, offset).is_ok();
        if !part.take(whole.then_some(&*bytes), group_uuid, depth) {
            return part.found;
        }
    }
}

impl FileFound {
    /// Takes the page at `offset`; true when another header may follow, at `offset` then.
    fn take(&mut self, page: &[u8], offset: &mut u64, group_uuid: &[u8; 16]) -> bool {
        let head = match SpanHead::parse(page, *offset) {
            Ok(head) => head,
            Err(fault) => {
                self.newer |= fault == SpanFault::Newer;
                return false;
            }
        };
        let header = &head.header;
        if *offset == 0 {
            self.serial = header.serial.get();
            if header.group_uuid == *group_uuid {
                self.ring_id = header.ring_id;
                self.incarnation = header.incarnation.get();
                self.segment = Some(Segment::new(self.file, self.serial));
            }
        }
        let Some(segment) = &mut self.segment else { return false };
        let continues = head.is_of(group_uuid, &self.ring_id)
            && header.serial.get() == segment.serial
            && (*offset == 0 || header.first_seq.get() > segment.last_seq);
        if !continues {
            return false;
        }
        segment.add(&SpanFigures {
            first_seq: header.first_seq.get(),
            last_seq: header.last_seq.get(),
            bytes: u64::from(header.span_bytes.get()),
            unix_ns: header.unix_ns.get(),
            last_ns: header.unix_ns.get(),
            touched: &head.touched,
        });
        self.spans += 1;
        *offset += u64::from(header.span_bytes.get());
        *offset < SEGMENT_BYTES
    }
}

#[cfg(test)]
mod tests;
