//! `towline device export`.

use crate::config::{self, Compress};
use crate::daemon::Daemon;
use crate::exit::{Exit, unreachable, usage};
use crate::output;
use crate::progress::Progress;
use crate::ship::{self, NICE_DEFAULT};
use crate::table;
use crate::view;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_block::size::format_size;
use towline_block::sys::give_way;
use towline_control::rate::{Limit, Plan, Window};
use towline_journal::progress::Progress as Page;
use towline_journal::state::GroupDir;
use towline_shipper::device::{
    ExportPlan, ExportView, Exporter, PACK_BYTES_DEFAULT, PACK_BYTES_MAX, PACK_BYTES_MIN,
};
use towline_shipper::security::Security;
use towline_shipper::source::{self, Link, WINDOW_BYTES_MIN};

/// How often progress and the end are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group to export; its proxy runs.
    #[arg(long)]
    group: GroupName,
    /// State directory, the same as the proxy's.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// A folder on each device: packs go to where the fewest are.
    #[arg(long, value_name = "DIR[,DIR...]", value_delimiter = ',', required = true)]
    to: Vec<PathBuf>,
    /// Seal packs with the newest key of this file (`towline pki key`).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Do not seal: whoever has a device can read the disks.
    #[arg(long, conflicts_with = "key")]
    unsealed: bool,
    /// Folder with the group's certificate (`towline pki issue --group`), whose key signs
    /// the manifest.
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// Do not sign: the import then has to believe whoever had the devices.
    #[arg(long, conflicts_with = "pki")]
    unsigned: bool,
    /// Size of a pack: what a device that is pulled out costs. By default 4G.
    #[arg(long, value_name = "SIZE", value_parser = config::size_arg)]
    pack_size: Option<u64>,
    /// What it will take on the devices, compressed, in place of what the volumes hold.
    #[arg(long, value_name = "SIZE", value_parser = config::size_arg)]
    expect: Option<u64>,
    /// Most bytes a second, until `towline throttle` says otherwise.
    #[arg(long, value_name = "SIZE", value_parser = config::rate_arg)]
    rate: Option<u64>,
    /// Most operations a second.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Another limit at other times, as of `towline ship`.
    #[arg(long = "window-limit", value_name = "DAYS FROM-TO LIMIT")]
    windows: Vec<Window>,
    /// How packs are compressed.
    #[arg(long, value_enum, default_value_t)]
    compress: Compress,
    /// Give way to the guests of this host: nice value, 0 to 19.
    #[arg(long, value_name = "N", default_value_t = NICE_DEFAULT, value_parser = clap::value_parser!(u8).range(0..=19))]
    nice: u8,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    group: String,
    set: Option<String>,
    /// False: it goes on when it is called again.
    finished: bool,
    /// The target has a point with the import.
    has_point: bool,
    packs: usize,
    bytes: u64,
    devices: Vec<DeviceReport>,
    epoch: u32,
    incarnation: u32,
    seq: u64,
    elapsed_s: f64,
}

#[derive(Serialize)]
struct DeviceReport {
    device: u32,
    /// Null: not in `--to`, and where it was is not known.
    dir: Option<PathBuf>,
    packs: usize,
    bytes: u64,
    /// It has the last manifest. False while it is not there.
    up_to_date: bool,
}

impl Args {
    fn plan(&self) -> anyhow::Result<ExportPlan> {
        if self.key.is_none() && !self.unsealed {
            return Err(usage(
                "a device may be lost on its way: give a key with --key FILE (make one by `towline \
                 pki key FILE`), or --unsealed",
            ));
        }
        if self.pki.is_none() && !self.unsigned {
            return Err(usage(
                "what is imported has to be known: give --pki DIR with the group's certificate, or \
                 --unsigned",
            ));
        }
        let pack_bytes = self.pack_size.unwrap_or(PACK_BYTES_DEFAULT);
        if !(PACK_BYTES_MIN..=PACK_BYTES_MAX).contains(&pack_bytes) {
            return Err(usage(format!(
                "a pack of {} is not usable: give {} to {}",
                format_size(pack_bytes),
                format_size(PACK_BYTES_MIN),
                format_size(PACK_BYTES_MAX)
            )));
        }
        if let Some(at) = (1..self.to.len()).find(|at| self.to[..*at].contains(&self.to[*at])) {
            return Err(usage(format!("{} is given twice", self.to[at].display())));
        }
        let (to, expect, pki) = (self.to.clone(), self.expect, self.pki.clone());
        Ok(ExportPlan { to, pack_bytes, expect, pki })
    }
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let plan = args.plan()?;
    let dir = view::group_dir(&args.state, Some(&args.group))?;
    if !dir.is_locked("lock") {
        return Err(unreachable(format!(
            "the proxy of group {} does not run: start it, an export reads what its guests write",
            args.group
        )));
    }
    let keys = config::keys(args.key.as_deref(), &args.state)?;
    // Before the first thread is started, which inherits it.
    if let Err(error) = give_way(args.nice.into()) {
        tracing::warn!(%error, "the export runs at the priority of everything else");
    }
    let daemon = Daemon::prepare("device export")?;
    let base = Limit { bytes_per_s: args.rate, ops_per_s: args.ops };
    let began = Instant::now();
    let config = source::ShipConfig {
        group: args.group.clone(),
        state_dir: args.state.clone(),
        to: String::new(),
        security: Security::InsecureLoopback,
        // What is cut ahead of the pack is cut again when a device fails.
        window_bytes: Some(WINDOW_BYTES_MIN),
        streams: 1,
        rate: Plan { base, windows: args.windows.clone() },
        link: Link::new(Plan::default(), &args.state),
        compression: ship::compression(args.compress),
        keys,
    };
    let exporter = Exporter::start(config, plan)?;
    daemon.ready(&format!("group {} to {} devices", args.group, args.to.len()));
    let page = Page::view(&GroupDir::of(&args.state, &args.group).progress_path())?;
    let mut progress = Progress::new(format!("export of {}", args.group));
    let ended = loop {
        if let Some(ended) = exporter.ended() {
            break Some(ended);
        }
        if daemon.wait_for(LOOK_EVERY) {
            break None;
        }
        if let Some(page) = &page {
            progress.show(&view::baseline(page));
        }
    };
    drop(progress);
    let outcome = match ended {
        Some(ended) => Some(ended?),
        None => None,
    };
    let finished = outcome.is_some();
    let stopped = exporter.stop();
    tell(&args, &outcome.unwrap_or(stopped), finished, began.elapsed())
}

fn tell(args: &Args, view: &ExportView, finished: bool, took: Duration) -> anyhow::Result<Exit> {
    let position = view.after.position;
    let device = |folder: &towline_shipper::device::FolderView| DeviceReport {
        device: folder.device,
        dir: folder.dir.clone(),
        packs: folder.packs,
        bytes: folder.bytes,
        up_to_date: folder.up_to_date,
    };
    let report = Report {
        group: args.group.to_string(),
        set: view.set.map(|set| set.to_string()),
        finished,
        has_point: finished && view.after.whole,
        packs: view.packs,
        bytes: view.bytes,
        devices: view.folders.iter().map(device).collect(),
        epoch: position.epoch.0,
        incarnation: position.incarnation.0,
        seq: position.seq.0,
        elapsed_s: took.as_secs_f64(),
    };
    let behind: Vec<usize> =
        view.folders.iter().filter(|f| !f.up_to_date).map(|f| f.device as usize).collect();
    let exit = if finished && behind.is_empty() { Exit::Ok } else { Exit::Failed };
    if args.json {
        output::json(&report)?;
        return Ok(exit);
    }
    for device in &report.devices {
        let behind = if device.up_to_date { "" } else { "  NOT THERE, or not up to date" };
        let dir = device.dir.as_deref().map_or("?".into(), Path::to_string_lossy);
        output::text_line(&format!(
            "device {}  {dir}  {} packs, {}{behind}",
            device.device,
            device.packs,
            format_size(device.bytes)
        ))?;
    }
    let rate = table::rate(report.bytes as f64 / report.elapsed_s.max(1e-3));
    output::text_line(&match finished {
        true if !behind.is_empty() => format!(
            "{}: everything is exported, {} packs, {}, but devices {} are not there or do not have the \
             last manifest: plug them in and repeat this with their folders in --to, before they travel",
            report.group,
            report.packs,
            format_size(report.bytes),
            table::numbers(&behind)
        ),
        true => format!(
            "{}: {} packs, {}, up to seq {}; {rate}. Take the devices to `towline device import`; the \
             guests go on, and their changes are kept for the network",
            report.group,
            report.packs,
            format_size(report.bytes),
            report.seq
        ),
        false => format!(
            "{}: stopped after {} packs, {}; the same command goes on from there",
            report.group,
            report.packs,
            format_size(report.bytes)
        ),
    })?;
    Ok(exit)
}
