//! `towline journal verify`: every check that a record can pass.

use super::{Place, records_trouble, tell_of_lone_spill};
use crate::exit::{Exit, exit_of, sentence};
use crate::report::{VerifyError, VerifyReport};
use crate::ship::NICE_DEFAULT;
use crate::terminal::{columns, wrapped};
use crate::{output, table};
use std::time::Instant;
use towline_block::size::format_size;
use towline_block::sys::give_way;
use towline_journal::inspect::{GroupView, Verification};

/// Findings that are told one by one; JSON has more.
const LINES_MAX: usize = 40;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Also records that the target has already, as far as the ring still holds them.
    #[arg(long)]
    all: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut group = args.place.open()?;
    group.look_into_spill();
    let trouble = records_trouble(&group);
    match trouble {
        Some(trouble) if exit_of(&trouble) == Exit::Unreachable => return Err(trouble),
        // A damaged ring is a finding, told in the report and in a sentence.
        Some(trouble) => eprintln!("towline: {}", sentence(&trouble)),
        None => tell_of_lone_spill(&group),
    }
    // It takes every core: beside guests only what they leave.
    if group.proxy_runs()
        && let Err(error) = give_way(NICE_DEFAULT.into())
    {
        tracing::warn!(%error, "verify runs at the priority of everything else");
    }
    let begin = Instant::now();
    let found = if args.all { group.verify_all() } else { group.verify() };
    let seconds = begin.elapsed().as_secs_f64();
    let report = report_of(&group, &found);
    if args.place.json {
        output::json(&report)?;
    } else {
        output::text_line(&wrapped(&describe(&group, &report, seconds), 4, columns()))?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

fn report_of(group: &GroupView, found: &Verification) -> VerifyReport {
    let error = |e: &towline_journal::inspect::Finding| VerifyError {
        kind: e.kind.into(),
        seq: e.seq,
        offset: e.offset,
    };
    VerifyReport {
        group: group.state.group.to_string(),
        ok: found.errors.is_empty(),
        records: found.records,
        bytes: found.bytes,
        first_seq: found.first_seq,
        last_seq: found.last_seq,
        errors: found.errors.iter().map(error).collect(),
        more_errors: found.more_errors,
    }
}

fn describe(group: &GroupView, report: &VerifyReport, seconds: f64) -> String {
    if report.records == 0 && report.ok {
        return format!(
            "group {}: the target has every record; --all checks those that the ring still holds",
            group.state.group
        );
    }
    let faults = report.errors.len() as u64 + report.more_errors;
    let verdict = if faults == 0 { "all whole".into() } else { table::count(faults, "fault") };
    let mut text = if report.records == 0 {
        format!("group {}: no record: {verdict}", group.state.group)
    } else {
        format!(
            "group {}: {} ({} to {}), {} of payload, in {} ({}): {verdict}",
            group.state.group,
            table::count(report.records, "record"),
            report.first_seq,
            report.last_seq,
            format_size(report.bytes),
            table::duration(seconds),
            table::rate(report.bytes as f64 / seconds.max(1e-9)),
        )
    };
    for error in report.errors.iter().take(LINES_MAX) {
        text.push_str(&match error.seq {
            0 => format!("\n  {}", explain(&error.kind)),
            seq => format!("\n  record {seq}: {}{}", explain(&error.kind), place(error)),
        });
    }
    let shown = report.errors.len().min(LINES_MAX);
    if let Some(more) = table::more(faults as usize, shown, "fault", "--json lists up to 1000") {
        text.push_str(&format!("\n  {more}"));
    }
    if !report.ok && group.has_ring() {
        text.push_str(
            "\n  the shipper finds damage too and has everything compared with the target",
        );
    }
    text
}

/// Where in its volume, for kinds of faults that leave the header readable.
fn place(error: &VerifyError) -> String {
    match error.kind.as_str() {
        "payload_checksum" | "incarnation" | "order" => {
            format!(" (volume offset {})", error.offset)
        }
        _ => String::new(),
    }
}

fn explain(kind: &str) -> String {
    let meaning = match kind {
        "ring" => "the file is no whole ring",
        "counters" => "they contradict each other; what the slots show is checked instead",
        "missing" => "its slot names another record",
        "header_checksum" => "its header fails its checksum",
        "header_field" => "its header has a value nobody writes",
        "payload_checksum" => "its payload fails its checksum",
        "incarnation" => "it is of another ring",
        "spill" => "its slot is not needed any more, and the spill does not have it whole",
        "order" => "it does not follow from the record before it",
        _ => return kind.into(),
    };
    format!("{kind}: {meaning}")
}
