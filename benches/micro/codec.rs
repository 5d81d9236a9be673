//! What a request takes beside its data: the NBD codec, and the table of operations that
//! may not overlap at an asynchronous source.

use crate::figures::Found;
use crate::steps::timed;
use std::hint::black_box;
use towline_block::Extent;
use towline_proxy::nbd::reply;
use towline_proxy::nbd::request::{RawRequest, Terms, validate};
use towline_proxy::overlap::{Overlaps, Use};

const CALLS: usize = 50_000;
/// As many as a batch of depth 32 brings: one clock reading for all.
const BATCH: usize = 32;
const REQUEST_BYTES: usize = 28;
const BLOCK: u32 = 4096;

pub fn measure(found: &mut Found) {
    let terms =
        Terms { size_bytes: 4 << 30, read_only: false, structured: false, allocation: false };
    let requests: Vec<_> = (0..BATCH as u64).map(write_request).collect();
    found.rows.extend([
        timed("32 NBD write requests: parse and validate", 0, CALLS, || {
            for bytes in &requests {
                let raw = RawRequest::parse(black_box(bytes)).expect("its magic is right");
                let raw = raw.expect("it is whole");
                black_box(validate(&raw, &terms).expect("it is valid"));
            }
        }),
        timed("32 NBD simple replies", 0, CALLS, || {
            for cookie in 0..BATCH as u64 {
                black_box(reply::simple(black_box(cookie), None));
            }
        }),
    ]);
    overlap(found, 1, "overlap table: enter and leave beside 1 other");
    overlap(found, 31, "overlap table: enter and leave beside 31 others");
    overlap(found, 127, "overlap table: enter and leave beside 127 others");
}

/// An operation that meets nobody, with `others` at the source.
fn overlap(found: &mut Found, others: u64, name: &'static str) {
    let mut table = Overlaps::default();
    let bytes = u64::from(BLOCK);
    let block = |at: u64| Extent::new(at * bytes, bytes);
    for at in 0..others {
        table.enter(at as usize, block(at), Use::Change, bytes);
    }
    let mut runnable = Vec::new();
    found.rows.push(timed(name, 0, CALLS, || {
        let (arrival, runs) = table.enter(0, black_box(block(others)), Use::Change, bytes);
        assert!(runs);
        table.leave(arrival, &mut runnable);
    }));
}

pub fn write_request(cookie: u64) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    bytes[6..8].copy_from_slice(&1_u16.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&(cookie * u64::from(BLOCK)).to_be_bytes());
    bytes[24..].copy_from_slice(&BLOCK.to_be_bytes());
    bytes
}
