//! Looking on: a group's journal as tools see it, live or dead. Reads only, maps
//! read-only, disturbs nobody.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Counter, SlotState};
use crate::progress::Progress;
use crate::record::{Record, SlotFault};
use crate::ring::Ring;
use crate::spill::SpillReader;
use crate::state::{GroupDir, GroupState};
use std::cell::RefCell;
use std::fs::File;

/// A group's files, opened together.
pub struct GroupView {
    pub dir: GroupDir,
    pub state: GroupState,
    ring: Option<Ring>,
    spill: Option<RefCell<SpillReader>>,
    /// Why there is no ring, when there is none.
    pub ring_error: Option<Error>,
    pub progress: Option<Progress>,
}

impl GroupView {
    /// # Errors
    /// When `state.json` is missing, damaged or newer. A missing or damaged ring is
    /// not an error here: see [`GroupView::ring_error`].
    pub fn open(dir: &GroupDir) -> Result<GroupView> {
        let state = dir.load()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Missing,
                format!("{} holds no group: state.json is missing", dir.path().display()),
            )
        })?;
        let opened = File::open(&state.ring.path)
            .map_err(|e| Error::io(format!("cannot open {}", state.ring.path.display()), e))
            .and_then(|file| Ring::open(&file, false));
        let (ring, ring_error) = match opened {
            Ok(ring) if ring.superblock.ring_id == state.ring.id.0 => (Some(ring), None),
            Ok(_) => (None, Some(Error::new(ErrorKind::Damaged, "another ring lies in its place"))),
            Err(e) => (None, Some(e)),
        };
        let progress = Progress::view(&dir.progress_path())?;
        let spill = ring.as_ref().map(|ring| {
            let (uuid, id) = (ring.superblock.group_uuid, ring.superblock.ring_id);
            RefCell::new(SpillReader::new(dir.spill_path(), uuid, id))
        });
        Ok(GroupView { dir: dir.clone(), state, ring, spill, ring_error, progress })
    }

    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// A counter of the ring; 0 without one.
    pub fn get(&self, counter: Counter) -> u64 {
        self.ring.as_ref().map_or(0, |ring| ring.get(counter))
    }

    pub fn ring_payload_bytes(&self) -> u64 {
        self.ring.as_ref().map_or(0, Ring::payload_bytes)
    }

    /// Bytes of payload that the ring still holds for the target.
    pub fn ring_used_bytes(&self) -> u64 {
        self.get(Counter::PayloadHead).saturating_sub(self.get(Counter::PayloadTail))
    }

    pub fn proxy_runs(&self) -> bool {
        self.dir.is_locked("lock")
    }

    pub fn shipper_runs(&self) -> bool {
        self.dir.is_locked("ship.lock")
    }

    /// Numbers of the records that the target lacks, oldest first. On a live group
    /// both ends move on; a record may be gone when it is asked for.
    pub fn pending(&self) -> std::ops::RangeInclusive<u64> {
        self.get(Counter::Acked) + 1..=self.get(Counter::Head)
    }

    /// All records that may still be in the ring, also those the target has.
    pub fn present(&self) -> std::ops::RangeInclusive<u64> {
        let slots = self.ring.as_ref().map_or(0, Ring::slots);
        let head = self.get(Counter::Head);
        head.saturating_sub(slots) + 1..=head
    }

    /// Record `seq`, with its payload where it still holds.
    pub fn record(&self, seq: u64) -> Option<Record> {
        let in_ring = self.ring.as_ref()?.record(seq).ok();
        in_ring.or_else(|| self.spilled(seq).map(|(record, _)| record))
    }

    /// The payload of a record, when it passes its checksum.
    pub fn payload(&self, record: &Record) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.ring.as_ref()?.read_payload(record, &mut bytes) {
            return Some(bytes);
        }
        self.spilled(record.seq).map(|(_, payload)| payload)
    }

    /// Record `seq` with its payload, where the spill holds it.
    fn spilled(&self, seq: u64) -> Option<(Record, Vec<u8>)> {
        if seq > self.get(Counter::Spilled) {
            return None;
        }
        let mut payload = Vec::new();
        let record = self.spill.as_ref()?.borrow_mut().read(seq, &mut payload).ok()?;
        Some((record, payload))
    }

    /// Checks every record the target lacks: number, header, payload, order.
    pub fn verify(&self) -> Verification {
        let mut result = Verification::default();
        let Some(ring) = &self.ring else {
            result.errors.push(Finding { kind: "ring", seq: 0, offset: 0 });
            return result;
        };
        let pending = self.pending();
        let mut payload = Vec::new();
        for seq in pending {
            payload.clear();
            let finding = match ring.record(seq) {
                Ok(record) => {
                    result.see(&record);
                    let readable =
                        record.state != SlotState::Done || ring.read_payload(&record, &mut payload);
                    let placed = record.incarnation == ring.incarnation();
                    match (readable, placed) {
                        (true, true) => None,
                        (false, _) => Some(("payload_checksum", record.extent.offset)),
                        (_, false) => Some(("incarnation", record.extent.offset)),
                    }
                }
                Err(SlotFault::OtherRecord { .. }) => Some(("missing", 0)),
                Err(SlotFault::HeaderChecksum) => Some(("header_checksum", 0)),
                Err(SlotFault::Field(_)) => Some(("header_field", 0)),
            };
            let Some((mut kind, offset)) = finding else { continue };
            if seq <= ring.get(Counter::Spilled) {
                if let Some((record, _)) = self.spilled(seq) {
                    result.see(&record);
                    continue;
                }
                kind = "spill";
            }
            // On a live group the slot may have been freed and reused meanwhile, or
            // be on its way to its commit word: neither is a fault.
            let acked = ring.get(Counter::Acked);
            let open = kind == "missing" && seq > ring.get(Counter::Done);
            if seq > acked && !open {
                result.errors.push(Finding { kind, seq, offset });
            }
        }
        result
    }
}

/// What [`GroupView::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    pub records: u64,
    /// Payload bytes verified.
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub errors: Vec<Finding>,
}

impl Verification {
    fn see(&mut self, record: &Record) {
        self.records += 1;
        if record.has_payload() {
            self.bytes += record.extent.len;
        }
        if self.first_seq == 0 {
            self.first_seq = record.seq;
        }
        self.last_seq = record.seq;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: &'static str,
    pub seq: u64,
    /// Byte offset in the volume, where the record tells.
    pub offset: u64,
}
