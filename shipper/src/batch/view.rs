//! Reading a batch that anybody may have written.
//!
//! Everything is checked before anything is handed out: a view's operations
//! cannot reach outside its bytes, and every byte is under a checksum.

use super::header::{self, Shape};
use super::layout::{self, Header, OpEntry};
use super::{
    COMPARE_BYTES_MAX, COMPARES_MAX, Control, DIGEST_BYTES, Kind, NOTE_BYTES_MAX, Op, SeqOp,
    bytes_after,
};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};
use zerocopy::FromBytes;

/// A whole, valid batch in plain text.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    header: &'a Header,
    table: &'a [OpEntry],
    data: &'a [u8],
    encoded_len: usize,
    hash: BatchHash,
}

/// Bytes of data behind an operation that carries data.
fn payload_len(entry: &OpEntry) -> u32 {
    if entry.kind == layout::OP_COMPARE { DIGEST_BYTES as u32 } else { entry.len.get() }
}

impl<'a> BatchView<'a> {
    /// Checks a batch that is neither compressed nor sealed, where it lies. Whoever may
    /// be given others, too, takes [`super::Batch::open`].
    ///
    /// # Errors
    /// [`ErrorKind::TooNew`] for a later format, [`ErrorKind::Damaged`] for anything else
    /// that is not a sound batch, [`ErrorKind::InvalidInput`] for one that has to be unpacked.
    pub fn parse(bytes: &'a [u8]) -> Result<BatchView<'a>> {
        let (header, body) = header::split(bytes)?;
        let shape = header::check_whole(header, bytes.len())?;
        if shape.is_sealed || shape.is_packed {
            let what = "the batch is compressed or sealed: it has to be opened";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let rows = header::rows(header, &shape, body)?;
        let data = body.get(shape.stored.clone()).ok_or_else(header::cut_off)?;
        let view = BatchView {
            header,
            table: rows.ops,
            data,
            encoded_len: bytes.len(),
            hash: header::hash(header, &shape, bytes),
        };
        view.check_ops()?;
        Ok(view)
    }

    /// Of parts that were unpacked; `check_ops` is the caller's.
    pub(super) fn of_parts(
        bytes: &'a [u8],
        body: &'a [u8],
        data: Option<&'a [u8]>,
        shape: &Shape,
        hash: BatchHash,
    ) -> Result<BatchView<'a>> {
        let (header, _) = header::split(bytes)?;
        let table = body.get(shape.table.clone()).ok_or_else(header::cut_off)?;
        let table = <[OpEntry]>::ref_from_bytes(table).map_err(|_| header::cut_off())?;
        let stored = body.get(shape.stored.clone()).ok_or_else(header::cut_off)?;
        let data = data.unwrap_or(stored);
        Ok(BatchView { header, table, data, encoded_len: bytes.len(), hash })
    }

    pub(super) fn check_ops(&self) -> Result<()> {
        let mut next_data = 0;
        let mut last_seq = Seq::NONE;
        let compares = self.table.iter().filter(|entry| entry.kind == layout::OP_COMPARE).count();
        if compares > COMPARES_MAX {
            let what = format!(
                "batch {}: {compares} comparisons, at most {COMPARES_MAX} fit",
                self.number()
            );
            return Err(Error::damaged(what));
        }
        for (index, entry) in self.table.iter().enumerate() {
            self.check_op(entry, &mut next_data, &mut last_seq).map_err(|why| {
                let number = self.number();
                Error::damaged(format!("batch {number}, operation {index}: {why}"))
            })?;
        }
        if next_data as usize != self.data.len() {
            let number = self.number();
            return Err(Error::damaged(format!("batch {number}: data that no operation names")));
        }
        Ok(())
    }

    fn check_op(
        &self,
        entry: &OpEntry,
        next_data: &mut u32,
        last_seq: &mut Seq,
    ) -> std::result::Result<(), &'static str> {
        let len = entry.len.get();
        let carries_data = match entry.kind {
            layout::OP_WRITE => true,
            layout::OP_ZERO | layout::OP_TRIM => false,
            layout::OP_BARRIER if len > 0 => return Err("a barrier has no payload"),
            layout::OP_BARRIER..=layout::OP_SEAL => len > 0,
            layout::OP_COMPARE => true,
            _ => return Err("a kind that this version does not know"),
        };
        let is_range = entry.kind <= layout::OP_TRIM || entry.kind == layout::OP_COMPARE;
        if is_range && (len == 0 || entry.offset.get().checked_add(len.into()).is_none()) {
            return Err("an empty range, or one that ends past 2^64");
        }
        if entry.kind == layout::OP_COMPARE && len > COMPARE_BYTES_MAX {
            return Err("a comparison of more bytes than one may have");
        }
        if !is_range && (entry.offset.get() != 0 || entry.volume.get() != 0) {
            return Err("a range where none belongs");
        }
        if !is_range && len as usize > NOTE_BYTES_MAX {
            return Err("a note longer than a note may be");
        }
        let known_flags =
            if entry.kind == layout::OP_ZERO { layout::OP_FLAG_KEEP_ALLOCATED } else { 0 };
        if entry.flags & !known_flags != 0 {
            return Err("flags that this version does not know");
        }
        self.check_seq(entry, is_range, last_seq)?;
        if !carries_data {
            let clean = entry.data_offset.get() == 0 && entry.data_crc32c.get() == 0;
            return if clean { Ok(()) } else { Err("data where none belongs") };
        }
        if entry.data_offset.get() != *next_data {
            return Err("its data does not follow the data of the operation before");
        }
        let end =
            next_data.checked_add(payload_len(entry)).ok_or("its data ends past the batch")?;
        let payload = self.payload(entry).ok_or("its data ends past the batch")?;
        if crc32c(payload) != entry.data_crc32c.get() {
            return Err("the checksum of its data does not match");
        }
        *next_data = end;
        Ok(())
    }

    fn check_seq(
        &self,
        entry: &OpEntry,
        is_range: bool,
        last_seq: &mut Seq,
    ) -> std::result::Result<(), &'static str> {
        let seq = Seq(entry.seq.get());
        if self.kind() == Kind::Blocks {
            return match (is_range, seq) {
                (true, Seq::NONE) => Ok(()),
                (true, _) => Err("a block has no seq"),
                (false, _) => Err("only writes, zeroes, trims and comparisons belong to blocks"),
            };
        }
        if entry.kind == layout::OP_COMPARE {
            return Err("records are not compared");
        }
        if seq < self.first_seq() || seq > self.position().seq || seq < *last_seq {
            return Err("its seq is out of the batch's range or order");
        }
        *last_seq = seq;
        Ok(())
    }

    fn payload(&self, entry: &OpEntry) -> Option<&'a [u8]> {
        let start = entry.data_offset.get() as usize;
        self.data.get(start..start.checked_add(payload_len(entry) as usize)?)
    }

    /// The operations in the order in which they are applied.
    pub fn ops(&self) -> impl Iterator<Item = SeqOp<'a>> + use<'a> {
        let view = *self;
        view.table.iter().filter_map(move |entry| view.op(entry))
    }

    /// `None` never happens: `parse` checked every entry.
    fn op(&self, entry: &OpEntry) -> Option<SeqOp<'a>> {
        let volume = VolumeId(entry.volume.get());
        let extent = Extent::new(entry.offset.get(), entry.len.get().into());
        let note = || if extent.is_empty() { Some(&[][..]) } else { self.payload(entry) };
        let control = |control| Some(Op::Control { control, note: note()? });
        let op = match entry.kind {
            layout::OP_WRITE => {
                Op::Write { volume, offset: extent.offset, payload: self.payload(entry)? }
            }
            layout::OP_ZERO => {
                let keep_allocated = entry.flags & layout::OP_FLAG_KEEP_ALLOCATED != 0;
                Op::Zero { volume, extent, keep_allocated }
            }
            layout::OP_TRIM => Op::Trim { volume, extent },
            layout::OP_COMPARE => {
                Op::Compare { volume, extent, digest: self.payload(entry)?.try_into().ok()? }
            }
            layout::OP_BARRIER => Op::Barrier,
            layout::OP_MARK => Op::Mark { label: note()? },
            layout::OP_BREAK => control(Control::Break)?,
            layout::OP_HEAL => control(Control::Heal)?,
            layout::OP_RESYNC => control(Control::Resync)?,
            layout::OP_SEAL => control(Control::Seal)?,
            _ => return None,
        };
        Some(SeqOp { seq: Seq(entry.seq.get()), op })
    }

    /// What the next batch names as its predecessor.
    pub fn hash(&self) -> BatchHash {
        self.hash
    }

    pub fn kind(&self) -> Kind {
        if self.header.kind == layout::KIND_RECORDS { Kind::Records } else { Kind::Blocks }
    }

    pub fn group(&self) -> GroupUuid {
        GroupUuid(self.header.group_uuid)
    }

    pub fn session(&self) -> SessionId {
        SessionId(self.header.session)
    }

    pub fn number(&self) -> u64 {
        self.header.number.get()
    }

    pub fn prev_hash(&self) -> BatchHash {
        BatchHash(self.header.prev_hash)
    }

    /// First record in the batch; of blocks: the first record not yet cut.
    pub fn first_seq(&self) -> Seq {
        Seq(self.header.first_seq.get())
    }

    /// Position of the stream after this batch.
    pub fn position(&self) -> Position {
        Position::new(
            Epoch(self.header.epoch.get()),
            Incarnation(self.header.incarnation.get()),
            Seq(self.header.last_seq.get()),
        )
    }

    /// The claim these blocks belong to; `None` in a batch of records.
    pub fn claim_id(&self) -> Option<u64> {
        (self.kind() == Kind::Blocks).then(|| self.header.claim_id.get())
    }

    /// All claims up to this one are complete with this batch.
    pub fn claims_upto(&self) -> u64 {
        self.header.claims_upto.get()
    }

    pub fn stream_bytes_before(&self) -> u64 {
        self.header.stream_bytes_before.get()
    }

    pub fn stream_bytes(&self) -> u64 {
        bytes_after(self.stream_bytes_before(), self.encoded_len)
    }

    pub fn created_unix_ns(&self) -> u64 {
        self.header.created_unix_ns.get()
    }

    pub fn op_count(&self) -> usize {
        self.table.len()
    }
}
