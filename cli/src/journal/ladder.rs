//! Ring, spill and change map, as `towline journal inspect` tells of them: on which rung
//! the group is, what lies on disk, and what a power loss now would compare.

use super::percent;
use crate::report::{DiskWritten, LadderStep};
use crate::table::{self, Table};
use crate::view;
use serde::Serialize;
use towline_block::size::format_size;
use towline_journal::activity::EXTENT_BYTES;
use towline_journal::format::Counter;
use towline_journal::inspect::GroupView;
use towline_journal::spill::Rung;

/// Steps that are told one by one, the newest; JSON has all that are kept.
const STEPS_TOLD_MAX: usize = 8;

#[derive(Serialize)]
pub struct LadderReport {
    /// `ring`, `spill` or `map`.
    rung: &'static str,
    /// Since the ring was made, up and down.
    steps: u64,
    /// The last of them, also of the rings before, oldest first.
    last_steps: Vec<LadderStep>,
    disk_written: DiskWritten,
    spill: SpillReport,
    /// `null` without a sound activity map: a power loss then compares everything.
    hot_bytes: Option<u64>,
    hot_extents: Option<u64>,
    extent_bytes: u64,
    volumes_bytes: u64,
}

#[derive(Serialize)]
struct SpillReport {
    bytes: u64,
    used_bytes: u64,
    /// All records up to here that the target lacks are on disk; and synced.
    spilled_seq: u64,
    durable_seq: u64,
    /// Since the ring was made.
    written_bytes: u64,
    payload_written_bytes: u64,
    /// Of the ring before this one.
    history_bytes: u64,
    /// `null`, `cannot be written` or `full`.
    fault: Option<&'static str>,
}

pub fn report(group: &GroupView) -> LadderReport {
    let rung = match Rung::from_code(group.get(Counter::Rung)) {
        _ if group.get(Counter::Whole) == 0 => "map",
        Rung::Ring => "ring",
        Rung::Spill => "spill",
        Rung::Map => "map",
    };
    let hot_extents = group.hot_extents();
    let volumes = 0..group.volume_names().len();
    LadderReport {
        rung,
        steps: group.get(Counter::LadderSteps),
        last_steps: view::ladder(group),
        disk_written: view::disk_written(group),
        spill: SpillReport {
            bytes: group.get(Counter::SpillBytes),
            used_bytes: group.get(Counter::SpillUsedBytes),
            spilled_seq: group.get(Counter::Spilled),
            durable_seq: group.get(Counter::SpillDurable),
            written_bytes: group.get(Counter::SpillWrittenBytes),
            payload_written_bytes: group.get(Counter::SpillPayloadBytes),
            history_bytes: group.get(Counter::HistoryBytes),
            fault: match group.get(Counter::SpillFault) {
                0 => None,
                2 => Some("full"),
                _ => Some("cannot be written"),
            },
        },
        hot_bytes: hot_extents.map(|count| count * EXTENT_BYTES),
        hot_extents,
        extent_bytes: EXTENT_BYTES,
        volumes_bytes: volumes.map(|volume| group.volume_size_bytes(volume)).sum(),
    }
}

pub fn describe(report: &LadderReport) -> String {
    let mut lines = Table::default();
    let place = match report.rung {
        "ring" => "ring: changes wait for the target in memory",
        "spill" => "spill: the oldest changes wait for the target on disk",
        _ => "map: what changed is known by block, its order is not",
    };
    lines.row("rung", place);
    lines.row("steps", format!("{} since the ring was made", report.steps));
    let earlier = report.last_steps.len().saturating_sub(STEPS_TOLD_MAX);
    for step in &report.last_steps[earlier..] {
        lines.row("", step.describe());
    }
    let spill = &report.spill;
    if spill.bytes == 0 {
        lines.row("spill", "none");
    } else {
        let (used, bytes) = (format_size(spill.used_bytes), format_size(spill.bytes));
        let bar = table::bar(spill.used_bytes, spill.bytes);
        lines.row("spill", format!("{bar} {used} of {bytes}"));
    }
    let written = &report.disk_written;
    let kinds = [
        ("payload", written.payload_bytes),
        ("spill headers", written.spill_header_bytes),
        ("spill filled with zeroes", written.spill_fill_bytes),
        ("activity map", written.activity_map_bytes),
        ("saved change maps", written.change_map_bytes),
        ("state", written.state_bytes),
    ];
    let told = kinds.map(|(kind, bytes)| format!("{kind} {}", format_size(bytes)));
    lines.row("written to disk", told.join(", "));
    if let Some(fault) = spill.fault {
        lines.row("", format!("the spill is not used now: {fault}"));
    }
    if spill.history_bytes > 0 {
        let history = format_size(spill.history_bytes);
        lines.row("history", format!("{history} of the ring before this one"));
    }
    let hot = match (report.hot_bytes, report.hot_extents) {
        (Some(bytes), Some(extents)) => format!(
            "{} ({}) in {extents} extents of {}: compared after a power loss",
            format_size(bytes.min(report.volumes_bytes)),
            percent(bytes.min(report.volumes_bytes), report.volumes_bytes),
            format_size(report.extent_bytes)
        ),
        _ => "no activity map: a power loss compares everything".into(),
    };
    lines.row("hot", hot);
    format!("\nladder\n{}", lines.render(2))
}
