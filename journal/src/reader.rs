//! The shipper's side of the ring: read only, copies out, verifies.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Counter, SlotState};
use crate::record::Record;
use crate::ring::Ring;
use crate::spill::{SpillReader, Store};
use crate::sys::Use;
use std::fs::File;
use std::sync::{Mutex, PoisonError};

pub struct RingReader {
    ring: Ring,
    spill: Option<Mutex<SpillReader>>,
}

impl RingReader {
    /// Maps a ring read-only.
    pub fn open(file: &File) -> Result<RingReader> {
        Ok(RingReader { ring: Ring::open(file, Use::Drain)?, spill: None })
    }

    /// Also reads what the ring no longer holds, from the group's spill.
    #[must_use]
    pub fn with_spill(mut self, store: Store) -> RingReader {
        let superblock = &self.ring.superblock;
        let spill = SpillReader::new(store, superblock.group_uuid, superblock.ring_id);
        self.spill = Some(Mutex::new(spill));
        self
    }

    /// Reads what the spill has of another ring of the group.
    pub fn history(&self, store: Store, ring_id: [u8; 16]) -> SpillReader {
        SpillReader::new(store, self.ring.superblock.group_uuid, ring_id)
    }

    /// Whether the record's place may be the spill alone.
    pub fn is_spilled(&self, seq: u64) -> bool {
        self.spill.is_some() && seq <= self.ring.get(Counter::Spilled)
    }

    #[cfg(loom)]
    pub(crate) fn model(ring: Ring) -> RingReader {
        RingReader { ring, spill: None }
    }

    #[cfg(loom)]
    pub(crate) fn model_ring(&self) -> &Ring {
        &self.ring
    }

    pub fn incarnation(&self) -> u32 {
        self.ring.incarnation()
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.ring.get(counter)
    }

    pub fn created_unix_ns(&self) -> u64 {
        self.ring.superblock.created_unix_ns.get()
    }

    /// Record `seq` without its payload, while the ring holds it.
    pub fn record(&self, seq: u64) -> Option<Record> {
        self.ring.record(seq).ok()
    }

    /// Everything up to here has its final outcome and may be shipped.
    pub fn done_seq(&self) -> u64 {
        self.ring.get(Counter::Done)
    }

    pub fn volume_count(&self) -> usize {
        self.ring.volumes.len()
    }

    pub fn volume_size_bytes(&self, volume: usize) -> u64 {
        self.ring.volumes[volume].size_bytes.get()
    }

    /// Record `seq`, with its payload appended to `payload` if it has one and is
    /// done. `seq` must lie above the target's ack and not above [`Self::done_seq`].
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the record or its payload fails a check: shared
    /// memory was overwritten by somebody else, or the spill's disk lost it. The caller
    /// asks for a resync, or says that the spill is damaged ([`Self::is_spilled`]).
    pub fn read(&self, seq: u64, payload: &mut Vec<u8>) -> Result<Record> {
        let start = payload.len();
        let in_ring = self.read_ring(seq, payload);
        match &self.spill {
            // Looked at after the ring: a slot that was reused was spilled before.
            Some(spill) if in_ring.is_err() && self.is_spilled(seq) => {
                payload.truncate(start);
                let mut spill = spill.lock().unwrap_or_else(PoisonError::into_inner);
                let read = spill.read(seq, payload);
                read.map_err(|error| error.with_kind(ErrorKind::Damaged))
            }
            _ => in_ring,
        }
    }

    fn read_ring(&self, seq: u64, payload: &mut Vec<u8>) -> Result<Record> {
        let record = self.ring.record(seq).map_err(|fault| {
            Error::new(ErrorKind::Damaged, format!("record {seq} of the ring: {fault:?}"))
        })?;
        if !record.state.is_final() {
            let what = format!("record {seq} of the ring lies below the done mark without outcome");
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        if record.state == SlotState::Done && !self.ring.read_payload(&record, payload) {
            let what = format!("the payload of record {seq} fails its checksum");
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        Ok(record)
    }
}
