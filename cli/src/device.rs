//! `towline device`: the baseline on disks that travel.

mod export;
mod import;
mod verify;

use crate::exit::{Exit, usage};
use crate::output;
use crate::table;
use crate::view;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_block::size::format_size;
use towline_shipper::device::{self, DeviceSet, Trust};

/// Packs read at once by default: two devices, or one that answers slowly.
const JOBS_DEFAULT: usize = 2;
const JOBS_MAX: u64 = 64;
/// How often progress is shown on a terminal, and as lines.
const SHOW_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the baseline of a running group to devices. Goes on where it was left.
    Export(Box<export::Args>),
    /// Read all packs and say what is whole, missing and lost.
    Verify(verify::Args),
    /// Bring packs to the targets of a receiver that does not run. Goes on where it was left.
    Import(import::Args),
    /// Drop a group's export at the source: everything goes over the network then.
    Forget {
        #[arg(long)]
        group: GroupName,
        /// State directory of the group's proxy.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    /// An export runs for hours: what it does is told as of a daemon.
    pub fn is_daemon(&self) -> bool {
        matches!(self.command, Command::Export(_))
    }
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    match args.command {
        Command::Export(args) => export::run(*args),
        Command::Verify(args) => verify::run(&args),
        Command::Import(args) => import::run(args),
        Command::Forget { group, state, json } => forget(&group, &state, json),
    }
}

#[derive(Serialize)]
struct Forgotten {
    group: String,
    forgotten: bool,
}

fn forget(group: &GroupName, state: &std::path::Path, json: bool) -> anyhow::Result<Exit> {
    view::group_dir(state, Some(group))?;
    let forgotten = device::forget(state, group)?;
    match (json, forgotten) {
        (true, _) => output::json(&Forgotten { group: group.to_string(), forgotten })?,
        (false, true) => output::text_line(&format!(
            "the export of group {group} is dropped: what is on its devices counts for nothing here"
        ))?,
        (false, false) => output::text_line(&format!("group {group} has no export"))?,
    }
    Ok(Exit::Ok)
}

/// Which packs are read, and whose signature is looked for.
#[derive(Debug, clap::Args)]
struct SetArgs {
    /// The devices' folders that are here, in any order.
    #[arg(value_name = "DIR", required = true)]
    devices: Vec<PathBuf>,
    /// Where the devices carry several groups: which.
    #[arg(long)]
    group: Option<GroupName>,
    /// Packs that are read at once.
    #[arg(long, value_name = "N", default_value_t = JOBS_DEFAULT as u64, value_parser = clap::value_parser!(u64).range(1..=JOBS_MAX))]
    jobs: u64,
    /// Folder with the CA's certificate: the manifest has to be signed by the group's.
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// Believe whoever had the devices.
    #[arg(long, conflicts_with = "pki")]
    unsigned: bool,
}

impl SetArgs {
    fn open(&self) -> anyhow::Result<DeviceSet> {
        Ok(DeviceSet::open(&self.devices, self.group.as_ref(), &self.trust()?)?)
    }

    fn trust(&self) -> anyhow::Result<Trust> {
        match (&self.pki, self.unsigned) {
            (Some(dir), false) => Ok(Trust::Pki(dir.clone())),
            (None, true) => Ok(Trust::Unsigned),
            _ => Err(usage(
                "whose manifest is it? give --pki DIR with the CA's certificate, or --unsigned to \
                 believe whoever had the devices",
            )),
        }
    }
}

#[derive(Serialize)]
struct DamagedPack {
    pack: usize,
    why: String,
}

/// Bytes that were handled, shown on stderr until it is dropped.
struct Counting {
    done: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Counting {
    fn start(label: &'static str, total: u64) -> Counting {
        let (done, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, ended) = (done.clone(), over.clone());
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || {
            show(label, total, &seen, &ended);
        });
        Counting { done, over, thread: thread.ok() }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only prints.
            let _ = thread.join();
        }
    }
}

fn show(label: &'static str, total: u64, done: &AtomicU64, over: &AtomicBool) {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style =
            "{prefix} [{bar:32}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("#>-"));
        }
        bar.set_prefix(label);
        bar
    });
    let (began, mut said) = (Instant::now(), Instant::now());
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(SHOW_EVERY);
        let bytes = done.load(Ordering::Relaxed);
        let rate = bytes as f64 / began.elapsed().as_secs_f64().max(1e-3);
        let left = total.saturating_sub(bytes) as f64 / rate.max(1.0);
        let speed = format!("{}, {} left", table::rate(rate), table::duration(left));
        match &bar {
            Some(bar) => {
                bar.set_position(bytes);
                bar.set_message(speed);
            }
            None if said.elapsed() >= LINE_EVERY => {
                said = Instant::now();
                eprintln!("{label}: {} of {}  {speed}", format_size(bytes), format_size(total));
            }
            None => {}
        }
    }
    if let Some(bar) = bar {
        bar.abandon();
    }
}
