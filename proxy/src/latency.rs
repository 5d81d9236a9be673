//! What the proxy adds to requests, and how much it did.

mod histogram;
mod shadow;

pub use shadow::{Added, Kind, SIZES, Shadow, Timing};

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

/// A count written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only on the owning thread: not an atomic addition, which would cost more
    /// than the rest of the bookkeeping of a request.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one volume has done since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub reads: Counter,
    pub writes: Counter,
    pub zeroes: Counter,
    pub trims: Counter,
    pub flushes: Counter,
    pub statuses: Counter,
    pub read_bytes: Counter,
    pub written_bytes: Counter,
    pub zeroed_bytes: Counter,
    /// fdatasyncs issued: one answers many flushes.
    pub syncs: Counter,
    /// Requests answered with an error of any cause.
    pub errors: Counter,
    /// Answers that went out before the journal was durable, against the policy.
    pub undurable: Counter,
    /// Connections to an upstream server that were lost.
    pub upstream_losses: Counter,
    /// Connections taken into transmission.
    pub connections: Counter,
    /// Time in which the volume's thread looked for requests instead of sleeping.
    pub spin_ns: Counter,
    pub cores: Cores,
}

/// The processors of a volume's thread.
#[derive(Debug)]
pub struct Cores {
    /// The thread's number at the kernel; 0 before it runs.
    pub(crate) thread: AtomicU32,
    /// The core that it shares with its client; -1 where the scheduler decides.
    pub(crate) seat: AtomicI64,
    pub(crate) awake: AtomicBool,
    /// Time in which it kept the machine's processors from halting, by whole periods.
    pub awake_ns: Counter,
}

impl Default for Cores {
    fn default() -> Cores {
        Cores {
            thread: AtomicU32::new(0),
            seat: AtomicI64::new(-1),
            awake: AtomicBool::new(false),
            awake_ns: Counter::default(),
        }
    }
}

impl Cores {
    /// The core that the thread shares with its client now.
    pub fn seat(&self) -> Option<usize> {
        usize::try_from(self.seat.load(Relaxed)).ok()
    }

    /// Whether it keeps the machine's processors from halting now.
    pub fn is_awake(&self) -> bool {
        self.awake.load(Relaxed)
    }

    /// Seconds that the thread ran, and that it waited for a core while it could have: of
    /// `/proc/self/task/N/schedstat` (Documentation/scheduler/sched-stats.rst). `None` where the
    /// kernel does not count, or the thread has ended.
    pub fn used(&self) -> Option<(f64, f64)> {
        let thread = self.thread.load(Relaxed);
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let mut ns = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
        Some((ns.next()?? as f64 / 1e9, ns.next()?? as f64 / 1e9))
    }
}
