//! Cuts records of the ring into batches: a contiguous range of sequence numbers,
//! every payload verified against the checksum the proxy computed.

use crate::batch::{BatchBuilder, Control, Filled};
use crate::error::{Error, Result};
use crate::source::from_journal;
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_journal::{Kind, Record, RingReader, SlotState};

/// Payload at which a batch of records is sealed: large enough to spread the cost of
/// a sync, small enough that a target is seldom a second behind on a slow link.
pub(crate) const RECORDS_BATCH_BYTES: usize = 2 << 20;

/// A guest's most frequent write, to take memory for as many at once.
const USUAL_BYTES: usize = 4096;
/// Records that usually fill a batch.
pub(crate) const RECORDS_BATCH: u64 = (RECORDS_BATCH_BYTES / USUAL_BYTES) as u64;

/// What one call cut.
pub(crate) struct Cut {
    pub batch: BatchBuilder,
    /// Last record in it.
    pub last: u64,
    pub payload_bytes: u64,
    /// The SEAL record was among them.
    pub sealed: bool,
}

/// Which records to cut, and what the stream says beside them.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub epoch: u32,
    pub incarnation: u32,
    pub first: u64,
    pub last: u64,
    pub claims_upto: u64,
}

/// Cuts at most one batch of a range of records, each from `read`. `None`: it is empty.
pub(crate) fn cut(
    range: &Range,
    memory: Vec<u8>,
    mut read: impl FnMut(u64, &mut Vec<u8>) -> towline_journal::Result<Record>,
) -> Result<Option<Cut>> {
    let Range { epoch, incarnation, first, last, claims_upto } = *range;
    if first > last {
        return Ok(None);
    }
    let position = Position::new(Epoch(epoch), Incarnation(incarnation), Seq(first));
    let batch = BatchBuilder::records(position, claims_upto).reusing(memory);
    let (mut batch, count) = (batch, (last - first + 1) as usize);
    let count = count.min(RECORDS_BATCH as usize);
    batch.expect(count, count * USUAL_BYTES);
    let mut cut = Cut { batch, last: first - 1, payload_bytes: 0, sealed: false };
    for seq in first..=last {
        let (record, payload) = cut.batch.fill(|batch| read(seq, batch));
        let record = match record {
            Ok(record) if cut.batch.fits(0) => record,
            // What precedes it goes out first.
            _ if seq > first => {
                cut.batch.take_back(payload);
                break;
            }
            Ok(_) => return Err(Error::damaged("a record is larger than a batch")),
            Err(error) => return Err(from_journal(error)),
        };
        cut.last = seq;
        cut.payload_bytes += payload.len as u64;
        add(&mut cut, &record, payload)?;
        // A mark ends its batch: it names a batch end (R5).
        if record.kind == Kind::Mark || cut.batch.data_bytes() >= RECORDS_BATCH_BYTES {
            break;
        }
    }
    Ok(Some(cut))
}

/// In place of records `first..=upto`, which are lost: a BREAK, so that no batch end is
/// a point until their blocks have been sent and HEAL follows.
pub(crate) fn skip(
    reader: &RingReader,
    epoch: u32,
    first: u64,
    upto: u64,
    claims_upto: u64,
) -> Result<BatchBuilder> {
    let position = Position::new(Epoch(epoch), Incarnation(reader.incarnation()), Seq(first));
    let mut batch = BatchBuilder::records(position, claims_upto);
    batch.control(Seq(first), Control::Break, &[])?;
    batch.pass(Seq(upto.max(first)));
    Ok(batch)
}

fn add(cut: &mut Cut, record: &Record, payload: Filled) -> Result<()> {
    let (seq, volume, extent) = (Seq(record.seq), record.volume, record.extent);
    cut.batch.pass(seq);
    if record.state == SlotState::Done && record.kind == Kind::Write {
        let crc = record.payload_crc;
        return cut.batch.write_filled(seq, volume, extent.offset, payload, crc);
    }
    let label = match record.kind {
        Kind::Mark => cut.batch.filled(&payload).to_vec(),
        _ => Vec::new(),
    };
    cut.batch.take_back(payload);
    if record.state != SlotState::Done {
        return Ok(());
    }
    match record.kind {
        Kind::Mark => cut.batch.mark(seq, &label),
        Kind::Zero => cut.batch.zero(seq, volume, extent, false),
        Kind::Trim => cut.batch.trim(seq, volume, extent),
        Kind::Control => {
            let control = match record.control {
                Some(towline_journal::Control::Break) => Control::Break,
                Some(towline_journal::Control::Heal) => Control::Heal,
                Some(towline_journal::Control::Resync) => Control::Resync,
                Some(towline_journal::Control::Seal) => Control::Seal,
                None => return Ok(()),
            };
            if control != Control::Seal {
                return cut.batch.control(seq, control, &[]);
            }
            cut.sealed = true;
            cut.batch.control(
                seq,
                control,
                super::cutover::attempt_name(record.argument).as_bytes(),
            )
        }
        // A barrier orders; the batch as a whole already does.
        Kind::Write | Kind::Barrier | Kind::Void => Ok(()),
    }
}
