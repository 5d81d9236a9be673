//! `towline journal stat`: what the workload in the ring is like.

use super::Place;
use super::inspect::{MixReport, describe_mix, histogram, mix_report};
use crate::exit::Exit;
use crate::output;
use crate::table::Table;
use serde::Serialize;
use towline_block::size::format_size;
use towline_journal::inspect::{GroupView, Hot, Interval, Stat, VolumeStat};

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
    let view = args.place.open_ring()?;
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
    let line = |(name, v): (String, &VolumeStat)| VolumeLine {
        name,
        size_bytes: view.volume_size_bytes(v.volume),
        records: v.records,
        writes: v.writes,
        written_bytes: v.written_bytes,
        trimmed_bytes: v.trimmed_bytes,
        unique_bytes: v.unique_bytes,
        map_bytes: v.map_bytes,
        overwrite_factor: v.overwrite_factor(),
    };
    names.into_iter().zip(&stat.volumes).map(line).collect()
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
    text.push_str(&describe_mix(&report.mix));
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
        let mut lines = Table::default();
        for hot in &report.hottest {
            let value = format!(
                "{:>14} +{}  {} writes, {}",
                hot.offset,
                hot.len,
                hot.writes,
                format_size(hot.bytes)
            );
            lines.row(hot.volume.clone(), value);
        }
        text.push_str(&format!("\nhottest blocks\n{}", lines.render(2)));
    }
    text
}

fn describe_volumes(report: &Report) -> String {
    let mut lines = Table::default();
    for volume in &report.volumes {
        let factor = volume
            .overwrite_factor
            .map_or_else(|| "no write".into(), |f| format!("written {f:.2} times over"));
        lines.row(
            volume.name.clone(),
            format!(
                "{} written in {} writes to {} of blocks of {}: {factor}; {} of the change map's \
                 blocks; {} trimmed",
                format_size(volume.written_bytes),
                volume.writes,
                format_size(volume.unique_bytes),
                format_size(report.unique_block_bytes),
                format_size(volume.map_bytes),
                format_size(volume.trimmed_bytes)
            ),
        );
    }
    format!("\nvolumes\n{}", lines.render(2))
}

fn describe_intervals(report: &Report) -> String {
    let mut lines = Table::default();
    for of in &report.intervals {
        lines.row(
            format!("{} s", of.interval_s),
            format!(
                "{} on average, {} at most; {} in all instead of {}",
                format_size(of.unique_bytes_mean),
                format_size(of.unique_bytes_max),
                format_size(of.unique_bytes),
                format_size(of.written_bytes)
            ),
        );
    }
    format!("\nunique bytes dirtied within\n{}", lines.render(2))
}
