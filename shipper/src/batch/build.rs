//! Building a batch: operations are pushed, then sealed into the chain.

use super::layout::{self, Header, MAGIC, OpEntry, VERSION};
use super::{Control, DATA_BYTES_MAX, Kind, NOTE_BYTES_MAX, OPS_MAX, bytes_after};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use towline_block::checksum::crc32c_of;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use zerocopy::IntoBytes;

/// Where the next batch goes in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub group: GroupUuid,
    pub session: SessionId,
    /// Number of the batch before, 0 at the start.
    pub number: u64,
    /// Hash of the batch before, [`BatchHash::NONE`] at the start.
    pub hash: BatchHash,
    /// Sum of the sizes of all batches so far.
    pub stream_bytes: u64,
}

impl Chain {
    /// The next batch comes after `sealed`.
    pub fn advance(&mut self, sealed: &Sealed) {
        self.number = sealed.number;
        self.hash = sealed.hash;
        self.stream_bytes = sealed.stream_bytes;
    }
}

/// An encoded batch and what the chain needs of it.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub bytes: Vec<u8>,
    pub hash: BatchHash,
    pub number: u64,
    /// Position of the stream after this batch.
    pub position: Position,
    pub claims_upto: u64,
    /// Sum of the sizes of all batches, this one included.
    pub stream_bytes: u64,
}

/// Collects the operations of one batch.
#[derive(Debug)]
pub struct BatchBuilder {
    kind: Kind,
    epoch: Epoch,
    incarnation: Incarnation,
    first: Seq,
    last: Seq,
    claim_id: u64,
    claims_upto: u64,
    table: Vec<OpEntry>,
    data: Vec<u8>,
}

impl BatchBuilder {
    /// A batch of records that starts at `first`. `claims_upto` as in the batch
    /// before (0 at the start of an incarnation).
    pub fn records(first: Position, claims_upto: u64) -> BatchBuilder {
        BatchBuilder::new(Kind::Records, first, first.seq.prev(), 0, claims_upto)
    }

    /// A batch of blocks of claim `claim_id`, after all records up to `at` were cut.
    pub fn blocks(at: Position, claim_id: u64, claims_upto: u64) -> BatchBuilder {
        let first = Position { seq: at.seq.next(), ..at };
        BatchBuilder::new(Kind::Blocks, first, at.seq, claim_id, claims_upto)
    }

    fn new(kind: Kind, first: Position, last: Seq, claim_id: u64, upto: u64) -> BatchBuilder {
        BatchBuilder {
            kind,
            epoch: first.epoch,
            incarnation: first.incarnation,
            first: first.seq,
            last,
            claim_id,
            claims_upto: upto,
            table: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Whether one more operation with this much payload has room.
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.table.len() < OPS_MAX && self.data.len() + payload_bytes <= DATA_BYTES_MAX
    }

    pub fn op_count(&self) -> usize {
        self.table.len()
    }

    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// No operation, and no record passed.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.last < self.first
    }

    /// Records up to `seq` are in this batch, also those that left no operation
    /// (overwritten within the batch, failed at the source).
    pub fn pass(&mut self, seq: Seq) {
        if self.kind == Kind::Records {
            self.last = self.last.max(seq);
        }
    }

    /// With this batch all claims up to `id` are complete.
    pub fn set_claims_upto(&mut self, id: u64) {
        self.claims_upto = id;
    }

    /// `payload_crc32c` is the record's own checksum, carried on unchanged: the
    /// target checks what the proxy computed.
    pub fn write(
        &mut self,
        seq: Seq,
        volume: VolumeId,
        offset: u64,
        payload: &[u8],
        payload_crc32c: u32,
    ) -> Result<()> {
        if payload.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "a write of no bytes is no operation"));
        }
        let at = self.take(payload)?;
        let len = payload.len() as u32;
        self.push(layout::OP_WRITE, 0, seq, volume, Extent::new(offset, len.into()), at);
        if let Some(entry) = self.table.last_mut() {
            entry.data_crc32c = payload_crc32c.into();
        }
        Ok(())
    }

    pub fn zero(
        &mut self,
        seq: Seq,
        volume: VolumeId,
        extent: Extent,
        keep_allocated: bool,
    ) -> Result<()> {
        let flags = if keep_allocated { layout::OP_FLAG_KEEP_ALLOCATED } else { 0 };
        self.range(layout::OP_ZERO, flags, seq, volume, extent)
    }

    pub fn trim(&mut self, seq: Seq, volume: VolumeId, extent: Extent) -> Result<()> {
        self.range(layout::OP_TRIM, 0, seq, volume, extent)
    }

    /// Blocks only: asks whether the target's range has this digest.
    pub fn compare(&mut self, volume: VolumeId, extent: Extent, digest: &[u8; 32]) -> Result<()> {
        if self.kind != Kind::Blocks {
            return Err(Error::new(ErrorKind::InvalidInput, "records are not compared"));
        }
        self.range(layout::OP_COMPARE, 0, Seq::NONE, volume, extent)?;
        let at = self.take(digest)?;
        if let Some(entry) = self.table.last_mut() {
            entry.data_offset = at.into();
            entry.data_crc32c = crc32c(digest).into();
        }
        Ok(())
    }

    pub fn barrier(&mut self, seq: Seq) -> Result<()> {
        self.note(layout::OP_BARRIER, seq, &[])
    }

    pub fn mark(&mut self, seq: Seq, label: &[u8]) -> Result<()> {
        self.note(layout::OP_MARK, seq, label)
    }

    pub fn control(&mut self, seq: Seq, control: Control, note: &[u8]) -> Result<()> {
        let kind = match control {
            Control::Break => layout::OP_BREAK,
            Control::Heal => layout::OP_HEAL,
            Control::Resync => layout::OP_RESYNC,
            Control::Seal => layout::OP_SEAL,
        };
        self.note(kind, seq, note)
    }

    fn range(
        &mut self,
        kind: u8,
        flags: u8,
        seq: Seq,
        volume: VolumeId,
        extent: Extent,
    ) -> Result<()> {
        if extent.is_empty() || extent.len > u64::from(u32::MAX) {
            let what = format!("a range of {} bytes: give 1 to {}", extent.len, u32::MAX);
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        self.take(&[])?;
        self.push(kind, flags, seq, volume, extent, 0);
        Ok(())
    }

    fn note(&mut self, kind: u8, seq: Seq, note: &[u8]) -> Result<()> {
        if note.len() > NOTE_BYTES_MAX {
            let what = format!("a note of {} bytes: give at most {NOTE_BYTES_MAX}", note.len());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let at = self.take(note)?;
        let at = if note.is_empty() { 0 } else { at };
        self.push(kind, 0, seq, VolumeId(0), Extent::new(0, note.len() as u64), at);
        if let (Some(entry), false) = (self.table.last_mut(), note.is_empty()) {
            entry.data_crc32c = crc32c(note).into();
        }
        Ok(())
    }

    /// Appends payload; answers where it lies.
    fn take(&mut self, payload: &[u8]) -> Result<u32> {
        if !self.fits(payload.len()) {
            let what = format!(
                "the batch is full ({} operations, {} bytes): seal it and start another",
                self.table.len(),
                self.data.len()
            );
            return Err(Error::new(ErrorKind::Full, what));
        }
        let at = self.data.len() as u32;
        self.data.extend_from_slice(payload);
        Ok(at)
    }

    fn push(&mut self, kind: u8, flags: u8, seq: Seq, volume: VolumeId, at: Extent, data: u32) {
        let seq = if self.kind == Kind::Records { seq } else { Seq::NONE };
        self.pass(seq);
        self.table.push(OpEntry {
            kind,
            flags,
            volume: volume.0.into(),
            len: (at.len as u32).into(),
            offset: at.offset.into(),
            data_offset: data.into(),
            data_crc32c: 0.into(),
            seq: seq.0.into(),
        });
    }

    /// Seals the batch as the one after `chain`. The caller then advances its chain.
    pub fn encode(self, chain: &Chain, created_unix_ns: u64) -> Sealed {
        let number = chain.number + 1;
        let table = self.table.as_bytes();
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            kind: match self.kind {
                Kind::Records => layout::KIND_RECORDS,
                Kind::Blocks => layout::KIND_BLOCKS,
            },
            compression: layout::COMPRESSION_NONE,
            flags: 0.into(),
            group_uuid: chain.group.0,
            session: chain.session.0,
            number: number.into(),
            prev_hash: chain.hash.0,
            epoch: self.epoch.0.into(),
            incarnation: self.incarnation.0.into(),
            first_seq: self.first.0.into(),
            last_seq: self.last.0.into(),
            claim_id: self.claim_id.into(),
            claims_upto: self.claims_upto.into(),
            stream_bytes_before: chain.stream_bytes.into(),
            created_unix_ns: created_unix_ns.into(),
            op_count: (self.table.len() as u32).into(),
            data_bytes: (self.data.len() as u32).into(),
            table_crc32c: crc32c(table).into(),
            reserved: [0; 96],
            header_crc32c: 0.into(),
        };
        let (covered, _) = header.as_bytes().split_at(layout::HEADER_CRC_COVERS);
        header.header_crc32c = crc32c_of(&[covered]).into();
        let bytes = [header.as_bytes(), table, &self.data].concat();
        Sealed {
            hash: BatchHash::of(&bytes),
            number,
            position: Position::new(self.epoch, self.incarnation, self.last),
            claims_upto: self.claims_upto,
            stream_bytes: bytes_after(chain.stream_bytes, bytes.len()),
            bytes,
        }
    }
}
