//! Batches that are coalesced, compressed, sealed: they say the same as the plain ones,
//! and what was tampered with, bombs included, is refused.

use proptest::prelude::*;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{
    self, Batch, BatchBuilder, BatchView, Chain, Control, Encoder, GroupKey, HEADER_BYTES, Header,
    KeyId, Keyring, Method, Op, OpEntry, Sealed, UNIT_BYTES, encoded_len,
};
use towline_shipper::{BatchHash, ErrorKind, GroupUuid, SessionId};
use zerocopy::{FromBytes, IntoBytes};

fn chain() -> Chain {
    let (group, session) = (GroupUuid([1; 16]), SessionId([2; 16]));
    Chain { group, session, number: 0, hash: BatchHash::NONE, stream_bytes: 0 }
}

fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

fn key(id: u8) -> GroupKey {
    GroupKey::new(KeyId([id; 16]), [id; 32]).unwrap()
}

fn keys(ids: &[u8]) -> Keyring {
    let mut keys = Keyring::default();
    ids.iter().for_each(|id| keys.add(key(*id)));
    keys
}

fn write(batch: &mut BatchBuilder, seq: u64, offset: u64, bytes: &[u8]) {
    batch.write(Seq(seq), VolumeId(0), offset, bytes, crc32c(bytes)).unwrap();
}

/// Text-like: repeats, and differs from place to place.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let line = |at: usize| format!("{:08} the same words again {seed}\n", at / 3);
    (0..).flat_map(|at| line(at).into_bytes()).take(len).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

fn some() -> BatchBuilder {
    let mut batch = BatchBuilder::records(at(5), 2);
    write(&mut batch, 5, 0, &text(1500, 1));
    batch.zero(Seq(6), VolumeId(1), Extent::new(0, 4096), true).unwrap();
    write(&mut batch, 7, 65536, &text(1000, 2));
    batch.control(Seq(8), Control::Seal, b"attempt-1").unwrap();
    batch
}

fn encode(batch: BatchBuilder, method: Method, key: Option<GroupKey>) -> Sealed {
    Encoder::new(method, key).encode(batch, &chain(), 77).unwrap()
}

/// All ways a batch is stored, and whether it is smaller than its payload.
fn ways() -> Vec<(&'static str, Method, Option<GroupKey>)> {
    vec![
        ("plain", Method::None, None),
        ("lz4", Method::Lz4, None),
        ("zstd", Method::Zstd, None),
        ("sealed", Method::None, Some(key(3))),
        ("lz4 sealed", Method::Lz4, Some(key(3))),
        ("zstd sealed", Method::Zstd, Some(key(3))),
    ]
}

#[test]
fn every_way_to_store_a_batch_says_the_same() {
    let plain = some().encode(&chain(), 77);
    let plain = BatchView::parse(&plain.bytes).unwrap();
    let expected: Vec<_> = plain.ops().collect();
    for (what, method, key) in ways() {
        let sealed = encode(some(), method, key);
        assert_eq!(encoded_len(&sealed.bytes[..HEADER_BYTES]).unwrap(), sealed.bytes.len());
        let opened = Batch::open(sealed.bytes.clone(), &keys(&[3])).unwrap();
        let view = opened.view();
        assert_eq!(view.ops().collect::<Vec<_>>(), expected, "{what}");
        assert_eq!((view.hash(), view.number()), (sealed.hash, 1), "{what}");
        assert_eq!(view.stream_bytes(), sealed.stream_bytes, "{what}");
        assert_eq!((view.position(), view.first_seq()), (plain.position(), plain.first_seq()));
        let compressed = sealed.gains.stored_bytes < sealed.gains.payload_bytes;
        assert_eq!(compressed, method != Method::None, "{what}");
    }
}

#[test]
fn any_flipped_bit_of_any_way_is_refused() {
    for (what, method, key) in ways() {
        let mut bytes = encode(some(), method, key).bytes;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let opened = Batch::open(bytes.clone(), &keys(&[3]));
                assert!(opened.is_err(), "{what}: bit {bit} of byte {at}");
                bytes[at] ^= 1 << bit;
            }
        }
        assert!(Batch::open(bytes, &keys(&[3])).is_ok(), "{what}");
    }
}

#[test]
fn any_other_length_of_any_way_is_refused() {
    for (what, method, key) in ways() {
        let mut bytes = encode(some(), method, key).bytes;
        for len in 0..bytes.len() {
            assert!(Batch::open(bytes[..len].to_vec(), &keys(&[3])).is_err(), "{what}: {len}");
        }
        bytes.push(0);
        assert!(Batch::open(bytes, &keys(&[3])).is_err(), "{what}");
    }
}

#[test]
fn a_batch_of_format_1_reads_as_it_always_did() {
    // As the first version wrote it: the table before the data, no new field.
    let sealed = some().encode(&chain(), 77);
    let plain = BatchView::parse(&sealed.bytes).unwrap();
    let (mut header, body) = Header::read_from_prefix(&sealed.bytes).unwrap();
    let (data, table) = body.split_at(header.stored_bytes.get() as usize);
    header.version = 1.into();
    header.stored_bytes = 0.into();
    header.header_crc32c = crc32c(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    let old = [header.as_bytes(), table, data].concat();
    let view = BatchView::parse(&old).unwrap();
    assert_eq!(view.ops().collect::<Vec<_>>(), plain.ops().collect::<Vec<_>>());
    assert!(Batch::open(old, &Keyring::default()).is_ok());
}

#[test]
fn a_sealed_batch_shows_nothing_and_opens_with_its_key_alone() {
    let sealed = encode(some(), Method::None, Some(key(3)));
    let shows = |text: &[u8]| sealed.bytes.windows(text.len()).any(|window| window == text);
    assert!(!shows(b"the same words") && !shows(b"attempt-1"));
    // Its place in the chain is known without the key.
    assert_eq!(encoded_len(&sealed.bytes[..HEADER_BYTES]).unwrap(), sealed.bytes.len());
    assert_eq!(batch::check(&sealed.bytes).unwrap(), sealed.hash);
    let open = |ids: &[u8]| Batch::open(sealed.bytes.clone(), &keys(ids));
    assert!(open(&[2, 3]).is_ok(), "an older key stays in the ring");
    assert_eq!(open(&[2]).unwrap_err().kind(), ErrorKind::NotAuthorised);
    let mut wrong = Keyring::default();
    wrong.add(GroupKey::new(KeyId([3; 16]), [4; 32]).unwrap());
    let error = Batch::open(sealed.bytes.clone(), &wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(GroupKey::new(KeyId([0; 16]), [1; 32]).is_err(), "no id means not sealed");
}

#[test]
fn the_same_batch_sealed_twice_has_no_bytes_in_common() {
    let body = |_| encode(some(), Method::None, Some(key(3))).bytes.split_off(HEADER_BYTES);
    let [one, two] = [0, 1].map(body);
    let same = one.iter().zip(&two).filter(|(a, b)| a == b).count();
    assert!(same < one.len() / 16, "{same} of {}", one.len());
}

#[test]
fn a_key_is_never_printed() {
    let key = GroupKey::new(KeyId([1; 16]), [0xab; 32]).unwrap();
    let mut keys = Keyring::default();
    keys.add(key.clone());
    assert!(!format!("{key:?}{keys:?}").contains("171"), "0xab");
}

#[test]
fn what_does_not_get_smaller_is_stored_as_it_is() {
    for method in [Method::Lz4, Method::Zstd] {
        let mut batch = BatchBuilder::records(at(1), 0);
        write(&mut batch, 1, 0, &noise(2 * UNIT_BYTES));
        let sealed = encode(batch, method, None);
        assert_eq!(sealed.gains.stored_bytes, sealed.gains.payload_bytes);
        assert!(BatchView::parse(&sealed.bytes).is_ok(), "nothing to unpack");
        // Beside what does, only that is compressed.
        let mut batch = BatchBuilder::records(at(1), 0);
        write(&mut batch, 1, 0, &noise(UNIT_BYTES));
        write(&mut batch, 2, 1 << 20, &text(UNIT_BYTES, 1));
        let sealed = encode(batch, method, None);
        let stored = sealed.gains.stored_bytes as usize;
        assert!((UNIT_BYTES..UNIT_BYTES + UNIT_BYTES / 2).contains(&stored), "{stored}");
        Batch::open(sealed.bytes, &Keyring::default()).unwrap();
    }
}

/// A compressed batch with right checksums around whatever `change` makes of it.
fn forged(
    method: Method,
    change: impl FnOnce(&mut Header, &mut Vec<u8>, &mut Vec<u32>),
) -> Vec<u8> {
    let bytes = encode(some(), method, None).bytes;
    let (mut header, body) = Header::read_from_prefix(&bytes).unwrap();
    let (stored, tables) = body.split_at(header.stored_bytes.get() as usize);
    let units = (header.data_bytes.get() as usize).div_ceil(header.unit_bytes.get() as usize);
    let (rows, table) = tables.split_at(units * 4);
    let mut stored = stored.to_vec();
    let mut rows: Vec<u32> =
        rows.chunks(4).map(|row| u32::from_le_bytes(row.try_into().unwrap())).collect();
    change(&mut header, &mut stored, &mut rows);
    let rows: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
    header.stored_bytes = (stored.len() as u32).into();
    header.stored_crc32c = crc32c(&stored).into();
    header.table_crc32c = crc32c(&[&rows, table].concat()).into();
    header.header_crc32c = crc32c(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    [header.as_bytes(), &stored, &rows, table].concat()
}

#[test]
fn a_bomb_is_refused_by_its_declared_sizes() {
    type Change = fn(&mut Header, &mut Vec<u8>, &mut Vec<u32>);
    let cases: [(&str, Change); 9] = [
        ("more data than a batch may have", |h, _, _| h.data_bytes = u32::MAX.into()),
        ("small units, so many rows", |h, _, _| h.unit_bytes = 1.into()),
        ("units of nothing", |h, _, _| h.unit_bytes = 0.into()),
        ("units that are too large", |h, _, _| h.unit_bytes = (2 << 20).into()),
        ("units of no power of two", |h, _, _| h.unit_bytes = (65536 + 512).into()),
        ("a method that does not exist", |_, _, rows| rows[0] = rows[0] & 0xff_ffff | 3 << 24),
        ("a unit longer than what is stored", |_, _, rows| rows[0] += 1),
        ("a unit shorter than what is stored", |_, _, rows| rows[0] -= 1),
        ("not smaller than the data", |h, s, _| s.resize(h.data_bytes.get() as usize, 0)),
    ];
    for method in [Method::Lz4, Method::Zstd] {
        assert!(Batch::open(forged(method, |_, _, _| {}), &Keyring::default()).is_ok());
        for (what, change) in cases {
            let error = Batch::open(forged(method, change), &Keyring::default()).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
        }
    }
}

#[test]
fn a_unit_that_unpacks_to_more_or_less_than_its_size_is_refused() {
    for (method, number) in [(Method::Lz4, 1u32), (Method::Zstd, 2)] {
        for len in [0, 1, 2508, 2510, 1 << 20, 64 << 20] {
            let content = vec![7u8; len];
            let packed = match method {
                Method::Zstd => zstd::bulk::compress(&content, 1).unwrap(),
                _ => lz4_flex::block::compress(&content),
            };
            if packed.len() > 2000 {
                continue; // lz4 of 64 MiB: its size alone is refused
            }
            let bytes = forged(method, |header, stored, rows| {
                assert_eq!(header.data_bytes.get(), 2509);
                *stored = packed;
                rows[0] = number << 24 | stored.len() as u32;
            });
            let error = Batch::open(bytes, &Keyring::default()).expect_err("another size");
            assert_eq!(error.kind(), ErrorKind::Damaged, "{len}: {error}");
        }
    }
}

#[test]
fn overwritten_bytes_are_not_shipped_and_pieces_have_checksums_of_their_own() {
    let mut batch = BatchBuilder::records(at(1), 0);
    write(&mut batch, 1, 0, &[1; 4096]);
    write(&mut batch, 2, 1024, &[2; 1024]);
    write(&mut batch, 3, 8192, &[3; 512]);
    write(&mut batch, 4, 8192, &[4; 512]);
    let sealed = batch.encode(&chain(), 0);
    let view = BatchView::parse(&sealed.bytes).unwrap();
    let ops: Vec<_> = view
        .ops()
        .map(|entry| match entry.op {
            Op::Write { offset, payload, .. } => {
                assert!(payload.iter().all(|byte| u64::from(*byte) == entry.seq.0));
                (entry.seq.0, offset, payload.len())
            }
            _ => panic!("only writes were pushed"),
        })
        .collect();
    assert_eq!(ops, [(1, 0, 1024), (1, 2048, 2048), (2, 1024, 1024), (4, 8192, 512)]);
    assert_eq!((sealed.gains.payload_bytes, sealed.gains.coalesced_bytes), (6144, 1536));
    assert_eq!((view.first_seq(), view.position()), (Seq(1), at(4)), "the range stays whole");
}

#[test]
fn a_payload_that_lost_its_checksum_is_not_given_a_new_one() {
    let mut batch = BatchBuilder::records(at(1), 0);
    batch.write(Seq(1), VolumeId(0), 0, &[1; 4096], 0xbad).unwrap();
    write(&mut batch, 2, 1024, &[2; 1024]);
    let sealed = batch.encode(&chain(), 0);
    assert!(BatchView::parse(&sealed.bytes).is_err(), "the target sees the damage");
}

/// What the volumes of a small disk hold after the operations of a batch.
fn applied(batch: &Batch) -> Vec<u8> {
    let mut disk = vec![0xee; 4096];
    for entry in batch.view().ops() {
        match entry.op {
            Op::Write { offset, payload, .. } => {
                disk[offset as usize..offset as usize + payload.len()].copy_from_slice(payload);
            }
            Op::Zero { extent, .. } | Op::Trim { extent, .. } => {
                disk[extent.offset as usize..extent.end() as usize].fill(0);
            }
            _ => {}
        }
    }
    disk
}

proptest! {
    #[test]
    fn the_target_is_the_same_however_a_batch_is_stored(
        ops in prop::collection::vec((0u8..8, 0usize..3500, 1usize..500), 1..60),
    ) {
        let mut expected = vec![0xee; 4096];
        let build = || {
            let mut batch = BatchBuilder::records(at(1), 0);
            for (index, &(kind, offset, len)) in ops.iter().enumerate() {
                let seq = index as u64 + 1;
                let extent = Extent::new(offset as u64, len as u64);
                match kind {
                    0 => batch.zero(Seq(seq), VolumeId(0), extent, false).unwrap(),
                    1 => batch.trim(Seq(seq), VolumeId(0), extent).unwrap(),
                    2 => batch.mark(Seq(seq), b"here").unwrap(),
                    _ => write(&mut batch, seq, offset as u64, &vec![index as u8 + 1; len]),
                }
            }
            batch.pass(Seq(ops.len() as u64));
            batch
        };
        for (index, &(kind, offset, len)) in ops.iter().enumerate() {
            match kind {
                0 | 1 => expected[offset..offset + len].fill(0),
                2 => {}
                _ => expected[offset..offset + len].fill(index as u8 + 1),
            }
        }
        for (what, method, key) in ways() {
            let sealed = encode(build(), method, key);
            let batch = Batch::open(sealed.bytes, &keys(&[3])).unwrap();
            prop_assert_eq!(applied(&batch), expected.clone(), "{}", what);
            let marks = batch.view().ops().filter(|entry| matches!(entry.op, Op::Mark { .. })).count();
            prop_assert_eq!(marks, ops.iter().filter(|(kind, ..)| *kind == 2).count());
        }
    }

    #[test]
    fn damaged_compressed_data_harms_nobody(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..8),
        zstd: bool,
    ) {
        let method = if zstd { Method::Zstd } else { Method::Lz4 };
        let bytes = forged(method, |_, stored, _| {
            for (at, flip) in flips {
                let at = at.index(stored.len());
                stored[at] ^= flip;
            }
        });
        // Either it is refused, or it unpacks to payloads whose checksums match.
        let _ = Batch::open(bytes, &Keyring::default());
    }
}

const _: () = assert!(size_of::<OpEntry>() == 32);
