//! Start of the proxy: a new ring, or recovery of the one a killed proxy left. Each step looks
//! only at what a kill leaves, so a kill in the middle of recovery changes nothing.

use super::{Life, Proxy, SavedMap};
use crate::disk::{BLOCKS, block_of};
use crate::ring::{Base, Kind, Pos, Ring, SlotState};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Look,
    /// The incarnation has risen durably.
    MakeRing,
    Recover,
    DeleteSavedMap,
}

impl World {
    pub fn step_start(&mut self, start: Start) {
        self.note(|| format!("proxy starts: {start:?}"));
        let next = match start {
            Start::Look if self.state.promoted => Life::Retired,
            Start::Look => {
                let inc = self.state.inc;
                if self.ring.as_ref().is_some_and(|ring| ring.inc == inc) {
                    Life::Starting(Start::Recover)
                } else {
                    self.state.inc += 1;
                    Life::Starting(Start::MakeRing)
                }
            }
            Start::MakeRing => {
                self.make_ring();
                Life::Starting(Start::DeleteSavedMap)
            }
            Start::Recover => {
                if self.recover_step() {
                    Life::Starting(Start::DeleteSavedMap)
                } else {
                    Life::Starting(Start::Recover)
                }
            }
            Start::DeleteSavedMap => {
                if self.rules.saved_map_deleted {
                    self.saved = None;
                }
                Life::Serving
            }
        };
        self.proxy.life = next;
    }

    fn make_ring(&mut self) {
        let all = SavedMap { dirty: [true; BLOCKS], base: Base::default() };
        let saved = match (&self.saved, self.rules.ring_loss_dirties_all) {
            (Some(saved), _) => saved.clone(),
            (None, true) => all,
            (None, false) if self.state.inc == 1 => all,
            (None, false) => SavedMap { dirty: [false; BLOCKS], base: Base::default() },
        };
        let mut ring = Ring::new(self.state.inc, saved.dirty, saved.base);
        let kind = if self.rules.resync_begins_incarnation { Kind::Resync } else { Kind::Void };
        ring.append(kind, SlotState::Done);
        self.ring = Some(ring);
    }

    /// Gives one record its final outcome. True when all have theirs.
    fn recover_step(&mut self) -> bool {
        let rules = self.rules;
        let ring = self.ring.as_mut().expect("recovery has a ring");
        let inc = ring.inc;
        if rules.whole_from_records
            && let Some(whole) = ring.slots.iter().rev().find_map(|s| s.kind.whole())
        {
            ring.whole = whole;
        }
        let open = ring.slots.iter_mut().find(|slot| !slot.state.is_final());
        let Some(slot) = open else {
            ring.recount();
            if !rules.claim_ids_persist {
                ring.next_claim = 1;
            }
            return true;
        };
        let seq = slot.seq;
        if slot.state == SlotState::Reserved {
            slot.kind = Kind::Void;
            slot.state = SlotState::Done;
            return false;
        }
        let kind = slot.kind.clone();
        match kind {
            Kind::Write(values) => {
                if rules.intent_rewrite {
                    let held = values.iter().map(|(c, _)| (*c, self.source.now[*c])).collect();
                    slot.kind = Kind::Write(held);
                }
                slot.state = SlotState::Done;
                self.history.rewritten(Pos { inc, seq });
            }
            Kind::Zero(cells) if rules.intent_zero_dirty => self.fail_zero(seq, &cells),
            _ => slot.state = SlotState::Done,
        }
        false
    }

    /// BREAK, then dirty, then the tombstone; one store a step.
    fn fail_zero(&mut self, seq: u64, cells: &[usize]) {
        let ring = self.ring.as_mut().expect("recovery has a ring");
        let inc = ring.inc;
        self.history.failed(Pos { inc, seq });
        if ring.whole {
            self.append_break();
            self.ring_mut().whole = false;
            return;
        }
        let at = self.head();
        self.history.broke(at);
        let ring = self.ring_mut();
        if let Some(cell) = cells.iter().find(|c| !ring.dirty[block_of(**c)]) {
            ring.set_dirty(block_of(*cell));
            return;
        }
        if let Some(slot) = ring.slot_mut(seq) {
            slot.state = SlotState::Failed;
        }
    }

    /// `kill -9` of the proxy.
    pub fn kill_proxy(&mut self) {
        self.note(|| "KILL proxy".into());
        self.proxy = Proxy::dead();
        self.drop_link();
        self.stale.clear();
        if !self.rules.seal_is_durable {
            self.state.seal = None;
        }
        for guest in &mut self.guests {
            guest.sent = false;
            // Most clients ask again; some are gone with their machine.
            if self.faulty && self.rng.chance(25) {
                guest.current = None;
            }
        }
    }

    /// SIGTERM on an idle proxy: what the ring still holds goes to the saved map. The first
    /// of two steps; the second removes the ring.
    pub fn save_map(&mut self) {
        self.note(|| "orderly stop: save the map".into());
        self.source.flush();
        let rules = self.rules;
        let ring = self.ring_mut();
        let mut dirty = ring.dirty;
        for slot in ring.slots.iter().filter(|s| s.seq > ring.acked) {
            let blocks = slot.kind.blocks();
            for block in (0..BLOCKS).filter(|b| rules.saved_map_has_undrained && blocks[*b]) {
                dirty[block] = true;
            }
        }
        for block in (0..BLOCKS).filter(|b| rules.saved_map_has_claimed && ring.claimed[*b]) {
            dirty[block] = true;
        }
        let base = if ring.acked == 0 {
            ring.base
        } else {
            Base { pos: Pos { inc: ring.inc, seq: ring.acked }, claims: ring.acked_claims }
        };
        self.saved = Some(SavedMap { dirty, base });
    }
}
