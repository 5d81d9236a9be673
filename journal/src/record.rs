//! A record as readers see it: decoded, checked, copied out of the ring.

use crate::format::{Control, Kind, NO_PAYLOAD, Slot, SlotState};
use towline_block::{BlockRange, Extent, VolumeId};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub state: SlotState,
    pub kind: Kind,
    pub volume: VolumeId,
    /// The bytes it touches; empty for barriers and control records. Of a mark: the length
    /// of its name, which is its payload.
    pub extent: Extent,
    /// Where its payload is; `None` for records without one.
    pub(crate) payload_position: Option<u64>,
    pub payload_crc: u32,
    pub unix_ns: u64,
    pub control: Option<Control>,
    pub argument: u64,
    pub incarnation: u32,
}

/// Why a slot does not hold the record that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFault {
    /// The commit word names another record: not written yet, or already reused.
    OtherRecord { found: u64 },
    /// The commit word is right, the header's checksum is not.
    HeaderChecksum,
    /// A field has a value that no version of this format writes.
    Field(&'static str),
}

impl Record {
    /// Decodes the slot of record `seq`; validates every field.
    pub(crate) fn decode(seq: u64, slot: &Slot) -> Result<Record, SlotFault> {
        let (found, state) = crate::format::commit_parts(slot.commit.get());
        if found != seq || state == SlotState::Empty {
            return Err(SlotFault::OtherRecord { found });
        }
        if slot.checksum(seq) != slot.header_crc.get() {
            return Err(SlotFault::HeaderChecksum);
        }
        let kind = Kind::from_byte(slot.kind).ok_or(SlotFault::Field("kind"))?;
        if slot.flags != 0 {
            return Err(SlotFault::Field("flags"));
        }
        let control = match (kind, slot.control.get()) {
            (Kind::Control, code) => {
                Some(Control::from_code(code).ok_or(SlotFault::Field("control"))?)
            }
            (_, 0) => None,
            _ => return Err(SlotFault::Field("control")),
        };
        let payload_position =
            Some(slot.payload_position.get()).filter(|position| *position != NO_PAYLOAD);
        if payload_position.is_some() != matches!(kind, Kind::Write | Kind::Mark) {
            return Err(SlotFault::Field("payload_position"));
        }
        Ok(Record {
            seq,
            state,
            kind,
            volume: VolumeId(slot.volume.get()),
            extent: Extent::new(slot.offset.get(), u64::from(slot.len.get())),
            payload_position,
            payload_crc: slot.payload_crc.get(),
            unix_ns: slot.unix_ns.get(),
            control,
            argument: slot.argument.get(),
            incarnation: slot.incarnation.get(),
        })
    }

    /// The blocks of its volume that it may have changed; none for what changes nothing.
    pub fn blocks(&self) -> BlockRange {
        match self.kind {
            Kind::Write | Kind::Zero | Kind::Trim => BlockRange::touching(self.extent),
            _ => BlockRange::new(0, 0),
        }
    }

    pub fn has_payload(&self) -> bool {
        self.payload_position.is_some()
    }
}
