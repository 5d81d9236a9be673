//! What the proxy keeps in shared memory: records, counters and the change map. A kill of
//! any process keeps it, a power loss does not.

use crate::disk::{BLOCKS, BlockSet, block_of};
use std::collections::VecDeque;

/// Slots of the ring. Small, so that it overflows in most runs.
pub const SLOTS: usize = 7;
/// Slots that only control records may take: two for a BREAK and a SEAL.
pub const SLOTS_RESERVED: usize = 2;
/// Cells one record can carry; a larger request becomes consecutive records.
pub const RECORD_CELLS_MAX: usize = 2;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A slot whose owner died before it was complete.
    Void,
    Write(Vec<(usize, u32)>),
    Zero(Vec<usize>),
    Barrier,
    Resync,
    Break,
    /// With the claims that the target had.
    Heal(u64),
    /// A name for this place: the target keeps what it has there.
    Mark,
    Seal,
}

impl Kind {
    pub fn blocks(&self) -> BlockSet {
        let mut set = [false; BLOCKS];
        for (cell, _) in self.values() {
            set[block_of(cell)] = true;
        }
        set
    }

    /// The cells it changes, with their new values.
    pub fn values(&self) -> Vec<(usize, u32)> {
        match self {
            Kind::Write(values) => values.clone(),
            Kind::Zero(cells) => cells.iter().map(|c| (*c, 0)).collect(),
            _ => Vec::new(),
        }
    }

    /// A payload that fails its checksum, taken all the same.
    pub fn spoil(&mut self) {
        if let Kind::Write(values) = self {
            values.iter_mut().for_each(|(_, value)| *value ^= 1 << 31);
        }
    }

    /// What the record makes of `whole`, if anything.
    pub fn whole(&self) -> Option<bool> {
        match self {
            Kind::Resync | Kind::Break => Some(false),
            Kind::Heal(_) => Some(true),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    Reserved,
    Intent,
    Done,
    Failed,
}

impl SlotState {
    pub fn is_final(self) -> bool {
        matches!(self, SlotState::Done | SlotState::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub seq: u64,
    pub kind: Kind,
    pub state: SlotState,
}

/// A position in the stream, as far as one epoch goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    pub inc: u32,
    pub seq: u64,
}

/// Where a stream must stand at least for a ring to continue it; zero: anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    pub pos: Pos,
    pub claims: u64,
}

#[derive(Clone, Debug)]
pub struct Ring {
    pub inc: u32,
    pub base: Base,
    pub head: u64,
    pub slots: VecDeque<Slot>,
    pub acked: u64,
    pub acked_claims: u64,
    pub next_claim: u64,
    pub whole: bool,
    pub dirty: BlockSet,
    pub claimed: BlockSet,
    /// Dirty or claimed, and to be compared before it is sent.
    pub suspect: BlockSet,
    pub dirty_count: i32,
    pub claimed_count: i32,
    /// Records up to here are in the spill, and durable there.
    pub spilled: u64,
    pub spill_durable: u64,
    /// Records up to here may have been lost by a failed sync of the spill.
    pub spill_lost: u64,
    /// The last HEAL and RESYNC.
    pub healed_seq: u64,
    pub resync_seq: u64,
    /// A write went on without its extent being hot durably.
    pub map_invalid: bool,
    /// The machine ran without a break since it was made.
    pub boot: u64,
    /// Records below this were made superfluous by a RESYNC: freed without the target's ack.
    pub floor: u64,
}

impl Ring {
    pub fn new(inc: u32, dirty: BlockSet, base: Base) -> Ring {
        let mut ring = Ring {
            inc,
            base,
            head: 0,
            slots: VecDeque::new(),
            acked: 0,
            acked_claims: 0,
            next_claim: 1,
            whole: false,
            dirty,
            claimed: [false; BLOCKS],
            suspect: [false; BLOCKS],
            dirty_count: 0,
            claimed_count: 0,
            spilled: 0,
            spill_durable: 0,
            spill_lost: 0,
            healed_seq: 0,
            resync_seq: 0,
            map_invalid: false,
            boot: 0,
            floor: 0,
        };
        ring.recount();
        ring
    }

    pub fn recount(&mut self) {
        self.dirty_count = count(&self.dirty);
        self.claimed_count = count(&self.claimed);
    }

    pub fn free_slots(&self) -> usize {
        SLOTS.saturating_sub(self.slots.len())
    }

    /// Gives out the next number. The caller has made sure of room.
    pub fn append(&mut self, kind: Kind, state: SlotState) -> u64 {
        self.head += 1;
        match kind {
            Kind::Heal(_) => self.healed_seq = self.head,
            Kind::Resync => self.resync_seq = self.head,
            _ => {}
        }
        self.slots.push_back(Slot { seq: self.head, kind, state });
        self.head
    }

    pub fn slot_mut(&mut self, seq: u64) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.seq == seq)
    }

    pub fn slot(&self, seq: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.seq == seq)
    }

    /// All records up to here have their final outcome.
    pub fn watermark(&self) -> u64 {
        match self.slots.iter().find(|slot| !slot.state.is_final()) {
            Some(slot) => slot.seq - 1,
            None => self.head,
        }
    }

    pub fn set_dirty(&mut self, block: usize) {
        if !self.dirty[block] {
            self.dirty[block] = true;
            self.dirty_count += 1;
        }
    }

    pub fn clear_claimed(&mut self, block: usize) {
        if self.claimed[block] {
            self.claimed[block] = false;
            self.claimed_count -= 1;
        }
    }

    /// Frees the final slots at the tail that the target or the spill has (R11).
    pub fn free_tail(&mut self) {
        let kept = self.acked.max(self.spilled);
        while self.slots.front().is_some_and(|s| s.state.is_final() && s.seq <= kept) {
            self.slots.pop_front();
        }
    }

    pub fn map_is_empty(&self) -> bool {
        self.dirty_count == 0 && self.claimed_count == 0
    }
}

pub fn count(set: &BlockSet) -> i32 {
    set.iter().filter(|bit| **bit).count() as i32
}
