//! Whose ladder it is, and how a step of it is told: in the log, in `ladder.json`, in the
//! counters.

use super::Rung;
use super::steps::{self, Step};
use crate::append::AppendLock;
use crate::format::Counter;
use crate::ring::Ring;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use towline_block::GroupName;

/// What the ladder's thread works on, besides the spill.
pub struct Owner {
    pub group: GroupName,
    pub ring: Arc<Ring>,
    pub cursor: Arc<AppendLock>,
    /// Where the ladder's steps are noted.
    pub steps_path: PathBuf,
    pub clock: fn() -> u64,
}

impl Owner {
    /// A step was taken; `spills`: the group has a spill.
    pub(super) fn step(&self, from: Rung, to: Rung, fill_percent: u64, spills: bool) {
        let fault = spills.then(|| self.ring.get(Counter::SpillFault));
        let reason = step_reason(from, to, fault);
        tracing::info!(group = %self.group, ?from, ?to, fill_percent, "{reason}");
        // Noted first: who sees the rung sees the step.
        let step =
            Step { unix_ns: (self.clock)(), from, to, fill_percent, reason: reason.to_owned() };
        match steps::note(&self.steps_path, step) {
            Ok(bytes) => {
                self.ring.counter(Counter::StateWrittenBytes).fetch_add(bytes, SeqCst);
            }
            Err(error) => {
                let path = self.steps_path.display();
                tracing::warn!("a step of the ladder is not in {path}: {error}");
            }
        }
        self.ring.counter(Counter::LadderSteps).fetch_add(1, Relaxed);
        self.ring.set(Counter::Rung, to as u64);
    }
}

/// Sentence for the log and for people; `fault` is the spill's, if there is one.
fn step_reason(from: Rung, to: Rung, fault: Option<u64>) -> &'static str {
    match (from, to) {
        (Rung::Ring, Rung::Spill) => {
            "the target lags: the ring is more than half full, its oldest records go to disk"
        }
        (Rung::Spill, Rung::Ring) => {
            "the target has everything that was on disk: the journal is in memory alone again"
        }
        (Rung::Map, Rung::Ring) => "healed: the journal holds every change, in memory",
        (Rung::Map, Rung::Spill) => "healed: the journal holds every change, in memory and on disk",
        (_, Rung::Map) => match fault {
            None => "changes bypass the journal until HEAL: there is no spill",
            Some(1) => "changes bypass the journal until HEAL: the spill cannot be written",
            Some(2) => "changes bypass the journal until HEAL: the spill is full",
            _ => {
                "changes bypass the journal until HEAL: the ring was full before the spill had taken \
                 enough, a write failed, or the target begins anew"
            }
        },
        _ => "no step",
    }
}
