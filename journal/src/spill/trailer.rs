//! What a full segment holds, behind its spans: a start then reads two places of a segment
//! and not the header of each span, of which commits of a few kilobytes make thousands.
//! Pure; no I/O. Without a sound trailer the headers count (docs/formats/spill.md).

use super::index::Segment;
use super::layout::*;
use super::runs::Run;
use super::span::{Place, SpanHead};
use super::touched::TouchedSet;
use towline_block::checksum::crc32c_of;
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = size_of::<Trailer>();
const ENTRY: usize = size_of::<RunEntry>();
/// So many runs and ranges, together, fit behind the header. Random writes of 4 KiB, each
/// into a block of its own, stay below it.
const ENTRIES_MAX: usize = (TRAILER_BYTES as usize - HEADER) / ENTRY;

const _: () = assert!(ENTRY == TOUCHED_ENTRY_BYTES);

/// The trailer of a segment, in whole pages; `None` when there is too much to say.
pub fn encode(segment: &Segment, place: &Place) -> Option<Vec<u8>> {
    let touched = segment.touched.merged();
    if segment.runs.len() + touched.len() > ENTRIES_MAX {
        return None;
    }
    let mut header = Trailer {
        magic: TRAILER_MAGIC,
        version: SPILL_VERSION.into(),
        run_count: (segment.runs.len() as u32).into(),
        touched_count: (touched.len() as u32).into(),
        reserved: 0.into(),
        group_uuid: place.group_uuid,
        ring_id: place.ring_id,
        serial: segment.serial.into(),
        first_seq: segment.first_seq.into(),
        last_seq: segment.last_seq.into(),
        first_ns: segment.first_ns.into(),
        last_ns: segment.last_ns.into(),
        bytes: segment.bytes.into(),
        reserved_2: [0; 20],
        crc: 0.into(),
    };
    let mut entries = Vec::with_capacity((segment.runs.len() + touched.len()) * ENTRY);
    for run in &segment.runs {
        let entry = RunEntry { first: run.first.into(), last: run.last.into() };
        entries.extend_from_slice(entry.as_bytes());
    }
    for touched in &touched {
        entries.extend_from_slice(TouchedEntry::of(touched).as_bytes());
    }
    header.crc = checksum(&header, &entries).into();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&entries);
    bytes.resize(bytes.len().next_multiple_of(SPAN_ALIGN as usize), 0);
    Some(bytes)
}

/// The segment that begins with `first`, if `bytes` are its trailer and sound.
pub fn parse(bytes: &[u8], first: &SpanHead, file: u32) -> Option<Segment> {
    let (header, rest) = Trailer::ref_from_prefix(bytes).ok()?;
    let (runs, ranges) = (header.run_count.get() as usize, header.touched_count.get() as usize);
    let entries = rest.get(..runs.checked_add(ranges)?.checked_mul(ENTRY)?)?;
    let begins = &first.header;
    let sound = header.magic == TRAILER_MAGIC
        && header.version.get() == SPILL_VERSION
        && header.crc.get() == checksum(header, entries)
        && first.is_of(&header.group_uuid, &header.ring_id)
        && header.serial == begins.serial
        && header.first_seq == begins.first_seq
        && header.last_seq.get() >= header.first_seq.get()
        && header.bytes.get() <= SEGMENT_BYTES
        && header.reserved.get() == 0
        && header.reserved_2 == [0; 20];
    if !sound {
        return None;
    }
    let (runs, ranges) = entries.split_at(runs * ENTRY);
    let run = |entry: &RunEntry| Run { first: entry.first.get(), last: entry.last.get() };
    let mut touched = TouchedSet::default();
    touched.extend(
        &<[TouchedEntry]>::ref_from_bytes(ranges)
            .ok()?
            .iter()
            .map(TouchedEntry::touched)
            .collect::<Vec<_>>(),
    );
    Some(Segment {
        file,
        serial: header.serial.get(),
        first_seq: header.first_seq.get(),
        last_seq: header.last_seq.get(),
        bytes: header.bytes.get(),
        first_ns: header.first_ns.get(),
        last_ns: header.last_ns.get(),
        runs: <[RunEntry]>::ref_from_bytes(runs).ok()?.iter().map(run).collect(),
        touched,
    })
}

fn checksum(header: &Trailer, entries: &[u8]) -> u32 {
    crc32c_of(&[&header.as_bytes()[..HEADER - 4], entries])
}
