//! Warm-up, measured window, end: one word that the controller writes and every
//! client reads once a batch.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum Phase {
    Warm = 0,
    Measured = 1,
    Over = 2,
}

#[derive(Debug)]
pub(super) struct Stage {
    phase: AtomicU8,
    zero: Instant,
}

impl Stage {
    pub(super) fn new() -> Stage {
        Stage { phase: AtomicU8::new(Phase::Warm as u8), zero: Instant::now() }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Warm,
            1 => Phase::Measured,
            _ => Phase::Over,
        }
    }

    /// Phases only go on, so that an end by error is not undone by the controller.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// Nanoseconds since the run began; never 0, which means "no time".
    pub(super) fn now_ns(&self) -> u64 {
        self.zero.elapsed().as_nanos() as u64 + 1
    }
}
