//! `towline journal stat`: what the workload in the ring is like.

use super::Place;
use super::inspect::{MixReport, describe_mix, histogram, mix_report};
use crate::exit::Exit;
use crate::output;
use crate::table::{self, Align, Columns};
use serde::Serialize;
use towline_block::size::format_size;
use towline_journal::inspect::{GroupView, Hot, Interval, Stat, VolumeStat};

/// Volumes that are told one by one; JSON has all.
const VOLUMES_MAX: usize = 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Only the records that the target lacks.
    #[arg(long)]
    pending: bool,
    /// How many of the hottest blocks to name.
    #[arg(long, value_name = "N", default_value_t = 10)]
    hottest: usize,
}

#[derive(Serialize)]
struct Report {
    group: String,
    first_seq: u64,
    last_seq: u64,
    #[serde(flatten)]
    mix: MixReport,
    unique_block_bytes: u64,
    map_block_bytes: u64,
    volumes: Vec<VolumeLine>,
    intervals: Vec<IntervalLine>,
    hottest: Vec<HotLine>,
}

#[derive(Serialize)]
struct VolumeLine {
    name: String,
    size_bytes: u64,
    records: u64,
    writes: u64,
    written_bytes: u64,
    trimmed_bytes: u64,
    /// In blocks of `unique_block_bytes`, each once.
    unique_bytes: u64,
    /// In blocks of `map_block_bytes`, each once.
    map_bytes: u64,
    /// `written_bytes / unique_bytes`; `null` without a write.
    overwrite_factor: Option<f64>,
}

#[derive(Serialize)]
struct IntervalLine {
    interval_s: u64,
    /// How many of them saw a write.
    windows: u64,
    written_bytes: u64,
    /// Sum over the windows: what is sent if each window is sent once.
    unique_bytes: u64,
    unique_bytes_mean: u64,
    unique_bytes_max: u64,
}

#[derive(Serialize)]
struct HotLine {
    volume: String,
    offset: u64,
    len: u64,
    writes: u64,
    bytes: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_records()?;
    let range = if args.pending { view.pending() } else { view.present() };
    let stat = view.stat(range.clone(), args.hottest);
    let report = Report {
        group: view.state.group.to_string(),
        first_seq: *range.start(),
        last_seq: *range.end(),
        mix: mix_report(&stat.mix),
        unique_block_bytes: towline_journal::inspect::UNIQUE_BLOCK_BYTES,
        map_block_bytes: towline_block::BLOCK_BYTES,
        volumes: volumes(&view, &stat),
        intervals: stat.intervals.iter().map(interval).collect(),
        hottest: hottest(&view, &stat.hottest),
    };
    if args.place.json {
        output::json(&report)?;
    } else {
        output::text_line(&describe(&report))?;
    }
    Ok(Exit::Ok)
}

fn volumes(view: &GroupView, stat: &Stat) -> Vec<VolumeLine> {
    let names = view.volume_names();
    let line = |(name, v): (&String, &VolumeStat)| VolumeLine {
        name: name.clone(),
        size_bytes: view.volume_size_bytes(v.volume),
        records: v.records,
        writes: v.writes,
        written_bytes: v.written_bytes,
        trimmed_bytes: v.trimmed_bytes,
        unique_bytes: v.unique_bytes,
        map_bytes: v.map_bytes,
        overwrite_factor: v.overwrite_factor(),
    };
    names.iter().zip(&stat.volumes).map(line).collect()
}

fn interval(of: &Interval) -> IntervalLine {
    IntervalLine {
        interval_s: of.seconds,
        windows: of.windows,
        written_bytes: of.written_bytes,
        unique_bytes: of.unique_bytes,
        unique_bytes_mean: of.unique_bytes.checked_div(of.windows).unwrap_or(0),
        unique_bytes_max: of.unique_bytes_max,
    }
}

fn hottest(view: &GroupView, hottest: &[Hot]) -> Vec<HotLine> {
    let names = view.volume_names();
    let line = |hot: &Hot| HotLine {
        volume: names.get(hot.volume).cloned().unwrap_or_default(),
        offset: hot.offset,
        len: hot.len,
        writes: hot.writes,
        bytes: hot.bytes,
    };
    hottest.iter().map(line).collect()
}

fn describe(report: &Report) -> String {
    let mut text = format!("workload of group {}", report.group);
    text.push_str(&describe_mix(&report.mix, "journal"));
    if report.mix.records == 0 {
        return text;
    }
    text.push_str(&histogram(
        "alignment of writes (offset and length)",
        "multiple of",
        &report.mix.alignments,
    ));
    text.push_str(&describe_volumes(report));
    if !report.intervals.is_empty() {
        text.push_str(&describe_intervals(report));
    }
    if !report.hottest.is_empty() {
        let mut lines = Columns::new(&[
            ("volume", Align::Left),
            ("offset", Align::Right),
            ("length", Align::Right),
            ("writes", Align::Right),
            ("bytes", Align::Right),
        ]);
        for hot in &report.hottest {
            lines.row([
                hot.volume.clone(),
                hot.offset.to_string(),
                hot.len.to_string(),
                hot.writes.to_string(),
                format_size(hot.bytes),
            ]);
        }
        text.push_str(&format!("\nhottest blocks\n{}", lines.render(2)));
    }
    text
}

fn describe_volumes(report: &Report) -> String {
    let mut lines = Columns::new(&[
        ("volume", Align::Left),
        ("writes", Align::Right),
        ("written", Align::Right),
        ("unique", Align::Right),
        ("factor", Align::Right),
        ("in map", Align::Right),
        ("trimmed", Align::Right),
    ]);
    for volume in report.volumes.iter().take(VOLUMES_MAX) {
        lines.row([
            volume.name.clone(),
            volume.writes.to_string(),
            format_size(volume.written_bytes),
            format_size(volume.unique_bytes),
            volume.overwrite_factor.map_or_else(|| "-".into(), |factor| format!("{factor:.2}")),
            format_size(volume.map_bytes),
            format_size(volume.trimmed_bytes),
        ]);
    }
    let volumes = report.volumes.len();
    let more = table::more(volumes, volumes.min(VOLUMES_MAX), "volume", "see --json");
    format!(
        "\noverwriting, in blocks of {} (in map: {})\n{}{}",
        format_size(report.unique_block_bytes),
        format_size(report.map_block_bytes),
        lines.render(2),
        more.map_or_else(String::new, |more| format!("\n  {more}"))
    )
}

fn describe_intervals(report: &Report) -> String {
    let mut lines = Columns::new(&[
        ("sent every", Align::Right),
        ("on average", Align::Right),
        ("at most", Align::Right),
        ("in all", Align::Right),
        ("instead of", Align::Right),
    ]);
    for of in &report.intervals {
        lines.row([
            format!("{} s", of.interval_s),
            format_size(of.unique_bytes_mean),
            format_size(of.unique_bytes_max),
            format_size(of.unique_bytes),
            format_size(of.written_bytes),
        ]);
    }
    format!("\nunique bytes to send\n{}", lines.render(2))
}
