//! What a run found, as the object that `--json` prints and the page draws.

use super::machine::Machine;
use super::placement::Placement;
use super::plan::{Cell, ClientKind, Job, Level, ServerKind};
use super::stats::{Interval, median, ratio_interval};
use crate::load::{Kind, Tally};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct ImpactReport {
    pub kind: &'static str,
    pub level: Level,
    pub seed: u64,
    pub rounds: usize,
    pub seconds: f64,
    pub warm_seconds: f64,
    pub elapsed_s: f64,
    pub towline_version: &'static str,
    /// Built without optimisation: figures of ours are then worth nothing.
    pub debug_build: bool,
    pub machine: Machine,
    pub source: SourceReport,
    pub servers: Vec<ServerReport>,
    pub workloads: Vec<WorkloadReport>,
    pub cells: Vec<CellReport>,
    pub gates: Vec<GateReport>,
    pub baseline: Option<BaselineReport>,
    pub skipped: Vec<SkippedReport>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    pub path: String,
    pub is_device: bool,
    pub size_bytes: u64,
    pub working_set_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    pub name: ServerKind,
    pub says: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct WorkloadReport {
    pub name: &'static str,
    pub says: &'static str,
}

/// A server that was left out, and why.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedReport {
    pub what: String,
    pub reason: String,
}

/// One measured window.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoundReport {
    pub round: usize,
    pub seconds: f64,
    pub requests: u64,
    pub iops: f64,
    pub mb_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Of flushes, where the workload has some.
    pub flush_p50_us: Option<f64>,
    pub flush_p99_us: Option<f64>,
    pub flushes_per_s: Option<f64>,
    pub cpu_us_per_op: f64,
    pub cpu_s_per_gib: f64,
    /// Of shipper and receiver, or of the mirror's target.
    pub side_cpu_us_per_op: f64,
    /// Processors that others used, by user time, and that the hypervisor took.
    pub others: f64,
    pub stolen: f64,
    pub clean: bool,
    /// The shipper had not caught up when it began.
    pub behind: bool,
    /// The journal left memory (spill or change map) while it was measured.
    pub left_ring: bool,
    /// Open loop: how late the client itself was.
    pub client_late_p99_us: Option<f64>,
}

/// A figure of a round that ratios are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    P50Us,
    P99Us,
    Iops,
    MbPerS,
    FlushesPerS,
    CpuUsPerOp,
}

impl Metric {
    pub fn of(self, round: &RoundReport) -> Option<f64> {
        Some(match self {
            Metric::P50Us => round.p50_us,
            Metric::P99Us => round.p99_us,
            Metric::Iops => round.iops,
            Metric::MbPerS => round.mb_per_s,
            Metric::FlushesPerS => return round.flushes_per_s,
            Metric::CpuUsPerOp => round.cpu_us_per_op,
        })
    }

    pub fn says(self) -> &'static str {
        match self {
            Metric::P50Us => "p50",
            Metric::P99Us => "p99",
            Metric::Iops => "IOPS",
            Metric::MbPerS => "MB/s",
            Metric::FlushesPerS => "flushes/s",
            Metric::CpuUsPerOp => "server CPU per request",
        }
    }
}

/// Medians over rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MedianReport {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub iops: f64,
    pub mb_per_s: f64,
    pub flush_p50_us: Option<f64>,
    pub flushes_per_s: Option<f64>,
    pub cpu_us_per_op: f64,
    pub cpu_s_per_gib: f64,
    pub side_cpu_us_per_op: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct CellReport {
    pub server: ServerKind,
    pub workload: &'static str,
    pub placement: Placement,
    pub client: ClientKind,
    pub median: MedianReport,
    /// Of all rounds together: share of requests that took at most so many us.
    pub cdf: Vec<(f64, f64)>,
    pub rounds: Vec<RoundReport>,
}

/// What is asked of a ratio, and what would be better still.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    pub reach: f64,
    pub stretch: f64,
}

/// A measure with its bounds, and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct GateReport {
    pub measure: String,
    pub ours: ServerKind,
    pub theirs: ServerKind,
    pub workload: &'static str,
    pub placement: Placement,
    pub client: ClientKind,
    pub metric: Metric,
    /// The ratio shall be at least (else at most) the bound.
    pub at_least: bool,
    /// `None`: nothing is asked, the ratio is told.
    #[serde(flatten)]
    pub bound: Option<Bound>,
    pub ratio: Interval,
    pub rounds: usize,
    pub ours_median: f64,
    pub theirs_median: f64,
    pub verdict: Verdict,
    /// Some of the rounds were disturbed.
    pub noisy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole interval is beyond the stretch.
    Stretch,
    /// The whole interval is within reach.
    Met,
    /// The interval holds the bound.
    Unclear,
    /// The whole interval is out of reach.
    Missed,
    /// Fewer rounds than a verdict needs.
    TooFewRounds,
    /// Nothing is asked.
    Told,
    /// The baseline was slower beside the guest than its bound is asked for.
    TooSlow,
}

/// Guest writes while the baseline is copied, against the moment before.
#[derive(Clone, Debug, Serialize)]
pub struct BaselineReport {
    pub rounds: Vec<BaselineRound>,
    /// Copying with no guest at work.
    pub solo_bytes_per_s: Option<f64>,
    /// Rate beside the guest, of the solo rate.
    pub share_of_solo: Option<f64>,
    /// What is asked of this share, for the bound to count.
    pub share_min: f64,
    pub p50_ratio: Option<Interval>,
    pub p99_ratio: Option<Interval>,
    #[serde(flatten)]
    pub bound: Bound,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct BaselineRound {
    pub without: RoundReport,
    pub during: RoundReport,
    pub copied_bytes_per_s: f64,
    /// It was done before the window was over: less than the window is measured.
    pub ended_within: bool,
}

const US: f64 = 1000.0;

impl RoundReport {
    /// What a tally says; processor time and noise are for the caller.
    pub(super) fn of(job: &Job, tally: &Tally, seconds: f64, round: usize) -> RoundReport {
        let main = tally.of(job.workload.main_kind());
        let us = |quantile| main.value_at_quantile(quantile) as f64 / US;
        let flushes = tally.of(Kind::Flush);
        let flush = |quantile| {
            (!flushes.is_empty()).then(|| flushes.value_at_quantile(quantile) as f64 / US)
        };
        let transfers = tally.of(Kind::Read).len() + tally.of(Kind::Write).len();
        let bytes = transfers as f64 * f64::from(job.workload.request_bytes);
        RoundReport {
            round,
            seconds,
            requests: transfers,
            iops: transfers as f64 / seconds,
            mb_per_s: bytes / seconds / 1e6,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: main.max() as f64 / US,
            flush_p50_us: flush(0.5),
            flush_p99_us: flush(0.99),
            flushes_per_s: (!flushes.is_empty()).then(|| flushes.len() as f64 / seconds),
            client_late_p99_us: (!tally.late.is_empty())
                .then(|| tally.late.value_at_quantile(0.99) as f64 / US),
            ..RoundReport::default()
        }
    }

    pub(super) fn charge(&mut self, job: &Job, server_ns: u64, side_ns: u64) {
        let requests = self.requests.max(1) as f64;
        let gib = requests * f64::from(job.workload.request_bytes) / f64::from(1u32 << 30);
        self.cpu_us_per_op = server_ns as f64 / US / requests;
        self.cpu_s_per_gib = server_ns as f64 / 1e9 / gib;
        self.side_cpu_us_per_op = side_ns as f64 / US / requests;
    }
}

impl CellReport {
    pub(super) fn of(cell: &Cell, rounds: Vec<RoundReport>, merged: &Tally) -> CellReport {
        let middle = |get: &dyn Fn(&RoundReport) -> f64| {
            median(&rounds.iter().map(get).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        let maybe = |get: &dyn Fn(&RoundReport) -> Option<f64>| {
            median(&rounds.iter().filter_map(get).collect::<Vec<_>>())
        };
        let median = MedianReport {
            p50_us: middle(&|r| r.p50_us),
            p99_us: middle(&|r| r.p99_us),
            p999_us: middle(&|r| r.p999_us),
            iops: middle(&|r| r.iops),
            mb_per_s: middle(&|r| r.mb_per_s),
            flush_p50_us: maybe(&|r| r.flush_p50_us),
            flushes_per_s: maybe(&|r| r.flushes_per_s),
            cpu_us_per_op: middle(&|r| r.cpu_us_per_op),
            cpu_s_per_gib: middle(&|r| r.cpu_s_per_gib),
            side_cpu_us_per_op: middle(&|r| r.side_cpu_us_per_op),
        };
        CellReport {
            server: cell.server,
            workload: cell.job.name,
            placement: cell.placement,
            client: cell.client,
            median,
            cdf: cdf(merged.of(cell.job.workload.main_kind())),
            rounds,
        }
    }

    pub fn is_clean(&self) -> bool {
        self.rounds.iter().all(|round| round.clean)
    }
}

/// Shares at which a curve is drawn: dense in the tail, where the differences are.
fn cdf(histogram: &hdrhistogram::Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let body = (0..19).map(|step| f64::from(step) / 20.0);
    let tail = (0..=40).map(|step| 1.0 - 0.05 * 10f64.powf(-f64::from(step) / 20.0));
    body.chain(tail)
        .filter(|share| (1.0 - share) * histogram.len() as f64 >= 1.0)
        .map(|share| (histogram.value_at_quantile(share) as f64 / US, share))
        .collect()
}

/// Ours over theirs by rounds that both have. `None` when there are none.
pub(super) fn compare(
    ours: &CellReport,
    theirs: &CellReport,
    metric: Metric,
    seed: u64,
) -> Option<(Interval, usize)> {
    let pairs: Vec<(f64, f64)> = ours
        .rounds
        .iter()
        .filter_map(|round| {
            let other = theirs.rounds.iter().find(|other| other.round == round.round)?;
            Some((metric.of(round)?, metric.of(other)?))
        })
        .collect();
    ratio_interval(&pairs, seed).map(|interval| (interval, pairs.len()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::impact::plan::jobs;

    /// A cell whose rounds have these values of all figures.
    pub(in crate::impact) fn cell(
        server: ServerKind,
        workload: &str,
        values: &[f64],
    ) -> CellReport {
        let job = jobs().into_iter().find(|job| job.name == workload).unwrap();
        let cell =
            Cell { server, job, placement: Placement::Unpinned, client: ClientKind::Batching };
        let round = |(round, &value): (usize, &f64)| RoundReport {
            round,
            p50_us: value,
            p99_us: value,
            iops: value,
            mb_per_s: value,
            flushes_per_s: Some(value),
            cpu_us_per_op: value,
            clean: true,
            ..RoundReport::default()
        };
        let rounds = values.iter().enumerate().map(round).collect();
        let mut tally = Tally::default();
        (1..=2000).for_each(|us| tally.record(Kind::Write, us * 1000));
        CellReport::of(&cell, rounds, &tally)
    }

    /// A whole report of two servers and a skipped one.
    pub(in crate::impact) fn report() -> ImpactReport {
        let cells = vec![
            cell(ServerKind::Towline, "write-4k-qd1", &[40.0; 5]),
            cell(ServerKind::Nbdkit, "write-4k-qd1", &[50.0; 5]),
        ];
        ImpactReport {
            kind: "impact",
            level: Level::Default,
            seed: 1,
            rounds: 5,
            seconds: 0.5,
            warm_seconds: 0.1,
            elapsed_s: 12.0,
            towline_version: "0",
            debug_build: true,
            machine: Machine::look(std::path::Path::new("/"), &[]),
            source: SourceReport {
                path: "/x".into(),
                is_device: false,
                size_bytes: 1 << 28,
                working_set_bytes: 1 << 28,
            },
            servers: [ServerKind::Towline, ServerKind::Nbdkit]
                .map(|name| ServerReport { name, says: name.says() })
                .into(),
            workloads: vec![WorkloadReport { name: "write-4k-qd1", says: "writes" }],
            gates: super::super::gates::judge(&cells, 1),
            cells,
            baseline: None,
            skipped: vec![SkippedReport {
                what: "nbd-server".into(),
                reason: "nbd-server is not installed".into(),
            }],
            notes: Vec::new(),
        }
    }

    #[test]
    fn rounds_are_paired_by_their_number() {
        let ours = cell(ServerKind::Towline, "write-4k-qd1", &[1.0, 2.0, 3.0]);
        let mut theirs = cell(ServerKind::Nbdkit, "write-4k-qd1", &[2.0, 4.0, 6.0]);
        theirs.rounds.remove(0);
        let (ratio, rounds) = compare(&ours, &theirs, Metric::P50Us, 1).unwrap();
        assert_eq!((ratio.value, rounds), (0.5, 2));
    }

    #[test]
    fn a_curve_rises_and_ends_where_the_samples_end() {
        let curve = cell(ServerKind::Towline, "write-4k-qd1", &[1.0]).cdf;
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1), "{curve:?}");
        let (last_us, last_share) = curve[curve.len() - 1];
        // One of 2000 is the least that a share can be told of.
        assert!(last_share <= 1.0 - 1.0 / 2000.0 && last_us > 1950.0, "{last_us} {last_share}");
    }

    #[test]
    fn figures_of_a_round_are_of_the_right_kind_of_request() {
        let job = jobs().into_iter().find(|job| job.name == "flush-1").unwrap();
        let mut tally = Tally::default();
        for _ in 0..100 {
            tally.record(Kind::Write, 10_000);
            tally.record(Kind::Flush, 90_000);
        }
        let mut round = RoundReport::of(&job, &tally, 0.5, 3);
        assert_eq!((round.round, round.iops, round.flushes_per_s), (3, 200.0, Some(200.0)));
        assert!(
            (round.p50_us - 10.0).abs() < 0.1 && (round.flush_p50_us.unwrap() - 90.0).abs() < 0.1
        );
        round.charge(&job, 1_000_000, 0);
        assert!((round.cpu_us_per_op - 10.0).abs() < 1e-9);
    }
}
