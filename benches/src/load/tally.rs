//! What a client counted: a latency histogram for each kind of request.

use hdrhistogram::Histogram;

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Flush];
}

/// One minute: a request that takes longer ends the run.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// A histogram of nanoseconds with a resolution of 0.1 %.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("sound bounds")
}

/// Latencies in nanoseconds by kind, over one measured window.
#[derive(Clone, Debug)]
pub struct Tally {
    by_kind: [Histogram<u64>; 3],
    /// How late the client itself sent, against the moment a request was due (open loop).
    pub late: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { by_kind: std::array::from_fn(|_| new_histogram()), late: new_histogram() }
    }
}

impl Tally {
    /// What a sending thread knows: how late it was.
    pub(super) fn late_only(late: Histogram<u64>) -> Tally {
        Tally { late, ..Tally::default() }
    }

    pub fn of(&self, kind: Kind) -> &Histogram<u64> {
        &self.by_kind[kind as usize]
    }

    pub fn record(&mut self, kind: Kind, latency_ns: u64) {
        self.by_kind[kind as usize].saturating_record(latency_ns.max(1));
    }

    /// As [`Tally::record`], for what another program has counted.
    pub fn record_many(&mut self, kind: Kind, latency_ns: u64, count: u64) {
        self.by_kind[kind as usize].saturating_record_n(latency_ns.max(1), count);
    }

    pub fn clear(&mut self) {
        self.by_kind.iter_mut().for_each(Histogram::reset);
        self.late.reset();
    }

    /// Adds what another client, or another round, counted.
    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.by_kind.iter_mut().zip(&other.by_kind) {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
        self.late.add(&other.late).expect("all histograms have the same bounds");
    }

    /// Requests of all kinds.
    pub fn count(&self) -> u64 {
        self.by_kind.iter().map(Histogram::len).sum()
    }
}
