//! File I/O by three engines side by side, in turns: inline system calls, the io_uring
//! driver of `towline-block`, tokio-uring. For what a source gets (4 KiB at random) and
//! for what a receiver does (a batch staged, flushed, applied). The choice that follows is
//! in `docs/design/0012-engines.md`.

mod driver;
mod inline;
mod tokio;

use crate::figures::{Found, median};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 256 << 20;
const BLOCKS: u64 = FILE_BYTES / BLOCK as u64;
/// A batch of the receiver: staged by one write, applied by many.
const STAGED_BYTES: usize = 2 << 20;
const APPLIED: usize = 512;
const ROUNDS: usize = 9;
/// Operations of a round past the page cache, and in it.
const DIRECT_OPS: usize = 1500;
const CACHED_OPS: usize = 24_000;
/// Of `/proc`, on every Linux of today.
const TICKS_PER_S: f64 = 100.0;

/// Operations on one open file; every offset is a block's.
pub trait Engine {
    fn new(file: File) -> Self;
    /// 4 KiB each, `depth` of them at once.
    fn write(&mut self, blocks: &[u64], depth: usize);
    fn read(&mut self, blocks: &[u64], depth: usize);
    /// One write, then fdatasync.
    fn stage(&mut self, offset: u64, bytes: usize);
}

/// What one engine takes in one cell.
#[derive(Default)]
struct Taken {
    wall_ns: Vec<f64>,
    ops: usize,
    cpu_ticks: u64,
}

#[derive(Clone, Copy)]
struct Cell {
    name: &'static str,
    direct: bool,
    ops: usize,
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    Write(usize),
    Read(usize),
    Stage,
    Apply,
}

pub fn measure(found: &mut Found) {
    let dir = tempfile::tempdir_in(".").expect("room on this disk");
    let path = dir.path().join("file");
    fill(&path);
    let cell = |name, direct, ops, run| Cell { name, direct, ops, run };
    let cells = [
        cell("source: 4 KiB write, page cache, depth 1", false, CACHED_OPS, Run::Write(1)),
        cell("source: 4 KiB write, page cache, depth 32", false, CACHED_OPS, Run::Write(32)),
        cell("source: 4 KiB cached read, depth 1", false, CACHED_OPS, Run::Read(1)),
        cell("source: 4 KiB write, O_DIRECT, depth 1", true, DIRECT_OPS, Run::Write(1)),
        cell("source: 4 KiB write, O_DIRECT, depth 32", true, DIRECT_OPS, Run::Write(32)),
        cell("source: 4 KiB read, O_DIRECT, depth 32", true, DIRECT_OPS, Run::Read(32)),
        cell("receiver: 2 MiB staged, fdatasync", false, 8, Run::Stage),
        cell("receiver: 512 x 4 KiB applied, fdatasync", false, 4, Run::Apply),
    ];
    println!(
        "{:<44} {:>21} {:>21} {:>21}",
        "us an operation: wall / processor", "inline", "io_uring driver", "tokio-uring"
    );
    for cell in cells {
        let mut taken: [Taken; 3] = Default::default();
        for round in 0..ROUNDS {
            let blocks = scattered(round, cell.ops.max(APPLIED));
            // Whoever goes first finds what the last round left to the disk.
            for turn in 0..3 {
                let engine = (round + turn) % 3;
                let took = match engine {
                    0 => one::<inline::Inline>(&path, cell, &blocks),
                    1 => one::<driver::Uring>(&path, cell, &blocks),
                    _ => one::<tokio::TokioUring>(&path, cell, &blocks),
                };
                taken[engine].wall_ns.push(took.0);
                taken[engine].cpu_ticks += took.1;
                taken[engine].ops += cell.ops;
            }
        }
        let [inline, driver, tokio] = taken.map(Taken::medians);
        println!("{:<44} {inline} {driver} {tokio}", cell.name);
    }
    let _ = found;
}

impl Taken {
    fn medians(self) -> String {
        let wall = median(self.wall_ns) / 1e3;
        let cpu = (self.cpu_ticks as f64 / TICKS_PER_S * 1e6) / self.ops as f64;
        format!("{wall:>10.2} / {cpu:>8.2}")
    }
}

/// Time of an operation, and the processor's ticks of all.
fn one<E: Engine>(path: &Path, cell: Cell, blocks: &[u64]) -> (f64, u64) {
    let flags = if cell.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let mut engine = E::new(file.expect("the file is there"));
    let (began, cpu) = (Instant::now(), cpu_ticks());
    match cell.run {
        Run::Write(depth) => engine.write(&blocks[..cell.ops], depth),
        Run::Read(depth) => engine.read(&blocks[..cell.ops], depth),
        Run::Stage => {
            for batch in 0..cell.ops {
                engine.stage((batch * STAGED_BYTES) as u64, STAGED_BYTES);
            }
        }
        Run::Apply => {
            for _ in 0..cell.ops {
                engine.write(&blocks[..APPLIED], 32);
                engine.stage(0, BLOCK);
            }
        }
    }
    (began.elapsed().as_nanos() as f64 / cell.ops as f64, cpu_ticks() - cpu)
}

/// Offsets without repetition.
fn scattered(round: usize, count: usize) -> Vec<u64> {
    let step = 40_503;
    (0..count as u64).map(|at| (at + round as u64 * 7919) * step % BLOCKS * BLOCK as u64).collect()
}

/// Of all threads that this process has and had, the kernel's workers among them; in
/// ticks of the clock, so that a cell's rounds are added up.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is there");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // After the name: state is the first, utime the 12th, stime the 13th.
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// In blocks, as a guest would: a page cache filled by large writes or by readahead has
/// large folios, which make every later small write dear (docs/design/0001).
fn fill(path: &Path) {
    let file = File::create(path).expect("room on this disk");
    for at in (0..FILE_BYTES).step_by(BLOCK) {
        file.write_all_at(&[7; BLOCK], at).expect("room on this disk");
    }
    file.sync_all().expect("a flush");
}
