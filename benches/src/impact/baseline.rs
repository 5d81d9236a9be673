//! Guest writes while the baseline is copied, against the moment before it starts: on
//! the same fresh proxy, minutes of copying or none being the only difference.

use super::gates::verdict;
use super::placement::{Placement, Seats};
use super::plan::{Cell, Job, Level, ServerKind, Settings, jobs};
use super::report::{BaselineReport, BaselineRound, Metric, RoundReport};
use super::runner::Runner;
use super::servers;
use super::stats::{median, ratio_interval};
use super::window::Target;
use crate::load::Edge;
use anyhow::{Context, bail};
use std::time::{Duration, Instant};

/// The guest's p99 beside the baseline, at most.
const REACH: f64 = 3.0;
const STRETCH: f64 = 1.5;

const WORKLOAD: &str = "write-4k-qd1";

/// The shipper's start to its first block.
const BEGIN_WAIT: Duration = Duration::from_secs(30);

/// Measured along with ours where a level has time for it.
pub(super) fn wanted(settings: &Settings, cells: &[Cell]) -> bool {
    let ours = |cell: &Cell| {
        cell.server == ServerKind::Towline
            && cell.job.name == WORKLOAD
            && cell.placement == Placement::Unpinned
    };
    settings.choice.level != Level::Quick && cells.iter().any(ours)
}

pub(super) fn estimate_s(settings: &Settings, cells: &[Cell]) -> f64 {
    match wanted(settings, cells) {
        true => 2.0 * settings.seconds + 3.0 + settings.size_bytes as f64 / 6e8,
        false => 0.0,
    }
}

pub(super) fn round(runner: &mut Runner<'_>, round: usize) -> anyhow::Result<BaselineRound> {
    let began = Instant::now();
    let what =
        format!("round {} of {}: baseline beside a guest", round + 1, runner.settings.rounds);
    runner.prepare(&what)?;
    let seats = Seats::default();
    let job: Job = jobs().into_iter().find(|job| job.name == WORKLOAD).context("no such job")?;
    let mut running = servers::start_without_baseline(&runner.place(&seats))?;
    let target = Target { job: &job, seats: &seats, running: &running, round };
    let (without, _) = runner.batching(&target, |_| Ok(()))?;
    let replication = running.replication.as_mut().context("ours replicates")?;
    let pid = replication.start_shipping()?;
    let waited = Instant::now();
    while replication.status()?.done_bytes == 0 {
        if waited.elapsed() > BEGIN_WAIT {
            bail!("the baseline does not begin");
        }
        runner.check_stop()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    running.side_pids.push(pid);
    let mut marks = Vec::new();
    let target = Target { job: &job, seats: &seats, running: &running, round };
    let replication = running.replication.as_ref().context("ours replicates")?;
    let (during, _) = runner.batching(&target, |_: Edge| {
        marks.push((Instant::now(), replication.status()?));
        Ok(())
    })?;
    let [(from, first), (to, last)] = &marks[..] else { bail!("a window without two ends") };
    let copied = last.done_bytes.saturating_sub(first.done_bytes) as f64;
    runner.done_s += began.elapsed().as_secs_f64();
    Ok(BaselineRound {
        without,
        during,
        copied_bytes_per_s: copied / (*to - *from).as_secs_f64(),
        ended_within: last.done_bytes >= last.total_bytes,
    })
}

pub(super) fn report(
    rounds: Vec<BaselineRound>,
    solo: &[f64],
    seed: u64,
) -> Option<BaselineReport> {
    if rounds.is_empty() {
        return None;
    }
    let whole: Vec<&BaselineRound> = rounds.iter().filter(|round| !round.ended_within).collect();
    let pairs = |metric: Metric| -> Vec<(f64, f64)> {
        let of = |round: &RoundReport| metric.of(round).unwrap_or(0.0);
        whole.iter().map(|round| (of(&round.during), of(&round.without))).collect()
    };
    let p99_ratio = ratio_interval(&pairs(Metric::P99Us), seed);
    let solo_bytes_per_s = median(solo);
    let beside = median(&whole.iter().map(|round| round.copied_bytes_per_s).collect::<Vec<_>>());
    let verdict = p99_ratio.map_or(super::report::Verdict::TooFewRounds, |ratio| {
        verdict(ratio, false, REACH, STRETCH, whole.len())
    });
    Some(BaselineReport {
        share_of_solo: beside.zip(solo_bytes_per_s).map(|(beside, solo)| beside / solo),
        solo_bytes_per_s,
        p50_ratio: ratio_interval(&pairs(Metric::P50Us), seed),
        p99_ratio,
        reach: REACH,
        stretch: STRETCH,
        verdict,
        rounds,
    })
}
