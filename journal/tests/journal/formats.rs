//! The journal's format is what its document says: every table, and golden bytes.

use std::mem::{offset_of, size_of};
use towline_block::{Extent, VolumeId, crc32c};
use towline_journal::activity::file::{ActivityHeader, ActivitySector};
use towline_journal::format::*;
use towline_journal::spill::device::{
    self, DEVICE_MAGIC, DEVICE_SEGMENTS_OFFSET, DEVICE_VERSION, DeviceHeader, Holder,
};
use towline_journal::spill::layout::*;
use towline_journal::state::Hex16;
use zerocopy::IntoBytes;

const SPILL_DOC: &str = include_str!("../../../docs/formats/spill.md");
const DOC: &str = include_str!("../../../docs/formats/journal.md");
const ACTIVITY_DOC: &str = include_str!("../../../docs/formats/activity.md");

/// Rows (offset, size, name) of the table under a heading.
fn table(doc: &str, heading: &str) -> Vec<(usize, usize, String)> {
    let section = doc.split(&format!("## {heading}\n")).nth(1).expect("the section exists");
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    section
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(cells)
        .filter_map(|row| Some((row[0].parse().ok()?, row[1].parse().ok()?, row[2].clone())))
        .collect()
}

macro_rules! compare {
    ($doc:expr, $heading:literal, $type:ty, [$($field:ident),* $(,)?]) => {{
        let rows = table($doc, $heading);
        let mut fields = vec![$((offset_of!($type, $field), stringify!($field).to_owned())),*];
        fields.sort();
        let mut end = 0;
        assert_eq!(rows.len(), fields.len(), "rows of {}", $heading);
        for ((offset, size, name), (at, field)) in rows.iter().zip(&fields) {
            assert_eq!((offset, name), (at, field), "in {}", $heading);
            assert_eq!(*offset, end, "no gap before {name}");
            end = offset + size;
        }
        assert_eq!(end, size_of::<$type>(), "{} ends with its struct", $heading);
    }};
}

#[test]
fn the_document_describes_the_structs() {
    compare!(
        DOC,
        "Superblock",
        Superblock,
        [
            magic,
            version,
            epoch,
            incarnation,
            volume_count,
            group_uuid,
            ring_id,
            boot_id,
            slots,
            payload_bytes,
            slots_offset,
            payload_offset,
            maps_offset,
            file_bytes,
            block_bytes,
            base_incarnation,
            base_seq,
            base_claims,
            created_unix_ns,
            group_name,
            reserved,
            crc,
        ]
    );
    compare!(
        DOC,
        "VolumeEntry",
        VolumeEntry,
        [size_bytes, dirty_offset, claimed_offset, suspect_offset, words, name, reserved, crc,]
    );
    compare!(
        DOC,
        "Slot",
        Slot,
        [
            commit,
            payload_position,
            offset,
            len,
            volume,
            kind,
            flags,
            payload_crc,
            header_crc,
            unix_ns,
            argument,
            incarnation,
            control,
        ]
    );
    compare!(
        SPILL_DOC,
        "DeviceHeader",
        DeviceHeader,
        [
            magic,
            version,
            reserved,
            group_uuid,
            device_id,
            segment_bytes,
            segments_offset,
            created_unix_ns,
            group_name,
            reserved_2,
            crc,
        ]
    );
    compare!(
        SPILL_DOC,
        "Trailer",
        Trailer,
        [
            magic,
            version,
            run_count,
            touched_count,
            reserved,
            group_uuid,
            ring_id,
            serial,
            first_seq,
            last_seq,
            first_ns,
            last_ns,
            bytes,
            reserved_2,
            crc,
        ]
    );
    compare!(SPILL_DOC, "RunEntry", RunEntry, [first, last]);
    compare!(
        SPILL_DOC,
        "SpanHeader",
        SpanHeader,
        [
            magic,
            version,
            header_bytes,
            span_bytes,
            body_bytes,
            record_count,
            touched_count,
            group_uuid,
            ring_id,
            incarnation,
            epoch,
            serial,
            offset,
            first_seq,
            last_seq,
            unix_ns,
            reserved,
            crc,
        ]
    );
    compare!(SPILL_DOC, "TouchedEntry", TouchedEntry, [first_block, blocks, volume, reserved]);
}

#[test]
fn the_worked_example_of_a_span_is_what_the_code_writes() {
    let mut header = SpanHeader {
        magic: SPAN_MAGIC,
        version: SPILL_VERSION.into(),
        header_bytes: 144.into(),
        span_bytes: 4096.into(),
        body_bytes: 72.into(),
        record_count: 1.into(),
        touched_count: 1.into(),
        group_uuid: [1; 16],
        ring_id: [2; 16],
        incarnation: 2.into(),
        epoch: 1.into(),
        serial: 7.into(),
        offset: 4096.into(),
        first_seq: 5.into(),
        last_seq: 5.into(),
        unix_ns: 1.into(),
        reserved: [0; 12],
        crc: 0.into(),
    };
    let range = TouchedEntry {
        first_block: 0.into(),
        blocks: 1.into(),
        volume: 1.into(),
        reserved: 0.into(),
    };
    let mut page = [header.as_bytes(), range.as_bytes()].concat();
    header.crc = SpanHeader::checksum(&page, 1).into();
    page[..SPAN_HEADER_BYTES].copy_from_slice(header.as_bytes());
    assert_rows(SPILL_DOC, &page);
}

#[test]
fn the_worked_example_of_a_trailer_is_what_the_code_writes() {
    let mut header = Trailer {
        magic: TRAILER_MAGIC,
        version: SPILL_VERSION.into(),
        run_count: 2.into(),
        touched_count: 1.into(),
        reserved: 0.into(),
        group_uuid: [1; 16],
        ring_id: [2; 16],
        serial: 7.into(),
        first_seq: 5.into(),
        last_seq: 9.into(),
        first_ns: 1.into(),
        last_ns: 3.into(),
        bytes: 8192.into(),
        reserved_2: [0; 20],
        crc: 0.into(),
    };
    let runs = [(5, 5), (7, 9)];
    let runs =
        runs.map(|(first, last): (u64, u64)| RunEntry { first: first.into(), last: last.into() });
    let range = TouchedEntry {
        first_block: 0.into(),
        blocks: 1.into(),
        volume: 1.into(),
        reserved: 0.into(),
    };
    let entries = [runs.as_bytes(), range.as_bytes()].concat();
    header.crc = header.checksum(&entries).into();
    assert_rows(SPILL_DOC, &[header.as_bytes(), &entries].concat());
}

#[test]
fn the_worked_example_of_a_device_is_what_the_code_writes_and_reads() {
    let mut header = DeviceHeader {
        magic: DEVICE_MAGIC,
        version: DEVICE_VERSION.into(),
        reserved: 0.into(),
        group_uuid: [1; 16],
        device_id: [3; 16],
        segment_bytes: SEGMENT_BYTES.into(),
        segments_offset: DEVICE_SEGMENTS_OFFSET.into(),
        created_unix_ns: 1.into(),
        group_name: name_field("g"),
        reserved_2: [0; 3956],
        crc: 0.into(),
    };
    header.crc = crc32c(&header.as_bytes()[..offset_of!(DeviceHeader, crc)]).into();
    assert_rows(SPILL_DOC, header.as_bytes());
    let holder = Holder::Group { uuid: [1; 16], id: Hex16([3; 16]), name: "g".into() };
    assert_eq!(device::parse(header.as_bytes()), Some(holder));
}

/// Every line of a hex dump stands in the document, but for those that are all zero.
fn assert_rows(document: &str, bytes: &[u8]) {
    for (index, line) in bytes.chunks(32).enumerate() {
        if line.iter().all(|byte| *byte == 0) {
            continue;
        }
        let words: Vec<String> = line
            .chunks(8)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        let row = format!("{:04x}  {}", index * 32, words.join(" "));
        assert!(document.contains(&row), "the document lacks\n{row}");
    }
}

#[test]
fn the_activity_document_describes_its_structs() {
    compare!(
        ACTIVITY_DOC,
        "ActivityHeader",
        ActivityHeader,
        [
            magic,
            version,
            incarnation,
            group_uuid,
            base_incarnation,
            volume_count,
            base_seq,
            base_claims,
            extent_bytes,
            sectors,
            reserved,
            crc,
        ]
    );
    compare!(ACTIVITY_DOC, "ActivitySector", ActivitySector, [words, number, incarnation, crc]);
}

#[test]
fn the_areas_lie_where_the_picture_says() {
    for (offset, at) in
        [(VOLUME_TABLE_OFFSET, "4096"), (COUNTERS_OFFSET, "12288"), (SLOTS_OFFSET, "16384")]
    {
        assert_eq!(offset.to_string(), at);
        assert!(DOC.contains(&format!("+ {at}\n")), "{at} is in the picture");
    }
}

#[test]
fn the_worked_example_is_what_the_code_writes() {
    let mut slot = Slot::new(Kind::Write, VolumeId(1), Extent::new(4096, 3), 1);
    slot.payload_position = 128.into();
    slot.payload_crc = crc32c(b"abc").into();
    slot.incarnation = 2.into();
    slot.header_crc = slot.checksum(5).into();
    slot.commit = commit_word(5, SlotState::Done).into();
    let hex: Vec<String> = slot
        .as_bytes()
        .chunks(8)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    for (line, words) in [("0000", &hex[..4]), ("0020", &hex[4..])] {
        let row = format!("{line}  {}", words.join(" "));
        assert!(DOC.contains(&row), "the document lacks\n{row}");
    }
}
