//! Marks: named records at which the group was whole.

use super::Journal;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CONTROL_SLOTS_RESERVED, Counter, Kind, PAYLOAD_ALIGN, Slot, SlotState};
use towline_block::{Extent, MarkName, VolumeId, crc32c};

impl Journal {
    /// Appends a MARK record, behind every change that was acknowledged before. Its name is
    /// its payload. Answers its number.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] while the group is broken (there is no point to name: R5), sealed, or
    /// without room in the ring. Nothing was appended then; try again later.
    pub fn mark(&self, name: &MarkName) -> Result<u64> {
        let refused = |why: &str| Error::new(ErrorKind::Refused, format!("no mark {name}: {why}"));
        if self.sealed().is_some() {
            return Err(refused("the group is sealed"));
        }
        let label = name.as_str().as_bytes();
        let ring = &self.ring;
        let room = (label.len() as u64).next_multiple_of(PAYLOAD_ALIGN);
        let mut cursor = self.lock_cursor();
        if !cursor.whole {
            return Err(refused(
                "changes are under way past the journal, so there is no point now: wait until status \
                 says live",
            ));
        }
        let position = cursor.place(room, ring.payload_bytes());
        let fits = cursor.free_slots(ring.slots()) > CONTROL_SLOTS_RESERVED;
        let (true, Some(position)) = (fits, position) else {
            return Err(refused("the ring is full"));
        };
        let seq = cursor.next_seq;
        cursor.next_seq += 1;
        cursor.payload_head = position + room;
        ring.set(Counter::PayloadHead, cursor.payload_head);
        let extent = Extent::new(0, label.len() as u64);
        let mut slot = Slot::new(Kind::Mark, VolumeId(0), extent, (self.clock)());
        slot.payload_position = position.into();
        slot.payload_crc = crc32c(label).into();
        ring.write_payload(position, label);
        ring.publish(seq, &mut slot, SlotState::Done);
        ring.set(Counter::Head, seq);
        drop(cursor);
        self.advance_done();
        tracing::info!(group = %self.group, seq, mark = %name, "mark");
        Ok(seq)
    }
}
