//! The formats are what their documents say, byte by byte.

use std::mem::offset_of;
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{
    self, Batch, BatchBuilder, BatchView, Chain, GroupKey, Header, KeyId, Keyring, Op, OpEntry,
};
use towline_shipper::device::{MapHeader, PackMap};
use towline_shipper::receiver::{MarkHeader, Point, PreImage, Stream};
use towline_shipper::store::{At, ObjectHeader, ObjectKind};
use towline_shipper::wire::{Ack, AckLayout, FrameHeader, FrameKind, Message, write_message};
use towline_shipper::{BatchHash, Digest, GroupUuid, SessionId};
use zerocopy::{FromBytes, IntoBytes};

const BATCH_DOC: &str = include_str!("../../docs/formats/batch.md");
const WIRE_DOC: &str = include_str!("../../docs/formats/wire.md");
const RECEIVER_DOC: &str = include_str!("../../docs/formats/receiver.md");

/// Rows `offset | size | name` of the first table after a heading.
fn table(doc: &str, heading: &str) -> Vec<(usize, usize, String)> {
    let start = doc.find(&format!("\n## {heading}\n")).expect("heading") + heading.len() + 5;
    let rows = doc[start..].lines().skip_while(|line| !line.starts_with("| offset"));
    rows.skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            (cells[1].parse().unwrap(), cells[2].parse().unwrap(), cells[3].to_owned())
        })
        .collect()
}

macro_rules! layout {
    ($type:ident: $($field:ident),* $(,)?) => {{
        let offsets = [$((offset_of!($type, $field), stringify!($field))),*];
        let ends = offsets.iter().skip(1).map(|(at, _)| *at).chain([size_of::<$type>()]);
        offsets.iter().zip(ends).map(|((at, name), end)| (*at, end - at, (*name).to_owned()))
            .collect::<Vec<_>>()
    }};
}

#[test]
fn the_batch_document_names_every_field_where_it_lies() {
    let header = layout!(Header: magic, version, kind, compression, flags, group_uuid, session,
        number, prev_hash, epoch, incarnation, first_seq, last_seq, claim_id, claims_upto,
        stream_bytes_before, created_unix_ns, op_count, data_bytes, table_crc32c, stored_bytes,
        unit_bytes, stored_crc32c, key_id, salt, reserved, header_crc32c);
    assert_eq!(table(BATCH_DOC, "Header"), header);
    let op = layout!(OpEntry: kind, flags, volume, len, offset, data_offset, data_crc32c, seq);
    assert_eq!(table(BATCH_DOC, "Operation"), op);
}

#[test]
fn the_wire_document_names_every_field_where_it_lies() {
    let header = layout!(FrameHeader: magic, kind, flags, len, crc32c);
    assert_eq!(table(WIRE_DOC, "Frame"), header);
    let ack = layout!(AckLayout: durable_number, epoch, incarnation, seq, claims_upto,
        applied_number, stream_bytes, point_epoch, point_incarnation, point_seq, flags, reserved);
    assert_eq!(table(WIRE_DOC, "ACK"), ack);
}

#[test]
fn the_receiver_document_names_every_field_where_it_lies() {
    let header = layout!(MarkHeader: magic, group_uuid, number, hash, epoch, incarnation, seq,
        claims_upto, stream_bytes, unix_ns, kind, name, reserved, header_crc32c);
    assert_eq!(table(RECEIVER_DOC, "Mark header"), header);
    let entry = layout!(PreImage: magic, kind, volume, first_block, blocks, data_bytes,
        data_crc32c, entry_crc32c);
    assert_eq!(table(RECEIVER_DOC, "Pre-image"), entry);
}

#[test]
fn the_wire_document_numbers_every_frame_kind() {
    for kind in FrameKind::ALL {
        let name = format!("{kind:?}").to_uppercase();
        let row = format!("| {name} | {} |", kind.number());
        assert!(WIRE_DOC.contains(&row), "{row}");
    }
}

/// Lines of 32 bytes in hexadecimal, as the documents print them.
fn dump(bytes: &[u8]) -> String {
    let line = |(at, line): (usize, &[u8])| {
        let hex: String = line
            .chunks(8)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + " ")
            .collect();
        format!("{:04x}  {}\n", at * 32, hex.trim_end())
    };
    bytes.chunks(32).enumerate().map(line).collect()
}

fn golden_batch() -> Vec<u8> {
    let chain = Chain {
        group: GroupUuid([0x11; 16]),
        session: SessionId([0x22; 16]),
        number: 0,
        hash: BatchHash::NONE,
        stream_bytes: 0,
    };
    let at = Position::new(Epoch(1), Incarnation(1), Seq(7));
    let mut batch = BatchBuilder::records(at, 3);
    batch.write(Seq(7), VolumeId(1), 4096, b"hello", crc32c(b"hello")).unwrap();
    batch.encode(&chain, 1_700_000_000_000_000_000).bytes
}

#[test]
fn the_batch_document_shows_these_bytes() {
    let dump = dump(&golden_batch());
    assert!(BATCH_DOC.contains(&dump), "the document should show:\n{dump}");
}

/// The bytes of the first dump after a sentence of the document.
fn shown(doc: &str, after: &str) -> Vec<u8> {
    let start = doc.find(after).expect("the sentence before the dump");
    let lines = doc[start..].lines().skip_while(|line| *line != "```").skip(1);
    let words = lines
        .take_while(|line| *line != "```")
        .flat_map(|line| line.split_whitespace().skip(1))
        .collect::<String>();
    let digit = |at: usize| u8::from_str_radix(&words[at..at + 2], 16).unwrap();
    (0..words.len()).step_by(2).map(digit).collect()
}

/// What was written once is read for ever, whatever a later compressor would make of it.
#[test]
fn every_batch_that_the_document_shows_reads_back() {
    let mut keys = Keyring::default();
    keys.add(GroupKey::new(KeyId([0x33; 16]), [0x44; 32]).unwrap());
    let hello = b"hello".to_vec();
    let long = b"hello".repeat(60);
    for (after, payload) in [
        ("as it is:", &hello),
        ("The same in format 2:", &hello),
        ("in format 1:", &hello),
        ("one unit of lz4:", &long),
        ("one unit of zstd:", &long),
        ("and 32 bytes 44", &hello),
        ("Sealed so in format 2:", &hello),
    ] {
        let bytes = shown(BATCH_DOC, after);
        let batch = Batch::open(bytes, &keys).expect(after);
        let ops: Vec<_> = batch.view().ops().map(|entry| (entry.seq, entry.op)).collect();
        let write = Op::Write { volume: VolumeId(1), offset: 4096, payload };
        assert_eq!(ops, [(Seq(7), write)], "{after}");
        let in_place = BatchView::parse(batch.bytes()).is_ok();
        assert_eq!(in_place, payload.len() == 5 && !batch.is_sealed(), "{after}");
    }
}

/// Hash by hash as the document says what each is of.
#[test]
fn the_hash_is_of_what_the_document_says() {
    let sealed = |after: &str| after.contains("44") || after.contains("Sealed");
    for (after, covers_all) in [
        ("as it is:", false),
        ("one unit of lz4:", false),
        ("one unit of zstd:", false),
        ("and 32 bytes 44", true),
        ("The same in format 2:", true),
        ("Sealed so in format 2:", true),
        ("in format 1:", true),
    ] {
        let mut bytes = shown(BATCH_DOC, after);
        let (header, _) = Header::read_from_prefix(&bytes).unwrap();
        let tables = size_of::<Header>() + header.stored_bytes.get() as usize;
        let expected = match covers_all {
            true => blake3::hash(&bytes),
            false => blake3::hash(&[&bytes[..size_of::<Header>()], &bytes[tables..]].concat()),
        };
        let hash = BatchHash(*expected.as_bytes());
        assert_eq!(batch::check(&bytes).unwrap(), hash, "{after}");
        // Data that is damaged is found, hashed or not, and without the key.
        bytes[size_of::<Header>()] ^= 1;
        match batch::check(&bytes) {
            Ok(now) => assert!(sealed(after) && now != hash, "{after}"),
            Err(error) => assert!(!sealed(after), "{after}: {error}"),
        }
    }
}

async fn frame(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    write_message(&mut out, message).await.unwrap();
    out
}

#[tokio::test]
async fn the_wire_document_shows_these_bytes() {
    let keepalive = dump(&frame(&Message::KeepAlive).await);
    assert!(WIRE_DOC.contains(&keepalive), "the document should show:\n{keepalive}");
    let ack = Ack {
        number: 5,
        position: Position::new(Epoch(1), Incarnation(2), Seq(9)),
        claims_upto: 4,
        applied: 3,
        stream_bytes: 1 << 20,
        point: Some(Position::new(Epoch(1), Incarnation(2), Seq(8))),
        broken: true,
    };
    let shown = dump(&frame(&Message::Ack(ack)).await);
    assert!(WIRE_DOC.contains(&shown), "the document should show:\n{shown}");
}

#[test]
fn ack_reads_back_as_written_and_refuses_what_it_does_not_know() {
    let ack = Ack { number: 1, point: Some(Position::default()), ..Ack::default() };
    assert_eq!(Ack::decode(&ack.encode()).unwrap(), ack);
    assert!(Ack::decode(&ack.encode()[1..]).is_err());
    for at in [64, 68] {
        let mut bytes = ack.encode();
        bytes[at] |= 0x80;
        assert!(Ack::decode(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn frame_headers_with_any_flipped_bit_are_refused() {
    let header = FrameHeader::new(FrameKind::Batch, 300);
    assert_eq!(header.check().unwrap(), (FrameKind::Batch, 300));
    for bit in 0..128 {
        let mut bytes = header.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let flipped: FrameHeader = zerocopy::FromBytes::read_from_bytes(&bytes[..]).unwrap();
        assert!(flipped.check().is_err(), "bit {bit}");
    }
}

#[test]
fn frame_lengths_are_bounded_by_their_kind() {
    for kind in FrameKind::ALL {
        let max = kind.body_bytes_max() as u32;
        assert!(FrameHeader::new(kind, max).check().is_ok());
        assert!(FrameHeader::new(kind, max + 1).check().is_err(), "{kind:?}");
    }
}

const STORE_DOC: &str = include_str!("../../docs/formats/store.md");

#[test]
fn the_store_document_names_every_field_where_it_lies() {
    let header = layout!(ObjectHeader: magic, version, kind, flags, batch_count, group_uuid, owner,
        session, index, first_number, body_bytes, number, hash, epoch, incarnation, seq,
        claims_upto, stream_bytes, point_number, point_epoch, point_incarnation, point_seq,
        reserved, header_crc32c);
    assert_eq!(table(STORE_DOC, "Object"), header);
}

#[test]
fn the_store_document_shows_these_bytes() {
    let position = Position::new(Epoch(1), Incarnation(1), Seq(9));
    let after = Stream {
        number: 2,
        hash: BatchHash([0x33; 32]),
        position,
        claims_upto: 4,
        stream_bytes: 1000,
        whole: true,
        point: Some(Point { number: 2, position }),
        sealed: None,
    };
    let at =
        At { group: GroupUuid([0x11; 16]), owner: SessionId([0x22; 16]), session: 1, index: 3 };
    let end = ObjectHeader::end(at, &after);
    let dump = dump(end.as_bytes());
    assert!(STORE_DOC.contains(&dump), "the document should show:\n{dump}");
    let read = ObjectHeader::read(end.as_bytes(), GroupUuid([0x11; 16]), 1, 3).unwrap();
    assert_eq!((read.kind(), read.after()), (ObjectKind::End, after));
}

const DEVICE_DOC: &str = include_str!("../../docs/formats/device.md");

#[test]
fn the_device_document_names_every_field_where_it_lies() {
    let header = layout!(MapHeader: magic, version, reserved, batch_count, touched_count,
        covered_count, pack_bytes);
    assert_eq!(table(DEVICE_DOC, "Map"), header);
}

#[test]
fn the_device_document_shows_these_bytes() {
    let map = PackMap {
        batches: vec![(300, Digest([0x33; 32]))],
        touched: vec![(1, 4, 2).into()],
        covered: vec![(1, 4, 1).into()],
    };
    let bytes = map.encode();
    let dump = dump(&bytes);
    assert!(DEVICE_DOC.contains(&dump), "the document should show:\n{dump}");
    let sizes = [1, 6 << 16];
    assert_eq!(PackMap::decode(&bytes, Digest::of(&bytes), &sizes).unwrap(), map);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(PackMap::decode(&changed, Digest::of(&bytes), &sizes).is_err(), "byte {at}");
        // Whoever may sign may still not name what is not there.
        if let Ok(read) = PackMap::decode(&changed, Digest::of(&changed), &sizes) {
            assert!(read.touched.iter().chain(&read.covered).all(|run| run.is_within(&sizes)));
        }
    }
}
