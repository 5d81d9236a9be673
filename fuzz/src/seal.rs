//! Puts checksums (and sizes) right after a fuzzer changed what they cover, or it
//! would never get past them.

use std::mem::offset_of;
use towline_block::crc32c;
use towline_journal::activity::file::SECTOR_BYTES;
use towline_journal::format::{Slot, Superblock, VolumeEntry};
use towline_journal::spill::layout::{SPAN_HEADER_BYTES, SpanHeader};
use towline_shipper::batch::{HEADER_BYTES, Header, OP_BYTES, OpEntry};
use towline_shipper::receiver::{MarkHeader, PreImage};
use towline_shipper::wire::{FRAME_HEADER_BYTES, FrameHeader};
use zerocopy::{FromBytes, IntoBytes};

pub fn batch(bytes: &mut [u8]) {
    let Some((head, body)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    let Ok(header) = Header::mut_from_bytes(head) else { return };
    let is_sealed = header.flags.get() & 1 != 0;
    let count = (header.op_count.get() as usize).min(body.len() / OP_BYTES);
    if is_sealed {
        header.header_crc32c = 0.into();
        let covered = offset_of!(Header, header_crc32c);
        header.header_crc32c = crc32c(&header.as_bytes()[..covered]).into();
        return;
    }
    if header.compression != 0 {
        return packed(header, body, count);
    }
    let at =
        if header.version.get() == 1 { count * OP_BYTES } else { body.len() - count * OP_BYTES };
    let (front, back) = body.split_at_mut(at);
    let (table, data) = if header.version.get() == 1 { (front, back) } else { (back, front) };
    for entry in table.chunks_exact_mut(OP_BYTES) {
        let Ok(entry) = OpEntry::mut_from_bytes(entry) else { continue };
        let start = entry.data_offset.get() as usize;
        let len = entry.len.get() as usize;
        if let Some(covered) = start.checked_add(len).and_then(|end| data.get(start..end)) {
            entry.data_crc32c = crc32c(covered).into();
        }
    }
    header.op_count = (count as u32).into();
    header.data_bytes = (data.len() as u32).into();
    if header.version.get() != 1 {
        header.stored_bytes = header.data_bytes;
    }
    header.table_crc32c = crc32c(table).into();
    let covered = offset_of!(Header, header_crc32c);
    header.header_crc32c = crc32c(&header.as_bytes()[..covered]).into();
}

/// Compressed: sizes are taken from what is there, what it unpacks to is the fuzzer's.
fn packed(header: &mut Header, body: &mut [u8], count: usize) {
    let unit = (header.unit_bytes.get() as usize).max(1);
    let units = (header.data_bytes.get() as usize).div_ceil(unit).min(body.len() / 4);
    let tables = (count * OP_BYTES + units * 4).min(body.len());
    let (stored, tables) = body.split_at(body.len() - tables);
    header.op_count = (count as u32).into();
    header.stored_bytes = (stored.len() as u32).into();
    header.stored_crc32c = crc32c(stored).into();
    header.table_crc32c = crc32c(tables).into();
    let covered = offset_of!(Header, header_crc32c);
    header.header_crc32c = crc32c(&header.as_bytes()[..covered]).into();
}

/// All frames of a stream.
pub fn frame(mut bytes: &mut [u8]) {
    while let Some((head, rest)) = bytes.split_first_chunk_mut::<FRAME_HEADER_BYTES>() {
        let Ok(header) = FrameHeader::mut_from_bytes(head) else { return };
        let covered = offset_of!(FrameHeader, crc32c);
        header.crc32c = crc32c(&header.as_bytes()[..covered]).into();
        let len = header.len.get() as usize;
        let Some((_, after)) = rest.split_at_mut_checked(len) else { return };
        bytes = after;
    }
}

/// Header of `docs/formats/journal.md`: size and checksums are its last 16 bytes.
pub fn saved_map(bytes: &mut [u8]) {
    const HEADER: usize = 88;
    let Some((head, body)) = bytes.split_first_chunk_mut::<HEADER>() else { return };
    head[72..80].copy_from_slice(&(body.len() as u64).to_le_bytes());
    head[80..84].copy_from_slice(&crc32c(body).to_le_bytes());
    let crc = crc32c(&head[..84]);
    head[84..88].copy_from_slice(&crc.to_le_bytes());
}

/// Header and sectors, each with its checksum in its last four bytes.
pub fn activity_map(bytes: &mut [u8]) {
    for sector in bytes.chunks_exact_mut(SECTOR_BYTES) {
        let (covered, crc) = sector.split_at_mut(SECTOR_BYTES - 4);
        crc.copy_from_slice(&crc32c(covered).to_le_bytes());
    }
}

/// A header, then entries with their data behind them.
pub fn mark_file(bytes: &mut [u8]) {
    const HEADER: usize = size_of::<MarkHeader>();
    let Some((head, mut rest)) = bytes.split_first_chunk_mut::<HEADER>() else { return };
    let (covered, crc) = head.split_at_mut(HEADER - 4);
    crc.copy_from_slice(&crc32c(covered).to_le_bytes());
    while let Ok((entry, after)) = PreImage::mut_from_prefix(rest) {
        let len = (entry.data_bytes.get() as usize).min(after.len());
        entry.data_bytes = (len as u32).into();
        entry.data_crc32c = crc32c(&after[..len]).into();
        let covered = offset_of!(PreImage, entry_crc32c);
        entry.entry_crc32c = crc32c(&entry.as_bytes()[..covered]).into();
        rest = &mut after[len..];
    }
}

/// All spans of a segment, one behind the other, with their records.
pub fn spans(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(span) = bytes.get_mut(at..) {
        let Ok((header, _)) = SpanHeader::mut_from_prefix(span) else { return };
        header.offset = (at as u64).into();
        let (head, len) = (header.header_bytes.get(), header.span_bytes.get() as usize);
        let (touched, records) = (header.touched_count.get() as usize, header.record_count.get());
        let last = header.first_seq.get().wrapping_add(u64::from(records)).wrapping_sub(1);
        header.last_seq = last.into();
        let page = &span[..span.len().min(4096)];
        if SPAN_HEADER_BYTES + touched * 16 <= page.len() {
            let crc = SpanHeader::checksum(page, touched);
            span[SPAN_HEADER_BYTES - 4..SPAN_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        records_of(span, head as usize);
        at += len.max(4096);
    }
}

/// Headers and payloads of the records from `at` on, as far as they follow each other.
fn records_of(span: &mut [u8], mut at: usize) {
    const SLOT: usize = size_of::<Slot>();
    while let Some((head, after)) = span.get_mut(at..).and_then(|b| b.split_at_mut_checked(SLOT)) {
        let Ok(record) = Slot::mut_from_bytes(head) else { return };
        let has_payload = record.payload_position.get() != u64::MAX;
        let len = if has_payload { record.len.get() as usize } else { 0 };
        if let Some(payload) = after.get(..len).filter(|_| has_payload) {
            record.payload_crc = crc32c(payload).into();
        }
        record.header_crc = record.checksum(record.commit.get() >> 2).into();
        at += SLOT + len.next_multiple_of(8);
    }
}

pub fn superblock(bytes: &mut [u8]) {
    if let Ok((block, _)) = Superblock::mut_from_prefix(bytes) {
        block.crc = block.checksum().into();
    }
}

pub fn volume(bytes: &mut [u8]) {
    if let Ok(entry) = VolumeEntry::mut_from_bytes(bytes) {
        entry.crc = entry.checksum().into();
    }
}

/// A slot's checksum covers the number in its commit word.
pub fn slot(bytes: &mut [u8]) {
    if let Ok(slot) = Slot::mut_from_bytes(bytes) {
        slot.header_crc = slot.checksum(slot.commit.get() >> 2).into();
    }
}
