//! The receiver: verify, stage durably, acknowledge, apply whole batches to all volumes,
//! flush, record; pre-images while the group is broken; one durable decision an attempt.

use crate::disk::{CELLS_PER_BLOCK, Content, Disk, block_of, cells_of};
use crate::ring::{Kind, Pos};
use crate::rng::Rng;
use crate::wire::{Batch, Body, Durable, ToReceiver, ToShipper};
use crate::world::World;
use std::collections::{BTreeMap, VecDeque};

/// What is on the receiver's disks.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub target: Disk,
    pub staging: VecDeque<Staged>,
    pub applied: Applied,
    pub undo: Vec<PreImage>,
    pub decisions: BTreeMap<u64, bool>,
    /// Rises with every change, so that checks run only then.
    pub version: u64,
}

#[derive(Clone, Debug)]
pub struct Staged {
    pub batch: Batch,
    pub durable: bool,
}

/// One durable record: how far the targets are, and what that means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub end: Durable,
    pub whole: bool,
    pub point: Option<Pos>,
}

/// Content of a block as of a point.
#[derive(Clone, Copy, Debug)]
pub struct PreImage {
    pub point: Pos,
    pub block: usize,
    pub content: [u32; CELLS_PER_BLOCK],
}

/// Everything a kill takes away, and the disks.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    pub alive: bool,
    pub conn: u64,
    pub store: Store,
    apply: Apply,
    /// Asked to promote, and not yet there.
    pub promote: Option<(u64, Pos)>,
}

/// Progress of the batch at the front of staging.
#[derive(Clone, Debug, Default)]
struct Apply {
    step: ApplyStep,
    batch: Option<Batch>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ApplyStep {
    #[default]
    Begin,
    Capture(usize),
    Write(usize),
    Flush,
    Record,
    Discard,
}

impl Store {
    pub fn end(&self) -> Durable {
        self.staging.back().map_or(self.applied.end, |staged| end_of(&staged.batch))
    }

    /// The same, had the power failed.
    pub fn durable_end(&self) -> Durable {
        let durable = self.staging.iter().take_while(|staged| staged.durable);
        durable.last().map_or(self.applied.end, |staged| end_of(&staged.batch))
    }

    pub fn promoted(&self) -> bool {
        self.decisions.values().any(|promoted| *promoted)
    }

    /// State behind `batch`, from the state before it.
    fn after(&self, before: Applied, batch: &Batch) -> Applied {
        let end = end_of(batch);
        let whole = batch.whole_after(before.whole);
        Applied { end, whole, point: if whole { Some(end.pos) } else { before.point } }
    }

    fn needs_pre_images(&self, before: Applied, batch: &Batch) -> Option<Pos> {
        let after = self.after(before, batch);
        if after.whole { None } else { before.point }
    }

    fn has_pre_image(&self, point: Pos, block: usize, tagged: bool) -> bool {
        self.undo.iter().any(|p| p.block == block && (p.point == point || !tagged))
    }

    /// What a receiver that is killed now and only recovers would have: redo of all that is
    /// staged, then back to the point if the group is broken there.
    pub fn recovered(&self, undo: bool, tagged: bool) -> (Content, Option<Pos>) {
        let mut content = self.target.now;
        let mut state = self.applied;
        let mut virtual_store = self.clone_undo();
        for staged in &self.staging {
            if let Some(point) = self.needs_pre_images(state, &staged.batch)
                && undo
            {
                capture(&mut virtual_store, &content, point, &staged.batch, tagged);
            }
            for (cell, value) in staged.batch.values() {
                content[cell] = value;
            }
            state = self.after(state, &staged.batch);
        }
        if let Some(point) = state.point
            && !state.whole
        {
            for image in virtual_store.undo.iter().filter(|p| p.point == point || !tagged) {
                content[cells_of(image.block)].copy_from_slice(&image.content);
            }
        }
        (content, state.point)
    }

    fn clone_undo(&self) -> Store {
        Store { undo: self.undo.clone(), ..Store::default() }
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        let durable = self.staging.iter().take_while(|staged| staged.durable).count();
        self.staging.truncate(durable);
        self.target.lose_power(rng);
        self.version += 1;
    }
}

fn capture(store: &mut Store, content: &Content, point: Pos, batch: &Batch, tagged: bool) {
    for (cell, _) in batch.values() {
        let block = block_of(cell);
        if !store.has_pre_image(point, block, tagged) {
            let cells = cells_of(block);
            let content = std::array::from_fn(|i| content[cells.start + i]);
            store.undo.push(PreImage { point, block, content });
        }
    }
}

fn end_of(batch: &Batch) -> Durable {
    Durable {
        pos: batch.pos,
        claims: batch.claims,
        number: batch.number,
        hash: batch.hash(),
        stream_bytes: batch.stream_bytes,
    }
}

impl World {
    pub fn receiver_received(&mut self, conn: u64, message: ToReceiver) {
        let known = conn == self.receiver.conn || !self.rules.session_fence;
        self.note(|| format!("receiver got on {conn}: {message:?}"));
        match message {
            ToReceiver::Hello { .. } => {
                // Sessions have no order: the last one to arrive is the one that is known.
                // The others are closed, so that a shipper which waits there for an ack sees
                // it: the late HELLO of a dead one may have come behind its own.
                self.receiver.conn = conn;
                let fence = self.rules.session_fence;
                for other in self.conns.iter_mut().filter(|c| fence && c.id != conn) {
                    other.receiver_gone = true;
                }
                self.receiver.promote = None;
                self.sync_staging();
                let durable = self.receiver.store.end();
                self.tell(conn, ToShipper::HelloReply { durable });
            }
            _ if !known => self.hang_up(conn),
            ToReceiver::Batch(batch) => self.stage(conn, batch),
            ToReceiver::Promote { attempt, pos } => {
                match self.receiver.store.decisions.get(&attempt) {
                    Some(promoted) if self.rules.decides_once => {
                        let promoted = *promoted;
                        self.tell(conn, ToShipper::Decision { attempt, promoted });
                    }
                    _ => self.receiver.promote = Some((attempt, pos)),
                }
            }
            ToReceiver::Abort { attempt } => {
                self.receiver.promote = None;
                let decisions = &mut self.receiver.store.decisions;
                if !self.rules.decides_once {
                    decisions.insert(attempt, false);
                }
                let promoted = *decisions.entry(attempt).or_insert(false);
                self.tell(conn, ToShipper::Decision { attempt, promoted });
            }
        }
    }

    fn stage(&mut self, conn: u64, batch: Batch) {
        let store = &self.receiver.store;
        let end = store.end();
        let chained = batch.number == end.number + 1 && batch.previous == end.hash;
        let follows = match &batch.body {
            Body::Records { first, kinds } => {
                let next = batch.pos.inc == end.pos.inc && *first == end.pos.seq + 1;
                let newer = batch.pos.inc > end.pos.inc && *first == 1;
                let resync = batch.pos > end.pos && kinds.first() == Some(&Kind::Resync);
                let relaxed = !self.rules.fresh_resync || !self.rules.resync_begins_incarnation;
                next || newer || resync || (relaxed && batch.pos >= end.pos)
            }
            _ => batch.pos == end.pos || !self.rules.fresh_resync,
        };
        let loose = !self.rules.number_chain;
        // Without the checks of position a receiver behind would be fed a stream with a gap.
        let gap_allowed = !self.rules.resume_checks_position || !self.rules.slots_freed_by_ack;
        if store.promoted() || !(chained || loose) || !(follows || loose || gap_allowed) {
            return self.hang_up(conn);
        }
        if !self.rules.compare_in_stream {
            self.tell_compared(&batch);
        }
        self.receiver.store.staging.push_back(Staged { batch, durable: false });
        self.receiver.store.version += 1;
        if !self.rules.ack_after_staging_sync {
            let durable = self.receiver.store.end();
            self.tell(conn, ToShipper::Ack { durable });
        }
    }

    /// The verdict on a question, to whoever is there now.
    fn tell_compared(&mut self, batch: &Batch) {
        let Body::Compare { claim, block, content, .. } = &batch.body else { return };
        let differs = self.receiver.store.target.now[cells_of(*block)] != content[..];
        let (number, claim, block) = (batch.number, *claim, *block);
        self.seen.verdicts[usize::from(differs)] += 1;
        let conn = self.receiver.conn;
        self.tell(conn, ToShipper::Compared { number, claim, block, differs });
    }

    pub fn needs_sync(&self) -> bool {
        self.receiver.alive && self.receiver.store.staging.iter().any(|staged| !staged.durable)
    }

    pub fn sync_and_ack(&mut self) {
        self.note(|| "receiver syncs staging".into());
        self.sync_staging();
        let durable = self.receiver.store.end();
        let conn = self.receiver.conn;
        self.tell(conn, ToShipper::Ack { durable });
    }

    fn sync_staging(&mut self) {
        for staged in &mut self.receiver.store.staging {
            staged.durable = true;
        }
    }

    pub fn can_apply(&self) -> bool {
        let front = self.receiver.store.staging.front();
        let busy = self.receiver.apply.batch.is_some();
        self.receiver.alive && (busy || front.is_some_and(|staged| staged.durable))
    }

    pub fn step_apply(&mut self) {
        let rules = self.rules;
        let step = self.receiver.apply.step;
        self.note(|| format!("receiver applies: {step:?}"));
        let Receiver { store, apply, .. } = &mut self.receiver;
        store.version += 1;
        if step == ApplyStep::Begin {
            apply.batch = store.staging.front().map(|staged| staged.batch.clone());
        }
        let Some(batch) = apply.batch.clone() else { return };
        let values = batch.values();
        let mut answered = false;
        let mut marked = Vec::new();
        apply.step = match step {
            ApplyStep::Begin => {
                if !rules.redo {
                    store.applied = store.after(store.applied, &batch);
                    store.staging.pop_front();
                    return apply.step = ApplyStep::Write(0);
                }
                ApplyStep::Capture(0)
            }
            ApplyStep::Capture(i) => match store.needs_pre_images(store.applied, &batch) {
                Some(point) if rules.undo && i < values.len() => {
                    let block = block_of(values[i].0);
                    if !store.has_pre_image(point, block, rules.undo_tagged) {
                        let cells = cells_of(block);
                        let content = std::array::from_fn(|i| store.target.now[cells.start + i]);
                        store.undo.push(PreImage { point, block, content });
                    }
                    ApplyStep::Capture(i + 1)
                }
                _ => ApplyStep::Write(0),
            },
            ApplyStep::Write(i) => match values.get(i) {
                Some((cell, value)) => {
                    store.target.now[*cell] = *value;
                    ApplyStep::Write(i + 1)
                }
                None => ApplyStep::Flush,
            },
            ApplyStep::Flush => {
                if rules.applied_after_flush {
                    store.target.flush();
                }
                ApplyStep::Record
            }
            ApplyStep::Record => {
                if rules.redo {
                    store.applied = store.after(store.applied, &batch);
                    store.staging.pop_front();
                }
                // A mark behind a gap that only the shipper knows of is none.
                if store.applied.whole || !rules.mark_needs_whole {
                    marked = batch.marks();
                }
                ApplyStep::Discard
            }
            ApplyStep::Discard => {
                answered = rules.compare_in_stream;
                if store.applied.whole {
                    store.undo.clear();
                }
                apply.batch = None;
                ApplyStep::Begin
            }
        };
        if answered {
            self.tell_compared(&batch);
        }
        marked.into_iter().for_each(|pos| self.check_mark(pos));
    }

    /// Everything up to the sealed position is applied, and it is a point.
    pub fn can_decide(&self) -> bool {
        let Some((_, pos)) = self.receiver.promote else { return false };
        let store = &self.receiver.store;
        let there = store.applied.whole && store.applied.end.pos == pos;
        self.receiver.alive
            && store.staging.is_empty()
            && self.receiver.apply.batch.is_none()
            && (there || !self.rules.promote_checks_position)
    }

    pub fn decide(&mut self) {
        let Some((attempt, _)) = self.receiver.promote.take() else { return };
        self.receiver.store.decisions.insert(attempt, true);
        self.note(|| format!("receiver PROMOTES attempt {attempt}"));
        let conn = self.receiver.conn;
        self.tell(conn, ToShipper::Decision { attempt, promoted: true });
    }

    fn tell(&mut self, conn: u64, message: ToShipper) {
        if let Some(conn) = self.conns.iter_mut().find(|c| c.id == conn) {
            conn.to_shipper.push_back(message);
        }
    }

    fn hang_up(&mut self, conn: u64) {
        if let Some(conn) = self.conns.iter_mut().find(|c| c.id == conn) {
            conn.receiver_gone = true;
        }
    }

    pub fn kill_receiver(&mut self) {
        self.note(|| "KILL receiver".into());
        self.stop_receiver();
    }

    fn stop_receiver(&mut self) {
        let mut store = std::mem::take(&mut self.receiver.store);
        if !self.rules.decision_is_durable {
            store.decisions.clear();
        }
        // The session number is durable with the staging it fences.
        let conn = self.receiver.conn;
        self.receiver = Receiver { conn, store, ..Receiver::default() };
        for conn in &mut self.conns {
            conn.receiver_gone = true;
        }
    }

    /// The receiver's machine loses power.
    pub fn power_loss_receiver(&mut self) {
        self.note(|| "POWER LOSS receiver".into());
        self.stop_receiver();
        // A point that was staged but not yet durable was never promised.
        let mut durable = self.receiver.store.clone();
        durable.staging.retain(|staged| staged.durable);
        self.seen.point = durable.recovered(self.rules.undo, self.rules.undo_tagged).1;
        self.receiver.store.lose_power(&mut self.rng);
    }

    /// Somebody puts the receiver's disks back to an earlier day.
    pub fn set_back_receiver(&mut self, earlier: Store) {
        self.note(|| "the receiver is SET BACK to an earlier state".into());
        self.stop_receiver();
        let version = self.receiver.store.version + 1;
        self.receiver.store = Store { version, ..earlier };
    }
}
