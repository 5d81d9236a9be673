//! The shipper's requests, served on the proxy's side: attach, claim, ack, heal.

use crate::append::{Cursor, free_up_to};
use crate::format::{Control, Counter};
use crate::journal::Journal;
use crate::map::{Bits, PARTS_BLOCKS_MAX, Parts, VolumeMap};
use crate::resume::{self, Durable, Holding, Resume};
use crate::spill::{HealSeen, may_heal};
use crate::state::Hex16;
use crate::sys::sync::{MutexGuard, Ordering};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::time::Duration;
use towline_block::{BLOCK_BYTES, BlockRange, VolumeId};

/// Free slots there must be before a HEAL: its own, the next BREAK's, a RESYNC's and
/// a SEAL's. HEAL can wait for an ack, the others cannot.
const HEAL_LEAVES_SLOTS: u64 = 4;

/// A stretch of dirty blocks given to the walker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub id: u64,
    pub volume: VolumeId,
    pub first_block: u64,
    pub blocks: u64,
    /// The blocks are compared with the target before they are sent (R8).
    pub compare: bool,
    /// P of rule R3: the stream carries all records up to here before the blocks.
    pub granted_at: u64,
    /// Of each block, what of it the target lacks; empty: all of all. A walker may always
    /// send more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Parts>,
}

/// A claim that no target has acknowledged.
pub(crate) struct Granted {
    volume: VolumeId,
    blocks: BlockRange,
    parts: Vec<Parts>,
}

impl Claim {
    pub fn range(&self) -> BlockRange {
        BlockRange::new(self.first_block, self.blocks)
    }

    /// What the target lacks of a block of the claim.
    pub fn parts_of(&self, block: u64) -> Parts {
        let index = block.checked_sub(self.first_block);
        index.and_then(|index| self.parts.get(index as usize)).copied().unwrap_or(0)
    }
}

/// Where a shipper goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub epoch: u32,
    pub incarnation: u32,
    /// First record to ship.
    pub start_seq: u64,
    /// Set when the target cannot be continued: everything became dirty, and the
    /// stream restarts here. The reason is for the log.
    pub resync: Option<String>,
    /// Claims that the stream counts as complete where it begins.
    pub claims_upto: u64,
    /// Bytes that were on their way under an older session and are dirty again.
    pub reverted_bytes: u64,
    /// Records of the incarnation before that come first.
    #[serde(default)]
    pub history: Option<HistoryPart>,
}

/// What the spill has of a lost ring for a target that stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPart {
    pub incarnation: u32,
    /// Its segments carry this.
    pub ring_id: Hex16,
    pub first_seq: u64,
    pub last_seq: u64,
    /// What the target has of that incarnation's claims.
    pub claims: u64,
}

/// What becomes of blocks of which nobody knows whether the target has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// The target has something: compare, send what differs.
    Compare,
    /// The target has nothing: send.
    Send,
}

impl Journal {
    /// A new shipper session, which knows what the target durably has. `None`: the
    /// target was promoted in a later epoch and must not be written.
    pub fn attach(&self, target: Durable) -> Option<Attached> {
        let reverted = {
            // What the target has of our claims is off the map before the rest reverts.
            if target.incarnation == self.ring.incarnation() && target.epoch <= self.epoch() {
                self.end_claims(target.claims);
            }
            self.revert_claims()
        };
        let holding = Holding {
            epoch: self.epoch(),
            incarnation: self.ring.incarnation(),
            acked: self.ring.get(Counter::Acked),
            acked_claims: self.ring.get(Counter::AckedClaims),
            done: self.ring.get(Counter::Done),
            base: Durable {
                epoch: 0,
                incarnation: self.ring.superblock.base_incarnation.get(),
                seq: self.ring.superblock.base_seq.get(),
                claims: self.ring.superblock.base_claims.get(),
            },
            history: self.history(),
        };
        let mut attached = Attached {
            epoch: holding.epoch,
            incarnation: holding.incarnation,
            start_seq: 0,
            resync: None,
            claims_upto: target.claims,
            reverted_bytes: reverted * BLOCK_BYTES,
            history: None,
        };
        match resume::decide(target, &holding) {
            Resume::Superseded => return None,
            Resume::History(run) => {
                (attached.start_seq, attached.claims_upto) = (1, 0);
                attached.history = self.history_ring().map(|past| HistoryPart {
                    incarnation: past.incarnation,
                    ring_id: past.ring_id,
                    first_seq: run.first,
                    last_seq: run.last,
                    claims: target.claims,
                });
            }
            Resume::From(seq) => {
                attached.start_seq = seq;
                if target.incarnation != holding.incarnation {
                    attached.claims_upto = 0;
                }
                self.ack(seq - 1, holding.acked_claims);
            }
            Resume::Resync(why) => {
                attached.resync = Some(why.to_owned());
                let nothing_there = target.incarnation == 0;
                attached.start_seq =
                    self.resync_all(if nothing_there { Resync::Send } else { Resync::Compare });
                attached.claims_upto = self.ring.get(Counter::NextClaim) - 1;
            }
        }
        Some(attached)
    }

    /// Everything becomes dirty. The stream goes on at the RESYNC record whose number
    /// is returned, whatever the target had. Also for a damaged record in the ring.
    pub fn resync_all(&self, how: Resync) -> u64 {
        // R7: what is dirty is hot, durably. No guest waits for this.
        if let Err(e) = self.activity.heat_all() {
            tracing::error!("{e}: a power loss before the resync is done may go unnoticed");
        }
        let mut cursor = self.lock_cursor();
        for index in 0..self.ring.volumes.len() {
            let volume = VolumeId(index as u16);
            let map = VolumeMap::new(&self.ring, volume);
            match how {
                Resync::Compare => map.set(Bits::Suspect, map.all()),
                Resync::Send => map.clear(Bits::Suspect, map.all()),
            };
            self.make_dirty(&mut cursor, volume, map.all());
        }
        drop(cursor);
        self.revert_claims();
        // What is final is covered by the dirty blocks. What is in flight keeps its
        // slot until it ends, and is skipped: its blocks are dirty, too.
        self.ack(self.ring.get(Counter::Done), self.ring.get(Counter::AckedClaims));
        let seq = self.append_control(&mut self.lock_cursor(), Control::Resync, 0);
        self.ring.set(Counter::ResyncSeq, seq);
        seq
    }

    /// Claims a run of dirty blocks at or after `from_block`. Only on the volume's
    /// I/O thread, between two operations: nothing is in flight on the range (R3).
    pub fn claim(&self, volume: VolumeId, from_block: u64, blocks_max: u64) -> Option<Claim> {
        let map = VolumeMap::new(&self.ring, volume);
        // Held over the bits as well: a revert on another thread comes before or after.
        let mut claims = self.claims.lock().expect("claims lock");
        let (mut run, compare) = map.claimable(from_block, blocks_max)?;
        let id = self.ring.counter(Counter::NextClaim).fetch_add(1, Ordering::SeqCst);
        let mut parts_of_all = self.parts[volume.index()].lock();
        if parts_of_all.has_any_of(run) {
            run.count = run.count.min(PARTS_BLOCKS_MAX);
        }
        let mut parts = parts_of_all.take(run);
        if compare {
            parts.clear();
        }
        claims.insert(id, Granted { volume, blocks: run, parts: parts.clone() });
        map.set(Bits::Claimed, run);
        map.clear(Bits::Dirty, run);
        drop(parts_of_all);
        let granted_at = self.lock_cursor().next_seq - 1;
        let (first_block, blocks) = (run.first, run.count);
        Some(Claim { id, volume, first_block, blocks, compare, granted_at, parts })
    }

    /// The target durably has all records up to `seq` and all claims up to `claims`.
    pub fn ack(&self, seq: u64, claims: u64) {
        let seq = seq.min(self.ring.get(Counter::Done));
        self.end_claims(claims);
        let rises = {
            // Under the append lock, so that a BREAK or HEAL is never acknowledged, and
            // out of recovery's sight, before *whole* says the same.
            let _cursor = self.lock_cursor();
            let rises = seq > self.ring.get(Counter::Acked);
            if rises {
                self.ring.set(Counter::Acked, seq);
            }
            rises
        };
        if rises {
            free_up_to(&self.ring, &self.cursor, seq);
            if let Some(spill) = &self.spill {
                spill.acked(seq, &self.ring);
            }
            self.end_history();
        }
    }

    /// Appends HEAL when nothing is dirty or claimed (R4). The shipper asks once the
    /// stream has passed every Q. Returns the record's number.
    pub fn heal(&self) -> Option<u64> {
        // What is found damaged in the history becomes dirty: before any point.
        if self.history_ring().is_some() {
            return None;
        }
        // Claims do not revert between the readings of the two counters.
        let _claims = self.claims.lock().expect("claims lock");
        let mut cursor = self.lock_cursor();
        let pending = self.ring.get(Counter::DirtyBlocks) + self.ring.get(Counter::ClaimedBlocks);
        if cursor.whole
            || pending > 0
            || cursor.free_slots(self.ring.slots()) < HEAL_LEAVES_SLOTS
            || !self.heal_is_due(&cursor)
        {
            return None;
        }
        self.heal_asked_ns.store(0, Ordering::Relaxed);
        let seq =
            self.append_control(&mut cursor, Control::Heal, self.ring.get(Counter::AckedClaims));
        cursor.whole = true;
        self.ring.set(Counter::Whole, 1);
        self.ring.set(Counter::HealedSeq, seq);
        self.wake_ladder();
        tracing::info!(group = %self.group, seq, "the journal holds every change again (HEAL)");
        Some(seq)
    }

    /// Hysteresis of the ladder: while ring or spill are full the next BREAK would be near.
    fn heal_is_due(&self, cursor: &Cursor) -> bool {
        let now = (self.clock)().max(1);
        let asked = match self.heal_asked_ns.load(Ordering::Relaxed) {
            // Never asked, or the clock was put back.
            asked if asked == 0 || asked > now => now,
            asked => asked,
        };
        self.heal_asked_ns.store(asked, Ordering::Relaxed);
        may_heal(&HealSeen {
            fill_percent: cursor.fill_percent(&self.ring),
            spill_half_free: self.spill.as_ref().is_none_or(|spill| spill.is_half_free()),
            waited: Duration::from_nanos(now - asked),
        })
    }

    /// The ring's file, to be passed to the shipper. It maps it read-only.
    pub fn ring_file(&self) -> &File {
        &self.ring_file
    }

    pub fn epoch(&self) -> u32 {
        self.state.lock().expect("state lock").epoch
    }

    pub(crate) fn lock_cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock()
    }

    fn end_claims(&self, up_to: u64) {
        let mut claims = self.claims.lock().expect("claims lock");
        while let Some(entry) = claims.first_entry()
            && *entry.key() <= up_to
        {
            let (id, Granted { volume, blocks, .. }) = entry.remove_entry();
            let map = VolumeMap::new(&self.ring, volume);
            map.clear(Bits::Suspect, blocks);
            map.clear(Bits::Claimed, blocks);
            self.ring.set(Counter::AckedClaims, id);
        }
    }

    /// Claims that no session will finish are dirty again. Returns blocks.
    pub(crate) fn revert_claims(&self) -> u64 {
        let mut claims = self.claims.lock().expect("claims lock");
        let mut reverted = 0;
        for Granted { volume, blocks, parts } in std::mem::take(&mut *claims).into_values() {
            let map = VolumeMap::new(&self.ring, volume);
            let mut all = self.parts[volume.index()].lock();
            let is_dirty = |block| map.all_set(Bits::Dirty, BlockRange::new(block, 1));
            all.give_back(blocks, &parts, is_dirty);
            // Dirty before unclaimed: the block is never neither.
            map.set(Bits::Dirty, blocks);
            reverted += map.clear(Bits::Claimed, blocks);
        }
        // Of an owner before this one.
        for index in 0..self.ring.volumes.len() {
            let map = VolumeMap::new(&self.ring, VolumeId(index as u16));
            let mut at = 0;
            while let Some(run) = map.next_claimed(at) {
                self.parts[index].lock().whole(run);
                map.set(Bits::Dirty, run);
                reverted += map.clear(Bits::Claimed, run);
                at = run.end();
            }
        }
        reverted
    }
}
