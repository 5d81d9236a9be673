//! What the journal offers of the spill: waiting for the disk, and what becomes of
//! records that the disk has lost.

use super::{Durability, Touched};
use crate::activity::extents_of;
use crate::attach::Resync;
use crate::format::Counter;
use crate::journal::Journal;
use crate::map::VolumeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use towline_block::{BlockRange, VolumeId};

/// Where the stream goes on behind a damaged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It breaks there and passes all records up to here: what they may have touched is
    /// dirty.
    Skip { upto: u64 },
    /// Everything is compared, from this RESYNC record on.
    Resync { start_seq: u64, claims_upto: u64 },
}

impl Journal {
    /// A record of the spill cannot be read back. The stream has everything before it.
    ///
    /// Where it is known what the record's segment touches, exactly these blocks become
    /// dirty, with a BREAK. Not so when a HEAL is on its way behind the record (its
    /// point would lack the blocks) or a RESYNC (the target waits for it).
    pub fn spill_damaged(&self, seq: u64) -> Damage {
        let known = self.spill.as_ref().and_then(|spill| spill.damage_at(seq));
        let mut cursor = self.lock_cursor();
        // Under the lock: no HEAL comes between this and the BREAK.
        let behind =
            self.ring.get(Counter::HealedSeq).max(self.ring.get(Counter::ResyncSeq)) >= seq;
        if let Some((upto, touched)) = known
            && !behind
        {
            // The stream breaks there even if the segment has no more than a mark: HEAL
            // has to follow.
            self.make_dirty(&mut cursor, VolumeId(0), BlockRange::new(0, 0));
            for range in &touched {
                if range.volume.index() >= self.sources.len() {
                    continue;
                }
                let all = VolumeMap::new(&self.ring, range.volume).all();
                let end = range.range().end().min(all.count);
                let blocks =
                    BlockRange::new(range.first_block, end.saturating_sub(range.first_block));
                self.make_dirty(&mut cursor, range.volume, blocks);
            }
            tracing::error!(
                group = %self.group, seq, upto, ranges = touched.len(),
                "the spill is damaged: the blocks of one segment are sent again"
            );
            drop(cursor);
            // Behind the dirty bits, or it could go cold before them; before the answer, since
            // no target has passed the record until then.
            self.heat(&touched);
            return Damage::Skip { upto };
        }
        drop(cursor);
        let start_seq = self.resync_all(Resync::Compare);
        let claims_upto = self.ring.get(Counter::NextClaim).saturating_sub(1);
        tracing::error!(group = %self.group, seq, "the spill is damaged: everything is compared");
        Damage::Resync { start_seq, claims_upto }
    }

    /// R7: what becomes dirty is hot. Its records were synced here, so it may be cold.
    fn heat(&self, touched: &[Touched]) {
        let mut extents = Vec::new();
        for range in touched {
            let Some(volume) = self.ring.volumes.get(range.volume.index()) else { continue };
            let size = volume.size_bytes.get();
            extents.extend(extents_of(range.volume.index(), range.range().extent(size), size));
        }
        if let Err(e) = self.activity.heat_now(&extents) {
            tracing::error!("{e}: a power loss before what was damaged is sent may go unnoticed");
        }
    }

    /// What an acknowledgement waits for.
    pub fn durability(&self) -> Durability {
        self.spill.as_ref().map_or(Durability::Process, |spill| spill.durability)
    }

    /// Asks for all records up to `seq` on disk, synced if the group's durability says
    /// so. Returns at once.
    pub fn persist(&self, seq: u64) {
        if let Some(spill) = &self.spill {
            spill.want(seq, true);
        }
    }

    /// Whether a flush of the volume's source makes durable what [`Self::flushable`] says.
    pub fn is_flushed_with(&self, volume: VolumeId) -> bool {
        self.flushed_with.get(volume.index()).copied().unwrap_or(false)
    }

    /// Asks for all records up to `seq` on disk, to be synced by a flush of a source for
    /// which [`Self::is_flushed_with`] holds. Returns at once.
    pub fn persist_for_flush(&self, seq: u64) {
        if let Some(spill) = &self.spill {
            spill.want(seq, false);
        }
    }

    /// Writes all records up to `seq` into the spill on this thread, for a flush of a source
    /// for which [`Self::is_flushed_with`] holds. False, and nobody was asked, when they are
    /// many, or not final, or the persister is writing.
    pub fn persist_here(&self, seq: u64) -> bool {
        self.persister.as_ref().is_some_and(|persister| persister.write_now(seq))
    }

    /// A flush issued now makes records up to here durable.
    pub fn flushable(&self) -> u64 {
        let flushable = self.spill.as_ref().map_or(0, |s| s.flushable.load(Ordering::SeqCst));
        flushable.max(self.durable_seq())
    }

    /// Such a flush has ended; `covered` is what [`Self::flushable`] was when it began.
    pub fn flushed(&self, covered: u64, succeeded: bool) {
        if let Some(spill) = &self.spill {
            spill.flushed(covered, succeeded, &self.ring);
        }
    }

    /// Answers wait for the journal's disk without bound.
    pub fn is_strict(&self) -> bool {
        self.spill.as_ref().is_some_and(|spill| spill.strict)
    }

    /// Records up to here survive a power loss: in the spill, or at the target.
    pub fn durable_seq(&self) -> u64 {
        self.ring.get(Counter::SpillDurable).max(self.ring.get(Counter::Acked))
    }

    /// Whether waiting for [`Self::durable_seq`] makes sense: the spill has room and its
    /// disk works.
    pub fn can_persist(&self) -> bool {
        self.ring.get(Counter::SpillFault) == 0
    }

    /// Calls `listener` on the spill's thread whenever [`Self::durable_seq`] may have
    /// risen by it. It must not wait.
    pub fn on_durable(&self, listener: impl Fn() + Send + Sync + 'static) {
        if let Some(spill) = &self.spill
            && spill.durability != Durability::Process
        {
            spill.listen(Box::new(listener));
        }
    }

    /// As [`Self::wait_spilled`], for [`Self::durable_seq`].
    pub fn wait_durable(&self, seq: u64, limit: Duration) -> bool {
        self.spill.as_ref().is_some_and(|spill| spill.wait(limit, || self.durable_seq() >= seq))
    }

    /// Waits until all records up to `seq` are in the spill or at the target. For tests
    /// and tools; false when that takes longer than `limit`.
    pub fn wait_spilled(&self, seq: u64, limit: Duration) -> bool {
        let spilled = || self.ring.get(Counter::Spilled).max(self.ring.get(Counter::Acked)) >= seq;
        self.spill.as_ref().is_some_and(|spill| spill.wait(limit, spilled))
    }
}
