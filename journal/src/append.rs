//! The write path: begin, copy, commit, finish. Never fails, never waits for
//! anything but the append lock, which is held for tens of nanoseconds.

use crate::format::*;
use crate::journal::Journal;
use crate::map::{Bits, VolumeMap};
use crate::ring::Ring;
use crate::sys::sync::{Mutex, MutexGuard, Ordering, fence};
use towline_block::{BlockRange, Extent, VolumeId, crc32c, is_zero};

/// A change that a client asked for, checked against the volume's size.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// Reads zero afterwards. At most `u32::MAX` bytes a change.
    Zero {
        extent: Extent,
        trim: bool,
    },
    /// A flush. Takes its place in the order when it is issued.
    Barrier,
}

impl Change<'_> {
    pub fn extent(&self) -> Extent {
        match self {
            Change::Write { offset, data } => Extent::new(*offset, data.len() as u64),
            Change::Zero { extent, .. } => *extent,
            Change::Barrier => Extent::new(0, 0),
        }
    }
}

/// How a change was taken. Either way the source operation comes next, then
/// [`Journal::finish`].
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Its record is visible in the ring.
    Record(Ticket),
    /// Its blocks are dirty in the change map; no record exists.
    Map,
}

/// The records of one begun change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    first: u64,
    count: u32,
    volume: VolumeId,
    extent: Extent,
}

impl Ticket {
    pub fn first_seq(&self) -> u64 {
        self.first
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
}

/// The append lock with what it guards on the same cache line: producers hand one line
/// to each other, not two.
#[repr(align(64))]
pub(crate) struct AppendLock(Mutex<Cursor>);

#[cfg(not(loom))]
const _: () = assert!(size_of::<AppendLock>() == 64);

impl AppendLock {
    pub(crate) fn new(cursor: Cursor) -> AppendLock {
        AppendLock(Mutex::new(cursor))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Cursor> {
        self.0.lock().expect("the append lock's owner never panics")
    }
}

/// What the append lock guards: where the next record goes.
pub(crate) struct Cursor {
    pub next_seq: u64,
    /// Monotonic; modulo the area's size the place of the next payload.
    pub payload_head: u64,
    pub payload_tail: u64,
    /// Records up to here no longer occupy ring space.
    pub freed_seq: u64,
    /// R5: the stream holds every change.
    pub whole: bool,
    /// The spill's thread wants to know when the ring is filled beyond these.
    pub wake_payload: u64,
    pub wake_seq: u64,
}

impl Cursor {
    /// Whether the spill's thread waits for this fill.
    pub(crate) fn is_wake_due(&self) -> bool {
        self.payload_head >= self.wake_payload || self.next_seq >= self.wake_seq
    }

    pub(crate) fn free_slots(&self, slots: u64) -> u64 {
        slots - (self.next_seq - 1 - self.freed_seq)
    }

    /// Fill of the ring, slots or payload, 0 to 100.
    pub(crate) fn fill_percent(&self, ring: &Ring) -> u64 {
        let slots = (self.next_seq - 1 - self.freed_seq) * 100 / ring.slots();
        let payload = (self.payload_head - self.payload_tail) * 100 / ring.payload_bytes();
        slots.max(payload)
    }

    /// Where a payload of `len` bytes would begin, if it fits. Payloads do not wrap;
    /// what is skipped at the end of the area counts as used until they are freed.
    pub(crate) fn place(&mut self, len: u64, area: u64) -> Option<u64> {
        let into = self.payload_head % area;
        let start =
            if into + len > area { self.payload_head + area - into } else { self.payload_head };
        if self.payload_head == self.payload_tail && len <= area {
            self.payload_tail = start;
            self.payload_head = start;
        }
        (start + len - self.payload_tail <= area).then_some(start)
    }
}

/// How far the time of the last change may lag. Written by every change, its line
/// would travel between the producers; start allows for two seconds anyway.
const LAST_CHANGE_GRAIN_NS: u64 = 1_000_000;

impl Journal {
    /// Takes a change into the journal or, where it cannot, into the change map.
    /// Must be followed by the source operation and, for a record, [`Self::finish`].
    pub fn begin(&self, volume: VolumeId, change: &Change<'_>) -> Begun {
        let extent = change.extent();
        let ring = &self.ring;
        let now_ns = (self.clock)();
        let last_change = ring.counter(Counter::LastChangeNs);
        if now_ns > last_change.load(Ordering::Relaxed).saturating_add(LAST_CHANGE_GRAIN_NS) {
            last_change.fetch_max(now_ns, Ordering::Relaxed);
        }
        let is_barrier = matches!(change, Change::Barrier);
        if !is_barrier {
            if extent.is_empty() {
                return Begun::Map;
            }
            ring.count(Counter::GuestWrittenBytes, volume, extent.len);
            let map = VolumeMap::new(ring, volume);
            // R2. Only this thread, the volume's, takes dirty away from its blocks. An
            // extent with dirty blocks is hot.
            if map.all_set(Bits::Dirty, BlockRange::touching(extent)) {
                let parts = &self.parts[volume.index()];
                if parts.has_any() {
                    parts.lock().changed(extent, |_| true);
                }
                ring.count(Counter::MappedBytes, volume, extent.len);
                return Begun::Map;
            }
        }
        let zero = match change {
            Change::Write { data, .. } => is_zero(data),
            _ => true,
        };
        let piece_bytes = if zero { u64::from(u32::MAX) } else { RECORD_PAYLOAD_BYTES_MAX };
        let count = extent.len.div_ceil(piece_bytes).max(1);
        let payload = if zero { 0 } else { extent.len };
        let Some((first, position)) = self.reserve(volume, extent, count, payload) else {
            self.touch(volume, extent);
            return Begun::Map;
        };
        match change {
            Change::Write { data, .. } if !zero => {
                self.publish_pieces(volume, now_ns, first, position, extent, data);
            }
            _ => {
                let mut slot = Slot::new(kind_of(change, zero), volume, extent, now_ns);
                ring.publish(first, &mut slot, SlotState::Intent);
            }
        }
        ring.count(Counter::JournaledBytes, volume, payload);
        // R7: after the number was taken, before the source is written.
        self.touch(volume, extent);
        Begun::Record(Ticket { first, count: count as u32, volume, extent })
    }

    /// R7. Where the map could not be waited for, whoever finds the ring has to know.
    fn touch(&self, volume: VolumeId, extent: Extent) {
        if !self.activity.touch(volume, extent) {
            self.ring.set(Counter::ActivityInvalid, 1);
        }
    }

    /// Sequence numbers and room for a change, or its blocks dirty (R2, R5).
    fn reserve(
        &self,
        volume: VolumeId,
        extent: Extent,
        count: u64,
        payload: u64,
    ) -> Option<(u64, u64)> {
        let (slots, area) = (self.ring.slots(), self.ring.payload_bytes());
        // Consecutive pieces are aligned each; the last may leave a gap.
        let room = payload.next_multiple_of(PAYLOAD_ALIGN);
        let mut cursor = self.cursor.lock();
        let position = if room == 0 { Some(0) } else { cursor.place(room, area) };
        let fits = cursor.free_slots(slots) >= count + CONTROL_SLOTS_RESERVED;
        if let (true, Some(position)) = (fits, position) {
            let first = cursor.next_seq;
            cursor.next_seq += count;
            if room > 0 {
                cursor.payload_head = position + room;
                self.ring.set(Counter::PayloadHead, cursor.payload_head);
            }
            self.ring.set(Counter::Head, cursor.next_seq - 1);
            if cursor.is_wake_due() {
                self.wake_spill(&mut cursor);
            }
            return Some((first, position));
        }
        if !extent.is_empty() {
            self.break_stream(&mut cursor, volume);
            let map = VolumeMap::new(&self.ring, volume);
            let mut parts = self.parts[volume.index()].lock();
            let is_dirty = |block| map.all_set(Bits::Dirty, BlockRange::new(block, 1));
            parts.changed(extent, is_dirty);
            map.set(Bits::Dirty, BlockRange::touching(extent));
            self.ring.count(Counter::MappedBytes, volume, extent.len);
        }
        None
    }

    fn publish_pieces(
        &self,
        volume: VolumeId,
        now_ns: u64,
        first: u64,
        position: u64,
        extent: Extent,
        data: &[u8],
    ) {
        let pieces = extent.pieces(RECORD_PAYLOAD_BYTES_MAX);
        for ((index, piece), bytes) in
            pieces.enumerate().zip(data.chunks(RECORD_PAYLOAD_BYTES_MAX as usize))
        {
            let at = position + index as u64 * RECORD_PAYLOAD_BYTES_MAX;
            let seq = first + index as u64;
            self.ring.prefetch(seq, at, piece.len);
            let mut slot = Slot::new(Kind::Write, volume, piece, now_ns);
            slot.payload_position = at.into();
            slot.payload_crc = crc32c(bytes).into();
            self.ring.write_payload(at, bytes);
            self.ring.publish(seq, &mut slot, SlotState::Intent);
        }
    }

    /// The ring is filled beyond the threshold: once, then armed anew by the spill.
    #[cold]
    fn wake_spill(&self, cursor: &mut Cursor) {
        (cursor.wake_payload, cursor.wake_seq) = (u64::MAX, u64::MAX);
        if let Some(spill) = &self.spill {
            spill.wake();
        }
    }

    /// Whether the stream is whole has changed: a step of the ladder, to be noted.
    pub(crate) fn wake_ladder(&self) {
        if let Some(spill) = &self.spill {
            spill.wake();
        }
        if let Some(watch) = &self.rung_watch {
            watch.wake();
        }
    }

    /// Dirty blocks, as a whole, go past the journal: BREAK first if the group was whole (R5).
    pub(crate) fn make_dirty(&self, cursor: &mut Cursor, volume: VolumeId, blocks: BlockRange) {
        self.break_stream(cursor, volume);
        let mut parts = self.parts[volume.index()].lock();
        parts.whole(blocks);
        VolumeMap::new(&self.ring, volume).set(Bits::Dirty, blocks);
    }

    fn break_stream(&self, cursor: &mut Cursor, volume: VolumeId) {
        if cursor.whole {
            self.append_control(cursor, Control::Break, 0);
            cursor.whole = false;
            self.ring.set(Counter::Whole, 0);
            self.ring.counter(Counter::Breaks).fetch_add(1, Ordering::Relaxed);
            self.wake_ladder();
            tracing::warn!(
                group = %self.group,
                volume = volume.0,
                "the journal cannot take a change: its blocks go to the change map until the \
                 target has caught up (BREAK)"
            );
        }
    }

    /// Appends a control record; slots are reserved for them. Returns its number.
    pub(crate) fn append_control(
        &self,
        cursor: &mut Cursor,
        control: Control,
        argument: u64,
    ) -> u64 {
        assert!(
            cursor.free_slots(self.ring.slots()) > 0,
            "BREAK, HEAL and SEAL alternate with acknowledgements: reserved slots suffice"
        );
        let seq = cursor.next_seq;
        cursor.next_seq += 1;
        let nothing = Extent::new(0, 0);
        let mut slot = Slot::new(Kind::Control, VolumeId(0), nothing, (self.clock)());
        slot.control = (control as u32).into();
        slot.argument = argument.into();
        self.ring.publish(seq, &mut slot, SlotState::Done);
        self.ring.set(Counter::Head, seq);
        self.advance_done();
        seq
    }

    /// The source operation of a begun change has ended.
    pub fn finish(&self, ticket: Ticket, outcome: Outcome) {
        let state = match outcome {
            Outcome::Done => SlotState::Done,
            Outcome::Failed => {
                // R1: what the source now holds there is unknown; the walker reads it.
                if !ticket.extent.is_empty() {
                    let mut cursor = self.cursor.lock();
                    let blocks = BlockRange::touching(ticket.extent);
                    self.make_dirty(&mut cursor, ticket.volume, blocks);
                }
                SlotState::Failed
            }
        };
        for seq in ticket.first..ticket.first + u64::from(ticket.count) {
            self.ring.commit(seq).store(commit_word(seq, state), Ordering::Release);
        }
        self.advance_done();
        if let Some(spill) = &self.spill {
            spill.finished();
        }
    }

    /// Moves the done mark over all final records that follow it without a gap.
    pub(crate) fn advance_done(&self) {
        // Between the caller's commit words and the loads below: of two threads that
        // end neighbours at once, at least one sees both (`tests/loom.rs`).
        fence(Ordering::SeqCst);
        let done = self.ring.counter(Counter::Done);
        let is_final = |seq: u64| {
            let (found, state) = commit_parts(self.ring.commit(seq).load(Ordering::Acquire));
            found == seq && state.is_final()
        };
        let mut at = done.load(Ordering::Acquire);
        loop {
            let mut last = at;
            while is_final(last + 1) {
                last += 1;
            }
            if last == at {
                return;
            }
            // A lost race means that another thread moved it: go on from there. After a
            // won one, whoever ends the record behind it looks itself.
            match done.compare_exchange(at, last, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(moved) => at = moved,
            }
        }
    }
}

/// Frees the ring space of records up to `upto`, which are acknowledged or spilled (R11).
///
/// Where their payloads end is looked for without the lock and without checksums: the
/// slots are final, and nobody reuses them before `freed_seq` passes them. A word that
/// stray stores have damaged can free too little or, inside what is in use, too much;
/// payload checksums find that as they find any damage.
pub(crate) fn free_up_to(ring: &Ring, lock: &AppendLock, upto: u64) {
    let freed = lock.lock().freed_seq;
    let mut latest = (freed + 1..=upto).rev();
    let end = latest.find_map(|seq| ring.payload_end_unchecked(seq));
    let mut cursor = lock.lock();
    if cursor.freed_seq >= upto {
        // Another thread was here first, and what was read above may be reused.
        return;
    }
    cursor.freed_seq = upto;
    let in_use = cursor.payload_tail..=cursor.payload_head;
    if let Some(end) = end.filter(|end| in_use.contains(end)) {
        cursor.payload_tail = end;
        ring.set(Counter::PayloadTail, end);
    }
}

fn kind_of(change: &Change<'_>, zero: bool) -> Kind {
    match change {
        Change::Write { .. } if zero => Kind::Zero,
        Change::Write { .. } => Kind::Write,
        Change::Zero { trim: true, .. } => Kind::Trim,
        Change::Zero { .. } => Kind::Zero,
        Change::Barrier => Kind::Barrier,
    }
}
