//! `towline status`: how every group in a state directory is doing.
//!
//! Everything is read from files: it works when all processes are dead and
//! disturbs none that lives.

use crate::config;
use crate::exit::{Exit, unreachable};
use crate::output;
use crate::report::{GroupStatus, NOT_KNOWN, ProcessStatus, Rate, Shipping, StatusReport};
use crate::table::{self, Table};
use crate::view;
use std::path::PathBuf;
use towline_block::GroupName;
use towline_block::size::format_size;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this group.
    group: Option<GroupName>,
    /// State directory of a proxy or a receiver, or one group's folder in it.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Keys of sealed batches that a receiver has staged and not applied; without them
    /// what is applied is shown.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let keys = config::keys(args.key.as_deref(), &args.state)?;
    let groups = view::groups(&args.state, args.group.as_ref(), &keys)?;
    if groups.is_empty() {
        let what = match &args.group {
            Some(group) => format!("group {group}"),
            None => "group".into(),
        };
        return Err(unreachable(format!(
            "there is no {what} in {}: give the --state directory that its proxy or receiver was \
             started with",
            args.state.display()
        )));
    }
    if args.json {
        output::json(&StatusReport { groups })?;
    } else {
        let texts: Vec<String> = groups.iter().map(describe).collect();
        output::text_line(&texts.join("\n\n"))?;
    }
    Ok(Exit::Ok)
}

fn describe(group: &GroupStatus) -> String {
    let mut lines = Table::default();
    let head = match group.head_seq {
        NOT_KNOWN => "not known".to_owned(),
        seq => seq.to_string(),
    };
    let (epoch, incarnation) = (group.epoch, group.incarnation);
    lines.row("position", format!("epoch {epoch}, incarnation {incarnation}, seq {head}"));
    match group.role {
        "target" => target_rows(group, &mut lines),
        _ => source_rows(group, &mut lines),
    }
    for process in &group.processes {
        lines.row(process.process, describe_process(group, process));
    }
    for volume in &group.volumes {
        let exports = match volume.exports.is_empty() {
            true => "not served".to_owned(),
            false => volume.exports.join("  "),
        };
        lines.row(
            format!("volume {}", volume.name),
            format!("{}  {exports}", format_size(volume.size_bytes)),
        );
    }
    if let Some(error) = &group.last_error {
        lines.row("last error", error.clone());
    }
    let name = match group.group.as_str() {
        "" => "no group yet".to_owned(),
        name => format!("group {name}"),
    };
    format!("{name} ({}): {}\n{}", group.role, group.state, lines.render(2))
}

fn describe_process(group: &GroupStatus, process: &ProcessStatus) -> String {
    let name = process.process;
    match (process.alive, group.state.as_str()) {
        (true, _) => "runs".into(),
        (false, "promoted") if group.role == "source" => {
            "is not running; not needed any more".into()
        }
        (false, _) if group.role == "target" && group.last_error.is_some() => {
            "does not receive this group now, see the last error".into()
        }
        (false, _) => format!("is not running: start `towline {name}` with its former options"),
    }
}

fn source_rows(group: &GroupStatus, lines: &mut Table) {
    let point = match group.point_seq {
        Some(seq) => format!("the target can be brought to seq {seq}"),
        None => "no point yet: the target is not usable before the baseline is done".into(),
    };
    lines.row("point", point);
    let lag = match group.lag_bytes {
        NOT_KNOWN => "not known: the ring that told is lost".to_owned(),
        bytes => format!("{} behind, {}", format_size(bytes), table::duration(group.lag_s)),
    };
    lines.row("lag", lag);
    let baseline = &group.baseline;
    if baseline.total_bytes > 0 && baseline.done_bytes < baseline.total_bytes {
        let rate = baseline.rate_bytes_per_s.map_or_else(|| "standing still".into(), table::rate);
        let eta = baseline
            .eta_s
            .map_or_else(|| "time left unknown".into(), |s| format!("{} left", table::duration(s)));
        lines.row(
            "baseline",
            format!(
                "{}  {} of {}, {rate}, {eta}",
                table::bar(baseline.done_bytes, baseline.total_bytes),
                format_size(baseline.done_bytes),
                format_size(baseline.total_bytes)
            ),
        );
    }
    let ring = match group.ring_used_bytes {
        NOT_KNOWN => "not known".to_owned(),
        used => format!("{} of {} used", format_size(used), format_size(group.ring_bytes)),
    };
    lines.row("ring", ring);
    if group.spill_used_bytes == NOT_KNOWN {
        lines.row("spill", "not known: `towline journal inspect` tells which records are there");
    } else if group.spill_used_bytes > 0 || group.spill_written_bytes > 0 {
        lines.row(
            "spill",
            format!(
                "{} on disk for the target, {} of payload written so far",
                format_size(group.spill_used_bytes),
                format_size(group.spill_written_bytes)
            ),
        );
    }
    if let Some(step) = group.ladder.last() {
        lines.row("last step", step.describe());
    }
    if group.history_bytes > 0 {
        let bytes = format_size(group.history_bytes);
        lines.row("history", format!("{bytes} on disk of a ring that was lost, shipped first"));
    }
    let to_copy = match group.map_set_bytes {
        NOT_KNOWN => "not known".to_owned(),
        bytes => format!("{} of changed blocks wait in the map", format_size(bytes)),
    };
    lines.row("to copy", to_copy);
    if group.map_suspect_bytes > 0 {
        let text = format!("{} of them, before any is sent", format_size(group.map_suspect_bytes));
        lines.row("to compare", text);
    }
    if let Some(device) = &group.device {
        let what = match device.state {
            "exporting" => "on devices so far; the export is not finished",
            "travelling" => "travel; no target that has them was met yet",
            _ => "travelled and are imported",
        };
        let (packs, bytes) = (device.packs, format_size(device.bytes));
        lines.row("devices", format!("{packs} packs, {bytes} {what}"));
    }
    let added = [
        ("write", group.added_write_us),
        ("read", group.added_read_us),
        ("flush", group.added_flush_us),
    ];
    let told = added.iter().filter_map(|(kind, us)| {
        Some(format!("a {kind} {:.1} us p50, {:.1} us p99", us.p50?, us.p99?))
    });
    let told: Vec<_> = told.collect();
    if !told.is_empty() {
        lines.row("added latency", told.join("; "));
    }
    if let Some(ratio) = group.shipping.ratio() {
        let Shipping { payload_bytes, coalesced_bytes, encode_s, .. } = group.shipping;
        let text = format!(
            "{} of changes, {} overwritten before they were sent, the rest 1/{ratio:.2} of its \
             size; that took {encode_s:.1} s",
            format_size(payload_bytes),
            format_size(coalesced_bytes),
        );
        lines.row("batches", text);
    }
    if let Some(text) = describe_rate(&group.rate) {
        lines.row("rate", text);
    }
    lines.row("sent again", format_size(group.resent_bytes));
}

/// What holds shipping back and why; nothing: no row.
pub fn describe_rate(rate: &Rate) -> Option<String> {
    let bytes = |limit: Option<u64>| limit.map(|limit| table::rate(limit as f64));
    let ops = |limit: Option<u64>| limit.map(|limit| format!("{limit} operations/s"));
    let own: Vec<_> =
        [bytes(rate.bytes_per_s), ops(rate.ops_per_s)].into_iter().flatten().collect();
    let link = [bytes(rate.link_bytes_per_s), ops(rate.link_ops_per_s)];
    let link: Vec<_> = link.into_iter().flatten().collect();
    if own.is_empty() && link.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    if !own.is_empty() {
        parts.push(format!("at most {}", own.join(", ")));
    }
    if !link.is_empty() {
        parts.push(format!("all groups together at most {}", link.join(", ")));
    }
    let text = parts.join("; ");
    Some(format!("{text}: {}", rate.why.as_deref().unwrap_or("as configured")))
}

fn target_rows(group: &GroupStatus, lines: &mut Table) {
    let point = match group.point_seq {
        Some(seq) => format!("the volumes can be brought to seq {seq}"),
        None => "no point yet: the volumes are not usable before the baseline is done".into(),
    };
    lines.row("point", point);
    let at_least = match group.key_needed {
        true => " at least: what is staged is sealed, --key FILE shows it",
        false => "",
    };
    lines.row("received", format!("durable up to seq {}{at_least}", group.durable_seq));
    if group.lag_bytes > 0 {
        lines.row("to apply", format_size(group.lag_bytes));
    }
    if group.lacking_bytes > 0 {
        let bytes = format_size(group.lacking_bytes);
        lines.row("lacking", format!("{bytes} of lost packs, which the shipper sends"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Baseline;

    #[test]
    fn a_group_is_described_with_bar_point_and_processes() {
        let group = GroupStatus {
            group: "erp".into(),
            role: "source",
            state: "baseline".into(),
            baseline: Baseline {
                done_bytes: 1 << 30,
                total_bytes: 2 << 30,
                rate_bytes_per_s: Some((100 << 20) as f64),
                eta_s: Some(10.2),
            },
            processes: vec![ProcessStatus { process: "ship", alive: false }],
            last_error: Some("cannot reach 10.0.0.7:4790".into()),
            ..GroupStatus::default()
        };
        let text = describe(&group);
        for part in [
            "group erp (source): baseline",
            "no point yet",
            " 50 %",
            "10.2 s left",
            "is not running: start `towline ship`",
            "10.0.0.7",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
