//! The append: one producer's times, and what a second one adds.
//!
//! Other work on the machine, and a hypervisor that takes cores away, fall on short
//! rounds one by one: the rounds take turns, and the median of their ratios counts. The
//! same two threads without a journal (checksum and copy) say what the machine gives.

use crate::figures::{Found, Row, histogram, median};
use crate::group::Group;
use crate::steps::{ColdMemory, content};
use std::sync::{Barrier, Mutex};
use std::time::Instant;
use towline_block::VolumeId;

const RING_BYTES: u64 = 128 << 20;
/// Long enough to see a p99.9 of some hundred samples, short enough to be run often.
const TIMED: usize = 400_000;
/// 10 to 20 ms each.
const ROUND: usize = 20_000;
const ROUNDS: usize = 41;

/// What a round of several threads took.
#[derive(Clone, Copy)]
struct Round {
    /// Operations a second by the clock, all threads together.
    per_s: f64,
    /// Time on a processor that an operation took.
    cpu_ns: f64,
}

pub fn measure(found: &mut Found) {
    let group = Group::in_memory(RING_BYTES);
    let data = content();
    let mut times = histogram();
    let volume = VolumeId(0);
    group.appends(volume, TIMED, &data, |append| append());
    group.appends(volume, TIMED, &data, |append| {
        let began = Instant::now();
        append();
        times.saturating_record(began.elapsed().as_nanos() as u64);
    });
    found.rows.push(Row { name: "append of 4 KiB, one producer", times, bytes: data.len() });
    let memory = [0, 1].map(|_| Mutex::new(ColdMemory::new()));
    let bare = |thread: usize| {
        let mut memory = memory[thread].lock().expect("one thread each");
        (0..ROUND).for_each(|_| memory.take(&data));
    };
    let journaled = |thread: usize| {
        group.appends(VolumeId(thread as u16), ROUND, &data, |append| append());
    };
    let (mut floors, mut ones, mut clock, mut cpu, mut machine) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (bare_one, bare_two) = (round(1, bare), round(2, bare));
        let (one, two) = (round(1, journaled), round(2, journaled));
        floors.push(bare_one.cpu_ns);
        ones.push(one.cpu_ns);
        machine.push(bare_two.per_s / bare_one.per_s);
        clock.push(two.per_s / one.per_s);
        cpu.push(2.0 * one.cpu_ns / two.cpu_ns);
    }
    let best = |all: &[f64]| all.iter().copied().fold(f64::MAX, f64::min);
    found.figure(
        "append of 4 KiB, processor time, best round",
        best(&ones),
        "ns",
        "p50 at most 350",
    );
    found.figure("... of which crc32c and copy of 4 KiB alone", best(&floors), "ns", "");
    let over: Vec<f64> = ones.iter().zip(&floors).map(|(one, floor)| one - floor).collect();
    found.figure("... and the journal, median", median(over), "ns", "");
    found.figure("two producers, times one: by the clock", median(clock), "x", "at least 1.6");
    found.figure("two producers, times one: by processor time", median(cpu), "x", "at least 1.6");
    found.figure(
        "two threads of crc32c and copy, times one: by the clock",
        median(machine),
        "x",
        "",
    );
}

fn round(threads: usize, work: impl Fn(usize) + Sync) -> Round {
    let (start, work) = (Barrier::new(threads), &work);
    let ends: Vec<_> = std::thread::scope(|scope| {
        let run = |thread| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let (began, cpu) = (Instant::now(), cpu_ns());
                work(thread);
                (began, Instant::now(), cpu_ns() - cpu)
            })
        };
        let all: Vec<_> = (0..threads).map(run).collect();
        all.into_iter().map(|thread| thread.join().expect("a producer")).collect()
    });
    let began = ends.iter().map(|end| end.0).min().expect("a producer");
    let ended = ends.iter().map(|end| end.1).max().expect("a producer");
    let cpu: u64 = ends.iter().map(|end| end.2).sum();
    let count = (threads * ROUND) as f64;
    Round { per_s: count / (ended - began).as_secs_f64(), cpu_ns: cpu as f64 / count }
}

/// Time this thread spent on a processor.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0)
}
