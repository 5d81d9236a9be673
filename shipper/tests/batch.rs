//! Batches: what is written reads back, what is damaged is refused.

use proptest::prelude::*;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{
    BatchBuilder, BatchView, Chain, Control, DATA_BYTES_MAX, HEADER_BYTES, Header, NOTE_BYTES_MAX,
    OP_BYTES, OPS_MAX, Op, OpEntry, Sealed, encoded_len,
};
use towline_shipper::{BatchHash, ErrorKind, GroupUuid, SessionId};
use zerocopy::{FromBytes, IntoBytes};

fn chain() -> Chain {
    Chain {
        group: GroupUuid([1; 16]),
        session: SessionId([2; 16]),
        number: 0,
        hash: BatchHash::NONE,
        stream_bytes: 0,
    }
}

fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

fn write(batch: &mut BatchBuilder, seq: u64, volume: u16, offset: u64, bytes: &[u8]) {
    batch.write(Seq(seq), VolumeId(volume), offset, bytes, crc32c(bytes)).unwrap();
}

/// One of everything.
fn small() -> Sealed {
    let mut batch = BatchBuilder::records(at(5), 2);
    write(&mut batch, 5, 0, 512, b"hello");
    batch.zero(Seq(6), VolumeId(1), Extent::new(0, u32::MAX.into()), true).unwrap();
    batch.trim(Seq(7), VolumeId(1), Extent::new(4096, 8192)).unwrap();
    batch.barrier(Seq(8)).unwrap();
    batch.mark(Seq(9), b"before upgrade").unwrap();
    batch.control(Seq(10), Control::Seal, b"attempt-1").unwrap();
    batch.encode(&chain(), 77)
}

#[test]
fn every_kind_of_operation_reads_back_as_written() {
    let sealed = small();
    let view = BatchView::parse(&sealed.bytes).unwrap();
    let ops: Vec<_> = view.ops().map(|entry| (entry.seq.0, entry.op)).collect();
    let volume = VolumeId(1);
    assert_eq!(
        ops,
        [
            (5, Op::Write { volume: VolumeId(0), offset: 512, payload: b"hello" }),
            (6, Op::Zero { volume, extent: Extent::new(0, u32::MAX.into()), keep_allocated: true }),
            (7, Op::Trim { volume, extent: Extent::new(4096, 8192) }),
            (8, Op::Barrier),
            (9, Op::Mark { label: b"before upgrade" }),
            (10, Op::Control { control: Control::Seal, note: b"attempt-1" }),
        ]
    );
    assert_eq!((view.first_seq(), view.position()), (Seq(5), at(10)));
    assert_eq!((view.claims_upto(), view.claim_id(), view.created_unix_ns()), (2, None, 77));
    assert_eq!((view.hash(), view.number()), (sealed.hash, 1));
    assert_eq!(view.stream_bytes(), sealed.stream_bytes);
}

#[test]
fn any_flipped_bit_is_refused() {
    let mut bytes = small().bytes;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(BatchView::parse(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(BatchView::parse(&bytes).is_ok());
}

#[test]
fn any_other_length_is_refused() {
    let mut bytes = small().bytes;
    for len in 0..bytes.len() {
        assert!(BatchView::parse(&bytes[..len]).is_err(), "{len} bytes");
        assert!(len < HEADER_BYTES || encoded_len(&bytes[..len]).unwrap() == bytes.len());
    }
    bytes.push(0);
    assert!(BatchView::parse(&bytes).is_err());
}

/// A batch with valid checksums around whatever `change` makes of it: only the
/// meaning is wrong.
fn forged(change: impl FnOnce(&mut Header, &mut [OpEntry])) -> Vec<u8> {
    let bytes = small().bytes;
    let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
    let mut header = header;
    let (data, table) = rest.split_at(rest.len() - 6 * OP_BYTES);
    let mut table: Vec<_> =
        table.chunks(OP_BYTES).map(|row| OpEntry::read_from_bytes(row).unwrap()).collect();
    change(&mut header, &mut table);
    header.table_crc32c = crc32c(table.as_bytes()).into();
    header.header_crc32c = crc32c(&header.as_bytes()[..HEADER_BYTES - 4]).into();
    [header.as_bytes(), data, table.as_bytes()].concat()
}

#[test]
fn a_batch_with_right_checksums_and_wrong_meaning_is_refused() {
    assert!(BatchView::parse(&forged(|_, _| {})).is_ok());
    type Change = fn(&mut Header, &mut [OpEntry]);
    let cases: [(&str, Change); 41] = [
        ("kind", |h, _| h.kind = 3),
        ("compression", |h, _| h.compression = 1),
        ("flags", |h, _| h.flags = 2.into()),
        ("reserved", |h, _| h.reserved[35] = 1),
        ("stored bytes", |h, _| h.stored_bytes = 0.into()),
        ("units of nothing", |h, _| h.unit_bytes = 65536.into()),
        ("a checksum of nothing", |h, _| h.stored_crc32c = 1.into()),
        ("a key without a seal", |h, _| h.key_id[0] = 1),
        ("a salt without a seal", |h, _| h.salt[31] = 1),
        ("a seal without a key", |h, _| h.flags = 1.into()),
        ("format 1 with new fields", |h, _| h.version = 1.into()),
        ("version 0", |h, _| h.version = 0.into()),
        ("number 0", |h, _| h.number = 0.into()),
        ("last number", |h, _| h.number = u64::MAX.into()),
        ("first with a predecessor", |h, _| h.prev_hash[0] = 1),
        ("first with bytes before", |h, _| h.stream_bytes_before = 1.into()),
        ("epoch 0", |h, _| h.epoch = 0.into()),
        ("incarnation 0", |h, _| h.incarnation = 0.into()),
        ("first seq 0", |h, _| h.first_seq = 0.into()),
        ("empty range", |h, _| h.last_seq = 4.into()),
        ("last seq", |h, _| h.last_seq = u64::MAX.into()),
        ("records with a claim", |h, _| h.claim_id = 1.into()),
        ("blocks that are records", |h, _| h.kind = 2),
        ("more rows", |h, _| h.op_count = 7.into()),
        ("rows past the limit", |h, _| h.op_count = u32::MAX.into()),
        ("data past the limit", |h, _| h.data_bytes = u32::MAX.into()),
        ("op kind 0", |_, t| t[0].kind = 0),
        ("op kind 10", |_, t| t[5].kind = 10),
        ("op flags", |_, t| t[0].flags = 1),
        ("zero flags", |_, t| t[1].flags = 2),
        ("empty write", |_, t| t[0].len = 0.into()),
        ("longer write", |_, t| t[0].len = 6.into()),
        ("wrapping range", |_, t| t[2].offset = (u64::MAX - 8191).into()),
        ("data out of order", |_, t| t[4].data_offset = 0.into()),
        ("data far away", |_, t| t[5].data_offset = u32::MAX.into()),
        ("data behind a trim", |_, t| t[2].data_offset = 5.into()),
        ("checksum behind a trim", |_, t| t[2].data_crc32c = 5.into()),
        ("seq before the range", |_, t| t[0].seq = 4.into()),
        ("seq after the range", |_, t| t[5].seq = 11.into()),
        ("seqs out of order", |_, t| t[1].seq = 8.into()),
        ("a barrier with a volume", |_, t| t[3].volume = 1.into()),
    ];
    for (what, change) in cases {
        let error = BatchView::parse(&forged(change)).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
    }
    let newer = forged(|h, _| h.version = 4.into());
    assert_eq!(BatchView::parse(&newer).unwrap_err().kind(), ErrorKind::TooNew);
}

#[test]
fn blocks_hold_changes_without_seq_only() {
    let mut blocks = BatchBuilder::blocks(at(9), 4, 3);
    write(&mut blocks, 99, 0, 0, &[7; 512]);
    blocks.zero(Seq::NONE, VolumeId(0), Extent::new(65536, 65536), false).unwrap();
    blocks.set_claims_upto(4);
    let sealed = blocks.encode(&chain(), 0);
    let view = BatchView::parse(&sealed.bytes).unwrap();
    assert_eq!((view.claim_id(), view.claims_upto(), view.position()), (Some(4), 4, at(9)));
    assert_eq!(view.first_seq(), Seq(10));
    assert!(view.ops().all(|entry| entry.seq == Seq::NONE));

    let mut blocks = BatchBuilder::blocks(at(9), 4, 3);
    blocks.barrier(Seq::NONE).unwrap();
    assert!(BatchView::parse(&blocks.encode(&chain(), 0).bytes).is_err());
}

#[test]
fn a_full_batch_takes_nothing_more_and_still_reads() {
    let mut batch = BatchBuilder::records(at(1), 0);
    let payload = vec![3; 512];
    for seq in 1..=OPS_MAX as u64 {
        write(&mut batch, seq, 0, seq * 512, &payload);
    }
    assert_eq!((batch.op_count(), batch.data_bytes()), (OPS_MAX, DATA_BYTES_MAX));
    assert!(!batch.fits(0));
    let error = batch.barrier(Seq(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    let sealed = batch.encode(&chain(), 0);
    assert_eq!(BatchView::parse(&sealed.bytes).unwrap().op_count(), OPS_MAX);
}

#[test]
fn what_no_batch_can_say_is_refused_when_pushed() {
    let mut batch = BatchBuilder::records(at(1), 0);
    assert!(batch.write(Seq(1), VolumeId(0), 0, b"", 0).is_err());
    assert!(batch.zero(Seq(1), VolumeId(0), Extent::new(0, 0), false).is_err());
    assert!(batch.trim(Seq(1), VolumeId(0), Extent::new(0, 1 << 32)).is_err());
    assert!(batch.mark(Seq(1), &[0; NOTE_BYTES_MAX + 1]).is_err());
    assert!(batch.is_empty());
    batch.pass(Seq(1));
    assert!(!batch.is_empty(), "a record that left no operation is still covered");
    BatchView::parse(&batch.encode(&chain(), 0).bytes).unwrap();
}

#[test]
fn the_chain_counts_and_names_each_batch() {
    let mut chain = chain();
    for seq in 1..4 {
        let mut batch = BatchBuilder::records(at(seq), 0);
        batch.barrier(Seq(seq)).unwrap();
        let sealed = batch.encode(&chain, 0);
        let view = BatchView::parse(&sealed.bytes).unwrap();
        assert_eq!((view.number(), view.prev_hash()), (seq, chain.hash));
        assert_eq!(view.stream_bytes_before(), chain.stream_bytes);
        chain.advance(&sealed);
    }
    assert_eq!(chain.number, 3);
}

proptest! {
    #[test]
    fn random_operations_read_back_as_written(
        ops in prop::collection::vec(
            (0u8..3, 0u16..4, 0u64..1 << 40, 1u32.., prop::collection::vec(any::<u8>(), 1..300)),
            0..40,
        ),
        first in 1u64..1 << 50,
    ) {
        let mut batch = BatchBuilder::records(at(first), 0);
        let mut seq = Seq(first);
        // Apart from one another, so that nothing is coalesced.
        let ops: Vec<_> = (0u64..).zip(&ops).map(|(index, (kind, volume, offset, len, payload))| {
            (*kind, *volume, index << 41 | *offset, *len, payload)
        }).collect();
        for (kind, volume, offset, len, payload) in &ops {
            let (volume, extent) = (VolumeId(*volume), Extent::new(*offset, u64::from(*len)));
            match kind {
                0 => batch.write(seq, volume, *offset, payload, crc32c(payload)).unwrap(),
                1 => batch.zero(seq, volume, extent, *len % 2 == 0).unwrap(),
                _ => batch.trim(seq, volume, extent).unwrap(),
            }
            seq = seq.next();
        }
        batch.pass(Seq(first));
        let sealed = batch.encode(&chain(), 0);
        let view = BatchView::parse(&sealed.bytes).unwrap();
        prop_assert_eq!(view.ops().count(), ops.len());
        for (entry, (kind, volume, offset, len, payload)) in view.ops().zip(&ops) {
            let (volume, extent) = (VolumeId(*volume), Extent::new(*offset, u64::from(*len)));
            let expected = match kind {
                0 => Op::Write { volume, offset: *offset, payload },
                1 => Op::Zero { volume, extent, keep_allocated: *len % 2 == 0 },
                _ => Op::Trim { volume, extent },
            };
            prop_assert_eq!(entry.op, expected);
        }
    }

    #[test]
    fn garbage_is_refused_and_harms_nobody(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(BatchView::parse(&bytes).is_err());
    }

    #[test]
    fn damaged_batches_are_refused_and_harm_nobody(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..8),
    ) {
        let good = small().bytes;
        let mut bytes = good.clone();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        prop_assume!(bytes != good);
        prop_assert!(BatchView::parse(&bytes).is_err());
    }
}
