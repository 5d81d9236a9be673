//! The bounds that Towline is to keep against the servers that people use, and what
//! was found.

use super::placement::Placement;
use super::plan::{ClientKind, ServerKind, ServerKind::*};
use super::report::{Bound, CellReport, GateReport, Metric, Verdict, compare};
use super::stats::Interval;

/// A verdict needs as many.
pub(super) const ROUNDS_MIN: usize = 5;

struct Gate {
    ours: ServerKind,
    theirs: Against,
    workload: &'static str,
    metric: Metric,
    client: ClientKind,
    at_least: bool,
    bound: Option<Bound>,
}

#[derive(Clone, Copy)]
enum Against {
    One(ServerKind),
    /// The best of the plain servers.
    Best,
}

const PLAIN: [ServerKind; 3] = [Nbdkit, QemuNbd, NbdServer];

fn gates() -> Vec<Gate> {
    use ClientKind::{Batching, Fio};
    use Metric::*;
    let gate = |theirs, workload, metric, at_least, reach, stretch| Gate {
        ours: Towline,
        theirs,
        workload,
        metric,
        client: Batching,
        at_least,
        bound: Some(Bound { reach, stretch }),
    };
    let most = |theirs, workload, metric, reach, stretch| {
        gate(Against::One(theirs), workload, metric, false, reach, stretch)
    };
    let least = |theirs, workload, metric, reach, stretch| {
        gate(Against::One(theirs), workload, metric, true, reach, stretch)
    };
    // Nothing is asked: it is told how far the figures hold over the whole disk, and what
    // `lowest` gains and costs.
    let told = |workload, metric| Gate {
        bound: None,
        ..gate(Against::One(Nbdkit), workload, metric, matches!(metric, Iops), 0.0, 0.0)
    };
    vec![
        most(Nbdkit, "write-4k-qd1", P50Us, 0.85, 0.6),
        most(Nbdkit, "write-4k-qd1", P99Us, 1.0, 0.7),
        Gate { client: Fio, ..least(Nbdkit, "write-4k-qd32", Iops, 1.1, 1.3) },
        least(Nbdkit, "write-4k-qd32", Iops, 2.0, 4.0),
        most(Nbdkit, "write-4k-qd32", P99Us, 0.6, 0.3),
        least(Nbdkit, "flush-1", FlushesPerS, 1.1, 1.4),
        most(Nbdkit, "read-4k-qd1", P50Us, 0.9, 0.7),
        least(Nbdkit, "read-4k-qd32", Iops, 1.1, 1.5),
        gate(Against::Best, "write-64k-qd8", MbPerS, true, 1.15, 1.5),
        gate(Against::Best, "write-1m-qd4", MbPerS, true, 1.15, 1.5),
        most(Nbdkit, "write-4k-qd32", CpuUsPerOp, 0.5, 0.25),
        most(QemuNbd, "write-4k-qd1", P50Us, 0.6, 0.45),
        least(QemuNbd, "write-4k-qd32", Iops, 3.0, 7.0),
        most(QsdBackground, "write-4k-qd1", P50Us, 0.5, 0.35),
        most(QsdBackground, "write-4k-qd1", P99Us, 0.25, 0.15),
        least(QsdBackground, "write-4k-qd32", Iops, 4.0, 8.0),
        most(QsdBlocking, "write-4k-qd1", P50Us, 0.45, 0.3),
        most(QsdBlocking, "write-4k-qd1", P99Us, 0.6, 0.4),
        least(QsdBlocking, "write-4k-qd32", Iops, 3.0, 6.0),
        Gate { ours: TowlineUpstream, ..most(NbdkitHop, "write-4k-qd1", P50Us, 0.8, 0.6) },
        Gate { ours: TowlineUpstream, ..least(NbdkitHop, "write-4k-qd32", Iops, 1.5, 3.0) },
        Gate { ours: TowlineIdle, ..most(TowlineOff, "write-4k-qd1", P50Us, 1.05, 1.02) },
        Gate { ours: TowlineIdle, ..least(TowlineOff, "write-4k-qd32", Iops, 0.85, 0.95) },
        Gate { theirs: Against::One(Towline), ours: TowlineLowest, ..told("write-4k-qd1", P50Us) },
        Gate {
            theirs: Against::One(Towline),
            ours: TowlineLowest,
            ..told("write-4k-qd1", CpuUsPerOp)
        },
        told("whole-4k-qd1", P50Us),
        told("whole-4k-qd1", P99Us),
        told("whole-4k-qd32", Iops),
        told("whole-4k-qd32", P99Us),
        told("whole-4k-qd32", CpuUsPerOp),
    ]
}

/// Each gate in each placement for which both sides were measured.
pub(super) fn judge(cells: &[CellReport], seed: u64) -> Vec<GateReport> {
    let mut found = Vec::new();
    for gate in gates() {
        for placement in Placement::ALL {
            found.extend(judge_one(&gate, placement, cells, seed));
        }
    }
    found
}

fn judge_one(
    gate: &Gate,
    placement: Placement,
    cells: &[CellReport],
    seed: u64,
) -> Option<GateReport> {
    let cell = |server| {
        cells.iter().find(|cell| {
            cell.server == server
                && cell.workload == gate.workload
                && cell.placement == placement
                && cell.client == gate.client
                && !cell.rounds.is_empty()
        })
    };
    let ours = cell(gate.ours)?;
    let theirs = match gate.theirs {
        Against::One(server) => cell(server)?,
        Against::Best => PLAIN
            .into_iter()
            .filter_map(cell)
            .max_by(|a, b| a.median.mb_per_s.total_cmp(&b.median.mb_per_s))?,
    };
    let (ratio, rounds) = compare(ours, theirs, gate.metric, seed)?;
    let best = if matches!(gate.theirs, Against::Best) { " (the best plain server)" } else { "" };
    let middle = |cell: &CellReport| {
        let values: Vec<f64> = cell.rounds.iter().filter_map(|r| gate.metric.of(r)).collect();
        super::stats::median(&values).unwrap_or(0.0)
    };
    Some(GateReport {
        measure: format!(
            "{}: {} against {}{best}",
            gate.workload,
            gate.metric.says(),
            theirs.server.name()
        ),
        ours: ours.server,
        theirs: theirs.server,
        workload: gate.workload,
        placement,
        client: gate.client,
        metric: gate.metric,
        at_least: gate.at_least,
        bound: gate.bound,
        ratio,
        rounds,
        ours_median: middle(ours),
        theirs_median: middle(theirs),
        verdict: gate
            .bound
            .map_or(Verdict::Told, |bound| verdict(ratio, gate.at_least, bound, rounds)),
        noisy: !(ours.is_clean() && theirs.is_clean()),
    })
}

/// The interval decides, not its middle.
pub(super) fn verdict(ratio: Interval, at_least: bool, bound: Bound, rounds: usize) -> Verdict {
    if rounds < ROUNDS_MIN {
        return Verdict::TooFewRounds;
    }
    // The end that is nearer to failing, and the one nearer to success.
    let (worst, best) = if at_least { (ratio.low, ratio.high) } else { (ratio.high, ratio.low) };
    let keeps = |value: f64, bound: f64| if at_least { value >= bound } else { value <= bound };
    match () {
        () if keeps(worst, bound.stretch) => Verdict::Stretch,
        () if keeps(worst, bound.reach) => Verdict::Met,
        () if keeps(best, bound.reach) => Verdict::Unclear,
        () => Verdict::Missed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::impact::plan::{Choice, Level, plan};
    use crate::impact::report::tests::cell;

    fn interval(low: f64, high: f64) -> Interval {
        Interval { value: (low + high) / 2.0, low, high }
    }

    #[test]
    fn the_whole_interval_decides() {
        for (at_least, low, high, rounds, expected) in [
            (false, 0.4, 0.5, 5, Verdict::Stretch),
            (false, 0.5, 0.84, 5, Verdict::Met),
            (false, 0.8, 0.9, 5, Verdict::Unclear),
            (false, 0.86, 0.9, 5, Verdict::Missed),
            (false, 0.4, 0.5, 4, Verdict::TooFewRounds),
            (true, 0.86, 0.9, 5, Verdict::Met),
            (true, 0.8, 0.9, 5, Verdict::Unclear),
            (true, 0.4, 0.5, 5, Verdict::Missed),
            (true, 1.4, 1.5, 5, Verdict::Stretch),
        ] {
            let bound = Bound { reach: 0.85, stretch: if at_least { 1.2 } else { 0.6 } };
            let found = verdict(interval(low, high), at_least, bound, rounds);
            assert_eq!(found, expected, "{at_least} {low} {high} {rounds}");
        }
    }

    #[test]
    fn both_sides_of_every_gate_are_in_the_default_level_and_of_every_row_in_the_full_one() {
        for (level, all) in [(Level::Default, false), (Level::Full, true)] {
            let cells = plan(&Choice { level, against: None, only: None });
            let planned = |server, gate: &Gate| {
                cells.iter().any(|cell| {
                    cell.server == server
                        && cell.job.name == gate.workload
                        && cell.client == gate.client
                        && cell.placement == Placement::Unpinned
                })
            };
            for gate in gates().iter().filter(|gate| all || gate.bound.is_some()) {
                let theirs = match gate.theirs {
                    Against::One(server) => vec![server],
                    Against::Best => PLAIN.to_vec(),
                };
                for server in [vec![gate.ours], theirs].concat() {
                    assert!(planned(server, gate), "{level:?}: {server}, {}", gate.workload);
                }
            }
        }
    }

    #[test]
    fn over_the_whole_disk_ratios_are_told_and_not_judged() {
        let cells = [
            cell(Towline, "whole-4k-qd32", &[150.0; 5]),
            cell(Nbdkit, "whole-4k-qd32", &[100.0; 5]),
        ];
        let found = judge(&cells, 1);
        let metrics: Vec<_> = found.iter().map(|gate| (gate.metric, gate.verdict)).collect();
        let expected =
            [Metric::Iops, Metric::P99Us, Metric::CpuUsPerOp].map(|m| (m, Verdict::Told));
        assert_eq!(metrics, expected);
        assert!(found.iter().all(|gate| gate.bound.is_none() && gate.ratio.value == 1.5));
    }

    #[test]
    fn gates_without_both_sides_are_not_judged() {
        let ours = cell(Towline, "write-4k-qd1", &[10.0; 5]);
        assert!(judge(std::slice::from_ref(&ours), 1).is_empty());
        let theirs = cell(Nbdkit, "write-4k-qd1", &[20.0; 5]);
        let found = judge(&[ours, theirs], 1);
        let texts: Vec<_> = found.iter().map(|gate| (gate.metric, gate.verdict)).collect();
        let stretch = Verdict::Stretch;
        assert_eq!(texts, [(Metric::P50Us, stretch), (Metric::P99Us, stretch)]);
    }

    #[test]
    fn the_best_plain_server_is_the_one_that_counts() {
        let cells = [
            cell(Towline, "write-64k-qd8", &[150.0; 5]),
            cell(Nbdkit, "write-64k-qd8", &[100.0; 5]),
            cell(NbdServer, "write-64k-qd8", &[140.0; 5]),
            cell(QsdBlocking, "write-64k-qd8", &[900.0; 5]),
        ];
        let found = judge(&cells, 1);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].theirs, found[0].verdict), (NbdServer, Verdict::Missed));
    }
}
