//! The activity map's curve: what an extent's size and what is heated ahead cost the
//! guest's writes, and what they leave to compare after a power loss.
//!
//! The rules are run over each load's own time; the state disk's sync is measured here.
//! `--traces DIR` adds recorded loads, `--svg FILE` draws the curve.

mod load;
mod picture;
mod policy;

use crate::figures::{Found, Row, histogram};
use load::{Load, Shape, made};
use policy::{Map, Outcome, Policy};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

const SIZES: [u64; 7] = [1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20];
/// What the journal does.
const CHOSEN_BYTES: u64 = towline_journal::activity::EXTENT_BYTES;
const CHOSEN_AHEAD: u64 = towline_journal::activity::HEATED_AHEAD;
const CHOSEN_ROUND_S: u64 = towline_journal::activity::COOL_EVERY.as_secs();
const AHEADS: [u64; 4] = [1, 2, 4, 8];
const ROUNDS_S: [u64; 4] = [20, 60, 180, 600];
/// Inside and far beyond the 16 GiB a group that the design began with.
const WORKING_SETS: [u64; 2] = [4 << 30, 256 << 30];
const SYNCS: usize = 300;

/// One point of the curve.
pub struct Point {
    pub load: String,
    pub extent_bytes: u64,
    pub ahead: u64,
    pub round_s: u64,
    pub wait_ns: f64,
    pub waits_per_million: f64,
    pub syncs: u64,
    pub hot_p95: u64,
    pub hot_max: u64,
}

pub fn measure(found: &mut Found) {
    let sync = sync_times();
    let sync_us = (sync.value_at_quantile(0.5) / 1000).max(1);
    found.rows.push(Row { name: "sync of a sector of the state disk", times: sync, bytes: 0 });
    let loads = loads(found);
    for load in &loads {
        for extent_bytes in SIZES {
            found.curve.push(point(load, extent_bytes, CHOSEN_AHEAD, CHOSEN_ROUND_S, sync_us));
        }
        for round_s in ROUNDS_S.into_iter().filter(|round| *round != CHOSEN_ROUND_S) {
            found.curve.push(point(load, CHOSEN_BYTES, CHOSEN_AHEAD, round_s, sync_us));
        }
        for ahead in AHEADS.into_iter().filter(|ahead| *ahead != CHOSEN_AHEAD) {
            found.curve.push(point(load, CHOSEN_BYTES, ahead, CHOSEN_ROUND_S, sync_us));
        }
    }
    if let Some(path) = crate::value_of("--svg") {
        let sizes = |point: &&Point| (point.ahead, point.round_s) == (CHOSEN_AHEAD, CHOSEN_ROUND_S);
        let points: Vec<&Point> = found.curve.iter().filter(sizes).collect();
        std::fs::write(&path, picture::picture(&points, &SIZES))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}

fn loads(found: &mut Found) -> Vec<Load> {
    let mut loads = Vec::new();
    for shape in [Shape::Sequential, Shape::Zipf, Shape::Uniform] {
        loads.extend(WORKING_SETS.map(|bytes| made(shape, bytes)));
    }
    let traces = crate::value_of("--traces").map(PathBuf::from);
    let recorded = traces.map(|dir| load::traces(&dir)).unwrap_or_default();
    if recorded.is_empty() {
        found.skipped.push("activity map over recorded loads: --traces DIR names none".into());
    }
    loads.extend(recorded);
    loads
}

fn point(load: &Load, extent_bytes: u64, ahead: u64, round_s: u64, sync_us: u64) -> Point {
    let policy = Policy { extent_bytes, ahead, round_us: round_s * 1_000_000, sync_us };
    let mut map = Map::new(policy, load.disk_bytes);
    for (at, offset, len) in &load.writes {
        map.write(*at, *offset, *len);
    }
    let outcome: &Outcome = &map.outcome;
    let (hot_p95, hot_max) = outcome.hot();
    Point {
        load: load.name.clone(),
        extent_bytes,
        ahead,
        round_s,
        wait_ns: outcome.wait_ns_a_write(),
        waits_per_million: outcome.waits as f64 * 1e6 / outcome.writes.max(1) as f64,
        syncs: outcome.syncs,
        hot_p95: hot_p95.min(load.disk_bytes),
        hot_max: hot_max.min(load.disk_bytes),
    }
}

/// A sector written in place and synced, on this folder's disk.
fn sync_times() -> hdrhistogram::Histogram<u64> {
    let file = tempfile::tempfile_in(".").expect("room on this disk");
    file.write_all_at(&[1; 65536], 0).and_then(|()| file.sync_all()).expect("room on this disk");
    let mut times = histogram();
    for index in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(&[index as u8; 512], (index % 128 * 512) as u64).expect("it has room");
        file.sync_data().expect("the disk works");
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    times
}
