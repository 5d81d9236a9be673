//! Building a batch: operations are pushed, then encoded into the chain.

use super::coalesce::{Piece, Span, survivors};
use super::encode::{Encoder, Sealed};
use super::layout::{self, HEADER_BYTES, OP_BYTES, OpEntry};
use super::{Control, DATA_BYTES_MAX, DIGEST_BYTES, Kind, NOTE_BYTES_MAX, OPS_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use towline_block::copy::append;
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};

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
    /// Room for the header, then the payloads: they are copied here once.
    buf: Vec<u8>,
}

/// Bytes that [`BatchBuilder::fill`] brought into a batch and that no operation names yet.
#[derive(Debug)]
#[must_use = "give it to an operation, or take it back"]
pub struct Filled {
    at: usize,
    pub len: usize,
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
            buf: vec![0; HEADER_BYTES],
        }
    }

    /// As it is, with the memory of an earlier batch, whatever that holds.
    pub fn reusing(mut self, mut memory: Vec<u8>) -> BatchBuilder {
        memory.clear();
        memory.extend_from_slice(&self.buf);
        self.buf = memory;
        self
    }

    /// Room for this many operations and bytes that will come: memory that grows piece by
    /// piece is copied each time.
    pub fn expect(&mut self, ops: usize, data_bytes: usize) {
        self.buf.reserve(data_bytes.min(DATA_BYTES_MAX) + ops.min(OPS_MAX) * OP_BYTES);
        self.table.reserve(ops.min(OPS_MAX));
    }

    /// Whether one more operation with this much payload has room.
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.table.len() < OPS_MAX && self.data_bytes() + payload_bytes <= DATA_BYTES_MAX
    }

    pub fn op_count(&self) -> usize {
        self.table.len()
    }

    pub fn data_bytes(&self) -> usize {
        self.buf.len() - HEADER_BYTES
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
        self.push_write(seq, volume, Extent::new(offset, payload.len() as u64), at, payload_crc32c);
        Ok(())
    }

    fn push_write(&mut self, seq: Seq, volume: VolumeId, extent: Extent, at: u32, crc: u32) {
        self.push(layout::OP_WRITE, 0, seq, volume, extent, at);
        if let Some(entry) = self.table.last_mut() {
            entry.data_crc32c = crc.into();
        }
    }

    /// Lets `read` append bytes to the batch directly, without a copy between. The next
    /// call is [`BatchBuilder::write_filled`] or [`BatchBuilder::take_back`].
    pub fn fill<R>(&mut self, read: impl FnOnce(&mut Vec<u8>) -> R) -> (R, Filled) {
        let at = self.buf.len();
        let result = read(&mut self.buf);
        assert!(self.buf.len() >= at, "bytes are appended to a batch, never removed");
        (result, Filled { at, len: self.buf.len() - at })
    }

    /// The bytes that were filled in last.
    pub fn filled(&self, filled: &Filled) -> &[u8] {
        self.buf.get(filled.at..filled.at + filled.len).unwrap_or_default()
    }

    /// As [`BatchBuilder::write`], of the bytes that were filled in last. They are taken
    /// back when it fails.
    pub fn write_filled(
        &mut self,
        seq: Seq,
        volume: VolumeId,
        offset: u64,
        filled: Filled,
        payload_crc32c: u32,
    ) -> Result<()> {
        let Filled { at, len } = filled;
        assert_eq!(at + len, self.buf.len(), "an operation takes the bytes filled in last");
        if len == 0 || self.table.len() >= OPS_MAX || self.data_bytes() > DATA_BYTES_MAX {
            self.take_back(Filled { at, len });
            let kind = if len == 0 { ErrorKind::InvalidInput } else { ErrorKind::Full };
            return Err(Error::new(
                kind,
                format!("a write of {len} bytes has no room or no bytes"),
            ));
        }
        let extent = Extent::new(offset, len as u64);
        self.push_write(seq, volume, extent, (at - HEADER_BYTES) as u32, payload_crc32c);
        Ok(())
    }

    /// The bytes that were filled in last do not belong to the batch.
    pub fn take_back(&mut self, filled: Filled) {
        assert_eq!(filled.at + filled.len, self.buf.len(), "only the last bytes are taken back");
        self.buf.truncate(filled.at);
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
                self.data_bytes()
            );
            return Err(Error::new(ErrorKind::Full, what));
        }
        let at = self.data_bytes() as u32;
        append(&mut self.buf, payload);
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

    /// Encodes the batch as the one after `chain`, neither compressed nor sealed. The
    /// caller then advances its chain.
    pub fn encode(self, chain: &Chain, created_unix_ns: u64) -> Sealed {
        let mut encoder = Encoder::default();
        encoder.encode(self, chain, created_unix_ns).expect("only compressing and sealing can fail")
    }

    /// Drops what later operations of the batch overwrite. Answers the bytes of payload
    /// that are not shipped for it.
    pub(super) fn coalesce(&mut self) -> usize {
        let spans: Vec<_> = self.table.iter().map(span_of).collect();
        let Some(pieces) = survivors(&spans) else { return 0 };
        if pieces.len() > OPS_MAX || !self.are_cuts_sound(&pieces) {
            return 0;
        }
        let before = self.data_bytes();
        let mut table = Vec::with_capacity(pieces.len());
        let mut end = HEADER_BYTES;
        for piece in pieces {
            let mut entry = self.table[piece.row].clone();
            if carries_data(&entry) {
                let (from, len) = self.place_of(&entry, &piece);
                // Pieces keep their order, so nothing is overwritten before it is moved.
                self.buf.copy_within(from..from + len, end);
                entry.data_offset = ((end - HEADER_BYTES) as u32).into();
                if entry.kind == layout::OP_WRITE && len != entry.len.get() as usize {
                    entry.offset = piece.start.into();
                    entry.len = (len as u32).into();
                    entry.data_crc32c = crc32c(&self.buf[end..end + len]).into();
                }
                end += len;
            }
            table.push(entry);
        }
        self.buf.truncate(end);
        self.table = table;
        before - self.data_bytes()
    }

    /// A piece of a write gets a checksum of its own: only where the whole still has the
    /// one that the proxy computed. Else all stays, and the target refuses it.
    fn are_cuts_sound(&self, pieces: &[Piece]) -> bool {
        let mut sound = None;
        pieces.iter().all(|piece| {
            let entry = &self.table[piece.row];
            let (from, len) = self.place_of(entry, piece);
            let is_whole = entry.kind != layout::OP_WRITE || len == entry.len.get() as usize;
            if is_whole || sound == Some(piece.row) {
                return true;
            }
            sound = Some(piece.row);
            let start = from - (piece.start - entry.offset.get()) as usize;
            let payload = &self.buf[start..start + entry.len.get() as usize];
            crc32c(payload) == entry.data_crc32c.get()
        })
    }

    /// Where the piece's bytes lie in the buffer.
    fn place_of(&self, entry: &OpEntry, piece: &Piece) -> (usize, usize) {
        let start = HEADER_BYTES + entry.data_offset.get() as usize;
        match entry.kind {
            layout::OP_WRITE => {
                let within = (piece.start - entry.offset.get()) as usize;
                (start + within, (piece.end - piece.start) as usize)
            }
            layout::OP_COMPARE => (start, DIGEST_BYTES),
            _ => (start, entry.len.get() as usize),
        }
    }

    pub(super) fn into_parts(self) -> Parts {
        Parts {
            kind: self.kind,
            position: Position::new(self.epoch, self.incarnation, self.last),
            first: self.first,
            claim_id: self.claim_id,
            claims_upto: self.claims_upto,
            table: self.table,
            buf: self.buf,
        }
    }
}

/// What an encoder needs of a builder that is done.
pub(super) struct Parts {
    pub kind: Kind,
    pub position: Position,
    pub first: Seq,
    pub claim_id: u64,
    pub claims_upto: u64,
    pub table: Vec<OpEntry>,
    pub buf: Vec<u8>,
}

fn carries_data(entry: &OpEntry) -> bool {
    match entry.kind {
        layout::OP_WRITE | layout::OP_COMPARE => true,
        layout::OP_ZERO | layout::OP_TRIM => false,
        _ => entry.len.get() > 0,
    }
}

/// A comparison asks about what was before it: nothing moves across it.
fn span_of(entry: &OpEntry) -> Span {
    let (start, len) = (entry.offset.get(), u64::from(entry.len.get()));
    match entry.kind {
        layout::OP_WRITE | layout::OP_ZERO | layout::OP_TRIM => Span::Range {
            volume: entry.volume.get(),
            start,
            end: start.saturating_add(len),
            cut: entry.kind == layout::OP_WRITE,
        },
        _ => Span::Fence,
    }
}
