//! `towline target clone`: the target at a mark as a disk to write, while replication goes on.

use super::{choose, load};
use crate::config;
use crate::daemon::Daemon;
use crate::exit::Exit;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use towline_block::PlainDisk;
use towline_block::size::format_size;
use towline_proxy::{ListenAddr, PlainServer};
use towline_shipper::receiver::clones::{At, ClonedGroup};
use towline_shipper::receiver::marks::unix_ns;
use towline_shipper::receiver::{Layout, Mark};

/// How often it is looked whether the mark is still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// `--at` for the present point.
pub const NOW: &str = "now";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// State directory of the receiver.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// A mark's name or #number, or a moment: the last mark before it; or `now`: the present point.
    #[arg(long, value_name = "MARK", default_value = NOW, allow_hyphen_values = true)]
    at: String,
    /// Serve the clone's volumes there.
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = config::listen_arg, required = true)]
    nbd: Vec<ListenAddr>,
    /// Where the clone's writes go, by default into the state directory; gone at its end.
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,
    /// Keys of sealed batches, for a clone of the present point while no receiver runs.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let daemon = Daemon::prepare("target clone")?;
    let keys = config::keys(args.key.as_deref(), &args.state)?;
    let (_, marks) = load(&args.state, &keys)?;
    let at = match args.at.as_str() {
        NOW => At::Present,
        at => {
            let marks: Vec<Mark> = marks.into_iter().map(|listed| listed.mark).collect();
            At::Mark(choose(&marks, at, unix_ns())?)
        }
    };
    let folder = Folder::make(args.overlay.as_deref(), &args.state)?;
    let clone = ClonedGroup::open(&args.state, at, &folder.path, &keys)?;
    let disks = clone.volumes.iter().map(|(name, disk)| {
        let disk: Arc<dyn PlainDisk> = disk.clone();
        (name.clone(), disk)
    });
    let server = PlainServer::start(disks.collect(), &args.nbd)?;
    daemon.ready(&format!("mark {} at {}", clone.mark, server.uris().join(" ")));
    while !daemon.wait_for(LOOK_EVERY) {
        clone.check()?;
    }
    drop(server);
    tracing::info!("the clone had written {}", format_size(clone.overlay_bytes()));
    Ok(Exit::Ok)
}

/// Where the overlays are: a folder of the operator's, or one of our own that goes at the end.
struct Folder {
    path: PathBuf,
    /// Locked while we live, so that others do not take it for a leftover.
    lock: Option<File>,
}

impl Folder {
    fn make(given: Option<&Path>, state: &Path) -> anyhow::Result<Folder> {
        if let Some(path) = given {
            std::fs::create_dir_all(path)?;
            return Ok(Folder { path: path.to_owned(), lock: None });
        }
        let all = Layout::of(state).dir.join("clones");
        std::fs::create_dir_all(&all)?;
        remove_leftovers(&all);
        let path = all.join(std::process::id().to_string());
        std::fs::create_dir_all(&path)?;
        let lock = File::create(path.join("lock"))?;
        lock.lock()?;
        Ok(Folder { path, lock: Some(lock) })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What cannot be removed is the next clone's to remove.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Folders of clones that were killed.
fn remove_leftovers(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let is_left =
            File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if is_left && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!("cannot remove {}: {error}", entry.path().display());
        }
    }
}
