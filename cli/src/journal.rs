//! `towline journal`: a look into a group's journal, live or dead, read-only.

use crate::exit::{Exit, unreachable};
use crate::output;
use crate::report::InspectReport;
use crate::table::{self, Table};
use crate::view;
use clap::Subcommand;
use serde::Serialize;
use std::path::{Path, PathBuf};
use towline_block::size::format_size;
use towline_journal::inspect::GroupView;
use towline_journal::{Kind, Record};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Where the journal stands: numbers, state, volumes.
    Inspect(Place),
    /// Every record that the ring still holds, one a line.
    Dump {
        #[command(flatten)]
        place: Place,
        /// First record to show.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        from: u64,
        /// Last record to show.
        #[arg(long, value_name = "SEQ", default_value_t = u64::MAX)]
        to: u64,
    },
    /// Check number, header and payload of every record the target lacks.
    Verify(Place),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// A group's state directory (the ring's own place is recorded there).
    dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Dump {
    group: String,
    records: Vec<RecordLine>,
}

#[derive(Serialize)]
struct RecordLine {
    seq: u64,
    kind: String,
    state: String,
    volume: Option<String>,
    offset: u64,
    len: u64,
    age_s: f64,
    payload_ok: Option<bool>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.action {
        Action::Inspect(place) => {
            let report = view::inspect(&open(&place.dir)?);
            if place.json {
                output::json(&report)?;
            } else {
                output::text_line(&describe(&report))?;
            }
            Ok(Exit::Ok)
        }
        Action::Dump { place, from, to } => dump(&open(&place.dir)?, place.json, *from, *to),
        Action::Verify(place) => verify(&open(&place.dir)?, place.json),
    }
}

fn open(dir: &Path) -> anyhow::Result<GroupView> {
    Ok(GroupView::open(&view::group_dir(dir, None)?)?)
}

fn need_ring(view: &GroupView) -> anyhow::Result<()> {
    match &view.ring_error {
        Some(error) if !view.has_ring() => Err(unreachable(format!(
            "the ring {} cannot be read: {error}; a restarted proxy makes a new one",
            view.state.ring.path.display()
        ))),
        _ => Ok(()),
    }
}

fn describe(report: &InspectReport) -> String {
    let mut lines = Table::default();
    lines.row("state", report.state.clone());
    lines.row("epoch", report.epoch.to_string());
    lines.row("incarnation", report.incarnation.to_string());
    lines.row("head", format!("{} (last number given)", report.head_seq));
    lines.row("done", format!("{} (all up to here have their outcome)", report.done_seq));
    lines.row("acked", format!("{} (durable at the target)", report.acked_seq));
    let age = report
        .oldest_age_s
        .map_or_else(String::new, |s| format!(", the oldest {} old", table::duration(s)));
    lines.row("records", format!("{} wait for the target{age}", report.records));
    lines.row("ring", report.ring_file.clone());
    for volume in &report.volumes {
        lines.row(format!("volume {}", volume.name), format_size(volume.size_bytes));
    }
    format!("journal of group {}\n{}", report.group, lines.render(2))
}

fn dump(view: &GroupView, json: bool, from: u64, to: u64) -> anyhow::Result<Exit> {
    need_ring(view)?;
    let present = view.present();
    let wanted = from.max(*present.start())..=to.min(*present.end());
    let records = wanted.filter_map(|seq| Some(line_of(view, &view.record(seq)?)));
    if json {
        let dump = Dump { group: view.state.group.to_string(), records: records.collect() };
        output::json(&dump)?;
        return Ok(Exit::Ok);
    }
    for line in records {
        let volume = line.volume.as_deref().unwrap_or("-");
        let damage = if line.payload_ok == Some(false) { "  payload damaged or gone" } else { "" };
        output::text_line(&format!(
            "{:>10}  {:<8} {:<7} {volume:<12} {:>14} +{:<9}  {} ago{damage}",
            line.seq,
            line.kind,
            line.state,
            line.offset,
            line.len,
            table::duration(line.age_s)
        ))?;
    }
    Ok(Exit::Ok)
}

fn line_of(view: &GroupView, record: &Record) -> RecordLine {
    let is_control = record.kind == Kind::Control;
    let volume = view.state.volumes.get(record.volume.index()).filter(|_| !is_control);
    RecordLine {
        seq: record.seq,
        kind: match record.control {
            Some(control) if is_control => format!("{control:?}").to_lowercase(),
            _ => format!("{:?}", record.kind).to_lowercase(),
        },
        state: format!("{:?}", record.state).to_lowercase(),
        volume: volume.map(|v| v.name.to_string()),
        offset: record.extent.offset,
        len: record.extent.len,
        age_s: towline_journal::unix_now_ns().saturating_sub(record.unix_ns) as f64 / 1e9,
        payload_ok: record.has_payload().then(|| view.payload(record).is_some()),
    }
}

fn verify(view: &GroupView, json: bool) -> anyhow::Result<Exit> {
    need_ring(view)?;
    let report = view::verify(view);
    if json {
        output::json(&report)?;
    } else {
        let mut text = format!(
            "group {}: {} records ({} to {}), {} of payload: {}",
            view.state.group,
            report.records,
            report.first_seq,
            report.last_seq,
            format_size(report.bytes),
            if report.ok { "all whole".into() } else { format!("{} damaged", report.errors.len()) }
        );
        for error in &report.errors {
            text.push_str(&format!(
                "\n  record {}: {} (volume offset {})",
                error.seq, error.kind, error.offset
            ));
        }
        if !report.ok {
            text.push_str(
                "\n  the shipper finds damage too and has everything compared with the target",
            );
        }
        output::text_line(&text)?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}
