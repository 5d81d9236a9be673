//! The source side: drains the journal into the stream of batches.
//!
//! Two threads. The *drain* ([`drain`]) owns link, ring and readers: it cuts
//! records ([`cutter`]), walks dirty blocks ([`walker`]) and drives cutovers
//! ([`cutover`]). The *session* ([`session`]) owns the network. Between them stands
//! the [`stream::Stream`]: the window of batches not yet durable at the target.
//!
//! Promises: one ordered stream; what was acknowledged durable is never sent again;
//! memory is bounded by the window; the proxy never waits for anything here.

mod compare;
pub(crate) mod complaint;
mod compress;
pub mod control;
mod cutover;
mod cutter;
mod drain;
mod feed;
mod history;
mod lanes;
mod linger;
mod meter;
mod pace;
mod session;
pub(crate) mod stream;
pub mod throttle;
mod together;
mod walker;

pub use compress::Compression;
pub use cutover::taken_over;
pub use pace::{LINK_REASON, Link};

use crate::batch::Keyring;
use crate::device::{ExportPlan, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::security::Security;
use crate::store::StoreUrl;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use towline_block::GroupName;
use towline_control::rate::{Limit, Plan};
use towline_journal::GroupDir;
use towline_journal::progress::{Figure, Progress};

/// Least window that can be given: one batch of the largest size on its way, one being made.
pub const WINDOW_BYTES_MIN: u64 = 2 * crate::batch::BATCH_BYTES_MAX as u64;

/// Most connections of a session.
pub const STREAMS_MAX: u8 = 8;

#[derive(Clone, Debug)]
pub struct ShipConfig {
    pub group: GroupName,
    /// The `--state` directory, shared with the proxy.
    pub state_dir: PathBuf,
    /// HOST:PORT of the receiver, or the URL of a store.
    pub to: String,
    pub security: Security,
    /// Bytes that may be sent and not yet durable; none: twice bandwidth times delay.
    pub window_bytes: Option<u64>,
    /// Connections to the receiver over which batches go, 1 to [`STREAMS_MAX`].
    pub streams: u8,
    /// How fast this group may be shipped, until `towline throttle` says otherwise.
    pub rate: Plan,
    /// What it shares with the other groups of this process.
    pub link: Link,
    pub compression: Compression,
    /// With any, batches are sealed with the newest.
    pub keys: Keyring,
}

/// Where the stream goes.
enum Way {
    Receiver,
    Store(StoreUrl),
    Device(ExportPlan, Arc<Shared>),
}

/// A running shipper. Dropping it without [`Shipper::stop`] leaves its threads to
/// the end of the process.
pub struct Shipper {
    stream: Arc<stream::Stream>,
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
    control: PathBuf,
}

impl Shipper {
    /// Starts shipping; returns at once. Everything that can come later, a proxy or a
    /// receiver that is not there yet, is waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another shipper runs for the group.
    pub fn start(config: ShipConfig) -> Result<Shipper> {
        let way = match StoreUrl::is_meant(&config.to) {
            true => Way::Store(config.to.parse::<StoreUrl>()?),
            false => Way::Receiver,
        };
        Shipper::start_by(way, config)
    }

    /// As [`Shipper::start`], onto transport devices.
    pub(crate) fn export(
        config: ShipConfig,
        plan: ExportPlan,
        shared: Arc<Shared>,
    ) -> Result<Shipper> {
        Shipper::start_by(Way::Device(plan, shared), config)
    }

    fn start_by(way: Way, config: ShipConfig) -> Result<Shipper> {
        let dir = GroupDir::of(&config.state_dir, &config.group);
        dir.create().map_err(from_journal)?;
        let lock = dir.lock("ship.lock", "shipper").map_err(from_journal)?;
        let progress = Arc::new(Progress::open(&dir.progress_path()).map_err(from_journal)?);
        progress.set(Figure::Pid, u64::from(std::process::id()));
        progress.set(Figure::Connected, 0);
        progress.set(Figure::CutoverRunning, 0);
        progress.set_error("");
        let own = throttle::Throttle::new(config.rate.clone(), throttle::group_file(&dir));
        let stream = stream::Stream::new(
            config.window_bytes.map(|bytes| bytes.max(WINDOW_BYTES_MIN)),
            progress.clone(),
            pace::Pace::new(own, config.link.clone()),
        );
        let stream = Arc::new(match &way {
            Way::Receiver => stream,
            Way::Store(_) => stream.into_store(),
            Way::Device(..) => stream.into_device(),
        });
        let control = dir.ship_socket();
        let (orders, incoming) = std::sync::mpsc::channel();
        let listener = control::listen(&control)?;
        let mut threads = Vec::new();
        let (for_control, group) = (stream.clone(), config.group.clone());
        threads.push(spawn("ship-control", move || {
            control::serve(listener, &orders, &for_control, &group);
        })?);
        let (for_session, session_config, session_dir) =
            (stream.clone(), config.clone(), dir.clone());
        threads.push(spawn("ship-session", move || {
            let (stream, config, dir) = (&for_session, &session_config, &session_dir);
            match &way {
                Way::Receiver => session::run(stream, config, dir),
                Way::Store(url) => crate::store::run(stream, url, config, dir),
                Way::Device(plan, shared) => crate::device::run(stream, plan, shared, config, dir),
            }
        })?);
        let for_drain = stream.clone();
        threads.push(spawn("ship-drain", move || {
            let _lock = lock;
            drain::Drain::new(for_drain, &config, dir, incoming).run();
        })?);
        Ok(Shipper { stream, progress, threads, control })
    }

    /// The figures that `towline status` shows.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Why shipping has ended for good, if it has: the receiver refused this group, this
    /// certificate, these volumes, or a newer shipper took over.
    pub fn ended(&self) -> Option<String> {
        self.stream.ended().then(|| self.progress.error().unwrap_or_default())
    }

    /// Whether a thread has ended by itself, and not because shipping has ended for good: only a new
    /// start helps.
    pub fn has_failed(&self) -> bool {
        !self.stream.ended() && self.threads.iter().any(JoinHandle::is_finished)
    }

    /// What the governor allows besides what the operator said; the least counts.
    pub fn govern(&self, limit: Limit) {
        self.stream.pace().govern(limit);
    }

    /// Orderly stop: what was sent and not acknowledged is sent again next time.
    pub fn stop(self) {
        self.stream.stop();
        // The control thread waits in accept(); a connection wakes it.
        let _ = std::os::unix::net::UnixStream::connect(&self.control);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a shipper thread panicked");
            }
        }
        let _ = std::fs::remove_file(&self.control);
        self.progress.set(Figure::Connected, 0);
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|e| Error::storage(format!("cannot start thread {name}"), e))
}

pub(crate) fn from_journal(error: towline_journal::Error) -> Error {
    use towline_journal::ErrorKind as Journal;
    let kind = match error.kind() {
        Journal::InvalidInput => ErrorKind::InvalidInput,
        Journal::Busy => ErrorKind::Busy,
        Journal::Missing => ErrorKind::Unreachable,
        Journal::Damaged => ErrorKind::Damaged,
        Journal::Newer => ErrorKind::TooNew,
        Journal::Refused => ErrorKind::Refused,
        Journal::NoSpace => ErrorKind::NoSpace,
        _ => ErrorKind::Storage,
    };
    Error::caused(kind, "journal", error)
}
