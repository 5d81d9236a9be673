//! What one client does: sizes, depth, mix and pace.

use super::tally::Kind;
use std::ops::Range;

/// A mix of requests; every connection does the same on offsets of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Reads of a hundred requests; the others write.
    pub read_percent: u32,
    pub request_bytes: u32,
    /// One offset after the other, from the start again at the end of the span.
    pub sequential: bool,
    /// Requests in flight on each connection (closed loop).
    pub depth: usize,
    pub connections: usize,
    /// A flush after so many writes, with nothing else in flight.
    pub flush_every: Option<u32>,
    /// Requests a second over all connections: an open loop.
    pub rate_per_s: Option<f64>,
}

impl Workload {
    pub const fn random_write(request_bytes: u32, depth: usize) -> Workload {
        Workload {
            read_percent: 0,
            request_bytes,
            sequential: false,
            depth,
            connections: 1,
            flush_every: None,
            rate_per_s: None,
        }
    }

    pub const fn random_read(request_bytes: u32, depth: usize) -> Workload {
        Workload { read_percent: 100, ..Workload::random_write(request_bytes, depth) }
    }

    /// The kind of request whose latency the workload is about.
    pub fn main_kind(&self) -> Kind {
        if self.read_percent == 100 { Kind::Read } else { Kind::Write }
    }
}

/// A small, fast and seeded source of numbers (splitmix64); quality beyond
/// scattering offsets is not needed.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; the bias is below 2^-32 for bounds that occur here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }
}

/// Where one connection reads and writes.
#[derive(Debug)]
pub(super) struct Aim {
    first: u64,
    step: u64,
    places: u64,
    next: u64,
    sequential: bool,
    read_percent: u64,
    dice: Dice,
}

impl Aim {
    /// # Panics
    /// When the span holds no request; [`super::run()`] refuses that before.
    pub(super) fn new(workload: &Workload, span: Range<u64>, connection: u64, seed: u64) -> Aim {
        let step = u64::from(workload.request_bytes);
        let places = (span.end - span.start) / step;
        assert!(places > 0, "a span of {span:?} holds no request of {step} bytes");
        let connections = workload.connections as u64;
        Aim {
            first: span.start,
            step,
            places,
            next: places * connection / connections,
            sequential: workload.sequential,
            read_percent: u64::from(workload.read_percent),
            dice: Dice::new(seed.wrapping_add(connection.wrapping_mul(0x9e37_79b9))),
        }
    }

    /// Kind and offset of the next request.
    pub(super) fn next(&mut self) -> (Kind, u64) {
        let place = if self.sequential {
            let place = self.next;
            self.next = (self.next + 1) % self.places;
            place
        } else {
            self.dice.below(self.places)
        };
        let kind = match self.read_percent {
            0 => Kind::Write,
            100 => Kind::Read,
            percent if self.dice.below(100) < percent => Kind::Read,
            _ => Kind::Write,
        };
        (kind, self.first + place * self.step)
    }
}
