//! What the proxy adds to a write, and how much it did.
//!
//! Added time of a write = (reply queued - received) - (time its volume's thread
//! spent in the source between the two). A request therefore pays for parsing,
//! journaling and its place behind others' parsing and journaling, not for the
//! disk, which it would have waited for without us. Time behind a closed gate, or
//! behind a client that does not read, is not counted: the pause is reported by the
//! cutover.

use hdrhistogram::Histogram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Publishing period.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest time told apart, 10 s; longer counts as that.
const ADDED_NS_MAX: u64 = 10_000_000_000;
/// Two digits: 1 % wide buckets, 30 KiB a histogram.
const DIGITS: u8 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatencySnapshot {
    pub p50_us: f64,
    pub p99_us: f64,
    /// Writes these come from.
    pub count: u64,
}

#[derive(Default)]
struct Published {
    last: LatencySnapshot,
    total: LatencySnapshot,
}

/// The published figures of one volume.
#[derive(Default)]
pub struct Latency {
    published: Mutex<Published>,
}

impl Latency {
    /// The last period that had writes.
    pub fn snapshot(&self) -> LatencySnapshot {
        self.lock().last
    }

    /// Everything since the start, as of the last period.
    pub fn total(&self) -> LatencySnapshot {
        self.lock().total
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The measuring side, owned by the volume's thread.
pub struct Recorder {
    window: Histogram<u64>,
    total: Histogram<u64>,
    publish_at: Instant,
}

impl Recorder {
    pub fn new(now: Instant) -> Recorder {
        let histogram = Histogram::new_with_max(ADDED_NS_MAX, DIGITS)
            .expect("the constants above are valid for a histogram");
        Recorder { window: histogram.clone(), total: histogram, publish_at: now + PERIOD }
    }

    pub fn record(&mut self, added_ns: u64) {
        self.window.saturating_record(added_ns);
    }

    /// When [`Recorder::publish`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.window.is_empty()).then_some(self.publish_at)
    }

    /// Publishes if the period is over.
    pub fn publish(&mut self, now: Instant, to: &Latency) {
        if now >= self.publish_at {
            self.publish_now(now, to);
        }
    }

    pub fn publish_now(&mut self, now: Instant, to: &Latency) {
        self.publish_at = now + PERIOD;
        if self.window.is_empty() {
            return;
        }
        let last = snapshot_of(&self.window);
        // Same constants on both sides, so there is no bucket that does not fit.
        let added = self.total.add(&self.window);
        debug_assert!(added.is_ok());
        self.window.reset();
        *to.lock() = Published { last, total: snapshot_of(&self.total) };
    }
}

fn snapshot_of(histogram: &Histogram<u64>) -> LatencySnapshot {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    LatencySnapshot { p50_us: us(0.5), p99_us: us(0.99), count: histogram.len() }
}

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
    /// Connections taken into transmission.
    pub connections: Counter,
    /// Time in which the volume's thread looked for requests instead of sleeping.
    pub spin_ns: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_published_at_its_end_and_stays_until_there_is_a_newer() {
        let start = Instant::now();
        let latency = Latency::default();
        let mut recorder = Recorder::new(start);
        assert_eq!(recorder.deadline(), None);
        for us in 1..=100 {
            recorder.record(us * 1000);
        }
        recorder.publish(start, &latency);
        assert_eq!(latency.snapshot().count, 0);
        assert_eq!(recorder.deadline(), Some(start + PERIOD));
        recorder.publish(start + PERIOD, &latency);
        let snapshot = latency.snapshot();
        assert_eq!(snapshot.count, 100);
        assert!((snapshot.p50_us - 50.0).abs() < 1.0, "{snapshot:?}");
        assert!((snapshot.p99_us - 99.0).abs() < 2.0, "{snapshot:?}");
        recorder.publish(start + PERIOD * 2, &latency);
        assert_eq!(latency.snapshot(), snapshot);
        recorder.record(u64::MAX);
        recorder.publish(start + PERIOD * 3, &latency);
        assert_eq!((latency.snapshot().count, latency.total().count), (1, 101));
    }
}
