//! Steps on one thread, each of one batch of 512 writes of 4 KiB.

use crate::content::{BATCH_BYTES, blocks, chain, fill};
use std::hint::black_box;
use std::time::{Duration, Instant};
use towline_block::crc32c;
use towline_shipper::Digest;
use towline_shipper::batch::{Batch, BatchView, Encoder, GroupKey, KeyId, Keyring, Method};

/// Each step is run for so long; the median counts.
const FOR: Duration = Duration::from_millis(700);
/// Scatters offsets: odd, so that no block comes twice.
const STRIDE: u64 = 40_503;

pub fn measure() {
    println!("{:<56} {:>8} {:>8}", "one thread, 512 x 4 KiB", "ms", "GB/s");
    let blocks = blocks();
    let plain = fill(&blocks, 1, STRIDE, Vec::new()).encode(&chain(), 1).bytes;
    timed("crc32c", || black_box(crc32c(black_box(&plain))));
    timed("hash (BLAKE3-256)", || black_box(Digest::of(black_box(&plain))));
    let mut memory = Vec::new();
    timed("build: copy into the batch", || {
        let batch = fill(&blocks, 1, STRIDE, std::mem::take(&mut memory));
        black_box(batch.data_bytes())
    });
    let key = || GroupKey::new(KeyId([1; 16]), [2; 32]).expect("a sound key");
    for (name, stride, method, sealed) in [
        ("plain", STRIDE, Method::None, false),
        ("plain, every block written 8 times", 0, Method::None, false),
        ("lz4", STRIDE, Method::Lz4, false),
        ("zstd", STRIDE, Method::Zstd, false),
        ("sealed", STRIDE, Method::None, true),
    ] {
        let mut encoder = Encoder::new(method, sealed.then(key));
        let mut keys = Keyring::default();
        keys.add(key());
        let mut sample = None;
        timed(&format!("build and encode: {name}"), || {
            let memory = encoder.spare();
            let batch = match stride {
                0 => crate::content::fill_over(&blocks, 1, 8, memory),
                _ => fill(&blocks, 1, stride, memory),
            };
            let encoded = encoder.encode(batch, &chain(), 1).expect("it encodes");
            if sample.is_none() {
                sample = Some(encoded.clone());
            }
            encoder.recycle(encoded.bytes);
        });
        let Some(sample) = sample else { continue };
        println!("{:<56} {:>17}", "", format!("{} bytes", sample.bytes.len()));
        timed(&format!("open and check: {name}"), || {
            black_box(Batch::open(sample.bytes.clone(), &keys).expect("it is sound"));
        });
    }
    timed("parse and check in place", || {
        black_box(BatchView::parse(black_box(&plain)).expect("it is sound"));
    });
    println!();
}

fn timed<R>(name: &str, mut step: impl FnMut() -> R) {
    let mut times = Vec::new();
    let until = Instant::now() + FOR;
    step();
    while Instant::now() < until {
        let began = Instant::now();
        black_box(step());
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or(FOR).as_secs_f64();
    println!("{name:<56} {:>8.3} {:>8.2}", median * 1e3, BATCH_BYTES as f64 / median / 1e9);
}
