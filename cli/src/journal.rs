//! `towline journal`: a look into a group's journal, live or dead, read-only.
//!
//! Every command works on the files alone, maps them read-only and waits for nobody.
//! A ring that is not there ends with 69, one that is damaged with 1 and a sentence.

mod dump;
mod extract;
mod filter;
mod hexdump;
mod inspect;
mod ladder;
mod lines;
mod map;
mod stat;
mod svg;
mod tail;
mod verify;

use crate::config;
use crate::exit::{Exit, unreachable, usage};
use crate::view;
use anyhow::anyhow;
use clap::Subcommand;
use std::path::PathBuf;
use towline_block::VolumeId;
use towline_journal::ErrorKind;
use towline_journal::inspect::GroupView;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Where the journal stands: numbers, state, fill, history, write mix.
    Inspect(inspect::Args),
    /// Every record that the target lacks, one a line.
    Dump(dump::Args),
    /// The newest records; with -f also those to come.
    Tail(tail::Args),
    /// Check number, header, payload and order of every record the target lacks.
    Verify(verify::Args),
    /// What the workload is like: sizes, overwrites, unique bytes, hottest blocks.
    Stat(stat::Args),
    /// The change map as a picture.
    Map(map::Args),
    /// Rebuild a volume's content up to a record onto a copy.
    Extract(extract::Args),
}

/// How much of the payloads is shown.
#[derive(Debug, clap::Args)]
struct Payload {
    /// Also the payload of each record, in hexadecimal; with SIZE only so much of each.
    #[arg(long, visible_alias = "payload", value_name = "SIZE", num_args = 0..=1,
          require_equals = true, default_missing_value = "1P", value_parser = config::size_arg)]
    hexdump: Option<u64>,
}

impl Payload {
    fn bytes(&self) -> u64 {
        self.hexdump.unwrap_or(0)
    }
}

/// Which group's files, and the form of the result.
#[derive(Debug, clap::Args)]
struct Place {
    /// A group's state directory (the ring's own place is recorded there).
    dir: PathBuf,
    /// The ring's file, when it is a copy elsewhere; one beside state.json is found.
    #[arg(long, value_name = "FILE")]
    ring: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.action {
        Action::Inspect(args) => inspect::run(args),
        Action::Dump(args) => dump::run(args),
        Action::Tail(args) => tail::run(args),
        Action::Verify(args) => verify::run(args),
        Action::Stat(args) => stat::run(args),
        Action::Map(args) => map::run(args),
        Action::Extract(args) => extract::run(args),
    }
}

impl Place {
    /// The group's files; the ring may be missing or damaged.
    fn open(&self) -> anyhow::Result<GroupView> {
        let dir = view::group_dir(&self.dir, None)?;
        Ok(GroupView::open_with(&dir, self.ring.as_deref())?)
    }

    /// The group's files, with records that can be read: in the ring or, when that is lost
    /// with its host, in the spill.
    fn open_records(&self) -> anyhow::Result<GroupView> {
        let mut view = self.open()?;
        view.look_into_spill();
        match records_trouble(&view) {
            Some(trouble) => Err(trouble),
            None => {
                tell_of_lone_spill(&view);
                Ok(view)
            }
        }
    }

    /// The group's files, with a ring that can be read.
    fn open_ring(&self) -> anyhow::Result<GroupView> {
        let view = self.open()?;
        match ring_trouble(&view) {
            Some(trouble) => Err(trouble),
            None => Ok(view),
        }
    }
}

/// Why there is no ring to read, as an error with its exit code.
fn ring_trouble(view: &GroupView) -> Option<anyhow::Error> {
    let error = view.ring_error.as_ref().filter(|_| !view.has_ring())?;
    let path = view.state.ring.path.display();
    let what = format!(
        "the ring {path} cannot be read: {error}; give a copy of it with --ring FILE, or start the \
         group's proxy, which makes a new one"
    );
    Some(match error.kind() {
        ErrorKind::Missing => unreachable(what),
        _ => anyhow!(what),
    })
}

/// Why there are no records to read, neither in a ring nor in the spill of a lost one.
fn records_trouble(view: &GroupView) -> Option<anyhow::Error> {
    ring_trouble(view).filter(|_| view.lone_spill().is_none())
}

/// Without the ring, what is shown is not the whole journal.
fn tell_of_lone_spill(view: &GroupView) {
    if let Some(range) = view.lone_spill() {
        eprintln!(
            "towline: the ring {} is lost: what the spill has of it are records {} to {}; whether \
             the target has some of them, and what came after, is not known here",
            view.state.ring.path.display(),
            range.start(),
            range.end()
        );
    }
}

/// The number of a volume that was named.
fn volume_of(view: &GroupView, name: &str) -> anyhow::Result<VolumeId> {
    let names = view.volume_names();
    match names.iter().position(|n| n == name) {
        // A group has at most 64 volumes.
        Some(index) => Ok(VolumeId(index as u16)),
        None => Err(usage(format!(
            "group {} has no volume {name:?}: its volumes are {}",
            view.state.group,
            names.join(", ")
        ))),
    }
}

/// `12.3 %`; of nothing, nothing.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".into();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}
