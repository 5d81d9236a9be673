//! What the proxy adds to requests, and how much it did.

mod histogram;
mod shadow;

pub use shadow::{Added, Kind, SIZES, Shadow, Timing};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
}
