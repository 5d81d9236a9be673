//! Reads a spill from one record to another, for tools: each span once, in order.
//!
//! Reads through the page cache and leaves that as it was; takes no lock, holds no more than
//! a window of a segment for each thread, and so is in nobody's way: neither in that of the
//! group's own process nor of the shipper, which has a reader of its own (`reader.rs`).
//! Believes no header: what is not sound is not handed out, and no damage makes a walk longer
//! than the segments are. On a live group segments are used again meanwhile; what is gone then
//! was at the target.

use super::layout::{SEGMENT_BYTES, SPAN_ALIGN, SPAN_BYTES_MAX};
use super::scan;
use super::span::{self, SpanHead};
use super::store::{OpenedSegment, Store};
use crate::record::Record;
use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::sync::mpsc::sync_channel;
use std::vec::IntoIter;
use towline_block::sys::read_passing;

/// Read at a time; a span always fits.
const WINDOW_BYTES: usize = 2 << 20;
/// Threads of a check at most. Four read faster than most memory.
pub const CHECK_THREADS_MAX: usize = 4;
/// Segments that a thread may be ahead of whoever takes its results: they are a few bytes,
/// of a damaged segment at most 24 for each of its records.
const PARTS_AHEAD: usize = 1;

const _: () = assert!(WINDOW_BYTES as u64 >= SPAN_BYTES_MAX);

/// The segments that hold records of a range, as they lay when the walk was begun.
pub struct Walk {
    store: Store,
    group_uuid: [u8; 16],
    ring_id: [u8; 16],
    parts: Vec<Part>,
}

/// One segment, and the records that it answers for: no other segment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: u32,
    serial: u64,
    first: u64,
    last: u64,
}

impl Part {
    fn answers_for(&self, seq: u64) -> bool {
        (self.first..=self.last).contains(&seq)
    }
}

/// Consecutive records that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sound {
    pub first: u64,
    pub last: u64,
    /// Of payload.
    pub bytes: u64,
}

impl Walk {
    /// Reads the first header of each segment.
    pub fn new(
        store: Store,
        group_uuid: [u8; 16],
        ring_id: [u8; 16],
        records: &RangeInclusive<u64>,
    ) -> Walk {
        let begun = scan::beginnings(&store, &group_uuid).begun(&ring_id);
        Walk { store, group_uuid, ring_id, parts: parts(begun, records) }
    }

    /// Checks every record, header and payload, on so many threads; `take` gets what is
    /// sound and `within` takes, in order, each record once.
    pub fn check(
        &self,
        threads: usize,
        within: impl Fn(&Record) -> bool + Sync,
        mut take: impl FnMut(Sound),
    ) {
        let threads = threads.clamp(1, CHECK_THREADS_MAX);
        std::thread::scope(|scope| {
            let mut results = Vec::with_capacity(threads);
            for index in 0..threads.min(self.parts.len()) {
                let (give, result) = sync_channel(PARTS_AHEAD);
                let within = &within;
                scope.spawn(move || {
                    let mut window = Window::default();
                    for part in self.parts.iter().skip(index).step_by(threads) {
                        if give.send(self.check_part(part, &mut window, within)).is_err() {
                            return;
                        }
                    }
                });
                results.push(result);
            }
            for index in 0..self.parts.len() {
                // Without a result nothing of the part is sound.
                let found: Vec<Sound> = results[index % threads].recv().unwrap_or_default();
                found.into_iter().for_each(&mut take);
            }
        });
    }

    fn check_part(
        &self,
        part: &Part,
        window: &mut Window,
        within: impl Fn(&Record) -> bool,
    ) -> Vec<Sound> {
        let mut found = Vec::new();
        let Some(mut spans) = self.open(part, window) else { return found };
        while let Some((head, bytes)) = spans.next(window) {
            for (entry, record) in span::records(bytes, &head.header) {
                if part.answers_for(record.seq)
                    && within(&record)
                    && let Ok(payload) = span::payload(bytes, &entry, &record)
                {
                    push(&mut found, record.seq, payload.len() as u64);
                }
            }
        }
        found
    }

    fn open(&self, part: &Part, window: &mut Window) -> Option<Spans> {
        let segment = self.store.open_cached(part.number).ok()?;
        window.forget();
        let (group_uuid, ring_id) = (self.group_uuid, self.ring_id);
        Some(Spans { group_uuid, ring_id, part: *part, segment, next: 0, last: 0 })
    }
}

/// Whose records are whose: those from a segment's first one on are its own, up to the
/// first one of a newer segment. What a killed owner's last segment has beyond that was
/// written again.
fn parts(mut begun: Vec<(u64, u64, u32)>, records: &RangeInclusive<u64>) -> Vec<Part> {
    begun.sort_unstable();
    let mut parts: Vec<Part> = Vec::with_capacity(begun.len());
    for (first, serial, number) in begun {
        if let Some(before) = parts.last_mut() {
            if before.serial > serial {
                continue;
            }
            before.last = first.saturating_sub(1);
        }
        parts.push(Part { number, serial, first, last: u64::MAX });
    }
    for part in &mut parts {
        part.first = part.first.max(*records.start());
        part.last = part.last.min(*records.end());
    }
    parts.retain(|part| part.first <= part.last);
    parts
}

fn push(found: &mut Vec<Sound>, seq: u64, bytes: u64) {
    match found.last_mut() {
        Some(run) if run.last + 1 == seq => (run.last, run.bytes) = (seq, run.bytes + bytes),
        _ => found.push(Sound { first: seq, last: seq, bytes }),
    }
}

/// The spans of a part, in order.
struct Spans {
    group_uuid: [u8; 16],
    ring_id: [u8; 16],
    part: Part,
    segment: OpenedSegment,
    /// Where the next header is looked for.
    next: u64,
    /// Last record of the spans so far.
    last: u64,
}

impl Spans {
    /// The next span that has records of the part and can be read.
    fn next<'w>(&mut self, window: &'w mut Window) -> Option<(SpanHead, &'w [u8])> {
        while self.next < SEGMENT_BYTES {
            let offset = self.next;
            let page = window.get(&self.segment, offset, SPAN_ALIGN as usize)?;
            let head = SpanHead::parse(page, offset).ok()?;
            let (first, last) = (head.header.first_seq.get(), head.header.last_seq.get());
            let belongs = head.is_of(&self.group_uuid, &self.ring_id)
                && head.header.serial.get() == self.part.serial;
            if !belongs || first <= self.last || first > self.part.last {
                return None;
            }
            let bytes = head.header.span_bytes.get() as usize;
            (self.next, self.last) = (offset + bytes as u64, last);
            if last >= self.part.first && window.get(&self.segment, offset, bytes).is_some() {
                return Some((head, window.get(&self.segment, offset, bytes)?));
            }
        }
        None
    }
}

/// A stretch of a segment, in memory.
#[derive(Default)]
struct Window {
    memory: Vec<u8>,
    /// Where in the segment it begins.
    at: u64,
    len: usize,
}

impl Window {
    fn forget(&mut self) {
        self.len = 0;
    }

    /// Bytes of the segment; `None` when it ends before, or cannot be read.
    fn get(&mut self, segment: &OpenedSegment, offset: u64, len: usize) -> Option<&[u8]> {
        let end = offset + len as u64;
        if offset < self.at || end > self.at + self.len as u64 {
            self.fill(segment, offset);
        }
        let start = (offset - self.at) as usize;
        self.memory[..self.len].get(start..start + len)
    }

    /// Makes the window begin at `offset`. What it has from there on is not read again.
    fn fill(&mut self, segment: &OpenedSegment, offset: u64) {
        if self.memory.is_empty() {
            self.memory = vec![0; WINDOW_BYTES];
        }
        let had = self.at..self.at + self.len as u64;
        let kept = if had.contains(&offset) { (had.end - offset) as usize } else { 0 };
        self.memory.copy_within(self.len - kept..self.len, 0);
        (self.at, self.len) = (offset, kept);
        let end = (SEGMENT_BYTES - offset).min(WINDOW_BYTES as u64) as usize;
        while self.len < end {
            let from = segment.base + offset + self.len as u64;
            match read_passing(&segment.file, &mut self.memory[self.len..end], from) {
                Ok(0) | Err(_) => return,
                Ok(bytes) => self.len += bytes,
            }
        }
    }
}

/// The records of a walk without their payloads, as they are asked for: in order.
pub struct Headers {
    walk: Walk,
    window: Window,
    /// Next of the walk's parts.
    part: usize,
    spans: Option<Spans>,
    /// Of the span that is open.
    records: Peekable<IntoIter<Record>>,
}

impl Headers {
    pub fn new(walk: Walk) -> Headers {
        let records = Vec::new().into_iter().peekable();
        Headers { walk, window: Window::default(), part: 0, spans: None, records }
    }

    /// Record `seq`, if it is there and its header sound. Never asked for again, nor any
    /// before it.
    pub fn get(&mut self, seq: u64) -> Option<Record> {
        loop {
            while self.records.next_if(|record| record.seq < seq).is_some() {}
            if let Some(record) = self.records.peek() {
                return if record.seq == seq { self.records.next() } else { None };
            }
            if self.open_span() {
                continue;
            }
            let part = self.walk.parts.get(self.part)?;
            if seq < part.first {
                return None;
            }
            self.spans = self.walk.open(part, &mut self.window);
            self.part += 1;
        }
    }

    /// Goes on in the open segment; false when it has no more.
    fn open_span(&mut self) -> bool {
        let Some(spans) = &mut self.spans else { return false };
        let part = spans.part;
        let Some((head, bytes)) = spans.next(&mut self.window) else {
            self.spans = None;
            return false;
        };
        let records = span::records(bytes, &head.header).map(|(_, record)| record);
        let own = records.filter(|record| part.answers_for(record.seq));
        self.records = own.collect::<Vec<_>>().into_iter().peekable();
        true
    }
}

#[cfg(test)]
mod tests;
