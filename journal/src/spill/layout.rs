//! Byte layout of a span. `docs/formats/spill.md` explains it; a test compares that
//! document's tables with these structs.

use super::touched::Touched;
use crate::format::{RECORD_PAYLOAD_BYTES_MAX, SLOT_BYTES};
use std::mem::{offset_of, size_of};
use towline_block::VolumeId;
use towline_block::checksum::crc32c_of;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const SPAN_MAGIC: [u8; 8] = *b"TWLSPAN\0";
pub const TRAILER_MAGIC: [u8; 8] = *b"TWLSPEND";
pub const SPILL_VERSION: u32 = 1;

/// A segment file. 64 MiB: small enough that damage costs little, large enough that
/// 16 GiB are 256 files.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// The end of a segment is its trailer's, once it is full.
pub const TRAILER_BYTES: u64 = 256 << 10;
/// Spans end here at the latest.
pub const SPANS_END: u64 = SEGMENT_BYTES - TRAILER_BYTES;
/// Spans begin and end at multiples of this, for O_DIRECT.
pub const SPAN_ALIGN: u64 = 4096;
/// A span takes no further record beyond this: the largest write that the disk
/// takes in one piece.
pub const SPAN_BODY_GOAL: u64 = 1 << 20;
/// One record of the largest payload, alone, behind a page of header.
pub const SPAN_BYTES_MAX: u64 = 2 * SPAN_ALIGN + RECORD_PAYLOAD_BYTES_MAX;
/// So many ranges fill the header's page; with 4 KiB writes all over the volume this
/// is reached together with [`SPAN_BODY_GOAL`].
pub const TOUCHED_MAX: usize = 248;
/// Payloads are padded to this in a body.
pub const BODY_ALIGN: u64 = 8;

/// Begins a span. Followed by the ranges it touches, then, at `header_bytes`, by its
/// records.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct SpanHeader {
    pub magic: [u8; 8],
    pub version: U32,
    /// Where the body begins; at most one page.
    pub header_bytes: U32,
    /// Header, body and padding.
    pub span_bytes: U32,
    pub body_bytes: U32,
    pub record_count: U32,
    pub touched_count: U32,
    pub group_uuid: [u8; 16],
    /// Of the ring the records come from.
    pub ring_id: [u8; 16],
    pub incarnation: U32,
    pub epoch: U32,
    /// Rises with every use of a segment; all spans of one use have the same.
    pub serial: U64,
    /// Where the span lies in its file.
    pub offset: U64,
    pub first_seq: U64,
    pub last_seq: U64,
    /// Time of the first record.
    pub unix_ns: U64,
    pub reserved: [u8; 12],
    /// CRC-32C of header and ranges without this field.
    pub crc: U32,
}

/// A range of blocks that records of the span touch.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct TouchedEntry {
    pub first_block: U64,
    pub blocks: U32,
    pub volume: U16,
    pub reserved: U16,
}

/// Behind the spans of a full segment: what it holds. Followed by its runs of records, then
/// by the ranges it touches.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct Trailer {
    pub magic: [u8; 8],
    pub version: U32,
    pub run_count: U32,
    pub touched_count: U32,
    pub reserved: U32,
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    pub serial: U64,
    pub first_seq: U64,
    pub last_seq: U64,
    /// Times of the first and the last span.
    pub first_ns: U64,
    pub last_ns: U64,
    /// Of all spans.
    pub bytes: U64,
    pub reserved_2: [u8; 20],
    /// CRC-32C of header and entries without this field.
    pub crc: U32,
}

/// Consecutive records.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RunEntry {
    pub first: U64,
    pub last: U64,
}

pub const SPAN_HEADER_BYTES: usize = size_of::<SpanHeader>();
pub const TOUCHED_ENTRY_BYTES: usize = size_of::<TouchedEntry>();

const _: () = assert!(SPAN_HEADER_BYTES == 128);
const _: () = assert!(TOUCHED_ENTRY_BYTES == 16);
const _: () = assert!(SPAN_HEADER_BYTES + TOUCHED_MAX * TOUCHED_ENTRY_BYTES == SPAN_ALIGN as usize);
const _: () = assert!(SPAN_ALIGN + SLOT_BYTES + RECORD_PAYLOAD_BYTES_MAX <= SPAN_BYTES_MAX);
const _: () = assert!(SPAN_BYTES_MAX <= SPANS_END && TRAILER_BYTES.is_multiple_of(SPAN_ALIGN));
const _: () = assert!(size_of::<Trailer>() == 128);

impl TouchedEntry {
    pub(super) fn of(touched: &Touched) -> TouchedEntry {
        TouchedEntry {
            first_block: touched.first_block.into(),
            blocks: touched.blocks.into(),
            volume: touched.volume.0.into(),
            reserved: 0.into(),
        }
    }

    pub(super) fn touched(&self) -> Touched {
        Touched {
            volume: VolumeId(self.volume.get()),
            first_block: self.first_block.get(),
            blocks: self.blocks.get(),
        }
    }
}

impl SpanHeader {
    /// Over the header and the ranges that follow it in `page`.
    pub fn checksum(page: &[u8], touched_count: usize) -> u32 {
        let crc_at = offset_of!(SpanHeader, crc);
        let end = SPAN_HEADER_BYTES + touched_count * TOUCHED_ENTRY_BYTES;
        crc32c_of(&[&page[..crc_at], &page[crc_at + 4..end]])
    }
}

impl Trailer {
    /// Over the header and the entries that follow it.
    pub fn checksum(&self, entries: &[u8]) -> u32 {
        crc32c_of(&[&self.as_bytes()[..offset_of!(Trailer, crc)], entries])
    }
}
