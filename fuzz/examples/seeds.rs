//! Writes the seeds of the corpora: `cargo run --example seeds` in this folder.

use std::path::Path;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_journal::Durable;
use towline_journal::activity::EXTENT_BYTES;
use towline_journal::activity::file::*;
use towline_journal::format::{
    Counter, Kind, SLOT_BYTES, SLOTS_OFFSET, Slot, SlotState, VOLUME_TABLE_OFFSET, commit_word,
};
use towline_journal::link::{LINK_VERSION, Reply, Request};
use towline_shipper::batch::{BatchBuilder, Chain, Control, Encoder, Method};
use towline_journal::spill::layout::*;
use towline_shipper::receiver::{MarkHeader, PreImage};
use towline_shipper::wire::{FrameKind, write_frame};
use towline_shipper::{BatchHash, GroupUuid, SessionId};
use zerocopy::IntoBytes;

fn put(target: &str, name: &str, parts: &[&[u8]]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), parts.concat()).unwrap();
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), rest].concat()
}

fn handshake() {
    let flags = [0, 0, 0, 3];
    let context = [&1u32.to_be_bytes()[..], &named("base:allocation", &[])].concat();
    let go = option(7, &named("disk0", &[0, 1, 0, 3]));
    let set = option(10, &named("disk0", &context));
    put("nbd_handshake", "go", &[&flags, &option(8, &[]), &set, &go]);
    put("nbd_handshake", "list", &[&flags, &option(3, &[]), &option(9, &named("", &[0; 4]))]);
    put("nbd_handshake", "export-name", &[&[0, 0, 0, 1], &option(1, b"disk0")]);
    put(
        "nbd_handshake",
        "info-abort",
        &[&flags, &option(6, &named("none", &[0, 0])), &option(2, &[])],
    );
    put("nbd_handshake", "tls-unknown", &[&flags, &option(5, &[]), &option(99, b"?")]);
}

fn requests() {
    let request = |flags: u16, command: u16, offset: u64, len: u32| {
        let magic = 0x2560_9513u32.to_be_bytes();
        [
            &magic[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &[7; 8],
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
        ]
        .concat()
    };
    let all: Vec<u8> = [
        request(0, 0, 4096, 4096),
        [request(1, 1, 0, 4), b"data".to_vec()].concat(),
        request(0, 3, 0, 0),
        request(0, 4, 8192, 65536),
        request(2, 6, 512, 512),
        request(8, 7, 0, 1 << 20),
        request(0, 2, 0, 0),
    ]
    .concat();
    put("nbd_request", "all", &[&[6], &all]);
    put("nbd_request", "read-only", &[&[1], &all]);
    put("nbd_request", "past-the-end", &[&[0], &request(0, 0, u64::MAX - 5, 4096)]);
}

fn one_batch() -> Vec<u8> {
    let at = Position::new(Epoch(1), Incarnation(1), Seq(5));
    let mut batch = BatchBuilder::records(at, 2);
    batch.write(Seq(5), VolumeId(0), 512, b"hello", crc32c(b"hello")).unwrap();
    batch.zero(Seq(6), VolumeId(1), Extent::new(0, 4096), true).unwrap();
    batch.trim(Seq(7), VolumeId(1), Extent::new(4096, 8192)).unwrap();
    batch.barrier(Seq(8)).unwrap();
    batch.mark(Seq(9), b"before upgrade").unwrap();
    batch.control(Seq(10), Control::Seal, b"attempt-1").unwrap();
    batch.encode(&chain(), 77).bytes
}

fn chain() -> Chain {
    let (group, session) = (GroupUuid([1; 16]), SessionId([2; 16]));
    Chain { group, session, number: 0, hash: BatchHash::NONE, stream_bytes: 0 }
}

fn batches() {
    let at = Position::new(Epoch(1), Incarnation(1), Seq(4));
    let mut blocks = BatchBuilder::blocks(at, 1, 1);
    blocks.write(Seq::NONE, VolumeId(0), 0, &[9; 600], crc32c(&[9; 600])).unwrap();
    blocks.compare(VolumeId(0), Extent::new(65536, 65536), &[3; 32]).unwrap();
    let blocks = blocks.encode(&chain(), 78).bytes;
    put("batch", "records", &[&[0], &one_batch()]);
    put("batch", "records-resealed", &[&[1], &one_batch()]);
    put("batch", "blocks-resealed", &[&[1], &blocks]);
    for (name, method, key) in [
        ("lz4", Method::Lz4, None),
        ("zstd", Method::Zstd, None),
        ("sealed", Method::None, Some(towline_fuzz::key())),
        ("lz4-sealed", Method::Lz4, Some(towline_fuzz::key())),
    ] {
        let mut batch = BatchBuilder::records(at, 1);
        batch.write(Seq(4), VolumeId(0), 0, &[9; 600], crc32c(&[9; 600])).unwrap();
        let encoded = Encoder::new(method, key).encode(batch, &chain(), 79).unwrap().bytes;
        put("batch", name, &[&[0], &encoded]);
        put("batch", &format!("{name}-resealed"), &[&[1], &encoded]);
    }
}

fn frames() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut stream = Vec::new();
    runtime.block_on(async {
        let hello = br#"{"version":1}"#;
        write_frame(&mut stream, FrameKind::Hello, hello).await.unwrap();
        write_frame(&mut stream, FrameKind::KeepAlive, &[]).await.unwrap();
        write_frame(&mut stream, FrameKind::Batch, &one_batch()).await.unwrap();
    });
    put("wire_frame", "three", &[&[0], &stream]);
    put("wire_frame", "three-resealed", &[&[1], &stream]);
}

fn rings() {
    let patch =
        |at: u64, bytes: &[u8]| [&at.to_le_bytes()[..3], &[bytes.len() as u8], bytes].concat();
    let slot = |seq: u64| SLOTS_OFFSET + seq * SLOT_BYTES;
    put("ring_open", "sound", &[&[0]]);
    put("ring_open", "empty-file", &[&[2]]);
    put("ring_open", "newer", &[&[1], &patch(8, &[99])]);
    put("ring_open", "volume", &[&[1], &patch(VOLUME_TABLE_OFFSET, &[0xff; 8])]);
    put("ring_open", "head-far-away", &[&[1], &patch(Counter::Head.offset(), &[0xff; 8])]);
    let acked = patch(Counter::Acked.offset(), &[0xff; 8]);
    put("ring_open", "acked-far-away", &[&[1], &patch(Counter::Head.offset(), &[0xff; 8]), &acked]);
    let write = [0u64.to_le_bytes(), 4096u64.to_le_bytes()].concat();
    let rest = [&64u32.to_le_bytes()[..], &[0, 0, 1, 0]].concat();
    let commit = (2u64 << 2 | 2).to_le_bytes();
    let head = patch(Counter::Head.offset(), &[2]);
    put(
        "ring_open",
        "write",
        &[&[1], &patch(slot(2), &[&commit[..], &write, &rest].concat()), &head],
    );
    put("ring_open", "slots", &[&[1], &patch(80, &[0xff; 8])]);
}

fn link() {
    let line = |message: Vec<u8>| [message, b"\n".to_vec()].concat();
    let request = |request: &Request| line(serde_json(request));
    let target = Durable { epoch: 1, incarnation: 1, seq: 5, claims: 2 };
    put(
        "link_line",
        "attach",
        &[&request(&Request::Attach { version: LINK_VERSION, target }), &request(&Request::Heal)],
    );
    let commit = Request::Commit { attempt: 1, epoch: 2, exports: vec!["nbd://host".into()] };
    put("link_line", "commit", &[&request(&commit)]);
    put(
        "link_line",
        "replies",
        &[&line(serde_json(&Reply::Ok)), &line(serde_json(&Reply::Healed(Some(3))))],
    );
    put("link_line", "no-end", &[b"{\"ack\":{\"seq\":1"]);
}

fn serde_json<T: serde::Serialize>(message: &T) -> Vec<u8> {
    ::serde_json::to_vec(message).unwrap()
}

fn saved_map() {
    let words = [2u64.to_le_bytes(), u64::MAX.to_le_bytes(), 1u64.to_le_bytes()].concat();
    let mut header =
        [&b"TWLSAVED"[..], &1u32.to_le_bytes(), &3u32.to_le_bytes(), &[1; 16], &[2; 16]].concat();
    header.extend_from_slice(&[4u64.to_le_bytes(), 5u64.to_le_bytes()].concat());
    header.extend_from_slice(&1u32.to_le_bytes());
    header.extend_from_slice(&[0; 20]);
    put("saved_map", "one-volume", &[&[1], &header, &words]);
    put("saved_map", "unsealed", &[&[0], &header, &words]);
    put("saved_map", "short-volume", &[&[1], &header, &u64::MAX.to_le_bytes()]);
}

fn state_json() {
    let id = "02".repeat(16);
    let state = |version: u32, seal: &str| {
        format!(
            r#"{{"version":{version},"group":"g","group_uuid":"{id}","epoch":1,"incarnation":2,"ring":{{"path":"/r","id":"{id}","boot_id":"{id}"}},"volumes":[{{"name":"v","path":"/v","size_bytes":512,"identity":{{"kind":"file","device":1,"inode":2,"size_bytes":512}},"exports":["nbd://h"]}}],"seal":{seal},"stopped":{{"stamps":[null]}}}}"#
        )
    };
    put("state_json", "whole", &[state(1, r#"{"attempt":1,"seq":2,"promoted":null}"#).as_bytes()]);
    put("state_json", "newer", &[state(9, "null").as_bytes()]);
    put("state_json", "cut-off", &[&state(1, "null").as_bytes()[..100]]);
}

/// A record of the spill: its slot, then its payload, padded.
fn spilled(seq: u64, kind: Kind, offset: u64, payload: &[u8]) -> Vec<u8> {
    let len = if kind == Kind::Zero { 4096 } else { payload.len() as u64 };
    let mut slot = Slot::new(kind, VolumeId(0), Extent::new(offset, len), 1_700_000_000_000_000_000);
    slot.commit = commit_word(seq, SlotState::Done).into();
    slot.incarnation = 1.into();
    if !payload.is_empty() {
        slot.payload_position = 0.into();
    }
    let mut bytes = [slot.as_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn span(first: u64, records: u32, body: &[u8]) -> Vec<u8> {
    let header_bytes = SPAN_HEADER_BYTES + TOUCHED_ENTRY_BYTES;
    let span_bytes = (header_bytes + body.len()).next_multiple_of(4096);
    let header = SpanHeader {
        magic: SPAN_MAGIC,
        version: SPILL_VERSION.into(),
        header_bytes: (header_bytes as u32).into(),
        span_bytes: (span_bytes as u32).into(),
        body_bytes: (body.len() as u32).into(),
        record_count: records.into(),
        touched_count: 1.into(),
        group_uuid: [2; 16],
        ring_id: [2; 16],
        incarnation: 1.into(),
        epoch: 1.into(),
        serial: 1.into(),
        offset: 0.into(),
        first_seq: first.into(),
        last_seq: (first + u64::from(records) - 1).into(),
        unix_ns: 1_700_000_000_000_000_000.into(),
        reserved: [0; 12],
        crc: 0.into(),
    };
    let touched =
        TouchedEntry { first_block: 0.into(), blocks: 2.into(), volume: 0.into(), reserved: 0.into() };
    let mut bytes = [header.as_bytes(), touched.as_bytes(), body].concat();
    bytes.resize(span_bytes, 0);
    bytes
}

fn spill() {
    let first = [
        spilled(7, Kind::Write, 512, b"a payload"),
        spilled(8, Kind::Zero, 65_536, &[]),
        spilled(9, Kind::Barrier, 0, &[]),
    ];
    let first = span(7, 3, &first.concat());
    let second = span(10, 1, &spilled(10, Kind::Write, 4096, &[3; 200]));
    put("spill_segment", "two-spans", &[&[1], &first, &second]);
    put("spill_segment", "unsealed", &[&[0], &first]);
    put("spill_segment", "cut-off", &[&[1], &first, &second[..100]]);
    let outside = spilled(7, Kind::Write, u64::MAX - 5, b"beyond the end");
    put("spill_segment", "outside-its-volume", &[&[1], &span(7, 1, &outside)]);
    // More records than a body can hold: they are not made room for.
    put("spill_segment", "too-many-records", &[&[1], &span(7, u32::MAX, b"")]);
}

fn activity() {
    let header = |version: u32, sectors: u64| ActivityHeader {
        magic: ACTIVITY_MAGIC,
        version: version.into(),
        incarnation: 1.into(),
        group_uuid: [2; 16],
        base_incarnation: 1.into(),
        volume_count: 2.into(),
        base_seq: 5.into(),
        base_claims: 1.into(),
        extent_bytes: EXTENT_BYTES.into(),
        sectors: sectors.into(),
        reserved: [0; 436],
        crc: 0.into(),
    };
    let sector = |number: u64, word: u64| ActivitySector {
        words: [word.into(); SECTOR_WORDS],
        number: number.into(),
        incarnation: 1.into(),
        crc: 0.into(),
    };
    let sectors = [sector(0, 1), sector(1, u64::MAX)];
    let whole = header(ACTIVITY_VERSION, 2);
    put("activity_map", "whole", &[&[1], whole.as_bytes(), sectors.as_bytes()]);
    put("activity_map", "unsealed", &[&[0], whole.as_bytes(), sectors.as_bytes()]);
    put("activity_map", "short", &[&[1], whole.as_bytes(), sectors[0].as_bytes()]);
    let newer = header(ACTIVITY_VERSION + 1, 2);
    put("activity_map", "newer", &[&[1], newer.as_bytes(), sectors.as_bytes()]);
    put("activity_map", "endless", &[&[1], header(ACTIVITY_VERSION, u64::MAX).as_bytes()]);
}

fn mark() {
    let mut name = [0; 64];
    name[..14].copy_from_slice(b"before-upgrade");
    let header = MarkHeader {
        magic: *b"TWLMARK1",
        group_uuid: [2; 16],
        number: 4.into(),
        hash: [5; 32],
        epoch: 1.into(),
        incarnation: 1.into(),
        seq: 9.into(),
        claims_upto: 2.into(),
        stream_bytes: 4096.into(),
        unix_ns: 1_700_000_000_000_000_000.into(),
        kind: 3.into(),
        name,
        reserved: [0; 80],
        header_crc32c: 0.into(),
    };
    let entry = |kind: u16, first_block: u64, blocks: u32, data_bytes: u32| PreImage {
        magic: u32::from_le_bytes(*b"UENT").into(),
        kind: kind.into(),
        volume: 0.into(),
        first_block: first_block.into(),
        blocks: blocks.into(),
        data_bytes: data_bytes.into(),
        data_crc32c: 0.into(),
        entry_crc32c: 0.into(),
    };
    let data = [7; 65_536];
    let saved = entry(1, 3, 1, 65_536);
    let whole = [header.as_bytes(), saved.as_bytes(), &data, entry(2, 4, 12, 0).as_bytes()].concat();
    put("mark_file", "whole", &[&[1], &whole]);
    put("mark_file", "cut-off", &[&[1], &whole[..60_000]]);
    put("mark_file", "unsealed", &[&[0], &whole]);
    let outside = entry(2, u64::MAX - 1, u32::MAX, 0);
    put("mark_file", "outside-its-volume", &[&[1], header.as_bytes(), outside.as_bytes()]);
}

fn main() {
    handshake();
    requests();
    batches();
    frames();
    rings();
    link();
    saved_map();
    state_json();
    spill();
    activity();
    mark();
}
