//! Start of the proxy: a new ring, or recovery of the one a killed proxy left. Each step looks
//! only at what a kill leaves, so a kill in the middle of recovery changes nothing.

use super::{Life, Proxy, SavedMap};
use crate::activity::{Activity, EXTENTS, Image, MapFile, blocks_of, extents_of};
use crate::disk::{BLOCKS, BlockSet, block_of};
use crate::ring::{Base, Kind, Pos, Ring, SlotState};
use crate::rules::Rules;
use crate::world::World;
use towline_journal::spill::Run;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Look,
    /// The next incarnation's activity map is durable.
    MakeRing,
    Recover,
    /// The spill has lost records that the ring relies on.
    CompareAll,
    HeatDirty,
    DeleteSavedMap,
}

/// What the spill has of the ring that `state.json` names.
struct Past {
    inc: u32,
    runs: Vec<Run>,
    touched: BlockSet,
}

impl Past {
    /// The next activity map: if that ring is lost, too, before a target has passed the
    /// history, its records are given up and their extents compared.
    fn heat(&self, found: Image, rules: Rules) -> Image {
        let touched = extents_of(&self.touched);
        let heats = |extent: usize| touched[extent] && rules.history_heats;
        let hot = std::array::from_fn(|extent| found.hot[extent] || heats(extent));
        let mut base = found.base;
        let run = self.runs.iter().find(|run| run.holds(base.pos.seq));
        if let Some(run) = run
            && base.pos.inc == self.inc
            && rules.history_lowers_base
        {
            base.pos.seq = run.first - 1;
        }
        Image { base, hot }
    }
}

impl World {
    fn past(&self) -> Option<Past> {
        let inc = self.state.inc;
        let runs = self.spill.runs(inc);
        let mut touched = [false; BLOCKS];
        for found in self.spill.scan().iter().filter(|found| found.inc == inc) {
            (0..BLOCKS).for_each(|block| touched[block] |= found.touched[block]);
        }
        (!runs.is_empty()).then_some(Past { inc, runs, touched })
    }

    pub fn step_start(&mut self, start: Start) {
        self.note(|| format!("proxy starts: {start:?}"));
        let next = match start {
            Start::Look if self.state.promoted => Life::Retired,
            Start::Look => {
                if self.finds_ring() {
                    Life::Starting(Start::Recover)
                } else {
                    self.prepare_ring();
                    Life::Starting(Start::MakeRing)
                }
            }
            Start::MakeRing => {
                self.state.inc += 1;
                self.state.history = self.prepared_history.take();
                self.ring = self.prepared.take();
                self.resync_asked = false;
                self.changed = false;
                self.open_spill();
                self.proxy.activity = Activity::resumed(&self.map_file, self.source.failures);
                Life::Starting(Start::DeleteSavedMap)
            }
            Start::Recover => {
                if self.recover_step() {
                    self.open_spill();
                    let holed = self.rules.spill_holes_found && !self.spill_covers();
                    Life::Starting(if holed { Start::CompareAll } else { Start::HeatDirty })
                } else {
                    Life::Starting(Start::Recover)
                }
            }
            Start::CompareAll => {
                self.compare_all();
                Life::Starting(Start::HeatDirty)
            }
            Start::HeatDirty => {
                self.resume_activity();
                Life::Starting(Start::DeleteSavedMap)
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

    /// A ring of this incarnation, from this boot, under the sources it was for.
    fn finds_ring(&self) -> bool {
        let rules = self.rules;
        let Some(ring) = &self.ring else { return false };
        let changed = self.changed && rules.attach_checks_source;
        let stale = ring.boot != self.boot && rules.ring_of_this_boot;
        ring.inc == self.state.inc && !changed && !stale
    }

    /// Everything is suspect: the spill's records are given up.
    fn compare_all(&mut self) {
        if !self.seen.spill_damaged {
            self.violate("(i) a kill alone makes a start compare everything".into());
        }
        let ring = self.ring_mut();
        (ring.floor, ring.acked) = (ring.head + 1, ring.head);
        ring.free_tail();
        ring.append(Kind::Resync, SlotState::Done);
        ring.whole = false;
        ring.suspect = [true; BLOCKS];
        (0..BLOCKS).for_each(|block| ring.set_dirty(block));
        self.open_spill();
    }

    /// What the activity map of this incarnation says; `None` when it says nothing.
    fn found_map(&self) -> Option<Image> {
        if self.changed && self.rules.attach_checks_source {
            return None;
        }
        let sound = !self.map_file.damaged && self.map_file.inc == self.state.inc;
        let ignored = self.resync_asked && self.rules.invalid_map_suspects_all;
        match sound {
            _ if ignored || self.state.inc == 0 => None,
            true => Some(self.map_file.now),
            false if self.rules.unsound_map_suspects_all => None,
            false => Some(Image { hot: [false; EXTENTS], ..self.map_file.now }),
        }
    }

    /// The next incarnation's ring, and its activity map on disk: from the saved map, else
    /// what was hot is suspect, else everything is.
    fn prepare_ring(&mut self) {
        let inc = self.state.inc + 1;
        let found = self.found_map();
        let past = self.past();
        let trusted = !(self.changed && self.rules.attach_checks_source);
        let saved = self.saved.clone().filter(|_| trusted);
        let all = Image { base: Base::default(), hot: [true; EXTENTS] };
        let (dirty, suspect, base, map) = match (&saved, found) {
            (Some(saved), Some(found)) => {
                let dirty = extents_of(&saved.dirty);
                let hot = std::array::from_fn(|extent| found.hot[extent] || dirty[extent]);
                (saved.dirty, false, saved.base, Image { base: saved.base, hot })
            }
            (Some(saved), None) => (saved.dirty, false, saved.base, all),
            (None, Some(found)) => {
                let map = past.as_ref().map_or(found, |past| past.heat(found, self.rules));
                (blocks_of(&found.hot), true, found.base, map)
            }
            (None, None) => ([true; BLOCKS], inc > 1, Base::default(), all),
        };
        let is_lost = saved.is_none() && inc > 1;
        let asked = self.resync_asked || saved.is_some();
        self.prepared_history = past.filter(|_| !asked).map(|past| past.inc);
        let forgets = is_lost && !self.rules.ring_loss_suspects_hot;
        let dirty = if forgets { [false; BLOCKS] } else { dirty };
        if is_lost {
            self.seen.spared += dirty.iter().filter(|dirty| !**dirty).count() as u64;
        }
        let mut ring = Ring::new(inc, dirty, base);
        ring.boot = self.boot;
        if suspect {
            ring.suspect = dirty;
        }
        let kind = if self.rules.resync_begins_incarnation { Kind::Resync } else { Kind::Void };
        ring.append(kind, SlotState::Done);
        self.prepared = Some(ring);
        self.map_file = MapFile::new(inc, map);
    }

    /// Goes on with the activity map of an intact ring; what is dirty is hot.
    fn resume_activity(&mut self) {
        if self.map_file.damaged || self.map_file.inc != self.state.inc {
            let image = Image { base: Base::default(), hot: [true; EXTENTS] };
            self.map_file = MapFile::new(self.state.inc, image);
        }
        if self.rules.resumed_map_synced {
            self.map_file.sync();
        }
        self.proxy.activity = Activity::resumed(&self.map_file, self.source.failures);
        if self.ring_mut().map_invalid && self.rules.invalid_map_outlives_kill {
            self.heat_now(&[true; EXTENTS]);
            self.ring_mut().map_invalid = false;
        }
        if self.rules.start_heats_dirty {
            let ring = self.ring_mut();
            let pending = std::array::from_fn(|b| ring.dirty[b] || ring.claimed[b]);
            self.heat_now(&extents_of(&pending));
        }
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
        if self.config.late_io && self.ring.is_some() {
            self.leave_zombies();
        }
        self.proxy = Proxy::dead();
        self.prepared_history = None;
        self.prepared = None;
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
        if self.rules.stop_flushes_source {
            self.source.flush();
        }
        let rules = self.rules;
        let acked = self.ring_mut().acked;
        let spilled = self.proxy.index.touched_above(acked);
        let ring = self.ring_mut();
        let mut dirty = ring.dirty;
        for slot in ring.slots.iter().filter(|s| s.seq > ring.acked) {
            let blocks = slot.kind.blocks();
            for block in (0..BLOCKS).filter(|b| rules.saved_map_has_undrained && blocks[*b]) {
                dirty[block] = true;
            }
        }
        for block in (0..BLOCKS).filter(|b| rules.saved_map_has_undrained && spilled[*b]) {
            dirty[block] = true;
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
