use super::*;
use crate::format::{Kind, RECORD_PAYLOAD_BYTES_MAX, Slot, SlotState, commit_word};
use crate::record::Record;
use crate::spill::span::{Place, SpanBuilder};
use std::fs::File;
use std::path::Path;
use towline_block::{Extent, VolumeId};

const UUID: [u8; 16] = [1; 16];
const RING: [u8; 16] = [2; 16];

/// One record of 1 MiB a span, of which only the header's page is written.
fn span(seq: u64, serial: u64, offset: u64) -> (Vec<u8>, u64) {
    let extent = Extent::new(seq << 20, RECORD_PAYLOAD_BYTES_MAX);
    let mut slot = Slot::new(Kind::Write, VolumeId(0), extent, seq);
    slot.payload_position = 0.into();
    slot.header_crc = slot.checksum(seq).into();
    slot.commit = commit_word(seq, SlotState::Done).into();
    let record = Record::decode(seq, &slot).unwrap();
    let mut builder = SpanBuilder::new(Vec::new());
    assert!(builder.push(&record, &slot, |_| {}));
    let (group_uuid, ring_id) = (UUID, RING);
    let place = Place { group_uuid, ring_id, incarnation: 1, epoch: 1, serial, offset };
    let built = builder.finish(&place);
    let page = built.storage[built.start..built.start + SPAN_ALIGN as usize].to_vec();
    (page, built.bytes as u64)
}

fn segment_path(dir: &Path, number: u32) -> std::path::PathBuf {
    Store::folder(dir.to_owned()).segment_path(number)
}

/// Fills segments; returns records and spans, one each.
fn fill(dir: &Path, segments: u32) -> u64 {
    let mut seq = 0;
    for number in 0..segments {
        let file = File::create(segment_path(dir, number)).unwrap();
        file.set_len(SEGMENT_BYTES).unwrap();
        let mut offset = 0;
        while offset + crate::spill::layout::SPAN_BYTES_MAX <= SPANS_END {
            let (page, bytes) = span(seq + 1, u64::from(number) + 1, offset);
            file.write_all_at(&page, offset).unwrap();
            (seq, offset) = (seq + 1, offset + bytes);
        }
    }
    seq
}

fn scan_dir(dir: &Path) -> Scanned {
    scan(&Store::folder(dir.to_owned()), &UUID)
}

#[test]
fn headers_alone_tell_what_a_spill_holds() {
    let dir = tempfile::tempdir().unwrap();
    let records = fill(dir.path(), 3);
    let scanned = scan_dir(dir.path());
    assert_eq!(scanned.spans, records);
    assert_eq!(scanned.runs(&RING), [Run { first: 1, last: records }]);
    assert!(scanned.covers(&RING, 0, records) && !scanned.covers(&RING, 0, records + 1));
    let segments = scan_dir(dir.path()).sorted(&RING, 0, None);
    assert_eq!((segments.files, segments.next_serial), (3, 4));
    let in_first = segments.live[0].last_seq;
    let later = scan_dir(dir.path()).sorted(&RING, in_first, None);
    assert_eq!(later.free, [0]);
    let other = scan_dir(dir.path()).sorted(&[9; 16], 0, None);
    assert_eq!((other.live.len(), other.free.len(), other.history.len()), (0, 3, 0));
    let next = scan_dir(dir.path()).sorted(&[9; 16], 0, Some(&RING));
    assert_eq!((next.live.len(), next.free.len(), next.history.len()), (0, 0, 3));
}

#[test]
fn a_reader_without_io_uring_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 2);
    let store = Store::folder(dir.path().to_owned());
    for file in 0..2 {
        let alone = read_alone(&store, file, &UUID, Depth::All);
        let many = scan(&store, &UUID);
        let at_once = &many.files[file as usize];
        assert_eq!((alone.spans, alone.serial), (at_once.spans, at_once.serial));
    }
}

#[test]
fn a_damaged_header_ends_its_segment_and_a_newer_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let records = fill(dir.path(), 2);
    let (_, bytes) = span(1, 1, 0);
    let first = std::fs::OpenOptions::new().write(true).open(segment_path(dir.path(), 0));
    let first = first.unwrap();
    first.write_all_at(&[0xff], 5 * bytes + 40).unwrap();
    let scanned = scan_dir(dir.path());
    assert_eq!(scanned.runs(&RING).len(), 2);
    assert_eq!(scanned.runs(&RING)[0], Run { first: 1, last: 5 });
    assert!(scanned.covers(&RING, 0, 5) && !scanned.covers(&RING, 0, records));
    assert!(scanned.newer.is_none());
    first.write_all_at(&[2], 8).unwrap();
    assert!(scan_dir(dir.path()).newer.is_some());
}

/// The trailers of what `fill` made.
fn add_trailers(dir: &Path) {
    let scanned = scan_dir(dir);
    for found in &scanned.files {
        let segment = found.segment.as_ref().unwrap();
        let (group_uuid, ring_id, serial) = (UUID, RING, segment.serial);
        let place = Place { group_uuid, ring_id, incarnation: 1, epoch: 1, serial, offset: 0 };
        let bytes = trailer::encode(segment, &place).unwrap();
        write_at(dir, found.file, SPANS_END, &bytes);
    }
}

fn write_at(dir: &Path, number: u32, at: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(segment_path(dir, number)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn told(scanned: Scanned) -> String {
    let told = |found: FileFound| {
        let Segment {
            serial, first_seq, last_seq, bytes, first_ns, last_ns, runs, touched, ..
        } = found.segment.unwrap();
        (serial, first_seq, last_seq, bytes, first_ns, last_ns, runs, touched.merged())
    };
    format!("{:?}", scanned.files.into_iter().map(told).collect::<Vec<_>>())
}

#[test]
fn a_trailer_tells_what_the_headers_tell_in_two_reads() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 2);
    let store = Store::folder(dir.path().to_owned());
    let by_headers = scan_dir(dir.path());
    assert!(by_headers.spans > 100);
    add_trailers(dir.path());
    let by_trailers = scan_dir(dir.path());
    assert_eq!(by_trailers.spans, 2, "one header a segment");
    assert_eq!(read_alone(&store, 0, &UUID, Depth::All).spans, 1);
    assert_eq!(told(by_trailers), told(by_headers));
}

#[test]
fn a_trailer_that_is_damaged_or_of_an_earlier_use_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 1);
    let by_headers = told(scan_dir(dir.path()));
    let segment = scan_dir(dir.path()).files[0].segment.clone().unwrap();
    let of = |serial, ring_id| {
        let place =
            Place { group_uuid: UUID, ring_id, incarnation: 1, epoch: 1, serial, offset: 0 };
        trailer::encode(&Segment { serial, ..segment.clone() }, &place).unwrap()
    };
    let sound = of(1, RING);
    let first = std::fs::read(segment_path(dir.path(), 0)).unwrap()[..PAGE].to_vec();
    let first = SpanHead::parse(&first, 0).unwrap();
    assert!(trailer::parse(&sound, &first, 0).is_some());
    for bit in 0..(128 + 16 * (segment.runs.len() + segment.touched.merged().len())) * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(trailer::parse(&bytes, &first, 0).is_none(), "bit {bit}");
    }
    for stale in [of(7, RING), of(1, [9; 16]), vec![0; PAGE]] {
        write_at(dir.path(), 0, SPANS_END, &stale);
        let scanned = scan_dir(dir.path());
        assert!(scanned.spans > 50, "its headers were read");
        assert_eq!(told(scanned), by_headers);
    }
}
