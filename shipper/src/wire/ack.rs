//! ACK: how far the target is. Cumulative, so any one of them may be lost or late.

use crate::error::{Error, ErrorKind, Result};
use towline_block::{Epoch, Incarnation, Position, Seq};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const FLAG_HAS_POINT: u32 = 1;
const FLAG_BROKEN: u32 = 2;

/// ACK as it lies on the wire.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct AckLayout {
    pub durable_number: U64,
    pub epoch: U32,
    pub incarnation: U32,
    pub seq: U64,
    pub claims_upto: U64,
    pub applied_number: U64,
    pub stream_bytes: U64,
    pub point_epoch: U32,
    pub point_incarnation: U32,
    pub point_seq: U64,
    pub flags: U32,
    pub reserved: U32,
}

pub const ACK_BYTES: usize = size_of::<AckLayout>();
const _: () = assert!(ACK_BYTES == 72);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Number of the last batch that survives anything at the target.
    pub number: u64,
    /// Position of the stream after that batch.
    pub position: Position,
    /// All claims up to this one are durable at the target.
    pub claims_upto: u64,
    /// Number of the last batch written to the target's disks.
    pub applied: u64,
    /// Sum of the sizes of all durable batches.
    pub stream_bytes: u64,
    /// The last point the target can be brought to.
    pub point: Option<Position>,
    /// The target's disks at the durable position are no point.
    pub broken: bool,
}

impl Ack {
    pub fn encode(&self) -> [u8; ACK_BYTES] {
        let point = self.point.unwrap_or_default();
        let flags = (u32::from(self.point.is_some()) * FLAG_HAS_POINT)
            | (u32::from(self.broken) * FLAG_BROKEN);
        zerocopy::transmute!(AckLayout {
            durable_number: self.number.into(),
            epoch: self.position.epoch.0.into(),
            incarnation: self.position.incarnation.0.into(),
            seq: self.position.seq.0.into(),
            claims_upto: self.claims_upto.into(),
            applied_number: self.applied.into(),
            stream_bytes: self.stream_bytes.into(),
            point_epoch: point.epoch.0.into(),
            point_incarnation: point.incarnation.0.into(),
            point_seq: point.seq.0.into(),
            flags: flags.into(),
            reserved: 0.into(),
        })
    }

    pub fn decode(body: &[u8]) -> Result<Ack> {
        let wrong = |what| Err(Error::new(ErrorKind::Protocol, what));
        let Ok(ack) = AckLayout::read_from_bytes(body) else {
            return wrong("an ACK of the wrong length");
        };
        let flags = ack.flags.get();
        if flags & !(FLAG_HAS_POINT | FLAG_BROKEN) != 0 || ack.reserved.get() != 0 {
            return wrong("an ACK with flags that this version does not know");
        }
        let position = |epoch: U32, incarnation: U32, seq: U64| {
            Position::new(Epoch(epoch.get()), Incarnation(incarnation.get()), Seq(seq.get()))
        };
        let point = position(ack.point_epoch, ack.point_incarnation, ack.point_seq);
        let has_point = flags & FLAG_HAS_POINT != 0;
        if !has_point && point != Position::default() {
            return wrong("an ACK with a point that it says is none");
        }
        Ok(Ack {
            number: ack.durable_number.get(),
            position: position(ack.epoch, ack.incarnation, ack.seq),
            claims_upto: ack.claims_upto.get(),
            applied: ack.applied_number.get(),
            stream_bytes: ack.stream_bytes.get(),
            point: has_point.then_some(point),
            broken: flags & FLAG_BROKEN != 0,
        })
    }
}
