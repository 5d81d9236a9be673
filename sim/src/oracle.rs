//! The checks, after every step and at the end. Letters as in docs/design/0002-model.md.

use crate::disk::CELLS;
use crate::proxy::Life;
use crate::ring::{Pos, RECORD_CELLS_MAX, count};
use crate::wire::{BATCH_RECORDS_MAX, Durable, WINDOW_BATCHES};
use crate::world::World;

impl World {
    /// Everything that must hold at every instant.
    pub fn check(&mut self) {
        self.check_acknowledged();
        self.check_point();
        self.check_one_writer();
        self.check_books();
    }

    /// (a) and (d): no acknowledged write is missing where the guests are served.
    fn check_acknowledged(&mut self) {
        let promoted = self.receiver.store.promoted();
        let served = if promoted { self.target() } else { &self.source.now };
        if let Some(cell) = self.ledger.lost(served) {
            let what = if promoted {
                format!("(d) cell {cell}: the promoted target lacks an acknowledged write")
            } else {
                format!("(a) cell {cell}: the source lacks an acknowledged write")
            };
            self.violate(what);
        }
    }

    /// (b): what a receiver would have that is killed now and only recovers.
    fn check_point(&mut self) {
        let store = &self.receiver.store;
        if store.promoted() || self.seen.checked == Some((store.version, self.history.version)) {
            return;
        }
        self.seen.checked = Some((store.version, self.history.version));
        let (content, point) = store.recovered(self.rules.undo, self.rules.undo_tagged);
        if point < self.seen.point {
            let before = self.seen.point;
            self.violate(format!("(b) the point went back from {before:?} to {point:?}"));
        }
        if point > self.seen.point {
            self.seen.points += 1;
        }
        self.seen.point = point;
        let Some(point) = point else { return };
        let expected = self.history.at(point);
        let explained = |c: &usize| expected.iter().any(|e| e[*c] == content[*c]);
        if let Some(cell) = (0..CELLS).find(|c| !explained(c)) {
            let (got, want) = (content[cell], expected[0][cell]);
            self.violate(format!(
                "(b) at point {point:?} cell {cell} recovers as {got}, the history has {want}"
            ));
        }
    }

    /// (b): a mark keeps what the source was at its place.
    pub fn check_mark(&mut self, mark: Pos) {
        self.seen.marks += 1;
        let expected = self.history.at(mark);
        let content = *self.target();
        let explained = |c: &usize| expected.iter().any(|e| e[*c] == content[*c]);
        if let Some(cell) = (0..CELLS).find(|c| !explained(c)) {
            let (got, want) = (content[cell], expected[0][cell]);
            self.violate(format!("(b) mark {mark:?} keeps {got} in cell {cell}, not {want}"));
        }
    }

    /// (d): the source may not accept writes once the receiver has promoted, and a seal
    /// begins and ends in order.
    fn check_one_writer(&mut self) {
        let promoted = self.receiver.store.promoted();
        let source_open = self.state.seal.is_none() && !self.state.promoted;
        if promoted && source_open {
            self.violate("(d) both sides may write".into());
        }
        let sealed = self.state.seal.map(|seal| seal.attempt);
        if let Some(before) = self.seen.sealed
            && sealed != Some(before)
            && self.receiver.store.decisions.get(&before) != Some(&false)
        {
            self.violate(format!("(d) seal {before} ended without the receiver's durable abort"));
        }
        self.seen.sealed = sealed;
    }

    /// (f): counters are exact whenever nobody is between two stores, and no slot was freed
    /// that the target did not durably have.
    fn check_books(&mut self) {
        let end = self.receiver.store.durable_end();
        if end.pos > self.seen.durable.pos {
            self.seen.durable = end;
        }
        let Some(ring) = &self.ring else { return };
        let durable = self.seen.durable.pos;
        let reached = if durable.inc == ring.inc { durable.seq } else { 0 };
        if ring.acked > reached && ring.acked >= ring.floor && !self.set_back {
            let (acked, inc) = (ring.acked, ring.inc);
            let what = format!("(f) {inc}.{acked} counts as durable, the target has {durable:?}");
            return self.violate(what);
        }
        let gapless = ring.slots.iter().zip(ring.head + 1 - ring.slots.len() as u64..);
        let numbered = gapless.into_iter().all(|(slot, seq)| slot.seq == seq);
        let between = self.proxy.life != Life::Serving || self.proxy.link_op.is_some();
        let exact =
            ring.dirty_count == count(&ring.dirty) && ring.claimed_count == count(&ring.claimed);
        if !numbered || !(between || exact) {
            self.violate("(f) the ring's books are wrong".into());
        }
    }

    /// (e): what a reconnect sends again, beyond what the receiver has, fits the window.
    pub fn check_resent(&mut self, durable: &Durable) {
        const BATCH_BYTES_MAX: u64 = 1 + (BATCH_RECORDS_MAX * (1 + RECORD_CELLS_MAX)) as u64;
        let resent = self.stream_bytes.saturating_sub(durable.stream_bytes);
        if resent > WINDOW_BATCHES as u64 * BATCH_BYTES_MAX && !self.set_back {
            self.violate(format!("(e) {resent} bytes are sent again, more than the window"));
        }
    }

    /// (c): after the faults, at rest.
    pub fn check_rest(&mut self) {
        if self.receiver.store.promoted() {
            return;
        }
        if let Some(cell) = (0..CELLS).find(|c| self.target()[*c] != self.source.now[*c]) {
            let (target, source) = (self.target()[cell], self.source.now[cell]);
            self.violate(format!("(c) at rest cell {cell} is {target}, the source has {source}"));
        }
        let applied = self.receiver.store.applied;
        if applied.point != Some(applied.end.pos) {
            self.violate(format!("(c) at rest the point is {:?}", applied.point));
        }
    }
}
