//! The result as text for a terminal: ratios first.

use super::plan::ServerKind;
use super::report::{BaselineReport, CellReport, GateReport, ImpactReport, Verdict};
use super::stats::Interval;
use std::fmt::Write;

impl Verdict {
    pub fn says(self) -> &'static str {
        match self {
            Verdict::Stretch => "stretch met",
            Verdict::Met => "met",
            Verdict::Unclear => "unclear",
            Verdict::Missed => "MISSED",
            Verdict::TooFewRounds => "too few rounds",
            Verdict::Told => "told",
            Verdict::TooSlow => "baseline too slow to count",
        }
    }
}

/// A figure of any size in few characters: `0.85`, `12.3`, `456`, `98.8k`.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 99_950.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 9_995.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Ratios against the bounds, then all cells.
pub fn table(report: &ImpactReport) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if report.debug_build {
        let _ =
            writeln!(text, "THIS IS A DEBUG BUILD: the figures of towline are worth nothing.\n");
    }
    ratios(&mut text, report);
    text.push_str("\nMedians of the rounds; times in us, CPU of the server in us a request\n");
    for workload in &report.workloads {
        let cells: Vec<_> = report.cells.iter().filter(|c| c.workload == workload.name).collect();
        if !cells.is_empty() {
            let _ = writeln!(text, "\n{}: {}", workload.name, workload.says);
            cell_table(&mut text, &cells);
        }
    }
    for skipped in &report.skipped {
        let _ = writeln!(text, "\nskipped: {}: {}", skipped.what, skipped.reason);
    }
    for note in &report.notes {
        let _ = writeln!(text, "\nnote: {note}");
    }
    let _ = write!(
        text,
        "\n{} rounds of {} s a cell, seed {}, {} processors ({}), kernel {}, {}; took {:.0} s",
        report.rounds,
        report.seconds,
        report.seed,
        report.machine.processors,
        report.machine.model,
        report.machine.kernel,
        report.machine.file_system,
        report.elapsed_s
    );
    text
}

fn ratios(text: &mut String, report: &ImpactReport) {
    if report.gates.is_empty() {
        text.push_str("No bound has both of its sides among these cells.\n");
    } else {
        let heads = ["ours/theirs [95 %]", "bound", "ours : theirs", "verdict"];
        ratio_line(text, "ratio (placement, client)", heads);
    }
    for gate in &report.gates {
        let sign = if gate.at_least { ">=" } else { "<=" };
        let bound = gate.bound.map_or(String::new(), |bound| format!("{sign}{}", bound.reach));
        let pair = format!("{} : {}", short(gate.ours_median), short(gate.theirs_median));
        let noisy = if gate.noisy { " (noisy)" } else { "" };
        let verdict = format!("{}{noisy}", gate.verdict.says());
        let ratio = interval(Some(gate.ratio));
        ratio_line(text, &gate.title(), [&ratio, &bound, &pair, &verdict]);
    }
    if let Some(baseline) = &report.baseline {
        let bound = format!("<={}", baseline.bound.reach);
        let (ratio, verdict) = (interval(baseline.p99_ratio), baseline.verdict.says());
        ratio_line(text, &baseline.title(), [&ratio, &bound, "", verdict]);
    }
}

fn ratio_line(text: &mut String, name: &str, [ratio, bound, pair, verdict]: [&str; 4]) {
    let _ = writeln!(text, "{name:<72} {ratio:>19} {bound:>7} {pair:>15}  {verdict}");
}

pub(super) fn interval(ratio: Option<Interval>) -> String {
    let text = |r: Interval| format!("{} [{}, {}]", short(r.value), short(r.low), short(r.high));
    ratio.map_or("not measured".into(), text)
}

impl GateReport {
    /// What is compared, where and by whom.
    pub(super) fn title(&self) -> String {
        let ours = match self.ours {
            ServerKind::Towline => String::new(),
            other => format!("{other}, "),
        };
        format!("{ours}{} ({}, {})", self.measure, self.placement.name(), self.client.name())
    }
}

impl BaselineReport {
    pub(super) fn title(&self) -> String {
        let share = self.share_of_solo.map_or("?".into(), |s| format!("{:.0} %", s * 100.0));
        let asked = self.share_min * 100.0;
        format!("guest p99 beside the baseline at {share} of its solo rate (asked: {asked:.0} %)")
    }
}

fn cell_table(text: &mut String, cells: &[&CellReport]) {
    let _ = writeln!(
        text,
        "  {:<42} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9}  remarks",
        "server (placement, client)", "p50", "p99", "p99.9", "IOPS", "MB/s", "CPU", "CPU s/GiB",
    );
    for cell in cells {
        let m = &cell.median;
        let name =
            format!("{} ({}, {})", cell.server.name(), cell.placement.name(), cell.client.name());
        let _ = writeln!(
            text,
            "  {name:<42} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9}  {}",
            short(m.p50_us),
            short(m.p99_us),
            short(m.p999_us),
            short(m.iops),
            short(m.mb_per_s),
            short(m.cpu_us_per_op),
            short(m.cpu_s_per_gib),
            remarks(cell)
        );
    }
}

/// What a reader must know of a cell, in few words.
pub(super) fn remarks(cell: &CellReport) -> String {
    let count = |is: &dyn Fn(&super::report::RoundReport) -> bool| {
        cell.rounds.iter().filter(|round| is(round)).count()
    };
    let mut words = Vec::new();
    let mut add = |number: usize, what: &str| {
        if number > 0 {
            words.push(format!("{number} of {} {what}", cell.rounds.len()));
        }
    };
    add(count(&|round| !round.clean), "disturbed");
    add(count(&|round| round.left_ring), "left the ring");
    add(count(&|round| round.behind), "began behind");
    if let Some(flush) = cell.median.flush_p50_us {
        words.push(format!("flush p50 {}", short(flush)));
    }
    if let Some(flushes) = cell.median.flushes_per_s {
        words.push(format!("{} flushes/s", short(flushes)));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn figures_keep_three_digits() {
        let texts = [0.854, 12.34, 456.7, 4567.0, 98_765.0, 141_234.0].map(short);
        assert_eq!(texts, ["0.85", "12.3", "457", "4567", "98.8k", "141k"]);
    }
}
