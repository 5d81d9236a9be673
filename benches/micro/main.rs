//! The steps of the data path, one by one: `cargo bench -p towline-bench`.
//! With `-- --json FILE` also as JSON. Every operation is timed by itself; the timer's
//! own cost is measured and shown, and not subtracted.

mod group;

use group::Group;
use hdrhistogram::Histogram;
use std::hint::black_box;
use std::time::Instant;
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c, is_zero};
use towline_shipper::batch::{BatchBuilder, BatchView, Chain};
use towline_shipper::{BatchHash, GroupUuid, SessionId};

const BLOCK: usize = 4096;
/// Long enough to see a p99.9 of some hundred samples, short enough to be run often.
const APPENDS: usize = 400_000;
const CALLS: usize = 50_000;
/// One and two producers take turns: what the machine does meanwhile hits both.
const ROUNDS: usize = 5;
const BATCH_OPS: usize = 256;

/// What was measured of one step.
struct Row {
    name: &'static str,
    times: Histogram<u64>,
    /// Bytes an operation handles; 0: no throughput to speak of.
    bytes: usize,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("sound bounds")
}

fn measure(name: &'static str, bytes: usize, calls: usize, mut step: impl FnMut()) -> Row {
    let mut times = histogram();
    (0..calls / 10).for_each(|_| step());
    for _ in 0..calls {
        let began = Instant::now();
        step();
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    Row { name, times, bytes }
}

fn content() -> Vec<u8> {
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

fn pure_steps() -> Vec<Row> {
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
    vec![
        measure("timer", 0, CALLS, || {}),
        measure("crc32c of 4 KiB", BLOCK, CALLS, || {
            black_box(crc32c(black_box(&data)));
        }),
        measure("zero test, 4 KiB of zeroes", BLOCK, CALLS, || {
            black_box(is_zero(black_box(&zeroes)));
        }),
        measure("zero test, 4 KiB of data", 0, CALLS, || {
            black_box(is_zero(black_box(&data)));
        }),
        measure("batch of 256 x 4 KiB: build and encode", batch_bytes, CALLS / 100, || {
            black_box(batch(&data, crc).encode(&chain, 1));
        }),
        measure("batch of 256 x 4 KiB: parse and check", batch_bytes, CALLS / 100, || {
            black_box(BatchView::parse(black_box(&encoded)).expect("it is sound"));
        }),
    ]
}

/// Rows of the append, and how much more two producers do than one (median).
fn appends() -> (Vec<Row>, f64) {
    let group = Group::open();
    let data = content();
    group.append_all(1, APPENDS, &data);
    let (mut one, mut two) = (histogram(), histogram());
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let single = group.append_all(1, APPENDS, &data);
        let double = group.append_all(2, APPENDS, &data);
        ratios.push(double.per_s / single.per_s);
        one.add(&single.times).expect("same bounds");
        two.add(&double.times).expect("same bounds");
    }
    ratios.sort_by(f64::total_cmp);
    let rows = vec![
        Row { name: "append of 4 KiB, one producer", times: one, bytes: BLOCK },
        Row { name: "append of 4 KiB, two producers", times: two, bytes: BLOCK },
    ];
    (rows, ratios[ROUNDS / 2])
}

fn main() {
    let json_path = {
        let mut arguments = std::env::args().skip_while(|argument| argument != "--json");
        arguments.nth(1)
    };
    let mut rows = pure_steps();
    let (append_rows, scaling) = appends();
    rows.extend(append_rows);
    println!("{:<42} {:>9} {:>9} {:>9} {:>8}", "", "p50 ns", "p99 ns", "p99.9 ns", "GB/s");
    let mut json = Vec::new();
    for row in &rows {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| row.times.value_at_quantile(q));
        let rate = row.bytes as f64 / p50.max(1) as f64;
        let rate_text = if row.bytes == 0 { String::new() } else { format!("{rate:.2}") };
        println!("{:<42} {p50:>9} {p99:>9} {p999:>9} {rate_text:>8}", row.name);
        json.push(serde_json::json!({
            "name": row.name, "p50_ns": p50, "p99_ns": p99, "p999_ns": p999,
            "count": row.times.len(), "bytes": row.bytes,
        }));
    }
    println!("two producers do {scaling:.2} times what one does (median of {ROUNDS} rounds)");
    if let Some(path) = json_path {
        let all = serde_json::json!({"rows": json, "two_producers_scale": scaling});
        std::fs::write(&path, format!("{all:#}\n")).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}
