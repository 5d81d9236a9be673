//! The proxy's volume threads: gate, journal, source write, reply; one kill point between
//! any two stores. `proxy/start.rs` is the start and recovery, `proxy/link.rs` what it does
//! for the shipper.

mod control;
mod damage;
mod durable;
mod link;
mod start;

pub use link::{Claim, Granted, HistoryPart, Link, LinkOp, Reply, Req};
pub use start::Start;

use crate::activity::Activity;
use crate::disk::{BLOCKS, BlockSet, VOLUMES, volume_of_block};
use crate::guest::Request;
use crate::parts::Parts;
use crate::persister::Index;
use crate::ring::{Base, Kind, Pos, RECORD_CELLS_MAX, SLOTS_RESERVED, SlotState};
use crate::world::{World, Zombie};

/// What the proxy keeps in `state.json`; replaced atomically, durable at once.
#[derive(Clone, Debug, Default)]
pub struct StateFile {
    pub inc: u32,
    pub seal: Option<Seal>,
    pub promoted: bool,
    /// The incarnation before, of which the spill may have records.
    pub history: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub attempt: u64,
    pub pos: Pos,
}

/// What an orderly stop leaves.
#[derive(Clone, Debug)]
pub struct SavedMap {
    pub dirty: BlockSet,
    pub base: Base,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Dead,
    Starting(Start),
    Serving,
    /// The target has taken over; only the link answers.
    Retired,
}

/// Who holds the append lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Volume(usize),
    Heal,
    Attach,
}

/// Everything a kill takes away.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub life: Life,
    pub ops: [Option<Op>; VOLUMES],
    pub lock: Option<Owner>,
    pub held: Option<Held>,
    pub link_op: Option<LinkOp>,
    pub claims: Vec<Granted>,
    /// Of dirty blocks: which cells.
    pub parts: [Parts; BLOCKS],
    pub activity: Activity,
    pub index: Index,
    /// A flush of the volume's source has failed.
    pub sync_failed: [bool; VOLUMES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub attempt: u64,
    pub until: u64,
}

impl Proxy {
    pub fn dead() -> Proxy {
        Proxy {
            life: Life::Dead,
            ops: [None, None],
            lock: None,
            held: None,
            link_op: None,
            claims: Vec::new(),
            parts: [None; BLOCKS],
            activity: Activity::default(),
            index: Index::default(),
            sync_failed: [false; VOLUMES],
        }
    }

    /// An operation of the volume has begun and not ended.
    pub fn in_flight(&self, volume: usize) -> bool {
        self.ops[volume].as_ref().is_some_and(|op| op.phase != Phase::Begin)
    }
}

/// A request on its way through a volume's thread.
#[derive(Clone, Debug)]
pub struct Op {
    request: Request,
    values: Vec<(usize, u32)>,
    phase: Phase,
    /// Its records; empty: un-journaled.
    seqs: Vec<u64>,
    failed: bool,
    /// Records that have to be durable before the answer, where that is asked for.
    needed: u64,
    /// The flush that is under way is the spill's, too.
    flushing: Option<Box<durable::Flushing>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Begin,
    Publish(usize),
    /// Since then it waits for its extents to be hot.
    Touch(Option<u64>),
    /// Since then the flush waits for the spill's writes.
    Held(u64),
    Write(usize),
    /// The device is flushing, until then.
    EndFlush(u64),
    Finish(usize),
    /// Since then the answer waits for the journal's disk.
    Await(u64),
    Break(Then),
    Flag(Then),
    Dirty(usize, Then),
    Tombstone(usize),
    Reply,
}

/// What follows once the blocks are dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Write,
    Tombstone,
    Reply,
}

impl Op {
    pub fn new(request: Request) -> Op {
        let values = request.values();
        let (phase, seqs) = (Phase::Begin, Vec::new());
        Op { request, values, phase, seqs, failed: false, needed: 0, flushing: None }
    }

    fn blocks(&self) -> BlockSet {
        Kind::Write(self.values.clone()).blocks()
    }

    fn records(&self) -> Vec<Kind> {
        match &self.request {
            Request::Flush => vec![Kind::Barrier],
            Request::Write(values) => {
                values.chunks(RECORD_CELLS_MAX).map(|v| Kind::Write(v.to_vec())).collect()
            }
            Request::Zero(cells) => {
                cells.chunks(RECORD_CELLS_MAX).map(|c| Kind::Zero(c.to_vec())).collect()
            }
        }
    }

    fn record_of(&self, index: usize) -> u64 {
        self.seqs.get(index / RECORD_CELLS_MAX).copied().unwrap_or(0)
    }
}

impl World {
    /// Whether the volume's thread can do something now.
    pub fn volume_is_ready(&self, volume: usize) -> bool {
        let answers = matches!(self.proxy.life, Life::Serving | Life::Retired);
        if !answers || self.link_op_uses(volume) {
            return false;
        }
        let Some(op) = &self.proxy.ops[volume] else { return false };
        let lock_free = self.proxy.lock.is_none_or(|o| o == Owner::Volume(volume));
        match op.phase {
            Phase::Begin if self.refuses() => true,
            Phase::Begin => {
                let held = self.proxy.held.is_some() && self.rules.hold_gates_writes;
                lock_free && (!held || op.request == Request::Flush)
            }
            Phase::Break(_) => lock_free,
            Phase::Held(since) => self.is_flushable(op, since),
            Phase::EndFlush(until) => self.now >= until,
            Phase::Await(since) => self.is_answerable(op, since),
            _ => true,
        }
    }

    /// One step of the volume's thread.
    pub fn step_volume(&mut self, volume: usize) {
        let Some(mut op) = self.proxy.ops[volume].take() else { return };
        let phase = op.phase;
        self.note(|| format!("volume {volume}: {phase:?} {:?}", op.request));
        match phase {
            Phase::Begin => self.begin(volume, &mut op),
            Phase::Publish(i) => {
                self.set_slot(op.seqs[i], SlotState::Intent);
                let last = i + 1 == op.seqs.len();
                op.phase = if last { Phase::Touch(None) } else { Phase::Publish(i + 1) };
            }
            Phase::Touch(since) => {
                let since = since.unwrap_or(self.now);
                let ready = self.touch(&op.blocks(), self.now - since);
                let flush = op.request == Request::Flush;
                op.phase = match ready {
                    true if flush && self.is_eager() => Phase::Held(self.now),
                    true => Phase::Write(0),
                    false => Phase::Touch(Some(since)),
                };
            }
            Phase::Held(_) => op.phase = Phase::Write(0),
            Phase::Write(_) if op.request == Request::Flush => self.flush_source(volume, &mut op),
            Phase::Write(i) => self.write_source(&mut op, i),
            Phase::EndFlush(_) => self.end_flush(volume, &mut op),
            Phase::Await(since) => self.end_wait(&mut op, since),
            Phase::Finish(i) => {
                self.set_slot(op.seqs[i], SlotState::Done);
                if !self.rules.slots_freed_by_ack {
                    self.ring_mut().acked = op.seqs[i];
                    self.ring_mut().free_tail();
                }
                if i + 1 == op.seqs.len() {
                    self.ended(&mut op);
                } else {
                    op.phase = Phase::Finish(i + 1);
                }
            }
            Phase::Break(then) => {
                self.proxy.lock = Some(Owner::Volume(volume));
                self.append_break();
                op.phase = Phase::Flag(then);
            }
            Phase::Flag(then) => {
                self.ring_mut().whole = false;
                let at = self.head();
                self.history.broke(at);
                op.phase = Phase::Dirty(0, then);
            }
            Phase::Dirty(block, then) => self.dirty_next(&mut op, block, then),
            Phase::Tombstone(i) => {
                self.set_slot(op.seqs[i], SlotState::Failed);
                op.phase = match (i + 1 == op.seqs.len(), self.rules.dirty_before_tombstone) {
                    (false, _) => Phase::Tombstone(i + 1),
                    (true, true) => Phase::Reply,
                    (true, false) => Phase::Break(Then::Reply),
                };
            }
            Phase::Reply => {
                self.reply(volume, &op);
                return;
            }
        }
        self.proxy.ops[volume] = Some(op);
    }

    fn refuses(&self) -> bool {
        self.state.seal.is_some() || self.proxy.life == Life::Retired
    }

    fn begin(&mut self, volume: usize, op: &mut Op) {
        if self.refuses() {
            // ESHUTDOWN: the guest keeps the request and asks again later, here or there.
            op.failed = true;
            op.phase = Phase::Reply;
            self.guests[volume].sent = false;
            return;
        }
        let blocks = op.blocks();
        let flush = op.request == Request::Flush;
        let rules = self.rules;
        let ring = self.ring_mut();
        let touched = |b: &usize| blocks[*b];
        let all_dirty = (0..BLOCKS).filter(touched).all(|b| ring.dirty[b]);
        let any_dirty = (0..BLOCKS).filter(touched).any(|b| ring.dirty[b]);
        if !flush && (all_dirty || (any_dirty && !rules.unjournaled_needs_all_dirty)) {
            op.phase = Phase::Write(0);
            let dirty = (0..BLOCKS).filter(|b| blocks[*b] && ring.dirty[*b]).collect::<Vec<_>>();
            dirty.into_iter().for_each(|block| self.dirty_parts(block, &op.values));
            return;
        }
        op.needed = if flush { ring.head } else { 0 };
        let records = op.records();
        let reserved = if rules.control_slots_reserved { SLOTS_RESERVED } else { 0 };
        if ring.free_slots() >= records.len() + reserved {
            let append = |kind| ring.append(kind, SlotState::Reserved);
            op.seqs = records.into_iter().map(append).collect();
            op.phase = Phase::Publish(0);
        } else if flush {
            op.phase = if self.is_eager() { Phase::Held(self.now) } else { Phase::Write(0) };
        } else if !rules.overflow_to_map {
            self.violate("(g) a guest's write waits for room in the ring".into());
        } else if rules.dirty_before_source_write {
            op.phase = Phase::Break(Then::Write);
        } else {
            op.phase = Phase::Write(0);
        }
    }

    fn write_source(&mut self, op: &mut Op, index: usize) {
        if self.source_write_fails() {
            op.failed = true;
            let inc = self.head().inc;
            for seq in &op.seqs {
                self.history.failed(Pos { inc, seq: *seq });
            }
            op.phase = match (op.seqs.is_empty(), self.rules.dirty_before_tombstone) {
                (true, _) => Phase::Reply,
                (false, true) => Phase::Break(Then::Tombstone),
                (false, false) => Phase::Tombstone(0),
            };
            return;
        }
        if self.refuses() {
            self.violate("(d) a sealed source is written".into());
        }
        let (cell, value) = op.values[index];
        let (at, record) = self.place_of(op, index);
        if self.rules.zero_reads_zero || matches!(op.request, Request::Write(_)) {
            self.history.wrote(at, record, cell, value);
            self.source.write(cell, value);
        }
        if index + 1 < op.values.len() {
            op.phase = Phase::Write(index + 1);
            return;
        }
        match (op.seqs.is_empty(), self.rules.dirty_before_source_write) {
            (false, _) => op.phase = Phase::Finish(0),
            (true, false) => op.phase = Phase::Break(Then::Reply),
            (true, true) => self.ended(op),
        }
    }

    /// Where a cell's write stands in the group's order, and its record if it has one.
    fn place_of(&mut self, op: &Op, index: usize) -> (Pos, u64) {
        let record = op.record_of(index);
        let mut at = self.head();
        if record != 0 {
            at.seq = record;
        }
        (at, record)
    }

    /// The kernel has a killed proxy's writes and ends them later.
    pub fn leave_zombies(&mut self) {
        for volume in 0..VOLUMES {
            let Some(op) = self.proxy.ops[volume].take() else { continue };
            if let Phase::Write(index) = op.phase
                && let Some((cell, value)) = op.values.get(index).copied()
                && self.rng.chance(50)
            {
                let (at, record) = self.place_of(&op, index);
                self.zombies.push(Zombie { at, record, cell, value });
            }
        }
    }

    fn dirty_next(&mut self, op: &mut Op, block: usize, then: Then) {
        let blocks = op.blocks();
        let Some(next) = (block..BLOCKS).find(|b| blocks[*b]) else {
            self.proxy.lock = None;
            op.phase = match then {
                Then::Write => Phase::Touch(None),
                Then::Tombstone => Phase::Tombstone(0),
                Then::Reply => Phase::Reply,
            };
            return;
        };
        match then {
            Then::Write => self.dirty_parts(next, &op.values),
            Then::Tombstone | Then::Reply => self.dirty_whole(next),
        }
        op.phase = Phase::Dirty(next + 1, then);
    }

    fn reply(&mut self, volume: usize, op: &Op) {
        let guest = &mut self.guests[volume];
        if !guest.sent {
            return;
        }
        guest.sent = false;
        guest.current = None;
        match (&op.request, op.failed) {
            (_, true) => {}
            (Request::Flush, false) => self.ledger.flush_acked(volume),
            (_, false) => self.ledger.acked(&op.values),
        }
    }

    fn set_slot(&mut self, seq: u64, state: SlotState) {
        match self.ring_mut().slot_mut(seq) {
            Some(slot) => slot.state = state,
            None => self.violate(format!("(f) the slot of record {seq} was freed under its owner")),
        }
    }

    /// Position of the last record.
    pub fn head(&mut self) -> Pos {
        let ring = self.ring_mut();
        Pos { inc: ring.inc, seq: ring.head }
    }
}

/// The volume that a claim's blocks belong to.
pub fn volume_of(blocks: &[usize]) -> Option<usize> {
    blocks.first().map(|b| volume_of_block(*b))
}
