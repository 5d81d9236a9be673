//! Guest writes while the baseline is copied, against the moment before it starts: on
//! the same fresh proxy, minutes of copying or none being the only difference.

use super::gates::verdict;
use super::placement::{Placement, Seats};
use super::plan::{Cell, Job, Level, ServerKind, Settings, jobs};
use super::report::{BaselineReport, BaselineRound, Bound, Metric, RoundReport, Verdict};
use super::runner::Runner;
use super::servers;
use super::stats::{Interval, median, ratio_interval};
use super::window::Target;
use crate::load::Edge;
use anyhow::{Context, bail};
use std::time::{Duration, Instant};

/// The guest's p99 beside the baseline, at most.
const BOUND: Bound = Bound { reach: 3.0, stretch: 1.5 };

/// The rate beside the guest, of the rate alone, from which the bound counts: a baseline
/// that stands still disturbs nobody.
const SHARE_MIN: f64 = 0.5;

/// A busy guest that leaves room: one that writes as fast as it can takes the processors
/// that a baseline at half of its rate would need.
const WORKLOAD: &str = "open-4k";

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
    let share_of_solo = beside.zip(solo_bytes_per_s).map(|(beside, solo)| beside / solo);
    Some(BaselineReport {
        share_of_solo,
        share_min: SHARE_MIN,
        solo_bytes_per_s,
        p50_ratio: ratio_interval(&pairs(Metric::P50Us), seed),
        p99_ratio,
        bound: BOUND,
        verdict: judge(p99_ratio, share_of_solo, whole.len()),
        rounds,
    })
}

/// A bound that is missed is missed at any rate; it is kept only at a rate that counts.
fn judge(p99_ratio: Option<Interval>, share_of_solo: Option<f64>, rounds: usize) -> Verdict {
    let Some(ratio) = p99_ratio else { return Verdict::TooFewRounds };
    match verdict(ratio, false, BOUND, rounds) {
        Verdict::Met | Verdict::Stretch | Verdict::Unclear
            if share_of_solo.is_none_or(|share| share < SHARE_MIN) =>
        {
            Verdict::TooSlow
        }
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_kept_only_at_half_of_the_rate_alone() {
        let ratio = |high| Some(Interval { value: 1.0, low: 1.0, high });
        let missed = Some(Interval { value: 4.0, low: 3.5, high: 5.0 });
        for (ratio, share, rounds, expected) in [
            (ratio(1.2), Some(0.5), 5, Verdict::Stretch),
            (ratio(2.0), Some(0.9), 5, Verdict::Met),
            (ratio(4.0), Some(0.9), 5, Verdict::Unclear),
            (ratio(1.2), Some(0.49), 5, Verdict::TooSlow),
            (ratio(4.0), Some(0.49), 5, Verdict::TooSlow),
            (ratio(1.2), None, 5, Verdict::TooSlow),
            (missed, Some(0.1), 5, Verdict::Missed),
            (ratio(1.2), Some(0.9), 4, Verdict::TooFewRounds),
            (None, Some(0.9), 5, Verdict::TooFewRounds),
        ] {
            assert_eq!(judge(ratio, share, rounds), expected, "{ratio:?} {share:?} {rounds}");
        }
    }
}
