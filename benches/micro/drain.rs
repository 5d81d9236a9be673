//! The drain: a record read back out of the ring, as the shipper does it.

use crate::figures::{Found, Row, histogram};
use crate::group::Group;
use crate::steps::content;
use std::hint::black_box;
use std::time::Instant;

const RING_BYTES: u64 = 128 << 20;
/// Half of the ring: more than any cache holds.
const RECORDS: usize = 16 << 10;
const ROUNDS: usize = 4;

pub fn measure(found: &mut Found) {
    let group = Group::in_memory(RING_BYTES);
    let (reader, data) = (group.reader(), content());
    let (mut times, mut payload) = (histogram(), Vec::with_capacity(data.len()));
    for _ in 0..ROUNDS {
        for seq in group.fill(RECORDS, &data) {
            payload.clear();
            let began = Instant::now();
            black_box(reader.read(seq, &mut payload).expect("it is there"));
            times.saturating_record(began.elapsed().as_nanos() as u64);
        }
        assert!(payload == data);
        group.make_room();
    }
    found.rows.push(Row {
        name: "drain: read and check a record of 4 KiB",
        times,
        bytes: data.len(),
    });
}
