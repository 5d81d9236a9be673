//! Steps of the path of a 4 KiB write, so many times and nothing else: for a counter of
//! instructions (`scripts/count-path`), whose figures a busy machine does not change.

use crate::codec::write_request;
use crate::group::Group;
use crate::steps::content;
use std::hint::black_box;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_proxy::nbd::reply;
use towline_proxy::nbd::request::{RawRequest, Terms, validate};
use towline_proxy::overlap::{Overlaps, Use};
use towline_shipper::batch::BatchBuilder;

const RING_BYTES: u64 = 64 << 20;
/// Records in the ring, or in a batch, at a time.
const ROUND: usize = 256;

/// # Panics
/// For a step there is none of.
pub fn run(step: &str, times: usize) {
    match step {
        "request" => requests(times),
        "append" => appends(times),
        "drain" => drains(times),
        "cut" => cuts(times),
        "overlap" => overlaps(times),
        _ => panic!("no step {step}: request, append, drain, cut or overlap"),
    }
}

/// A request parsed and validated, its reply encoded.
fn requests(times: usize) {
    let terms =
        Terms { size_bytes: 4 << 30, read_only: false, structured: false, allocation: false };
    for cookie in 0..times as u64 {
        let bytes = write_request(cookie);
        let raw = RawRequest::parse(black_box(&bytes)).expect("its magic is right");
        let raw = raw.expect("it is whole");
        black_box(validate(&raw, &terms).expect("it is valid"));
        black_box(reply::simple(black_box(cookie), None));
    }
}

/// The journal's part: zero test, number, checksum, copy, activity map, done.
fn appends(times: usize) {
    let (group, data) = (Group::in_memory(RING_BYTES), content());
    for _ in 0..times.div_ceil(ROUND) {
        group.fill(ROUND, &data);
        group.make_room();
    }
}

/// As `append`, and each record read back and checked.
fn drains(times: usize) {
    let (group, data) = (Group::in_memory(RING_BYTES), content());
    let (reader, mut payload) = (group.reader(), Vec::with_capacity(data.len()));
    for _ in 0..times.div_ceil(ROUND) {
        for seq in group.fill(ROUND, &data) {
            payload.clear();
            black_box(reader.read(seq, &mut payload).expect("it is there"));
        }
        group.make_room();
    }
}

/// A write taken into a batch.
fn cuts(times: usize) {
    let data = content();
    let crc = crc32c(&data);
    for _ in 0..times.div_ceil(ROUND) {
        let at = Position::new(Epoch(1), Incarnation(1), Seq(1));
        let mut batch = BatchBuilder::records(at, 0);
        for op in 0..ROUND as u64 {
            let offset = op * data.len() as u64;
            batch.write(Seq(op + 1), VolumeId(0), offset, &data, crc).expect("there is room");
        }
        black_box(batch);
    }
}

/// An operation at an asynchronous source, beside 31 others.
fn overlaps(times: usize) {
    let mut table = Overlaps::default();
    let block = |at: u64| Extent::new(at * 4096, 4096);
    for at in 0..31 {
        table.enter(at as usize, block(at), Use::Change, 4096);
    }
    let mut runnable = Vec::new();
    for _ in 0..times {
        let (arrival, runs) = table.enter(0, black_box(block(31)), Use::Change, 4096);
        assert!(runs);
        table.leave(arrival, &mut runnable);
    }
}
