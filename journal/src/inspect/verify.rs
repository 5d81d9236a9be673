//! Checking what ring and spill hold: counters, numbers, headers, payloads, order.

use super::{GroupView, Marks, SlotFault, is_within};
use crate::format::{Control, Counter, PAYLOAD_ALIGN, SlotState};
use crate::record::Record;
use crate::ring::Ring;
use crate::spill::{CHECK_THREADS_MAX, Sound};
use std::num::NonZero;
use std::ops::RangeInclusive;

/// Findings kept; the rest is counted. A ring that is all noise has one a slot.
pub const FINDINGS_MAX: usize = 1000;

/// What [`GroupView::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    pub records: u64,
    /// Payload bytes verified.
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub errors: Vec<Finding>,
    /// Findings beyond [`FINDINGS_MAX`].
    pub more_errors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: &'static str,
    pub seq: u64,
    /// Byte offset in the volume, where the record tells.
    pub offset: u64,
}

impl Verification {
    fn see(&mut self, seq: u64, bytes: usize) {
        self.see_run(&Sound { first: seq, last: seq, bytes: bytes as u64 });
    }

    fn see_run(&mut self, run: &Sound) {
        if self.records == 0 {
            self.first_seq = run.first;
        }
        self.last_seq = run.last;
        self.records += run.last - run.first + 1;
        self.bytes += run.bytes;
    }

    fn add(&mut self, finding: Finding) {
        if self.errors.len() < FINDINGS_MAX {
            self.errors.push(finding);
        } else {
            self.more_errors += 1;
        }
    }
}

impl GroupView {
    /// Checks every record the target lacks: number, header, payload, order. What lies in the
    /// spill alone is read by as many threads as there are cores, four at most.
    pub fn verify(&self) -> Verification {
        self.verify_records(false, threads())
    }

    /// As [`GroupView::verify`], and also the records that the target has, as far as
    /// the ring still holds them.
    pub fn verify_all(&self) -> Verification {
        self.verify_records(true, threads())
    }

    pub(super) fn verify_records(&self, all: bool, threads: usize) -> Verification {
        let mut result = Verification::default();
        let Some(ring) = &self.ring else {
            let no_ring = |seq, result: &mut Verification| {
                result.add(Finding { kind: "spill", seq, offset: 0 });
            };
            match &self.lone {
                Some(range) => self.verify_spill(range, threads, &mut result, no_ring),
                None => result.add(Finding { kind: "ring", seq: 0, offset: 0 }),
            }
            return result;
        };
        let marks = self.marks();
        if !marks.sound {
            result.add(Finding { kind: "counters", seq: 0, offset: 0 });
        }
        // Without sound counters nobody knows what the target lacks.
        let range = if all || !marks.sound { self.present() } else { marks.acked + 1..=marks.head };
        let mut check = Check { view: self, ring, marks, payload: Vec::new(), payload_end: 0 };
        let mut next = *range.start();
        if let Some(spilled) = self.in_spill_alone(ring, &marks) {
            (next..*spilled.start()).for_each(|seq| check.look(seq, true, &mut result));
            next = spilled.end() + 1;
            self.verify_spill(&spilled, threads, &mut result, |seq, result| {
                check.look(seq, false, result);
            });
        }
        (next..=*range.end()).for_each(|seq| check.look(seq, true, &mut result));
        result
    }

    /// The records that the target lacks and whose room in the ring was given away. On a live
    /// group there are more by the time that they are read.
    fn in_spill_alone(&self, ring: &Ring, marks: &Marks) -> Option<RangeInclusive<u64>> {
        let is_there = |seq: &u64| {
            ring.record(*seq).is_ok_and(|r| r.payload_position.is_some() && self.still_holds(&r))
        };
        let first = marks.acked + 1;
        let oldest_slot = first.max((marks.head + 1).saturating_sub(ring.slots()));
        let in_ring = (oldest_slot..=marks.spilled).find(is_there).unwrap_or(marks.spilled + 1);
        (marks.sound && first < in_ring).then(|| first..=in_ring - 1)
    }

    /// Checks what the spill has of a range, in order; `unsound` gets the rest.
    fn verify_spill(
        &self,
        range: &RangeInclusive<u64>,
        threads: usize,
        result: &mut Verification,
        mut unsound: impl FnMut(u64, &mut Verification),
    ) {
        let sizes: Vec<u64> =
            (0..self.names.len()).map(|volume| self.volume_size_bytes(volume)).collect();
        let size_bytes = |volume: usize| sizes.get(volume).copied().unwrap_or(0);
        let mut next = *range.start();
        let walk = self.walk(range);
        walk.check(
            threads,
            |record| is_within(record, size_bytes),
            |sound| {
                (next..sound.first).for_each(|seq| unsound(seq, result));
                result.see_run(&sound);
                next = sound.last + 1;
            },
        );
        (next..=*range.end()).for_each(|seq| unsound(seq, result));
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(CHECK_THREADS_MAX)
}

/// What is known of the records before the one that is checked.
struct Check<'a> {
    view: &'a GroupView,
    ring: &'a Ring,
    marks: Marks,
    /// The payload checked last, empty if it had none.
    payload: Vec<u8>,
    /// Where the payload before it ended.
    payload_end: u64,
}

impl Check<'_> {
    /// Checks record `seq`, in the ring or else, with `in_spill`, in the spill.
    fn look(&mut self, seq: u64, in_spill: bool, result: &mut Verification) {
        let needed = self.marks.sound && seq > self.marks.acked;
        let in_ring = self.ring.record(seq);
        let (mut kind, offset) = match &in_ring {
            Ok(record) => match self.record(record, needed) {
                None => return result.see(seq, self.payload.len()),
                Some(kind) => (kind, record.extent.offset),
            },
            Err(SlotFault::OtherRecord { .. }) if !needed => return,
            Err(SlotFault::OtherRecord { .. }) => ("missing", 0),
            Err(SlotFault::HeaderChecksum) => ("header_checksum", 0),
            Err(SlotFault::Field(_)) => ("header_field", 0),
        };
        if needed && seq <= self.marks.spilled {
            let found = if in_spill { self.view.spilled(seq) } else { None };
            if let Some((_, payload)) = found {
                return result.see(seq, payload.len());
            }
            kind = "spill";
        }
        if in_ring.is_ok() {
            result.see(seq, 0);
        }
        // On a live group the slot may have been freed and reused meanwhile, or
        // be on its way to its commit word: neither is a fault.
        let freed = needed && seq <= self.ring.get(Counter::Acked);
        let open = kind == "missing" && seq > self.ring.get(Counter::Done);
        if !freed && !open {
            result.add(Finding { kind, seq, offset });
        }
    }

    fn record(&mut self, record: &Record, needed: bool) -> Option<&'static str> {
        self.payload.clear();
        let placed = self.follows(record);
        if record.incarnation != self.ring.incarnation() {
            return Some("incarnation");
        }
        let is_resync = record.control == Some(Control::Resync);
        if record.seq == 1 && !is_resync || !placed {
            return Some("order");
        }
        // The payload of a record that the target has may be gone; and only that
        // of a done record is ever read.
        let due = needed || self.view.still_holds(record);
        if record.state == SlotState::Done && due {
            let whole = self.ring.read_payload(record, &mut self.payload);
            // The room may have been given away while it was read.
            let gone = !needed && !self.view.still_holds(record);
            return (!whole && !gone).then_some("payload_checksum");
        }
        None
    }

    /// Payloads lie in the order of their records and do not overlap.
    fn follows(&mut self, record: &Record) -> bool {
        let Some(position) = record.payload_position else { return true };
        let fits = position >= self.payload_end;
        let len = record.extent.len.next_multiple_of(PAYLOAD_ALIGN);
        self.payload_end = position.saturating_add(len);
        fits && position.is_multiple_of(PAYLOAD_ALIGN)
    }
}
