//! `towline journal verify`: every check that a record can pass.

use super::{Place, ring_trouble};
use crate::exit::{Exit, exit_of, sentence};
use crate::report::{VerifyError, VerifyReport};
use crate::{output, table, view};
use std::fmt::Write;
use std::time::Instant;
use towline_block::size::format_size;
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
    let group = args.place.open()?;
    let trouble = ring_trouble(&group);
    match trouble {
        Some(trouble) if exit_of(&trouble) == Exit::Unreachable => return Err(trouble),
        // A damaged ring is a finding, told in the report and in a sentence.
        Some(trouble) => eprintln!("towline: {}", sentence(&trouble)),
        None => {}
    }
    let begin = Instant::now();
    let report = if args.all { report_of(&group.verify_all()) } else { view::verify(&group) };
    let seconds = begin.elapsed().as_secs_f64();
    if args.place.json {
        output::json(&report)?;
    } else {
        output::text_line(&describe(&group, &report, seconds))?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

fn report_of(found: &Verification) -> VerifyReport {
    let error = |e: &towline_journal::inspect::Finding| VerifyError {
        kind: e.kind.into(),
        seq: e.seq,
        offset: e.offset,
    };
    VerifyReport {
        ok: found.errors.is_empty(),
        records: found.records,
        bytes: found.bytes,
        first_seq: found.first_seq,
        last_seq: found.last_seq,
        errors: found.errors.iter().map(error).collect(),
    }
}

fn describe(group: &GroupView, report: &VerifyReport, seconds: f64) -> String {
    if report.records == 0 && report.ok {
        return format!(
            "group {}: the target has every record; --all checks those that the ring still holds",
            group.state.group
        );
    }
    let verdict = match report.errors.len() {
        0 => "all whole".into(),
        1 => "1 fault".into(),
        count => format!("{count} faults"),
    };
    let mut text = format!(
        "group {}: {} records ({} to {}), {} of payload, in {} ({}): {verdict}",
        group.state.group,
        report.records,
        report.first_seq,
        report.last_seq,
        format_size(report.bytes),
        table::duration(seconds),
        table::rate(report.bytes as f64 / seconds.max(1e-9)),
    );
    for error in report.errors.iter().take(LINES_MAX) {
        let _ = match error.seq {
            0 => write!(text, "\n  {}", explain(&error.kind)),
            seq => write!(
                text,
                "\n  record {seq}: {} (volume offset {})",
                explain(&error.kind),
                error.offset
            ),
        };
    }
    if report.errors.len() > LINES_MAX {
        let _ = write!(text, "\n  and {} more: see --json", report.errors.len() - LINES_MAX);
    }
    if !report.ok && group.has_ring() {
        text.push_str(
            "\n  the shipper finds damage too and has everything compared with the target",
        );
    }
    text
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
