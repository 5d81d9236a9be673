//! The guest: one thread a volume, and the handle that steers and reads them.

use super::choose::Pattern;
use super::history::{History, Order, VolumeHistory};
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd_client::NbdUri;
use hdrhistogram::Histogram;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of the largest write a plan may ask for: 1 MiB, which a server may still
/// journal as one record, so that a multi-block write is one thing in its history.
pub const WRITE_BLOCKS_MAX: u32 = 256;

/// Highest latency the histogram tells apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What each volume's guest does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub queue_depth: usize,
    /// Requests a second and volume; as fast as they are answered when `None`.
    pub rate_per_s: Option<f64>,
    pub pattern: Pattern,
    /// Share of writes of several blocks, 2 to `write_blocks_max`.
    pub large_share: f64,
    pub write_blocks_max: u32,
    pub zero_share: f64,
    pub fua_share: f64,
    /// Share of requests that read a block back and check it at once.
    pub read_share: f64,
    /// A flush after every so many writes; 0 for none.
    pub flush_every: u32,
    /// A connection without a reply for so long is given up.
    pub reply_timeout: Duration,
    /// Between attempts to connect.
    pub reconnect_wait: Duration,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            seed: 1,
            queue_depth: 8,
            rate_per_s: None,
            pattern: Pattern::Uniform,
            large_share: 0.2,
            write_blocks_max: 48,
            zero_share: 0.05,
            fua_share: 0.02,
            read_share: 0.1,
            flush_every: 50,
            reply_timeout: Duration::from_secs(30),
            reconnect_wait: Duration::from_millis(2),
        }
    }
}

/// A volume, where it is served, and what it holds already.
#[derive(Clone, Debug)]
pub struct GuestVolume {
    pub history: VolumeHistory,
    pub source: NbdUri,
    /// Tried, by turns with the source, once the source refuses writes as shut
    /// down or cannot be reached.
    pub target: Option<NbdUri>,
}

/// Counters since the start, over all volumes.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub acked_writes: u64,
    pub acked_bytes: u64,
    pub checked_reads: u64,
    pub connects: u64,
    /// Writes declined with ESHUTDOWN.
    pub refused: u64,
    /// Any other error reply: a guest would have seen an I/O error.
    pub io_errors: u64,
    /// Reads that showed less than was acknowledged.
    pub bad_reads: u64,
    /// The latest of what went wrong, in words.
    pub last_error: Option<String>,
}

/// Last and first acknowledged write on either side, on the guest's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switchover {
    pub last_ack_at_source: Option<Instant>,
    pub first_ack_at_target: Option<Instant>,
}

impl Switchover {
    pub fn pause(&self) -> Option<Duration> {
        let first = self.first_ack_at_target?;
        Some(first.saturating_duration_since(self.last_ack_at_source?))
    }
}

/// A running guest. Dropping it stops it.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Shared>,
    volumes: Vec<Arc<VolumeState>>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Starts a thread a volume. `order` is the one that prefilled histories used.
    pub fn start(plan: &Plan, order: Arc<Order>, volumes: Vec<GuestVolume>) -> Result<Guest> {
        let unusable = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if plan.queue_depth == 0 || plan.write_blocks_max > WRITE_BLOCKS_MAX {
            return unusable(format!(
                "queue depth {} and writes of {} blocks: at least 1 and at most {WRITE_BLOCKS_MAX}",
                plan.queue_depth, plan.write_blocks_max
            ));
        }
        if let Some(volume) = volumes.iter().find(|v| v.history.block_count == 0) {
            return unusable(format!("volume {} has no whole block", volume.history.name));
        }
        let shared = Arc::new(Shared::default());
        let mut guest = Guest { shared: shared.clone(), volumes: Vec::new(), threads: Vec::new() };
        for volume in volumes {
            let state = Arc::new(VolumeState::new(volume.history));
            let session = Session::new(
                plan.clone(),
                order.clone(),
                shared.clone(),
                state.clone(),
                volume.source,
                volume.target,
            );
            guest.volumes.push(state);
            guest.threads.push(std::thread::spawn(move || session.run()));
        }
        Ok(guest)
    }

    /// Issues nothing more until [`Guest::go_on`]; returns when nothing is in flight.
    pub fn hold(&self) {
        let mut control = lock(&self.shared.control);
        control.held = true;
        self.shared.changed.notify_all();
        while control.idle < self.threads.len() {
            control = wait(&self.shared.changed, control);
        }
    }

    pub fn go_on(&self) {
        lock(&self.shared.control).held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until `count` more writes than now are acknowledged, at most `timeout`.
    /// Says whether they were.
    pub fn wait_for_acks(&self, count: u64, timeout: Duration) -> bool {
        let from = self.progress().acked_writes;
        self.wait_until(timeout, |progress| progress.acked_writes >= from + count)
    }

    /// Waits until every volume has an acknowledged write at its target.
    pub fn wait_for_target(&self, timeout: Duration) -> bool {
        self.wait_until(timeout, |_| {
            self.volumes.iter().all(|v| lock(&v.log).switchover.first_ack_at_target.is_some())
        })
    }

    fn wait_until(&self, timeout: Duration, enough: impl Fn(&Progress) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut control = lock(&self.shared.control);
        control.watchers += 1;
        let reached = loop {
            // Counters are behind other locks: look at them without this one, and
            // look again after a while, for a wake-up may fall between.
            drop(control);
            let reached = enough(&self.progress());
            control = lock(&self.shared.control);
            let left = deadline.saturating_duration_since(Instant::now());
            if reached || left.is_zero() {
                break reached;
            }
            let slice = left.min(Duration::from_millis(5));
            control = self
                .shared
                .changed
                .wait_timeout(control, slice)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        control.watchers -= 1;
        reached
    }

    pub fn progress(&self) -> Progress {
        self.volumes.iter().fold(Progress::default(), |mut sum, volume| {
            let log = lock(&volume.log);
            sum.acked_writes += log.progress.acked_writes;
            sum.acked_bytes += log.progress.acked_bytes;
            sum.checked_reads += log.progress.checked_reads;
            sum.connects += log.progress.connects;
            sum.refused += log.progress.refused;
            sum.io_errors += log.progress.io_errors;
            sum.bad_reads += log.progress.bad_reads;
            sum.last_error = log.progress.last_error.clone().or(sum.last_error);
            sum
        })
    }

    /// What was done so far.
    pub fn history(&self) -> History {
        History { volumes: self.volumes.iter().map(|v| lock(&v.log).history.clone()).collect() }
    }

    /// By volume, in the order given to [`Guest::start`].
    pub fn switchovers(&self) -> Vec<Switchover> {
        self.volumes.iter().map(|v| lock(&v.log).switchover).collect()
    }

    /// The longest pause of any volume; `None` until all write at the target.
    pub fn cutover_pause(&self) -> Option<Duration> {
        let pauses: Option<Vec<Duration>> =
            self.switchovers().iter().map(Switchover::pause).collect();
        pauses?.into_iter().max()
    }

    /// Latency of acknowledged writes in microseconds, waits of a held or dead
    /// server included.
    pub fn write_latency_us(&self) -> Histogram<u64> {
        let mut sum = new_histogram();
        for volume in &self.volumes {
            sum.add(&lock(&volume.log).latency_us).unwrap_or_else(|e| {
                unreachable!("histograms of one shape add up: {e}");
            });
        }
        sum
    }

    /// Waits for what is in flight (unless the server is gone), ends the threads
    /// and gives what was done.
    pub fn stop(mut self) -> History {
        self.end();
        self.history()
    }

    fn end(&mut self) {
        lock(&self.shared.control).stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread is an assertion about the server: pass it on.
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug, Default)]
pub(super) struct Control {
    pub held: bool,
    pub stopped: bool,
    /// Threads with nothing in flight that wait for `held` to end.
    pub idle: usize,
    /// Callers who want to hear of acknowledgements.
    pub watchers: usize,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub control: Mutex<Control>,
    pub changed: Condvar,
}

#[derive(Debug)]
pub(super) struct VolumeLog {
    pub history: VolumeHistory,
    pub progress: Progress,
    pub switchover: Switchover,
    pub latency_us: Histogram<u64>,
}

#[derive(Debug)]
pub(super) struct VolumeState {
    pub log: Mutex<VolumeLog>,
}

impl VolumeState {
    fn new(history: VolumeHistory) -> VolumeState {
        VolumeState {
            log: Mutex::new(VolumeLog {
                history,
                progress: Progress::default(),
                switchover: Switchover::default(),
                latency_us: new_histogram(),
            }),
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
        .unwrap_or_else(|e| unreachable!("the bounds are constants: {e}"))
}

/// A thread that panicked has said why already: its data is still worth reading.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
