//! Flushes, and answers that wait for the journal's disk (R14).

use super::{Op, Phase};
use crate::guest::Request;
use crate::ring::Pos;
use crate::spill::Spill;
use crate::world::World;
use towline_journal::Durability;

/// Longest wait of an answer for the journal's disk, in steps.
const DURABLE_WAIT_MAX: u64 = 30;

/// What a flush of the source that has begun makes durable in the spill.
#[derive(Clone, Debug)]
pub struct Flushing {
    covered: u64,
    spill: Spill,
}

impl World {
    /// Durability "flush" or "write".
    pub fn is_eager(&self) -> bool {
        self.config.spill.is_some_and(|spill| spill.is_eager())
    }

    fn is_joint(&self) -> bool {
        self.is_eager() && self.config.spill.is_some_and(|spill| spill.joint)
    }

    fn is_strict(&self) -> bool {
        let strict = self.config.spill.is_some_and(|spill| spill.strict);
        strict && self.rules.strict_waits_without_bound
    }

    /// Records up to `needed` survive a power loss, as far as the journal's figures say,
    /// or there is no use in waiting for that.
    fn is_durable(&self, needed: u64) -> bool {
        let Some(ring) = &self.ring else { return true };
        let durable = ring.spill_durable.max(ring.acked) >= needed;
        durable || (!self.is_strict() && !self.can_persist())
    }

    fn answers_late(&self, since: u64) -> bool {
        self.now - since > DURABLE_WAIT_MAX && !self.is_strict() && self.rules.journal_wait_bounded
    }

    /// The source's flush may be issued.
    pub(super) fn is_flushable(&self, op: &Op, since: u64) -> bool {
        let written = self.proxy.index.flushable >= op.needed;
        !self.is_joint() || written || self.is_durable(op.needed) || self.answers_late(since)
    }

    /// The answer may go out.
    pub(super) fn is_answerable(&self, op: &Op, since: u64) -> bool {
        // A violation has to be seen.
        let too_long = self.now - since > 2 * DURABLE_WAIT_MAX && !self.config_is_strict();
        self.is_durable(op.needed) || self.answers_late(since) || too_long
    }

    fn config_is_strict(&self) -> bool {
        self.config.spill.is_some_and(|spill| spill.strict)
    }

    pub(super) fn flush_source(&mut self, volume: usize, op: &mut Op) {
        let sticky = self.proxy.sync_failed[volume] && self.rules.failed_flush_is_sticky;
        let fails = self.faulty && self.config.fail_flush > 0;
        if sticky || (fails && self.rng.chance(self.config.fail_flush)) {
            self.note(|| "the source's flush FAILS".into());
            self.proxy.sync_failed[volume] = true;
            if !sticky {
                self.source.fail_flush(volume);
            }
            op.failed = true;
            op.phase = if op.seqs.is_empty() { Phase::Reply } else { Phase::Finish(0) };
            return;
        }
        if !self.is_joint() {
            return self.end_flush(volume, op);
        }
        let (covered, spill) = (self.proxy.index.flushable, self.spill.issue_sync());
        op.flushing = Some(Box::new(Flushing { covered, spill }));
        op.phase = Phase::EndFlush(self.now + self.rng.below(12) as u64);
    }

    pub(super) fn end_flush(&mut self, volume: usize, op: &mut Op) {
        if self.rules.flush_reaches_source {
            self.source.flush_volume(volume);
        }
        if let Some(flushing) = op.flushing.take() {
            self.spill.end_sync(&flushing.spill);
            let exact = self.rules.joint_flush_covers_what_was_written;
            let covered = if exact { flushing.covered } else { self.proxy.index.flushable };
            self.spill_flushed(covered);
        }
        match op.seqs.is_empty() {
            true => self.ended(op),
            false => op.phase = Phase::Finish(0),
        }
    }

    /// The source has it: the answer goes out, or waits.
    pub(super) fn ended(&mut self, op: &mut Op) {
        let rules = self.rules;
        let waits = match self.config.spill.map(|spill| spill.durability) {
            _ if op.failed => false,
            Some(Durability::Flush) => op.request == Request::Flush,
            Some(Durability::Write) => true,
            _ => false,
        };
        op.phase = Phase::Reply;
        if !waits {
            return;
        }
        if op.request != Request::Flush {
            op.needed = self.head().seq;
        }
        let obeys = match op.request {
            Request::Flush => rules.flush_waits_for_journal,
            _ => rules.write_waits_for_journal,
        };
        if obeys {
            op.phase = Phase::Await(self.now);
        } else {
            self.check_durable(op.needed);
        }
    }

    pub(super) fn end_wait(&mut self, op: &mut Op, since: u64) {
        op.phase = Phase::Reply;
        if self.is_durable(op.needed) {
            let figures = self.ring.as_ref().map_or(0, |r| r.spill_durable.max(r.acked));
            match figures >= op.needed {
                true => self.check_durable(op.needed),
                false => self.seen.durable_answers[1] += 1,
            }
        } else if self.answers_late(since) {
            self.seen.durable_answers[1] += 1;
        } else {
            self.violate("(g) an answer waits for the journal's disk beyond the bound".into());
        }
        if self.config_is_strict() && !self.is_strict() {
            self.check_durable(op.needed);
        }
    }

    /// (h): the journal alone, after a power loss, has what is answered for now: each record
    /// up to `needed` is at the target or in the spill, both durably.
    fn check_durable(&mut self, needed: u64) {
        let Pos { inc, .. } = self.head();
        let end = self.receiver.store.durable_end().pos;
        let reached = if end.inc == inc { end.seq } else { 0 };
        self.seen.durable_answers[0] += 1;
        let floor = self.ring_mut().floor;
        let excused = self.seen.spill_damaged || self.set_back;
        let lost = (reached + 1..=needed)
            .find(|seq| *seq >= floor && !excused && !self.spill.has_synced(inc, *seq));
        if let Some(seq) = lost {
            self.violate(format!("(h) answered as durable, and record {seq} is not"));
        }
    }
}
