//! Reads records back from the spill: the shipper, and tools that ask for single ones
//! (`walk.rs` is for all of them). Read only.
//!
//! Reads a span at a time, asynchronously and past the page cache, as all background
//! reads ([`towline_block::DirectReader`]); records are asked for in order.

use super::layout::SEGMENT_BYTES;
use super::scan;
use super::span::{self, Entry, SpanHead, record_at};
use super::store::{OpenedSegment, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use std::sync::Arc;
use towline_block::sys::uring::Fd;
use towline_block::{BLOCK_BYTES, DirectReader, Extent};

pub struct SpillReader {
    store: Store,
    group_uuid: [u8; 16],
    ring_id: [u8; 16],
    segment: Option<OpenSegment>,
    span: Option<OpenSpan>,
}

struct OpenSegment {
    fd: Fd,
    opened: OpenedSegment,
    serial: u64,
    /// Where the next span is looked for.
    next: u64,
}

struct OpenSpan {
    head: SpanHead,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl SpillReader {
    pub fn new(store: Store, group_uuid: [u8; 16], ring_id: [u8; 16]) -> SpillReader {
        SpillReader { store, group_uuid, ring_id, segment: None, span: None }
    }

    /// Record `seq`, its payload appended to `payload`.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when no span holds it, [`ErrorKind::Damaged`] when one
    /// does and it fails a check.
    pub fn read(&mut self, seq: u64, payload: &mut Vec<u8>) -> Result<Record> {
        let (span, entry, record) = self.look(seq)?;
        let bytes =
            span::payload(&span.bytes, entry, &record).map_err(|what| damaged(seq, what))?;
        payload.extend_from_slice(bytes);
        Ok(record)
    }

    /// Record `seq`, its payload unread and unchecked.
    ///
    /// # Errors
    /// As [`SpillReader::read`].
    pub fn header(&mut self, seq: u64) -> Result<Record> {
        self.look(seq).map(|(.., record)| record)
    }

    fn look(&mut self, seq: u64) -> Result<(&OpenSpan, &Entry, Record)> {
        if !self.span.as_ref().is_some_and(|span| span.holds(seq)) {
            self.find(seq)?;
        }
        let span = self.span.as_ref().ok_or_else(|| missing(seq))?;
        let at = span.entries.binary_search_by_key(&seq, |entry| entry.seq);
        let entry = at
            .ok()
            .and_then(|at| span.entries.get(at))
            .ok_or_else(|| damaged(seq, "its header fails its checksum"))?;
        let record =
            record_at(&span.bytes, entry.slot_at, seq).ok_or_else(|| damaged(seq, "no header"))?;
        Ok((span, entry, record))
    }

    /// Makes the span that holds `seq` the open one.
    fn find(&mut self, seq: u64) -> Result<()> {
        self.span = None;
        if self.find_in_segment(seq)? {
            return Ok(());
        }
        self.segment = None;
        self.open_segment(seq)?;
        match self.find_in_segment(seq)? {
            true => Ok(()),
            false => Err(missing(seq)),
        }
    }

    /// Goes on in the open segment; false when `seq` is not in it from there on.
    fn find_in_segment(&mut self, seq: u64) -> Result<bool> {
        let Some(segment) = &mut self.segment else { return Ok(false) };
        while segment.next < SEGMENT_BYTES {
            let offset = segment.next;
            let Some(head) = segment.opened.head_at(offset) else { return Ok(false) };
            let belongs = head.is_of(&self.group_uuid, &self.ring_id)
                && head.header.serial.get() == segment.serial;
            if !belongs || head.header.first_seq.get() > seq {
                return Ok(false);
            }
            segment.next = offset + u64::from(head.header.span_bytes.get());
            if head.header.last_seq.get() >= seq {
                let extent = Extent::new(segment.opened.base + offset, segment.next - offset);
                let fd = segment.fd.clone();
                self.span = Some(load(&fd, extent, head)?);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Opens the newest segment that begins at or before `seq`.
    fn open_segment(&mut self, seq: u64) -> Result<()> {
        let found = scan::beginnings(&self.store, &self.group_uuid);
        let Some((number, serial)) = found.newest_before(&self.ring_id, seq) else {
            return Ok(());
        };
        let unreadable = |e| Error::io(format!("cannot open {}", self.store.name(number)), e);
        let opened = self.store.open(number).map_err(unreadable)?;
        let file = opened.file.try_clone().map_err(unreadable)?;
        self.segment = Some(OpenSegment { fd: Arc::new(file.into()), opened, serial, next: 0 });
        Ok(())
    }
}

/// One io_uring a span of 1 MiB: made here, as it belongs to the reading thread.
fn load(fd: &Fd, extent: Extent, head: SpanHead) -> Result<OpenSpan> {
    let mut direct = DirectReader::new().map_err(|e| unreadable(&e))?;
    let pieces: Vec<Extent> = extent.pieces(BLOCK_BYTES).collect();
    let read = direct.read(fd, &pieces).map_err(|e| unreadable(&e))?;
    let mut bytes = Vec::with_capacity(extent.len as usize);
    read.iter().for_each(|piece| bytes.extend_from_slice(piece.as_slice()));
    let entries = span::records(&bytes, &head.header).map(|(entry, _)| entry).collect();
    Ok(OpenSpan { head, bytes, entries })
}

impl OpenSpan {
    fn holds(&self, seq: u64) -> bool {
        (self.head.header.first_seq.get()..=self.head.header.last_seq.get()).contains(&seq)
    }
}

fn missing(seq: u64) -> Error {
    Error::new(ErrorKind::Missing, format!("record {seq} is not in the spill"))
}

fn damaged(seq: u64, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("record {seq} of the spill: {what}"))
}

fn unreadable(error: &towline_block::Error) -> Error {
    Error::new(ErrorKind::Damaged, format!("the spill cannot be read: {error}"))
}
