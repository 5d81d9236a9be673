//! Checking what the ring holds: counters, numbers, headers, payloads, order.

use super::{GroupView, SlotFault};
use crate::format::{Control, Counter, PAYLOAD_ALIGN, SlotState};
use crate::record::Record;
use crate::ring::Ring;
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
    fn see(&mut self, record: &Record) {
        self.records += 1;
        if self.first_seq == 0 {
            self.first_seq = record.seq;
        }
        self.last_seq = record.seq;
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
    /// Checks every record the target lacks: number, header, payload, order.
    pub fn verify(&self) -> Verification {
        self.verify_records(false)
    }

    /// As [`GroupView::verify`], and also the records that the target has, as far as
    /// the ring still holds them.
    pub fn verify_all(&self) -> Verification {
        self.verify_records(true)
    }

    fn verify_records(&self, all: bool) -> Verification {
        let mut result = Verification::default();
        let Some(ring) = &self.ring else {
            match &self.lone {
                Some(range) => self.verify_lone(range.clone(), &mut result),
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
        let mut check = Check { view: self, ring, payload: Vec::new(), payload_end: 0 };
        for seq in range {
            let needed = marks.sound && seq > marks.acked;
            let finding = match ring.record(seq) {
                Ok(record) => {
                    result.see(&record);
                    let found = check.record(&record, needed);
                    result.bytes += check.payload.len() as u64;
                    found.map(|kind| (kind, record.extent.offset))
                }
                Err(SlotFault::OtherRecord { .. }) if !needed => None,
                Err(SlotFault::OtherRecord { .. }) => Some(("missing", 0)),
                Err(SlotFault::HeaderChecksum) => Some(("header_checksum", 0)),
                Err(SlotFault::Field(_)) => Some(("header_field", 0)),
            };
            let Some((mut kind, offset)) = finding else { continue };
            if needed && seq <= marks.spilled {
                if let Some((record, payload)) = self.spilled(seq) {
                    result.see(&record);
                    result.bytes += payload.len() as u64;
                    continue;
                }
                kind = "spill";
            }
            // On a live group the slot may have been freed and reused meanwhile, or
            // be on its way to its commit word: neither is a fault.
            let freed = needed && seq <= ring.get(Counter::Acked);
            let open = kind == "missing" && seq > ring.get(Counter::Done);
            if !freed && !open {
                result.add(Finding { kind, seq, offset });
            }
        }
        result
    }
}

impl GroupView {
    /// What the spill has of a lost ring: every record sound.
    fn verify_lone(&self, range: RangeInclusive<u64>, result: &mut Verification) {
        for seq in range {
            match self.spilled(seq) {
                Some((record, payload)) => {
                    result.see(&record);
                    result.bytes += payload.len() as u64;
                }
                None => result.add(Finding { kind: "spill", seq, offset: 0 }),
            }
        }
    }
}

/// What is known of the records before the one that is checked.
struct Check<'a> {
    view: &'a GroupView,
    ring: &'a Ring,
    /// The payload checked last, empty if it had none.
    payload: Vec<u8>,
    /// Where the payload before it ended.
    payload_end: u64,
}

impl Check<'_> {
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
