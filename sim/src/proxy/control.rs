//! Control records: BREAK, HEAL and marks, each under the append lock.

use super::{Life, LinkOp, Owner};
use crate::ring::{Kind, SLOTS_RESERVED, SlotState};
use crate::world::World;

impl World {
    /// A BREAK record, if the group is whole. The caller holds the append lock.
    pub fn append_break(&mut self) {
        if !self.rules.break_before_unjournaled || !self.ring_mut().whole {
            return;
        }
        if self.ring_mut().free_slots() == 0 {
            self.violate("(f) no slot is left for a BREAK".into());
            return;
        }
        self.ring_mut().append(Kind::Break, SlotState::Done);
    }

    /// HEAL, in two stores under the append lock: the record, then the flag.
    pub fn heal_is_ready(&self) -> bool {
        if self.proxy.life != Life::Serving || self.proxy.lock == Some(Owner::Heal) {
            return self.proxy.lock == Some(Owner::Heal);
        }
        let Some(ring) = &self.ring else { return false };
        // What is found damaged in the history becomes dirty: before any point.
        if self.proxy.index.history.is_some() && self.rules.history_before_heal {
            return false;
        }
        let room = if self.rules.heal_leaves_room { SLOTS_RESERVED + 1 } else { 1 };
        !ring.whole
            && (self.proxy.lock.is_none() || !self.rules.heal_under_lock)
            && (ring.map_is_empty() || !self.rules.heal_needs_empty_map)
            && ring.free_slots() >= room
            && !matches!(self.proxy.link_op, Some(LinkOp::Resync { .. }))
    }

    pub fn step_heal(&mut self) {
        self.note(|| "heal".into());
        if self.proxy.lock == Some(Owner::Heal) {
            self.ring_mut().whole = true;
            self.proxy.lock = None;
            return;
        }
        let ring = self.ring_mut();
        ring.append(Kind::Heal(ring.acked_claims), SlotState::Done);
        if self.proxy.lock.is_none() {
            self.proxy.lock = Some(Owner::Heal);
        } else {
            // The injected fault: somebody else's critical section is not respected.
            self.ring_mut().whole = true;
        }
    }

    /// The operator names the point that is now.
    pub fn mark_point(&mut self) {
        let serving = self.proxy.life == Life::Serving && self.proxy.lock.is_none();
        let Some(ring) = self.ring.as_mut().filter(|_| serving) else { return };
        let refused = !ring.whole && self.rules.mark_needs_whole;
        if !refused && ring.free_slots() > SLOTS_RESERVED {
            ring.append(Kind::Mark, SlotState::Done);
            self.note(|| "a MARK".into());
        }
    }
}
