//! `towline throttle`: how fast a group, or all groups of a shipper, may be shipped.
//!
//! Writes what was asked for beside the group's state; the shipper takes it by itself,
//! also one that starts later.

use crate::exit::{Exit, unreachable};
use crate::output;
use crate::report::Rate;
use crate::status::describe_rate;
use crate::{config, view};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_control::rate::{Overlay, Setting, Window};
use towline_journal::GroupDir;
use towline_journal::progress::{Figure, Progress};
use towline_shipper::source::LINK_REASON;
use towline_shipper::source::throttle::{ThrottleFile, group_file, link_file};

/// How long a shipper that runs may take to say that it has taken a change: it looks
/// twice a second.
const TAKEN_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Without a change: shows what is in force.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; with --link, one whose status is shown.
    #[arg(required_unless_present = "link")]
    group: Option<GroupName>,
    /// State directory of the group's proxy and shipper.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// All groups of the shipper together, not one of them.
    #[arg(long)]
    link: bool,
    /// Bytes a second, or none.
    #[arg(long, value_name = "SIZE|none", value_parser = bytes_arg)]
    rate: Option<Setting>,
    /// Operations a second (writes, zeroes and comparisons at the target), or none.
    #[arg(long, value_name = "COUNT|none", value_parser = ops_arg)]
    ops: Option<Setting>,
    /// Another limit at other times, in UTC, such as "mon-fri 08:00-18:00 20M". All that
    /// are given take the place of all former ones; the first that has begun counts.
    #[arg(long = "window", value_name = "DAYS FROM-TO LIMIT")]
    windows: Vec<Window>,
    /// No windows.
    #[arg(long, conflicts_with = "windows")]
    no_windows: bool,
    /// Back to what the shipper was started with.
    #[arg(long, conflicts_with_all = ["rate", "ops", "windows", "no_windows"])]
    reset: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// `null`: of the link.
    group: Option<String>,
    /// Changed here, over what the shipper was started with.
    changed: Overlay,
    /// The shipper runs and has taken it; else the next one will.
    taken: bool,
    rate: Rate,
}

impl Args {
    fn changes(&self) -> bool {
        let set = self.rate.is_some() || self.ops.is_some() || !self.windows.is_empty();
        set || self.no_windows || self.reset
    }

    fn apply(&self, overlay: &mut Overlay) {
        overlay.bytes = self.rate.or(overlay.bytes);
        overlay.ops = self.ops.or(overlay.ops);
        if self.no_windows || !self.windows.is_empty() {
            overlay.windows = Some(self.windows.clone());
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let dir = match (&args.group, args.link) {
        (None, true) => None,
        (group, _) => Some(view::group_dir(&args.state, group.as_ref())?),
    };
    let file = match &dir {
        Some(dir) if !args.link => group_file(dir),
        _ if args.state.is_dir() => link_file(&args.state),
        _ => return Err(unreachable(format!("there is no {}", args.state.display()))),
    };
    let mut overlay = ThrottleFile::load(&file)?.map(|file| file.overlay).unwrap_or_default();
    let mut generation = None;
    if args.reset {
        ThrottleFile::remove(&file)?;
        (overlay, generation) = (Overlay::default(), Some(0));
    } else if args.changes() {
        args.apply(&mut overlay);
        generation = Some(ThrottleFile::store(&file, overlay.clone())?);
    }
    let page = match &dir {
        Some(dir) => Some(dir.clone()),
        None => any_shipper(&args.state)?,
    };
    let (taken, rate) = match page {
        Some(dir) => wait_taken(&dir, args.link, generation)?,
        None => (false, Rate::default()),
    };
    let group = dir.filter(|_| !args.link).map(|dir| name_of(dir.path()));
    tell(args, Report { group, changed: overlay, taken, rate })
}

fn name_of(dir: &Path) -> String {
    dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The folder of a group that is being shipped.
fn any_shipper(state: &Path) -> anyhow::Result<Option<GroupDir>> {
    let mut all = GroupDir::all(state)?;
    all.retain(|dir| dir.is_locked("ship.lock"));
    Ok(all.pop())
}

/// Waits until the shipper has taken the change, if one runs.
fn wait_taken(dir: &GroupDir, link: bool, generation: Option<u64>) -> anyhow::Result<(bool, Rate)> {
    let Some(page) = Progress::view(&dir.progress_path())? else {
        return Ok((false, Rate::default()));
    };
    let figure = if link { Figure::LinkThrottleGeneration } else { Figure::ThrottleGeneration };
    let is_taken = || generation.is_none_or(|generation| page.get(figure) == generation);
    let deadline = Instant::now() + TAKEN_MAX;
    while dir.is_locked("ship.lock") && !is_taken() && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
    let rate = view::rate(&page);
    let rate = if link { of_link(rate) } else { rate };
    Ok((dir.is_locked("ship.lock") && is_taken(), rate))
}

/// Without what is the group's alone.
fn of_link(rate: Rate) -> Rate {
    let why = rate.why.as_deref().and_then(|why| why.split_once(LINK_REASON));
    Rate { bytes_per_s: None, ops_per_s: None, why: why.map(|(_, why)| why.to_owned()), ..rate }
}

fn tell(args: &Args, report: Report) -> anyhow::Result<Exit> {
    if args.json {
        output::json(&report)?;
        return Ok(Exit::Ok);
    }
    let of = report.group.as_deref().unwrap_or("all groups of the shipper together");
    let what = match (report.taken, args.changes()) {
        (true, _) => describe_rate(&report.rate).unwrap_or_else(|| "no limit".into()),
        (false, true) => "stored; no shipper runs, the next one takes it".into(),
        (false, false) => "no shipper runs".into(),
    };
    output::text_line(&format!("{of}: {what}"))?;
    Ok(Exit::Ok)
}

fn bytes_arg(text: &str) -> Result<Setting, String> {
    match text {
        "none" => Ok(Setting::NoLimit),
        text => Ok(Setting::PerS(config::rate_arg(text)?)),
    }
}

fn ops_arg(text: &str) -> Result<Setting, String> {
    match text {
        "none" => Ok(Setting::NoLimit),
        text => match text.parse::<u64>() {
            Ok(count) if count > 0 => Ok(Setting::PerS(count)),
            _ => Err(format!("{text:?} is no count of operations: write a number or none")),
        },
    }
}
