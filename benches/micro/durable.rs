//! Appends while the persister makes 800 MB/s durable beside them.
//!
//! The producer is paced: a write every 5.12 us, as guests' writes come, not as fast as
//! the core can. The spill lies on the disk of this folder, and once more in memory:
//! where the disk is slower than 800 MB/s only the second shows what is asked for.
//!
//! Between two appends the same bytes are summed and copied by nothing but this program:
//! what interrupts the thread, such as a tick of 250 Hz in 195,000 appends a second,
//! shows there, too.

use crate::figures::{Found, Row, histogram};
use crate::group::{self, memory_dir};
use crate::steps::content;
use std::path::Path;
use std::time::{Duration, Instant};
use towline_block::{VolumeId, crc32c};
use towline_journal::format::Counter;
use towline_journal::{Durability, SpillOptions};

const RING_BYTES: u64 = 256 << 20;
const SPILL_BYTES: u64 = 2 << 30;
const BYTES_PER_S: f64 = 800e6;
const SECONDS: f64 = 6.0;
/// The zero-filling of new segments belongs to the first seconds of a group's life.
const WARM_UP_S: f64 = 3.0;
/// Writes between two wishes for durability: about 1.3 ms, a group commit's time.
const PERSIST_EVERY: usize = 256;
/// Appends that may wait for the disk. Half of the ring: past it the guest is held here,
/// so that an overflow is not what is measured.
const WAITING_MAX: u64 = RING_BYTES / 2 / 4096;

pub fn measure(found: &mut Found) {
    let disk = tempfile::tempdir_in(".").expect("room on this disk");
    let on_disk = run(disk.path());
    found.rows.push(Row {
        name: "append beside a spill made durable, this disk",
        times: on_disk.times,
        bytes: 4096,
    });
    found.rows.push(Row {
        name: "... crc32c and copy alone, between them",
        times: on_disk.control,
        bytes: 4096,
    });
    let rate = on_disk.rate / 1e6;
    found.figure("made durable beside the appends, this disk", rate, "MB/s", "800");
    found.figure("... of the time held for the disk", on_disk.held, "%", "");
    let memory = memory_dir();
    let in_memory = run(memory.path());
    let p999 = |times: &hdrhistogram::Histogram<u64>| times.value_at_quantile(0.999) as f64 / 1e3;
    let (append, control) = (p999(&in_memory.times), p999(&in_memory.control));
    found.rows.push(Row {
        name: "append beside a spill made durable, in memory",
        times: in_memory.times,
        bytes: 4096,
    });
    found.rows.push(Row {
        name: "... crc32c and copy alone, between them",
        times: in_memory.control,
        bytes: 4096,
    });
    let rate = in_memory.rate / 1e6;
    found.figure("made durable beside the appends, in memory", rate, "MB/s", "800");
    found.figure("... of the time held for it", in_memory.held, "%", "");
    found.figure("... p99.9 of an append", append, "us", "at most 5");
    found.figure("... p99.9 of crc32c and copy alone, between them", control, "us", "");
}

struct Beside {
    times: hdrhistogram::Histogram<u64>,
    control: hdrhistogram::Histogram<u64>,
    /// Bytes a second made durable.
    rate: f64,
    /// Share of the time, in percent, in which the producer waited for room.
    held: f64,
}

fn run(disk: &Path) -> Beside {
    let spill = SpillOptions {
        bytes: Some(SPILL_BYTES),
        durability: Durability::Flush,
        ..SpillOptions::OFF
    };
    let dir = memory_dir();
    let (journal, _) = group::open(dir.path(), disk, RING_BYTES, spill);
    group::heal(&journal);
    let data = content();
    let (mut times, mut control) = (histogram(), histogram());
    let mut place = vec![0; RING_BYTES as usize];
    let mut held = Duration::ZERO;
    let step = Duration::from_secs_f64(data.len() as f64 / BYTES_PER_S);
    let began = Instant::now();
    let warm = began + Duration::from_secs_f64(WARM_UP_S);
    let end = warm + Duration::from_secs_f64(SECONDS);
    let mut due = began;
    let mut durable_at_warm = None;
    let mut index = 0;
    loop {
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        if start >= end {
            break;
        }
        group::append(&journal, VolumeId(0), index, &data);
        let took = start.elapsed();
        index += 1;
        // Late ones follow at once, but a long stop is not made up for.
        due = (due + step).max(start.checked_sub(step * 16).unwrap_or(start));
        if start >= warm {
            durable_at_warm.get_or_insert_with(|| journal.get(Counter::SpillDurable));
            times.saturating_record(took.as_nanos() as u64);
        }
        while Instant::now() < start + step / 2 {
            std::hint::spin_loop();
        }
        let copied = Instant::now();
        let at = index % (place.len() / data.len()) * data.len();
        place[at..at + data.len()].copy_from_slice(&data);
        std::hint::black_box((crc32c(&data), &place));
        if start >= warm {
            control.saturating_record(copied.elapsed().as_nanos() as u64);
        }
        let head = journal.get(Counter::Head);
        if index % PERSIST_EVERY == 0 {
            journal.persist(head);
            // The target follows the disk, so that segments are used again.
            journal.ack(journal.get(Counter::SpillDurable), 0);
        }
        if head - journal.get(Counter::SpillDurable) > WAITING_MAX {
            let began = Instant::now();
            journal.wait_durable(head - WAITING_MAX / 2, Duration::from_secs(10));
            held += if start >= warm { began.elapsed() } else { Duration::ZERO };
        }
    }
    let durable = journal.get(Counter::SpillDurable) - durable_at_warm.unwrap_or(0);
    let rate = durable as f64 * data.len() as f64 / SECONDS;
    Beside { times, control, rate, held: held.as_secs_f64() * 100.0 / SECONDS }
}
