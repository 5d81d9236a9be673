//! Steps that need no journal.

use crate::BLOCK;
use crate::figures::{Found, Row, histogram};
use std::hint::black_box;
use std::time::Instant;
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c, is_zero};
use towline_proxy::latency::{Kind, Shadow, Timing};
use towline_shipper::batch::{BatchBuilder, BatchView, Chain};
use towline_shipper::{BatchHash, GroupUuid, SessionId};

const CALLS: usize = 50_000;
const BATCH_OPS: usize = 256;
/// Fits no cache, as a ring.
const COLD_BYTES: usize = 128 << 20;

pub fn measure(found: &mut Found) {
    let (data, zeroes) = (content(), vec![0; BLOCK]);
    let crc = crc32c(&data);
    let chain = Chain {
        group: GroupUuid([1; 16]),
        session: SessionId([2; 16]),
        number: 0,
        hash: BatchHash::NONE,
        stream_bytes: 0,
    };
    let encoded = batch(&data, crc).encode(&chain, 1).bytes;
    let batch_bytes = BATCH_OPS * BLOCK;
    let mut memory = ColdMemory::new();
    let shadow = Shadow::default();
    found.rows.extend([
        timed("timer", 0, CALLS, || {}),
        timed("crc32c of 4 KiB", BLOCK, CALLS, || {
            black_box(crc32c(black_box(&data)));
        }),
        timed("zero test, 4 KiB of zeroes", BLOCK, CALLS, || {
            black_box(is_zero(black_box(&zeroes)));
        }),
        timed("zero test, 4 KiB of data", 0, CALLS, || {
            black_box(is_zero(black_box(&data)));
        }),
        timed("stamps of 32 writes of one batch, recorded", 0, CALLS / 10, || stamps(&shadow)),
        timed("floor of an append: crc32c and copy, 4 KiB", BLOCK, CALLS, || memory.take(&data)),
        timed("batch of 256 x 4 KiB: build and encode", batch_bytes, CALLS / 100, || {
            black_box(batch(&data, crc).encode(&chain, 1));
        }),
        timed("batch of 256 x 4 KiB: parse and check", batch_bytes, CALLS / 100, || {
            black_box(BatchView::parse(black_box(&encoded)).expect("it is sound"));
        }),
    ]);
}

/// Shadow timing as a batch of writes has it: a reading for all at either end, two at the
/// source for each.
fn stamps(shadow: &Shadow) {
    let received = Instant::now();
    let mut timings = [None; 32];
    for timing in &mut timings {
        let submitted = Instant::now();
        let took = black_box(Instant::now()) - submitted;
        *timing = Some(Timing::new(Kind::Write, BLOCK as u64, received, took));
    }
    let replied = Instant::now();
    timings.iter().flatten().for_each(|timing| shadow.replied(timing, replied));
}

pub fn timed(name: &'static str, bytes: usize, calls: usize, mut step: impl FnMut()) -> Row {
    let mut times = histogram();
    (0..calls / 10).for_each(|_| step());
    for _ in 0..calls {
        let began = Instant::now();
        step();
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    Row { name, times, bytes }
}

/// Where an append's bytes go, without the journal: what the machine itself takes.
pub struct ColdMemory {
    bytes: Vec<u8>,
    start: usize,
    at: usize,
}

impl ColdMemory {
    pub fn new() -> ColdMemory {
        // Not zeroes: every page is there. Aligned as the ring: copies between certain
        // misaligned addresses are several times slower on some processors.
        let bytes = vec![1; COLD_BYTES + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        ColdMemory { bytes, start, at: 0 }
    }

    pub fn take(&mut self, data: &[u8]) {
        black_box(crc32c(black_box(data)));
        let at = self.start + self.at;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.at = (self.at + data.len()) % COLD_BYTES;
    }
}

pub fn content() -> Vec<u8> {
    (0..BLOCK).map(|at| (at * 7 + at / 256 + 1) as u8).collect()
}

fn batch(data: &[u8], crc: u32) -> BatchBuilder {
    let at = Position::new(Epoch(1), Incarnation(1), Seq(1));
    let mut batch = BatchBuilder::records(at, 0);
    for op in 0..BATCH_OPS as u64 {
        batch
            .write(Seq(op + 1), VolumeId(0), op * BLOCK as u64, data, crc)
            .expect("a batch has room for it");
    }
    batch
}
