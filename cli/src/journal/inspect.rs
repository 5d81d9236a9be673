//! `towline journal inspect`: where the journal stands.

use super::ladder::{self, LadderReport};
use super::{Place, percent};
use crate::exit::Exit;
use crate::report::InspectReport;
use crate::table::{self, Align, Columns, Table, count};
use crate::when;
use crate::{output, view};
use serde::Serialize;
use towline_block::BLOCK_BYTES;
use towline_block::size::format_size;
use towline_journal::format::Counter;
use towline_journal::inspect::{Bucket, GroupView, Mix};

/// Control records that are told one by one, the newest; JSON has all.
const CONTROLS_MAX: usize = 20;
/// Volumes that are told one by one; JSON has all.
const VOLUMES_MAX: usize = 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    pinned: InspectReport,
    /// Why the ring cannot be read; `null` when it can.
    ring_error: Option<String>,
    /// Of a ring that is lost: what the spill has of it; else `null`.
    lone_spill: Option<LoneSpill>,
    /// The counters do not contradict each other.
    counters_sound: bool,
    fill: FillReport,
    ladder: LadderReport,
    history: History,
    /// Of the records in the ring, also those that the target has.
    mix: MixReport,
}

#[derive(Serialize)]
struct LoneSpill {
    first_seq: u64,
    last_seq: u64,
}

#[derive(Serialize)]
struct FillReport {
    slots: u64,
    slots_used: u64,
    payload_bytes: u64,
    payload_used_bytes: u64,
    dirty_bytes: u64,
    claimed_bytes: u64,
    suspect_bytes: u64,
}

/// Since the ring was made.
#[derive(Serialize)]
struct History {
    whole: bool,
    breaks: u64,
    healed_seq: Option<u64>,
    guest_written_bytes: u64,
    journaled_bytes: u64,
    mapped_bytes: u64,
    /// Control records still present, oldest first.
    controls: Vec<ControlLine>,
}

#[derive(Serialize)]
struct ControlLine {
    seq: u64,
    control: String,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u64>,
}

#[derive(Serialize)]
pub struct MixReport {
    pub records: u64,
    pub kinds: Vec<KindLine>,
    pub sizes: Vec<BucketLine>,
    pub alignments: Vec<BucketLine>,
    pub first_time: Option<String>,
    pub last_time: Option<String>,
    pub span_s: f64,
}

#[derive(Serialize)]
pub struct KindLine {
    pub kind: &'static str,
    pub records: u64,
    pub bytes: u64,
}

#[derive(Serialize)]
pub struct BucketLine {
    /// Sizes: at most this. Alignments: this divides offset and length.
    pub bytes_upto: u64,
    pub records: u64,
    pub bytes: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut group = args.place.open()?;
    group.look_into_spill();
    let report = report(&group);
    if args.place.json {
        output::json(&report)?;
    } else {
        output::text_line(&describe(&report))?;
    }
    Ok(Exit::Ok)
}

fn report(group: &GroupView) -> Report {
    let fill = group.fill();
    let blocks = |counter| group.get(counter) * BLOCK_BYTES;
    let controls = group.controls(group.in_ring()).into_iter().map(|(control, record)| {
        let control = format!("{control:?}").to_uppercase();
        let attempt = (control == "SEAL").then_some(record.argument);
        ControlLine { seq: record.seq, control, time: when::format(record.unix_ns), attempt }
    });
    Report {
        pinned: view::inspect(group),
        ring_error: group.ring_error.as_ref().map(ToString::to_string),
        lone_spill: group
            .lone_spill()
            .map(|range| LoneSpill { first_seq: *range.start(), last_seq: *range.end() }),
        counters_sound: group.marks().sound,
        fill: FillReport {
            slots: fill.slots,
            slots_used: fill.slots_used,
            payload_bytes: fill.payload_bytes,
            payload_used_bytes: fill.payload_used_bytes,
            dirty_bytes: blocks(Counter::DirtyBlocks),
            claimed_bytes: blocks(Counter::ClaimedBlocks),
            suspect_bytes: blocks(Counter::SuspectBlocks),
        },
        ladder: ladder::report(group),
        history: History {
            whole: group.get(Counter::Whole) == 1,
            breaks: group.get(Counter::Breaks),
            healed_seq: Some(group.get(Counter::HealedSeq)).filter(|seq| *seq > 0),
            guest_written_bytes: group.get(Counter::GuestWrittenBytes),
            journaled_bytes: group.get(Counter::JournaledBytes),
            mapped_bytes: group.get(Counter::MappedBytes),
            controls: controls.collect(),
        },
        mix: mix_report(&group.mix(group.in_ring())),
    }
}

pub fn mix_report(mix: &Mix) -> MixReport {
    let line =
        |b: &Bucket| BucketLine { bytes_upto: b.upto_bytes, records: b.records, bytes: b.bytes };
    let time = |ns| (mix.records > 0).then(|| when::format(ns));
    let kinds = mix.kinds.iter();
    MixReport {
        records: mix.records,
        kinds: kinds
            .map(|k| KindLine { kind: k.kind, records: k.records, bytes: k.bytes })
            .collect(),
        sizes: mix.sizes.iter().map(line).collect(),
        alignments: mix.alignments.iter().map(line).collect(),
        first_time: time(mix.first_ns),
        last_time: time(mix.last_ns),
        span_s: mix.last_ns.saturating_sub(mix.first_ns) as f64 / 1e9,
    }
}

fn describe(report: &Report) -> String {
    let (pinned, fill) = (&report.pinned, &report.fill);
    let mut lines = Table::default();
    lines.row("state", pinned.state.clone());
    lines.row("epoch", pinned.epoch.to_string());
    lines.row("incarnation", pinned.incarnation.to_string());
    let number = |seq: Option<u64>| seq.map_or_else(|| "not known".into(), |seq| seq.to_string());
    lines.row("head", format!("{} (last number given)", number(pinned.head_seq)));
    let done = number(pinned.done_seq);
    lines.row("done", format!("{done} (all up to here have their outcome)"));
    lines.row("acked", format!("{} (durable at the target)", number(pinned.acked_seq)));
    if !report.counters_sound {
        lines.row("", "damaged: these counters contradict each other");
    }
    let age = pinned
        .oldest_age_s
        .map_or_else(String::new, |s| format!(", the oldest {} old", table::duration(s)));
    let records = number(pinned.records);
    lines.row("records", format!("{records} waiting for the target{age}"));
    lines.row("ring", pinned.ring_file.clone());
    if let Some(error) = &report.ring_error {
        // Nothing that follows is known.
        lines.row("", format!("cannot be read: {error}"));
        if let Some(spill) = &report.lone_spill {
            let what = format!("records {} to {} of it", spill.first_seq, spill.last_seq);
            lines.row("spill", format!("{what}; dump, verify and stat show them"));
        }
        return format!("journal of group {}\n{}", pinned.group, lines.render(2));
    }
    lines.row(
        "slots",
        format!(
            "{} {} of {}",
            table::bar(fill.slots_used, fill.slots.max(1)),
            fill.slots_used,
            fill.slots
        ),
    );
    lines.row(
        "payload",
        format!(
            "{} {} of {}",
            table::bar(fill.payload_used_bytes, fill.payload_bytes.max(1)),
            format_size(fill.payload_used_bytes),
            format_size(fill.payload_bytes)
        ),
    );
    lines.row(
        "change map",
        format!(
            "{} dirty, {} claimed, {} suspect",
            format_size(fill.dirty_bytes),
            format_size(fill.claimed_bytes),
            format_size(fill.suspect_bytes)
        ),
    );
    for volume in pinned.volumes.iter().take(VOLUMES_MAX) {
        lines.row(format!("volume {}", volume.name), format_size(volume.size_bytes));
    }
    let volumes = pinned.volumes.len();
    if let Some(more) = table::more(volumes, volumes.min(VOLUMES_MAX), "volume", "see --json") {
        lines.row("", more);
    }
    let mut text = format!("journal of group {}\n{}", pinned.group, lines.render(2));
    text.push_str(&ladder::describe(&report.ladder));
    text.push_str(&describe_history(&report.history));
    text.push_str(&describe_mix(&report.mix, "ring"));
    text
}

fn describe_history(history: &History) -> String {
    let mut lines = Table::default();
    let whole = if history.whole {
        "whole: the journal holds every change"
    } else {
        "broken: the change map holds what the journal does not"
    };
    lines.row("stream", whole);
    let all = history.guest_written_bytes;
    lines.row("guests wrote", format_size(all));
    lines.row("journaled", format_size(history.journaled_bytes));
    lines.row(
        "past the journal",
        format!("{} ({})", format_size(history.mapped_bytes), percent(history.mapped_bytes, all)),
    );
    lines.row("BREAKs", history.breaks.to_string());
    let earlier = history.controls.len().saturating_sub(CONTROLS_MAX);
    if earlier > 0 {
        lines.row(
            "",
            format!("{} before these: see --json", count(earlier as u64, "control record")),
        );
    }
    for control in history.controls.iter().skip(earlier) {
        let attempt = control.attempt.map_or_else(String::new, |n| format!(" of attempt {n}"));
        lines.row(
            format!("record {}", control.seq),
            format!("{}{attempt}, {}", control.control, control.time),
        );
    }
    format!("\nsince the ring was made\n{}", lines.render(2))
}

/// Kinds and sizes as lines for people; `place` is where the records are.
pub fn describe_mix(mix: &MixReport, place: &str) -> String {
    if mix.records == 0 {
        return format!("\nthe {place} shows no record");
    }
    let mut lines = Table::default();
    for kind in &mix.kinds {
        let bytes =
            if kind.bytes > 0 { format!(", {}", format_size(kind.bytes)) } else { String::new() };
        lines.row(kind.kind, format!("{}{bytes}", count(kind.records, "record")));
    }
    let mut text = format!(
        "\n{} in the {place}, begun within {}\n{}",
        count(mix.records, "record"),
        table::duration(mix.span_s),
        lines.render(2)
    );
    text.push_str(&histogram("sizes of writes", "up to", &mix.sizes));
    text
}

/// Bars, one a bucket; nothing where there is none.
pub fn histogram(title: &str, label: &'static str, buckets: &[BucketLine]) -> String {
    if buckets.is_empty() {
        return String::new();
    }
    let all: u64 = buckets.iter().map(|b| b.records).sum();
    let heads = [
        (label, Align::Left),
        ("", Align::Left),
        ("records", Align::Right),
        ("bytes", Align::Right),
    ];
    let mut lines = Columns::new(&heads);
    for bucket in buckets {
        lines.row([
            format_size(bucket.bytes_upto),
            table::bar(bucket.records, all),
            bucket.records.to_string(),
            format_size(bucket.bytes),
        ]);
    }
    format!("\n{title}\n{}", lines.render(2))
}
