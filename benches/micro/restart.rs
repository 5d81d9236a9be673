//! After `kill -9`: how long a group's journal takes to go on.
//!
//! A child (this program again) fills a ring and is killed with writes in flight; then
//! the group is opened here.

use crate::figures::{Found, Row, histogram};
use crate::group;
use crate::steps::content;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use towline_block::VolumeId;
use towline_journal::SpillOptions;

const RING_BYTES: u64 = 256 << 20;
/// Four fifths of the ring's payload and slots.
const RECORDS: usize = 51_000;
const ROUNDS: usize = 10;
/// First argument of the child.
pub const CHILD: &str = "--fill-and-wait";

pub fn measure(found: &mut Found) {
    let mut times = histogram();
    let mut read = 0;
    for _ in 0..ROUNDS {
        let dir = group::memory_dir();
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([CHILD.as_ref(), dir.path().as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let began = Instant::now();
        let (journal, report) = group::open(dir.path(), dir.path(), RING_BYTES, SpillOptions::OFF);
        times.saturating_record(began.elapsed().as_nanos() as u64);
        assert!(!report.restarted && report.records >= RECORDS as u64, "{report:?}");
        read += report.source_bytes_read;
        drop(journal);
    }
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
    let (median, most) = (ms(0.5), ms(1.0));
    found.figure("open after kill -9, 256 MiB ring, 51,000 records: median", median, "ms", "");
    found.figure("... the longest of 10", most, "ms", "to serving at most 100");
    found.figure("... source bytes scanned", read as f64, "B", "0");
    found.rows.push(Row { name: "open after kill -9, 256 MiB ring", times, bytes: 0 });
}

/// The child: fills the ring, says so, and waits for its end.
pub fn fill_and_wait(dir: &Path) {
    let (journal, _) = group::open(dir, dir, RING_BYTES, SpillOptions::OFF);
    group::heal(&journal);
    let data = content();
    (0..RECORDS).for_each(|index| group::append(&journal, VolumeId(0), index, &data));
    let mut out = std::io::stdout().lock();
    writeln!(out, "filled").and_then(|()| out.flush()).expect("somebody reads");
    loop {
        std::thread::park();
    }
}
