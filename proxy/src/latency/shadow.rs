//! Shadow timing: what the proxy adds to each request, beside the request itself.
//!
//! ```text
//!  received      journal visible = source submitted       source done         replied
//!     |----- ours -----|---------------- source ---------------|----- ours ------|
//! ```
//! Added = (replied - received) - (source done - source submitted), for every request
//! and exact: requests of one batch wait for each other and share its one receive and
//! one send, and that wait is ours. Received is when the thread has the last byte of
//! the request; replied is when the reply was given to the socket. Time behind a
//! closed gate, or behind a client that does not read, is not counted: the pause is
//! reported by the cutover.

use super::histogram::{Counts, Histogram};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// A write that is durable when it is answered.
    Fua,
    Flush,
    /// Zero or trim, of any durability.
    Zero,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Fua, Kind::Flush, Kind::Zero];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Fua => "fua",
            Kind::Flush => "flush",
            Kind::Zero => "zero",
        }
    }
}

/// Classes of request sizes: the largest size of each, and its name.
pub const SIZES: [(u64, &str); 6] = [
    (4 << 10, "4k"),
    (16 << 10, "16k"),
    (64 << 10, "64k"),
    (256 << 10, "256k"),
    (1 << 20, "1m"),
    (u64::MAX, "more"),
];

fn size_of(bytes: u64) -> usize {
    SIZES.iter().position(|(largest, _)| bytes <= *largest).expect("the last class takes all")
}

/// One request's times, carried until its reply goes out.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    cell: u8,
    received: Instant,
    source: Duration,
}

impl Timing {
    /// `source`: what its source operation took, 0 if it is still to come.
    pub fn new(kind: Kind, bytes: u64, received: Instant, source: Duration) -> Timing {
        Timing { cell: (kind as usize * SIZES.len() + size_of(bytes)) as u8, received, source }
    }

    #[cfg(test)]
    pub fn received(&self) -> Instant {
        self.received
    }

    /// One more source operation of the same request.
    pub fn add_source(&mut self, took: Duration) {
        self.source += took;
    }
}

/// The histograms of one volume: written by its thread, read by any.
pub struct Shadow {
    cells: Box<[Histogram]>,
    window: Mutex<Window>,
}

/// Shortest period that quantiles are made of.
const PERIOD: Duration = Duration::from_secs(1);

/// What readers saw last.
#[derive(Default)]
struct Window {
    begun: Option<Instant>,
    before: Vec<Counts>,
    last: Vec<Counts>,
}

impl Default for Shadow {
    fn default() -> Shadow {
        let cells = (0..Kind::ALL.len() * SIZES.len()).map(|_| Histogram::default()).collect();
        Shadow { cells, window: Mutex::default() }
    }
}

/// What was added to requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Added {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub count: u64,
    pub sum_s: f64,
}

impl Shadow {
    /// The reply has been given to the socket. Only on the volume's thread.
    pub fn replied(&self, timing: &Timing, now: Instant) {
        let total = now.saturating_duration_since(timing.received);
        let added = total.saturating_sub(timing.source);
        self.cells[usize::from(timing.cell)].record(added.as_nanos() as u64);
    }

    /// Requests of these kinds and all sizes over the last period that had requests.
    pub fn last(&self, kinds: &[Kind]) -> Added {
        self.last_at(kinds, Instant::now())
    }

    fn last_at(&self, kinds: &[Kind], now: Instant) -> Added {
        let last = self.roll(now);
        let cells =
            kinds.iter().flat_map(|kind| &last[*kind as usize * SIZES.len()..][..SIZES.len()]);
        added_of(cells)
    }

    /// Everything since the start.
    pub fn total(&self, kinds: &[Kind]) -> Added {
        let cells = kinds
            .iter()
            .flat_map(|kind| &self.cells[*kind as usize * SIZES.len()..][..SIZES.len()]);
        let counts: Vec<Counts> = cells.map(Histogram::counts).collect();
        added_of(&counts)
    }

    /// Each kind and size class that had requests: the last period, and all so far.
    pub fn table(&self) -> Vec<(Kind, &'static str, Added, Added)> {
        let last = self.roll(Instant::now());
        let mut rows = Vec::new();
        for (index, (cell, last)) in self.cells.iter().zip(&last).enumerate() {
            let total = added_of([&cell.counts()]);
            if total.count > 0 {
                let kind = Kind::ALL[index / SIZES.len()];
                rows.push((kind, SIZES[index % SIZES.len()].1, added_of([last]), total));
            }
        }
        rows
    }

    /// The last period of each cell. A new one begins once this one is long enough; a
    /// cell that nothing was recorded in keeps the one it had.
    fn roll(&self, now: Instant) -> Vec<Counts> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.begun.is_some_and(|begun| now.saturating_duration_since(begun) < PERIOD) {
            return window.last.clone();
        }
        let counts: Vec<Counts> = self.cells.iter().map(Histogram::counts).collect();
        window.before.resize(counts.len(), Counts::default());
        window.last.resize(counts.len(), Counts::default());
        for (index, counts) in counts.iter().enumerate() {
            let since = counts.since(&window.before[index]);
            if since.count() > 0 {
                window.last[index] = since;
            }
        }
        window.before = counts;
        window.begun = Some(now);
        window.last.clone()
    }
}

fn added_of<'a>(cells: impl IntoIterator<Item = &'a Counts>) -> Added {
    let mut all = Counts::default();
    cells.into_iter().for_each(|cell| all.add(cell));
    let us = |quantile| all.quantile_ns(quantile) as f64 / 1e3;
    Added {
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        count: all.count(),
        sum_s: all.sum_ns as f64 / 1e9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn added_is_the_time_between_the_ends_without_the_sources() {
        let start = Instant::now();
        let shadow = Shadow::default();
        let mut timing = Timing::new(Kind::Fua, 4096, start, us(100));
        timing.add_source(us(300));
        shadow.replied(&timing, start + us(450));
        let added = shadow.total(&[Kind::Fua]);
        assert_eq!(added.count, 1);
        assert!((added.p50_us - 50.0).abs() <= 0.5, "{added:?}");
        assert_eq!(added.sum_s, 50e-6);
    }

    #[test]
    fn kinds_and_sizes_are_told_apart() {
        let start = Instant::now();
        let shadow = Shadow::default();
        for kind in Kind::ALL {
            for bytes in [0, 4096, 4097, 1 << 20, (1 << 20) + 1] {
                let timing = Timing::new(kind, bytes, start, Duration::ZERO);
                shadow.replied(&timing, start + us(1));
            }
        }
        let rows = shadow.table();
        assert_eq!(rows.len(), Kind::ALL.len() * 4);
        for kind in Kind::ALL {
            let of_kind: Vec<_> = rows.iter().filter(|row| row.0 == kind).collect();
            let sizes: Vec<_> = of_kind.iter().map(|row| (row.1, row.3.count)).collect();
            assert_eq!(sizes, [("4k", 2), ("16k", 1), ("1m", 1), ("more", 1)]);
        }
        assert_eq!(shadow.total(&[Kind::Read, Kind::Write]).count, 10);
    }

    #[test]
    fn a_period_stays_until_there_is_a_newer_with_requests() {
        let start = Instant::now();
        let shadow = Shadow::default();
        let record = |added| {
            let timing = Timing::new(Kind::Write, 1, start, Duration::ZERO);
            shadow.replied(&timing, start + added);
        };
        let last = |at| shadow.last_at(&[Kind::Write], at);
        record(us(10));
        assert_eq!(last(start).count, 1);
        record(us(20));
        assert_eq!(last(start + PERIOD / 2).count, 1);
        let second = last(start + PERIOD);
        assert!(second.count == 1 && (second.p50_us - 20.0).abs() < 0.3, "{second:?}");
        assert_eq!(last(start + PERIOD * 3), second);
    }
}
