//! Small segments, whole and damaged, walked by any number of threads.

use super::*;
use crate::format::{Kind, SLOT_BYTES, Slot, SlotState, commit_word};
use crate::spill::SpillReader;
use crate::spill::layout::SPAN_HEADER_BYTES;
use crate::spill::span::{Place, SpanBuilder};
use std::os::unix::fs::FileExt;
use towline_block::{Extent, VolumeId, crc32c};

const UUID: [u8; 16] = [1; 16];
const RING: [u8; 16] = [2; 16];
const PAYLOAD_BYTES: u64 = 4096;
const RECORDS: u64 = 6;
const SPANS: u64 = 3;
const SEGMENTS: u32 = 7;
const LAST: u64 = RECORDS * SPANS * SEGMENTS as u64;

/// Records from `first` on, as they lie in a segment.
fn span(first: u64, serial: u64, offset: u64) -> Vec<u8> {
    let mut builder = SpanBuilder::new(Vec::new());
    for seq in first..first + RECORDS {
        let bytes = [seq as u8; PAYLOAD_BYTES as usize];
        let extent = Extent::new(seq * PAYLOAD_BYTES, PAYLOAD_BYTES);
        let mut slot = Slot::new(Kind::Write, VolumeId(0), extent, seq);
        slot.payload_position = 0.into();
        slot.payload_crc = crc32c(&bytes).into();
        slot.header_crc = slot.checksum(seq).into();
        slot.commit = commit_word(seq, SlotState::Done).into();
        let record = Record::decode(seq, &slot).unwrap();
        assert!(builder.push(&record, &slot, |into| into.copy_from_slice(&bytes)));
    }
    let (group_uuid, ring_id) = (UUID, RING);
    let place = Place { group_uuid, ring_id, incarnation: 1, epoch: 1, serial, offset };
    let built = builder.finish(&place);
    built.storage[built.start..built.start + built.bytes].to_vec()
}

fn segment(first: u64, serial: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..SPANS {
        let span = span(first + number * RECORDS, serial, bytes.len() as u64);
        bytes.extend_from_slice(&span);
    }
    bytes
}

/// Bytes of a span, and where in it a record's slot is.
fn span_bytes() -> u64 {
    span(1, 1, 0).len() as u64
}

fn slot_at(span: u64, index: u64) -> u64 {
    span * span_bytes() + SPAN_ALIGN + index * (SLOT_BYTES + PAYLOAD_BYTES)
}

/// Full of records 1 to [`LAST`].
fn folder() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::folder(dir.path().to_owned());
    for number in 0..SEGMENTS {
        let first = 1 + u64::from(number) * RECORDS * SPANS;
        std::fs::write(store.segment_path(number), segment(first, u64::from(number) + 1)).unwrap();
    }
    (dir, store)
}

fn damage(store: &Store, number: u32, at: u64) {
    let path = store.segment_path(number);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn walk(store: &Store, records: RangeInclusive<u64>) -> Walk {
    Walk::new(store.clone(), UUID, RING, &records)
}

/// What is sound, joined where it adjoins.
fn sound(store: &Store, records: RangeInclusive<u64>, threads: usize) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    walk(store, records).check(
        threads,
        |_| true,
        |run| {
            assert_eq!(run.bytes, (run.last - run.first + 1) * PAYLOAD_BYTES);
            assert!(runs.last().is_none_or(|last| last.1 < run.first), "in order");
            match runs.last_mut() {
                Some(last) if last.1 + 1 == run.first => last.1 = run.last,
                _ => runs.push((run.first, run.last)),
            }
        },
    );
    runs
}

fn headers(store: &Store, records: RangeInclusive<u64>) -> Vec<u64> {
    let mut headers = Headers::new(walk(store, records.clone()));
    records.filter_map(|seq| headers.get(seq)).map(|record| record.seq).collect()
}

#[test]
fn every_number_of_threads_finds_the_same_in_the_same_order() {
    let (_dir, store) = folder();
    // Records of a segment: 18, of a span: 6. Segment 1 begins with 19, and so on.
    damage(&store, 1, slot_at(1, 2) + SLOT_BYTES + 99);
    damage(&store, 3, slot_at(0, 4) + 16);
    damage(&store, 4, slot_at(1, 0) - SPAN_ALIGN + SPAN_HEADER_BYTES as u64 - 1);
    damage(&store, 5, 3);
    let expected = [(1, 26), (28, 58), (61, 78), (109, LAST)];
    for threads in 1..=CHECK_THREADS_MAX + 1 {
        for _ in 0..5 {
            assert_eq!(sound(&store, 1..=LAST, threads), expected, "{threads} threads");
        }
        assert_eq!(sound(&store, 27..=61, threads), [(28, 58), (61, 61)]);
        assert_eq!(sound(&store, 79..=108, threads), []);
    }
    let by_headers: Vec<u64> = (1..=58).chain(61..=78).chain(109..=LAST).collect();
    assert_eq!(headers(&store, 1..=LAST), by_headers);
    assert_eq!(headers(&store, 20..=62), (20..=58).chain(61..=62).collect::<Vec<_>>());
}

#[test]
fn a_walk_and_the_shippers_reader_agree_on_every_record() {
    let (_dir, store) = folder();
    damage(&store, 0, slot_at(2, 5) + SLOT_BYTES);
    damage(&store, 2, slot_at(1, 3) + 16);
    std::fs::File::options()
        .write(true)
        .open(store.segment_path(6))
        .unwrap()
        .set_len(2 * span_bytes() + SPAN_ALIGN)
        .unwrap();
    let mut reader = SpillReader::new(store.clone(), UUID, RING);
    let mut read = |seq: u64| reader.read(seq, &mut Vec::new()).is_ok();
    let found = sound(&store, 1..=LAST + 5, 2);
    for seq in 1..=LAST + 5 {
        let is_sound = found.iter().any(|run| (run.0..=run.1).contains(&seq));
        assert_eq!(is_sound, read(seq), "record {seq}");
    }
    assert_eq!(found, [(1, 17), (19, 45), (49, LAST - RECORDS)]);
}

#[test]
fn what_is_not_taken_is_not_sound() {
    let (_dir, store) = folder();
    let mut runs = Vec::new();
    let odd = |record: &Record| record.seq % 2 == 1 || record.seq > 4;
    walk(&store, 1..=6).check(2, odd, |run| runs.push((run.first, run.last)));
    assert_eq!(runs, [(1, 1), (3, 3), (5, 6)]);
}

#[test]
fn a_missing_segment_hides_what_follows_and_no_spill_is_no_record() {
    let (dir, store) = folder();
    std::fs::remove_file(store.segment_path(2)).unwrap();
    assert_eq!(sound(&store, 1..=LAST, 2), [(1, 36)]);
    assert_eq!(headers(&store, 1..=LAST).len(), 36);
    let nothing = Store::folder(dir.path().join("none"));
    assert_eq!(sound(&nothing, 1..=u64::MAX, 2), []);
    assert_eq!(headers(&nothing, 1..=9), [0; 0]);
}

/// A killed owner's last segment, whose end the next owner wrote again.
#[test]
fn a_record_that_two_segments_hold_is_asked_of_the_newer_one() {
    let (_dir, store) = folder();
    std::fs::write(store.segment_path(7), segment(50, 8)).unwrap();
    // Records 50 to 54 lie in segment 2, too; 55 and more in segments 3 to 6.
    damage(&store, 7, slot_at(0, 1) + SLOT_BYTES);
    assert_eq!(sound(&store, 1..=LAST, 3), [(1, 50), (52, 67)]);
    assert_eq!(headers(&store, 1..=LAST), (1..=67).collect::<Vec<_>>());
    let part = |number, first, last| Part { number, serial: u64::from(number), first, last };
    let begun = vec![(31, 3, 3), (1, 1, 1), (31, 2, 2), (40, 1, 0), (50, 9, 9)];
    let expected = [part(1, 5, 30), part(3, 31, 49), part(9, 50, 60)];
    assert_eq!(parts(begun, &(5..=60)), expected);
}

#[test]
fn spans_of_every_size_fit_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("segment");
    let bytes: Vec<u8> = (0..3 * WINDOW_BYTES + 100).map(|at| (at / 4096) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let file = std::fs::File::open(&file).unwrap();
    let segment = OpenedSegment { file, base: 4096, direct: false, in_place: false };
    let mut window = Window::default();
    let span = SPAN_BYTES_MAX as usize;
    for at in [0, 4096, span, span - 4096, 2 * span, WINDOW_BYTES + 4096, 8192] {
        let found = window.get(&segment, at as u64, span);
        assert_eq!(found, Some(&bytes[4096 + at..4096 + at + span]), "{at}");
    }
    let end = bytes.len() - 4096;
    assert!(window.get(&segment, end as u64 - 100, 100).is_some());
    assert!(window.get(&segment, end as u64 - 100, 101).is_none());
}
