//! Batches to measure with.

use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Chain};
use towline_shipper::{BatchHash, GroupUuid, SessionId};

pub const BLOCK: usize = 4096;
/// As the cutter ends a batch of records: 2 MiB.
pub const BATCH_OPS: usize = 512;
pub const BATCH_BYTES: usize = BATCH_OPS * BLOCK;
pub const VOLUME_BYTES: u64 = 1 << 30;

pub fn chain() -> Chain {
    Chain {
        group: GroupUuid([1; 16]),
        session: SessionId([2; 16]),
        number: 0,
        hash: BatchHash::NONE,
        stream_bytes: 0,
    }
}

/// Halves of blocks repeat, halves do not: about the ratio of a binary.
pub fn blocks() -> Vec<(Vec<u8>, u32)> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..BATCH_OPS)
        .map(|_| {
            let noise = (0..BLOCK / 16).flat_map(|_| next().to_le_bytes());
            let words = b"the same words again and again, ".iter().copied().cycle();
            let block: Vec<u8> = noise.chain(words).take(BLOCK).collect();
            let crc = crc32c(&block);
            (block, crc)
        })
        .collect()
}

/// Writes of 4 KiB, each `stride` blocks after the one before, from record `first`.
pub fn fill(blocks: &[(Vec<u8>, u32)], first: u64, stride: u64, memory: Vec<u8>) -> BatchBuilder {
    let at = Position::new(Epoch(1), Incarnation(1), Seq(first));
    let mut batch = BatchBuilder::records(at, 0).reusing(memory);
    for (seq, (block, crc)) in (first..).zip(blocks) {
        let offset = seq * stride * BLOCK as u64 % VOLUME_BYTES;
        batch.write(Seq(seq), VolumeId(0), offset, block, *crc).expect("it has room");
    }
    batch
}

/// As [`fill`], with every block of the volume written `times` times.
pub fn fill_over(
    blocks: &[(Vec<u8>, u32)],
    first: u64,
    times: u64,
    memory: Vec<u8>,
) -> BatchBuilder {
    let at = Position::new(Epoch(1), Incarnation(1), Seq(first));
    let mut batch = BatchBuilder::records(at, 0).reusing(memory);
    let different = blocks.len() as u64 / times;
    for (seq, (block, crc)) in (first..).zip(blocks) {
        let offset = seq % different * BLOCK as u64;
        batch.write(Seq(seq), VolumeId(0), offset, block, *crc).expect("it has room");
    }
    batch
}
