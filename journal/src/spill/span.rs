//! Spans: made from records of the ring, taken apart again. Pure; no I/O.

use super::layout::*;
use super::touched::{self, Touched};
use crate::format::{PAGE_BYTES, SLOT_BYTES, Slot, SlotState, commit_parts};
use crate::record::Record;
use towline_block::crc32c;
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = PAGE_BYTES as usize;
/// A body up to this is moved to stand right behind its ranges, so that a small
/// commit costs one page less.
const COMPACT_BODY_MAX: usize = 16 << 10;

const _: () = assert!(PAGE_BYTES == SPAN_ALIGN);

/// Whose span it is and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    pub incarnation: u32,
    pub epoch: u32,
    pub serial: u64,
    pub offset: u64,
}

/// A span being filled, in memory aligned for O_DIRECT.
pub struct SpanBuilder {
    storage: Vec<u8>,
    start: usize,
    body_bytes: usize,
    touched: Vec<Touched>,
    records: u32,
    first_seq: u64,
    last_seq: u64,
    unix_ns: u64,
    last_ns: u64,
    pub payload_bytes: u64,
}

/// A finished span: `bytes` of `storage` from `start`.
pub struct Built {
    pub storage: Vec<u8>,
    pub start: usize,
    pub bytes: usize,
    pub touched: Vec<Touched>,
    pub first_seq: u64,
    pub last_seq: u64,
    /// Times of its first and its last record.
    pub unix_ns: u64,
    pub last_ns: u64,
    pub payload_bytes: u64,
}

impl SpanBuilder {
    /// `storage` is memory of a former span, or empty.
    pub fn new(mut storage: Vec<u8>) -> SpanBuilder {
        if storage.is_empty() {
            storage = vec![0; SPAN_BYTES_MAX as usize + PAGE - 1];
        }
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(PAGE) - address;
        SpanBuilder {
            storage,
            start,
            body_bytes: 0,
            touched: Vec::new(),
            records: 0,
            first_seq: 0,
            last_seq: 0,
            unix_ns: 0,
            last_ns: 0,
            payload_bytes: 0,
        }
    }

    /// Adds the next record; `copy` fills in its payload. False: the span is full.
    pub fn push(&mut self, record: &Record, slot: &Slot, copy: impl FnOnce(&mut [u8])) -> bool {
        let payload = if record.has_payload() { record.extent.len as usize } else { 0 };
        let bytes = SLOT_BYTES as usize + payload.next_multiple_of(BODY_ALIGN as usize);
        if self.records > 0 && self.body_bytes + bytes > SPAN_BODY_GOAL as usize {
            return false;
        }
        let blocks = record.blocks();
        if blocks.count > 0 {
            let touched = Touched::new(record.volume, blocks);
            if !touched::add(&mut self.touched, touched, TOUCHED_MAX) {
                return false;
            }
        }
        let at = self.start + PAGE + self.body_bytes;
        let room = &mut self.storage[at..at + bytes];
        room[..SLOT_BYTES as usize].copy_from_slice(slot.as_bytes());
        copy(&mut room[SLOT_BYTES as usize..SLOT_BYTES as usize + payload]);
        room[SLOT_BYTES as usize + payload..].fill(0);
        if self.records == 0 {
            (self.first_seq, self.unix_ns) = (record.seq, record.unix_ns);
        }
        (self.last_seq, self.last_ns) = (record.seq, record.unix_ns);
        self.records += 1;
        self.body_bytes += bytes;
        self.payload_bytes += payload as u64;
        true
    }

    pub fn finish(mut self, place: &Place) -> Built {
        assert!(self.records > 0, "a span holds at least one record");
        let ranges_end = SPAN_HEADER_BYTES + self.touched.len() * TOUCHED_ENTRY_BYTES;
        let start = self.start;
        let mut header_bytes = PAGE;
        if self.body_bytes <= COMPACT_BODY_MAX {
            let body = start + PAGE..start + PAGE + self.body_bytes;
            self.storage.copy_within(body, start + ranges_end);
            header_bytes = ranges_end;
        } else {
            self.storage[start + ranges_end..start + PAGE].fill(0);
        }
        let end = header_bytes + self.body_bytes;
        let bytes = end.next_multiple_of(SPAN_ALIGN as usize);
        self.storage[start + end..start + bytes].fill(0);
        let mut header = SpanHeader {
            magic: SPAN_MAGIC,
            version: SPILL_VERSION.into(),
            header_bytes: (header_bytes as u32).into(),
            span_bytes: (bytes as u32).into(),
            body_bytes: (self.body_bytes as u32).into(),
            record_count: self.records.into(),
            touched_count: (self.touched.len() as u32).into(),
            group_uuid: place.group_uuid,
            ring_id: place.ring_id,
            incarnation: place.incarnation.into(),
            epoch: place.epoch.into(),
            serial: place.serial.into(),
            offset: place.offset.into(),
            first_seq: self.first_seq.into(),
            last_seq: self.last_seq.into(),
            unix_ns: self.unix_ns.into(),
            reserved: [0; 12],
            crc: 0.into(),
        };
        let page = &mut self.storage[start..start + PAGE];
        for (index, touched) in self.touched.iter().enumerate() {
            let entry = TouchedEntry::of(touched);
            let at = SPAN_HEADER_BYTES + index * TOUCHED_ENTRY_BYTES;
            page[at..at + TOUCHED_ENTRY_BYTES].copy_from_slice(entry.as_bytes());
        }
        page[..SPAN_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.crc = SpanHeader::checksum(page, self.touched.len()).into();
        page[..SPAN_HEADER_BYTES].copy_from_slice(header.as_bytes());
        Built {
            storage: self.storage,
            start,
            bytes,
            touched: self.touched,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            unix_ns: self.unix_ns,
            last_ns: self.last_ns,
            payload_bytes: self.payload_bytes,
        }
    }

    /// The memory of a span that is given up.
    pub fn into_storage(self) -> Vec<u8> {
        self.storage
    }
}

/// A span's header, checked.
#[derive(Clone)]
pub struct SpanHead {
    pub header: SpanHeader,
    pub touched: Vec<Touched>,
}

/// Why a page does not begin a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanFault {
    /// Nothing that looks like one.
    Absent,
    Newer,
    Damaged,
}

impl SpanHead {
    /// Reads the page in which a span is expected to begin at `offset` of its file.
    pub fn parse(page: &[u8], offset: u64) -> Result<SpanHead, SpanFault> {
        let (header, _) = SpanHeader::read_from_prefix(page).map_err(|_| SpanFault::Absent)?;
        if header.magic != SPAN_MAGIC {
            return Err(SpanFault::Absent);
        }
        if header.version.get() > SPILL_VERSION {
            return Err(SpanFault::Newer);
        }
        let count = header.touched_count.get() as usize;
        let ranges_end = SPAN_HEADER_BYTES + count.min(TOUCHED_MAX + 1) * TOUCHED_ENTRY_BYTES;
        if count > TOUCHED_MAX
            || page.len() < ranges_end
            || SpanHeader::checksum(page, count) != header.crc.get()
        {
            return Err(SpanFault::Damaged);
        }
        let (head, body) = (header.header_bytes.get(), header.body_bytes.get());
        let span = u64::from(header.span_bytes.get());
        let records = u64::from(header.record_count.get());
        let sound = header.version.get() == SPILL_VERSION
            && header.offset.get() == offset
            && head as usize >= ranges_end
            && u64::from(head) <= SPAN_ALIGN
            && u64::from(head) + u64::from(body) <= span
            && span <= SPAN_BYTES_MAX
            && span.is_multiple_of(SPAN_ALIGN)
            && records > 0
            && records * SLOT_BYTES <= u64::from(body)
            && header.first_seq.get().checked_add(records - 1) == Some(header.last_seq.get());
        if !sound {
            return Err(SpanFault::Damaged);
        }
        let touched = page[SPAN_HEADER_BYTES..ranges_end]
            .chunks_exact(TOUCHED_ENTRY_BYTES)
            .filter_map(|bytes| TouchedEntry::read_from_bytes(bytes).ok())
            .map(|entry| entry.touched())
            .collect();
        Ok(SpanHead { header, touched })
    }

    pub fn is_of(&self, group_uuid: &[u8; 16], ring_id: &[u8; 16]) -> bool {
        self.header.group_uuid == *group_uuid && self.header.ring_id == *ring_id
    }
}

/// A record of a span's body: where its slot and payload lie in the span.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub seq: u64,
    pub slot_at: usize,
    pub payload_at: usize,
}

/// The records of a whole span; stops at the first header that is not sound.
pub fn records<'a>(
    span: &'a [u8],
    head: &SpanHeader,
) -> impl Iterator<Item = (Entry, Record)> + use<'a> {
    let mut at = head.header_bytes.get() as usize;
    let end = (at + head.body_bytes.get() as usize).min(span.len());
    (head.first_seq.get()..=head.last_seq.get()).map_while(move |seq| {
        let (slot_at, payload_at) = (at, at + SLOT_BYTES as usize);
        if payload_at > end {
            return None;
        }
        let record = record_at(span, slot_at, seq)?;
        let payload = if record.has_payload() { record.extent.len } else { 0 };
        at = payload_at + payload.next_multiple_of(BODY_ALIGN) as usize;
        (at <= end).then_some((Entry { seq, slot_at, payload_at }, record))
    })
}

/// The payload of a record of the span, empty when it has none to be read.
///
/// # Errors
/// What is wrong with it, in words.
pub fn payload<'a>(
    span: &'a [u8],
    entry: &Entry,
    record: &Record,
) -> Result<&'a [u8], &'static str> {
    if record.state != SlotState::Done || !record.has_payload() {
        return Ok(&[]);
    }
    let end = entry.payload_at + record.extent.len as usize;
    let bytes = span.get(entry.payload_at..end).ok_or("its payload is cut off")?;
    match crc32c(bytes) == record.payload_crc {
        true => Ok(bytes),
        false => Err("its payload fails its checksum"),
    }
}

/// The record whose slot lies at `at` of the span.
pub fn record_at(span: &[u8], at: usize, seq: u64) -> Option<Record> {
    let bytes = span.get(at..at + SLOT_BYTES as usize)?;
    let slot = Slot::read_from_bytes(bytes).ok()?;
    if !commit_parts(slot.commit.get()).1.is_final() {
        return None;
    }
    Record::decode(seq, &slot).ok()
}
