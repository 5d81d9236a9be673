//! What the demo reports: the JSON object and the table.

use super::checks::{Findings, Verdict};
use super::plan::FsRole;
use crate::report::Percentiles;
use crate::table::{self, Table};
use serde::Serialize;
use towline_block::size::format_size;

#[derive(Clone, Debug, Default, Serialize)]
pub struct DemoReport {
    /// `pass` or `fail`.
    pub verdict: &'static str,
    pub checks: Checks,
    pub acked_writes: u64,
    pub lost_writes: u64,
    pub kills: Kills,
    pub net_breaks: u32,
    pub baseline_s: f64,
    pub baseline_bytes_per_s: f64,
    pub written_bytes: u64,
    pub shipped_bytes: u64,
    pub lag_s: Percentiles,
    pub added_write_us: Percentiles,
    pub cutover_pause_ms: Option<f64>,
    pub verified_bytes: u64,
    pub elapsed_s: f64,
    /// Database transactions committed on the mounted volume.
    pub committed_transactions: u64,
    /// From `kill -9` until the daemon serves again.
    pub restart_ms: Restarts,
    pub resent_bytes: u64,
    /// What ran where and why, for people.
    pub notes: Vec<String>,
}

/// `null`: there was nothing to check.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Checks {
    pub acked_on_target: Option<bool>,
    pub identical_at_cut: Option<bool>,
    pub fsck: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Kills {
    pub proxy: u32,
    pub ship: u32,
    pub receive: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Restarts {
    pub proxy: f64,
    pub ship: f64,
    pub receive: f64,
}

impl DemoReport {
    /// The story ended before anything could be judged.
    pub fn broken_off(why: String) -> DemoReport {
        DemoReport { verdict: "fail", notes: vec![why], ..DemoReport::default() }
    }
}

impl Checks {
    pub fn of(findings: &Findings) -> Checks {
        let told = |verdict: &Verdict| match verdict {
            Verdict::Holds(_) => Some(true),
            Verdict::Fails(_) => Some(false),
            Verdict::Absent(_) => None,
        };
        Checks {
            acked_on_target: told(&findings.acked_on_target),
            identical_at_cut: told(&findings.identical_at_cut),
            fsck: told(&findings.fsck),
        }
    }
}

/// The table; `findings` has the words behind the checks.
pub fn describe(report: &DemoReport, findings: &Findings) -> String {
    let mut lines = Table::default();
    for (name, verdict) in [
        ("every acknowledged write is on the target", &findings.acked_on_target),
        ("source and target identical at the cut", &findings.identical_at_cut),
        ("the target's file system is sound", &findings.fsck),
    ] {
        lines.row(name, mark(verdict));
    }
    lines.row(
        "acknowledged writes, lost",
        format!("{}, {}", report.acked_writes, report.lost_writes),
    );
    if report.committed_transactions > 0 {
        lines.row("database transactions", report.committed_transactions.to_string());
    }
    let (kills, restart) = (report.kills, report.restart_ms);
    lines.row(
        "killed by kill -9",
        format!(
            "shipper {}x, receiver {}x, proxy {}x; serving again after {:.0}, {:.0}, {:.0} ms",
            kills.ship, kills.receive, kills.proxy, restart.ship, restart.receive, restart.proxy
        ),
    );
    lines.row(
        "network broken",
        format!("{} times (a reset, a black hole of 3 s)", report.net_breaks),
    );
    lines.row(
        "baseline",
        format!(
            "{} at {} of disk, holes included",
            table::duration(report.baseline_s),
            table::rate(report.baseline_bytes_per_s)
        ),
    );
    lines.row(
        "written by the guest, shipped",
        format!("{}, {}", format_size(report.written_bytes), format_size(report.shipped_bytes)),
    );
    lines.row("lag, p50 and p99", seconds(report.lag_s));
    lines.row("latency added to a write", micros(report.added_write_us));
    let pause =
        report.cutover_pause_ms.map_or_else(|| "none measured".into(), |ms| format!("{ms:.0} ms"));
    lines.row("cutover pause, on the guest's clock", pause);
    lines.row("compared", format_size(report.verified_bytes));
    lines.row("elapsed", table::duration(report.elapsed_s));
    for note in &report.notes {
        lines.row("note", note.clone());
    }
    format!("towline demo: {}\n{}", report.verdict.to_uppercase(), lines.render(2))
}

/// What a reader should know about the second volume.
pub fn note_on(role: &FsRole) -> String {
    match role {
        FsRole::Mounted => "volume fs: ext4, mounted by the guest through the cutover".into(),
        FsRole::Stamped(why) => {
            format!("volume fs: stamped blocks instead of a mounted file system ({why})")
        }
        FsRole::Idle(why) => format!("volume fs: moved while nobody writes it ({why})"),
    }
}

fn mark(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Holds(detail) => format!("yes  ({detail})"),
        Verdict::Fails(why) => format!("NO   ({why})"),
        Verdict::Absent(why) => format!("-    ({why})"),
    }
}

fn seconds(value: Percentiles) -> String {
    match (value.p50, value.p99) {
        (Some(p50), Some(p99)) => format!("{}, {}", table::duration(p50), table::duration(p99)),
        _ => "not measured".into(),
    }
}

fn micros(value: Percentiles) -> String {
    match (value.p50, value.p99) {
        (Some(p50), Some(p99)) => format!("{p50:.1} us p50, {p99:.1} us p99"),
        _ => "not measured".into(),
    }
}
