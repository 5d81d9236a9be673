//! The demo's guest: a stamped writer over NBD that knows every write it made, and
//! where the machine allows it, a database on a mounted file system.

use super::guest_fs::GuestFs;
use super::lab::{FS_EXPORT, Lab};
use super::ledger::{self, Ledger};
use super::plan::{FsRole, Plan};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use towline_bench::stamp::{self, Guest, GuestVolume, History};

/// Requests a second and volume: brisk, and slow enough that a shipper that comes
/// back catches up on a small machine.
const REQUESTS_PER_S: f64 = 400.0;

/// Time between two transactions of the database.
const THINK: Duration = Duration::from_millis(5);

/// Folder of the database in the guest's file system.
pub const LEDGER_FOLDER: &str = "towline-demo";

pub struct Guests {
    pub stamped: Guest,
    pub mounted: Option<MountedGuest>,
}

/// A database at work on a mounted file system.
///
/// Field order matters on a way out by error: the file system goes first, which
/// makes the thread's calls fail and lets it end.
pub struct MountedGuest {
    fs: Option<GuestFs>,
    root: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    committed: AtomicU64,
}

impl Guests {
    /// Starts the guest at the source. The role of the file system's volume
    /// changes where the user's image turns out not to be mountable.
    pub fn start(plan: &Plan, lab: &Lab<'_>) -> anyhow::Result<(Guests, FsRole)> {
        let mut role = plan.fs_role.clone();
        let mounted = match role {
            FsRole::Mounted => match MountedGuest::start(&plan.dir.join("guest"), lab) {
                Ok(guest) => Some(guest),
                Err(error) if plan.histories.len() == 1 && plan.filled.files == 0 => {
                    role = FsRole::Idle(format!("not mounted: {error:#}"));
                    None
                }
                Err(error) => return Err(error.context("the guest cannot mount its disk")),
            },
            _ => None,
        };
        let volumes = plan.histories.iter().map(|history| GuestVolume {
            history: history.clone(),
            source: lab.source_uri(&history.name),
            target: Some(lab.target_uri(&history.name)),
        });
        let habits = stamp::Plan {
            rate_per_s: Some(REQUESTS_PER_S),
            pattern: stamp::Pattern::Zipf(0.9),
            reply_timeout: Duration::from_secs(20),
            ..stamp::Plan::default()
        };
        let stamped = Guest::start(&habits, Arc::clone(&plan.order), volumes.collect())?;
        Ok((Guests { stamped, mounted }, role))
    }

    /// A guest that saw an error that no killed process explains.
    pub fn check(&self) -> anyhow::Result<()> {
        let progress = self.stamped.progress();
        if progress.io_errors + progress.bad_reads > 0 {
            bail!(
                "the guest saw {} failed requests and {} wrong reads, the last: {}",
                progress.io_errors,
                progress.bad_reads,
                progress.last_error.unwrap_or_default()
            );
        }
        if let Some(mounted) = &self.mounted
            && mounted.thread.as_ref().is_some_and(JoinHandle::is_finished)
        {
            bail!("the guest's database stopped by itself");
        }
        Ok(())
    }

    pub fn written_bytes(&self) -> u64 {
        let mounted = self.mounted.as_ref().and_then(|m| m.fs.as_ref());
        self.stamped.progress().acked_bytes + mounted.map_or(0, GuestFs::written_bytes)
    }

    pub fn committed(&self) -> u64 {
        self.mounted.as_ref().map_or(0, MountedGuest::committed)
    }

    /// Ends the guest in order and gives what it did.
    pub fn stop(self) -> anyhow::Result<Done> {
        let committed = match self.mounted {
            Some(mounted) => mounted.stop()?,
            None => 0,
        };
        let progress = self.stamped.progress();
        let pause = self.stamped.cutover_pause();
        Ok(Done {
            history: self.stamped.stop(),
            acked_writes: progress.acked_writes,
            pause,
            committed,
        })
    }
}

/// What the guest did, from its own knowledge.
pub struct Done {
    pub history: History,
    pub acked_writes: u64,
    pub pause: Option<Duration>,
    pub committed: u64,
}

impl MountedGuest {
    fn start(dir: &Path, lab: &Lab<'_>) -> anyhow::Result<MountedGuest> {
        let fs = GuestFs::mount(dir, lab.cable.address(), FS_EXPORT)?;
        let root = fs.root().join(LEDGER_FOLDER);
        std::fs::create_dir_all(&root).context("the guest's disk takes no new folder")?;
        let mut ledger = Ledger::create(&root)?;
        let shared = Arc::new(Shared::default());
        let working = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("guest-database".into())
            .spawn(move || work(&mut ledger, &working))
            .context("cannot start the guest's database")?;
        Ok(MountedGuest { fs: Some(fs), root, shared, thread: Some(thread) })
    }

    /// Transactions whose commit returned.
    pub fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::SeqCst)
    }

    /// Ends the database, looks at it through the live mount, unmounts.
    fn stop(mut self) -> anyhow::Result<u64> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended =
                thread.join().map_err(|_| anyhow::anyhow!("the guest's database panicked"))?;
            ended.context("the guest's database failed")?;
        }
        let committed = self.committed();
        ledger::verify(&self.root, committed).context("the guest's database, at the target")?;
        if let Some(fs) = self.fs.take() {
            fs.unmount().context("the guest cannot unmount its disk")?;
        }
        Ok(committed)
    }
}

impl Drop for MountedGuest {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        drop(self.fs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(ledger: &mut Ledger, shared: &Shared) -> anyhow::Result<()> {
    while !shared.stopped.load(Ordering::SeqCst) {
        let committed = ledger.commit()?;
        shared.committed.store(committed, Ordering::SeqCst);
        std::thread::sleep(THINK);
    }
    Ok(())
}
