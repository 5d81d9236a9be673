//! Looking on: a group's journal as tools see it, live or dead. Reads only, maps
//! read-only, disturbs nobody.
//!
//! Nothing found in the files is believed: counters are held against each other and
//! against the slots, so that no damaged word makes a tool hang, crash or count to
//! infinity. On a live group both ends of the ring move on while it is read; what is
//! said of a record was true when its commit word was read.

mod changes;
mod mix;
mod open;
mod replay;
mod stat;
mod verify;

use crate::error::{Error, ErrorKind};
use crate::format::{Control, Counter, Kind};
use crate::progress::{Figure, Progress};
use crate::record::Record;
use crate::ring::Ring;
use crate::spill::{Headers, SpillReader, Store, Walk};
use crate::state::{GroupDir, GroupState};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use towline_block::BlockRange;

pub use crate::record::SlotFault;
pub use changes::{Cell, VolumeChanges};
pub use mix::{Bucket, KindCount, Mix, kind_name};
pub use replay::{Applied, GAPS_MAX, Gap, Gaps};
pub use stat::{Hot, Interval, Stat, UNIQUE_BLOCK_BYTES, VolumeStat};
pub use verify::{FINDINGS_MAX, Finding, Verification};

/// Largest number a commit word can name.
const SEQ_MAX: u64 = u64::MAX >> 2;

/// The words of a saved change map, volume by volume: one bit a block, 64 to a word.
///
/// # Errors
/// [`crate::ErrorKind::Newer`] for a later version, [`crate::ErrorKind::Damaged`] otherwise.
pub fn saved_map(bytes: &[u8]) -> crate::Result<Vec<Vec<u64>>> {
    crate::saved::parse(bytes).map(|saved| saved.words)
}

/// The words of an activity map's file, volume by volume: one bit an extent, 64 to a word.
///
/// # Errors
/// [`crate::ErrorKind::Newer`] for a later version, [`crate::ErrorKind::Damaged`] for what is not
/// whole or not of this group, incarnation and volumes of these sizes.
pub fn activity_map(
    bytes: &[u8],
    group_uuid: [u8; 16],
    incarnation: u32,
    sizes: &[u64],
) -> crate::Result<Vec<Vec<u64>>> {
    crate::activity::file::parse(bytes, group_uuid, incarnation, sizes).map(|found| found.hot)
}

/// A group's files, opened together.
pub struct GroupView {
    pub dir: GroupDir,
    pub state: GroupState,
    ring: Option<Ring>,
    names: Vec<String>,
    spill: RefCell<SpillReader>,
    /// What the spill holds of a ring that is lost ([`GroupView::look_into_spill`]).
    lone: Option<RangeInclusive<u64>>,
    /// Why there is no ring, when there is none.
    pub ring_error: Option<Error>,
    pub progress: Option<Progress>,
}

/// Where the journal stands: the counters, if they do not contradict each other,
/// else what the slots show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub head: u64,
    pub done: u64,
    pub acked: u64,
    /// Up to here the spill has what the target lacks.
    pub spilled: u64,
    /// The counters fit together and into the ring.
    pub sound: bool,
}

/// How full the ring is of what the target lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    pub slots: u64,
    pub slots_used: u64,
    pub payload_bytes: u64,
    pub payload_used_bytes: u64,
}

impl GroupView {
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// With the ring lost, takes what the spill holds of it as the journal: its newest run of
    /// records. What of it the target has is not known then. Reads every span's header.
    pub fn look_into_spill(&mut self) {
        if self.ring_error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Missing) {
            let store = Store::of(&self.dir, Some(&self.state));
            let scanned = crate::spill::scan(&store, &self.state.group_uuid.0);
            let newest = scanned.runs(&self.state.ring.id.0).pop().filter(|run| run.first > 0);
            self.lone = newest.map(|run| run.first..=run.last);
        }
    }

    /// The records that the spill holds of a lost ring.
    pub fn lone_spill(&self) -> Option<&RangeInclusive<u64>> {
        self.lone.as_ref()
    }

    /// A counter of the ring; 0 without one. Numbers and block counts are cut at
    /// what is possible, so that callers may compute with them.
    pub fn get(&self, counter: Counter) -> u64 {
        let Some(ring) = &self.ring else { return 0 };
        let value = ring.get(counter);
        match counter {
            Counter::Head | Counter::Done | Counter::Acked | Counter::HealedSeq => {
                value.min(SEQ_MAX)
            }
            Counter::DirtyBlocks | Counter::ClaimedBlocks | Counter::SuspectBlocks => {
                value.min((0..ring.volumes.len()).map(|volume| ring.blocks(volume)).sum())
            }
            _ => value,
        }
    }

    /// Whether the target's disks have record `seq` of this incarnation, as the shipper knows.
    pub fn is_applied(&self, seq: u64) -> bool {
        let Some(progress) = &self.progress else { return false };
        let applied = [Figure::AppliedIncarnation, Figure::AppliedSeq].map(|of| progress.get(of));
        applied >= [u64::from(self.state.incarnation), seq]
    }

    /// The counters, checked.
    pub fn marks(&self) -> Marks {
        let Some(ring) = &self.ring else {
            let lone = |range: &RangeInclusive<u64>| (range.start() - 1, *range.end());
            let (acked, last) = self.lone.as_ref().map_or((0, 0), lone);
            return Marks { head: last, done: last, acked, spilled: last, sound: true };
        };
        // The ack is read once more behind the head: until then it may have moved
        // and made room that the head has taken.
        let before = ring.get(Counter::Acked);
        let spilled = ring.get(Counter::Spilled);
        let done = ring.get(Counter::Done);
        let mut head = ring.get(Counter::Head);
        let acked = ring.get(Counter::Acked);
        // A control record is published before the head moves over it, and another
        // thread may count it as done in between: right, if it is there.
        if done > head && done <= SEQ_MAX && ring.record(done).is_ok() {
            head = done;
        }
        let sound = before <= done
            && before <= acked
            && done <= head.max(acked)
            && head <= SEQ_MAX
            && acked <= SEQ_MAX
            && spilled <= done.max(acked)
            && spilled.saturating_sub(acked) <= self.spill_records_max()
            && head.saturating_sub(acked.max(spilled)) <= ring.slots()
            && (acked <= head || ring.get(Counter::Head) >= acked);
        if sound {
            // Head and done lag when the ack overtook them between two reads.
            return Marks { head: head.max(acked), done: done.max(acked), acked, spilled, sound };
        }
        let head = self.highest_in_slots(ring);
        Marks { head, done: head, acked: head.saturating_sub(ring.slots()), spilled: 0, sound }
    }

    /// The highest number whose slot parses.
    fn highest_in_slots(&self, ring: &Ring) -> u64 {
        let named = (0..ring.slots()).map(|index| ring.named_in_slot(index));
        named.filter(|seq| ring.record(*seq).is_ok()).max().unwrap_or(0)
    }

    pub fn ring_payload_bytes(&self) -> u64 {
        self.ring.as_ref().map_or(0, Ring::payload_bytes)
    }

    /// Bytes of payload that the ring still holds for the target.
    pub fn ring_used_bytes(&self) -> u64 {
        let tail = self.get(Counter::PayloadTail);
        self.get(Counter::PayloadHead).saturating_sub(tail).min(self.ring_payload_bytes())
    }

    pub fn fill(&self) -> Fill {
        let marks = self.marks();
        Fill {
            slots: self.ring.as_ref().map_or(0, Ring::slots),
            slots_used: marks.head - marks.acked.max(marks.spilled).min(marks.head),
            payload_bytes: self.ring_payload_bytes(),
            payload_used_bytes: self.ring_used_bytes(),
        }
    }

    pub fn proxy_runs(&self) -> bool {
        self.dir.is_locked("lock")
    }

    pub fn shipper_runs(&self) -> bool {
        self.dir.is_locked("ship.lock")
    }

    /// Records that the spill's files have room for.
    fn spill_records_max(&self) -> u64 {
        let segments = Store::of(&self.dir, Some(&self.state)).count();
        u64::from(segments) * (crate::spill::layout::SEGMENT_BYTES / crate::format::SLOT_BYTES)
    }

    /// Numbers of the records that the target lacks, oldest first; never more than
    /// ring and spill have room for. On a live group both ends move on; a record may be gone
    /// when it is asked for.
    pub fn pending(&self) -> RangeInclusive<u64> {
        let marks = self.marks();
        marks.acked + 1..=marks.head
    }

    /// Records whose slot was not given away yet, also those that the target has: the
    /// newest, and quickly read.
    pub fn in_ring(&self) -> RangeInclusive<u64> {
        let slots = self.ring.as_ref().map_or(0, Ring::slots);
        let head = self.marks().head;
        head.saturating_sub(slots) + 1..=head
    }

    /// All records that may still be there: those that the target lacks, and those of
    /// [`GroupView::in_ring`].
    pub fn present(&self) -> RangeInclusive<u64> {
        let pending = self.pending();
        *self.in_ring().start().min(pending.start())..=*pending.end()
    }

    /// Record `seq`, from the ring or from the spill.
    pub fn record(&self, seq: u64) -> Option<Record> {
        self.read(seq)?.ok()
    }

    /// Record `seq`, or why neither its slot nor the spill shows it; `None` without both.
    pub fn read(&self, seq: u64) -> Option<Result<Record, SlotFault>> {
        let in_ring = match &self.ring {
            Some(ring) => ring.record(seq),
            None => {
                self.lone.as_ref()?;
                Err(SlotFault::OtherRecord { found: 0 })
            }
        };
        Some(in_ring.or_else(|fault| self.spilled_header(seq).ok_or(fault)))
    }

    /// The records of a range that ring and spill show, in order.
    pub fn records(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = Record> + '_ {
        let spilled = self.lone.as_ref().map_or(self.get(Counter::Spilled), |lone| *lone.end());
        let upto = spilled.min(*range.end());
        let mut headers = None;
        range.filter_map(move |seq| {
            let in_ring = self.ring.as_ref().and_then(|ring| ring.record(seq).ok());
            if in_ring.is_some() || seq > upto {
                return in_ring.or_else(|| self.spilled_header(seq));
            }
            let headers = headers.get_or_insert_with(|| Headers::new(self.walk(&(seq..=upto))));
            headers.get(seq).filter(|record| self.is_spilled(seq) && self.is_within(record))
        })
    }

    /// The spill's records of a range, one after the other.
    fn walk(&self, range: &RangeInclusive<u64>) -> Walk {
        let store = Store::of(&self.dir, Some(&self.state));
        Walk::new(store, self.state.group_uuid.0, self.state.ring.id.0, range)
    }

    /// The payload of a record, when it passes its checksum.
    pub fn payload(&self, record: &Record) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.ring.as_ref().is_some_and(|ring| ring.read_payload(record, &mut bytes)) {
            return Some(bytes);
        }
        self.spilled(record.seq).map(|(_, payload)| payload)
    }

    /// Record `seq` without its payload, where the spill holds it.
    fn spilled_header(&self, seq: u64) -> Option<Record> {
        if !self.is_spilled(seq) {
            return None;
        }
        self.spill.borrow_mut().header(seq).ok().filter(|record| self.is_within(record))
    }

    fn is_spilled(&self, seq: u64) -> bool {
        match &self.lone {
            Some(range) => range.contains(&seq),
            None => seq <= self.get(Counter::Spilled),
        }
    }

    fn is_within(&self, record: &Record) -> bool {
        is_within(record, |volume| self.volume_size_bytes(volume))
    }

    /// Record `seq` with its payload, where the spill holds it.
    fn spilled(&self, seq: u64) -> Option<(Record, Vec<u8>)> {
        if !self.is_spilled(seq) {
            return None;
        }
        let mut payload = Vec::new();
        let record = self.spill.borrow_mut().read(seq, &mut payload).ok()?;
        self.is_within(&record).then_some((record, payload))
    }

    /// Whether the payload's room was not given to a later record meanwhile. Only
    /// of a record that the target has can this be false.
    pub fn still_holds(&self, record: &Record) -> bool {
        let Some(position) = record.payload_position else { return true };
        self.get(Counter::PayloadHead) <= position.saturating_add(self.ring_payload_bytes())
    }

    /// The control records of a range, in order.
    pub fn controls(&self, range: RangeInclusive<u64>) -> Vec<(Control, Record)> {
        let control = |record: Record| {
            let control = record.control.filter(|_| record.kind == Kind::Control)?;
            Some((control, record))
        };
        self.records(range).filter_map(control).collect()
    }

    /// Incarnation of the ring itself; that of `state.json` without one.
    pub fn ring_incarnation(&self) -> u32 {
        self.ring.as_ref().map_or(self.state.incarnation, Ring::incarnation)
    }

    /// Name of the volume that a record names, if it touches one.
    pub fn volume_name(&self, record: &Record) -> Option<&str> {
        let touches = matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim | Kind::Barrier);
        self.names.get(record.volume.index()).filter(|_| touches).map(String::as_str)
    }

    /// Names of the ring's volumes; those of `state.json` without a ring.
    pub fn volume_names(&self) -> &[String] {
        &self.names
    }

    /// Size of a volume; 0 when there is none of that number.
    pub fn volume_size_bytes(&self, volume: usize) -> u64 {
        match &self.ring {
            Some(ring) => ring.volumes.get(volume).map_or(0, |v| v.size_bytes.get()),
            None => self.state.volumes.get(volume).map_or(0, |v| v.size_bytes),
        }
    }

    fn volume_blocks(&self, volume: usize) -> BlockRange {
        BlockRange::of_volume(self.volume_size_bytes(volume))
    }
}

/// Whether a record of the spill lies inside the volume that it names.
fn is_within(record: &Record, size_bytes: impl Fn(usize) -> u64) -> bool {
    let changes = matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim);
    !changes || record.extent.within(size_bytes(record.volume.index()))
}

impl Ring {
    /// The number in the commit word of slot `index`; 0 when it does not belong there.
    fn named_in_slot(&self, index: u64) -> u64 {
        let (seq, _) = crate::format::commit_parts(
            self.commit(index).load(std::sync::atomic::Ordering::Acquire),
        );
        if seq % self.slots() == index { seq } else { 0 }
    }
}

#[cfg(test)]
mod tests;
