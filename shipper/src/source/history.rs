//! What the spill has of a ring that was lost, for a target that stands in it: shipped
//! first, as the records they are (docs/design/0004).
//!
//! It ends with its last record or with the first that cannot be used; the stream then
//! goes on with the first record of the ring that is.

use super::cutter::{self, Cut, Range};
use crate::error::Result;
use towline_journal::spill::Store;
use towline_journal::{
    Control, Error, ErrorKind, HistoryPart, Kind, Record, RingReader, SlotState, SpillReader,
};

pub(crate) struct History {
    reader: SpillReader,
    part: HistoryPart,
    next: u64,
}

impl History {
    pub fn new(ring: &RingReader, store: Store, part: HistoryPart) -> History {
        let reader = ring.history(store, part.ring_id.0);
        History { reader, part, next: part.first_seq }
    }

    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The next batch; `None` when all of it is in the stream.
    ///
    /// # Errors
    /// When the next record cannot be read or must not be shipped: it ends there.
    pub fn cut(&mut self, epoch: u32, memory: Vec<u8>) -> Result<Option<Cut>> {
        let HistoryPart { incarnation, last_seq, claims, .. } = self.part;
        let range =
            Range { epoch, incarnation, first: self.next, last: last_seq, claims_upto: claims };
        let cut = cutter::cut(&range, memory, |seq, payload| {
            usable(self.reader.read(seq, payload)?, &self.part)
        })?;
        if let Some(cut) = &cut {
            self.next = cut.last + 1;
        }
        Ok(cut)
    }
}

/// The record as it may be shipped.
fn usable(mut record: Record, part: &HistoryPart) -> towline_journal::Result<Record> {
    let damaged = |what: &str| {
        let what = format!("record {} of incarnation {}: {what}", record.seq, part.incarnation);
        Err(Error::new(ErrorKind::Damaged, what))
    };
    if record.incarnation != part.incarnation {
        return damaged("it is of another one");
    }
    match record.control.filter(|_| record.kind == Kind::Control) {
        // It says that the target had all claims up to its argument.
        Some(Control::Heal) if record.argument > part.claims => {
            damaged("it heals with blocks that this target does not have")
        }
        // A cutover does not outlive its ring.
        Some(Control::Seal) => {
            record.state = SlotState::Failed;
            Ok(record)
        }
        _ => Ok(record),
    }
}
