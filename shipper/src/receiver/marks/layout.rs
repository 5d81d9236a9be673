//! The bytes of a mark's file (docs/formats/receiver.md).

use super::{Mark, MarkKind};
use crate::ids::{BatchHash, GroupUuid};
use crate::receiver::stream::{Point, Stream};
use towline_block::{
    BLOCK_BYTES, BlockRange, Epoch, Incarnation, MarkName, NAME_BYTES_MAX, Position, Seq, crc32c,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MARK_MAGIC: [u8; 8] = *b"TWLMARK1";
pub const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"UENT");

pub const ENTRY_DATA: u16 = 1;
pub const ENTRY_ZERO: u16 = 2;

const KIND_POINT: u32 = 1;
const KIND_PERIODIC: u32 = 2;
const KIND_NAMED: u32 = 3;

/// What the mark is: everything a target needs to stand there again.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct MarkHeader {
    pub magic: [u8; 8],
    pub group_uuid: [u8; 16],
    pub number: U64,
    pub hash: [u8; 32],
    pub epoch: U32,
    pub incarnation: U32,
    pub seq: U64,
    pub claims_upto: U64,
    pub stream_bytes: U64,
    pub unix_ns: U64,
    pub kind: U32,
    pub name: [u8; 64],
    pub reserved: [u8; 80],
    pub header_crc32c: U32,
}

/// One saved block with its content behind it, or a run of blocks that were zero.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct PreImage {
    pub magic: U32,
    pub kind: U16,
    pub volume: U16,
    pub first_block: U64,
    pub blocks: U32,
    pub data_bytes: U32,
    pub data_crc32c: U32,
    pub entry_crc32c: U32,
}

pub(super) const HEADER_BYTES: usize = size_of::<MarkHeader>();
pub(super) const PRE_IMAGE_BYTES: usize = size_of::<PreImage>();
const HEADER_CRC_COVERS: usize = std::mem::offset_of!(MarkHeader, header_crc32c);
pub(super) const ENTRY_CRC_COVERS: usize = std::mem::offset_of!(PreImage, entry_crc32c);
const _: () = assert!(HEADER_BYTES == 256 && PRE_IMAGE_BYTES == 32);
const _: () = assert!(NAME_BYTES_MAX < 64, "a name fits its field");

impl MarkHeader {
    pub(super) fn of(group: GroupUuid, mark: &Mark) -> MarkHeader {
        let stream = &mark.stream;
        let mut name = [0; 64];
        let (kind, text) = match &mark.kind {
            MarkKind::Point => (KIND_POINT, ""),
            MarkKind::Periodic => (KIND_PERIODIC, ""),
            MarkKind::Named(name) => (KIND_NAMED, name.as_str()),
        };
        if let Some(place) = name.get_mut(..text.len()) {
            place.copy_from_slice(text.as_bytes());
        }
        let mut header = MarkHeader {
            magic: MARK_MAGIC,
            group_uuid: group.0,
            number: stream.number.into(),
            hash: stream.hash.0,
            epoch: stream.position.epoch.0.into(),
            incarnation: stream.position.incarnation.0.into(),
            seq: stream.position.seq.0.into(),
            claims_upto: stream.claims_upto.into(),
            stream_bytes: stream.stream_bytes.into(),
            unix_ns: mark.unix_ns.into(),
            kind: kind.into(),
            name,
            reserved: [0; 80],
            header_crc32c: 0.into(),
        };
        header.header_crc32c = crc32c(header.as_bytes().split_at(HEADER_CRC_COVERS).0).into();
        header
    }

    /// The mark; `None` for what is damaged, unknown or of another group.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES], group: GroupUuid) -> Option<Mark> {
        let header = MarkHeader::ref_from_bytes(bytes).ok()?;
        let known = header.magic == MARK_MAGIC
            && header.group_uuid == group.0
            && header.reserved == [0; 80]
            && header.header_crc32c.get() == crc32c(bytes.split_at(HEADER_CRC_COVERS).0);
        if !known {
            return None;
        }
        let kind = match header.kind.get() {
            KIND_POINT => MarkKind::Point,
            KIND_PERIODIC => MarkKind::Periodic,
            KIND_NAMED => {
                let text = header.name.split(|byte| *byte == 0).next().unwrap_or_default();
                MarkKind::Named(std::str::from_utf8(text).ok()?.parse::<MarkName>().ok()?)
            }
            _ => return None,
        };
        let position = Position::new(
            Epoch(header.epoch.get()),
            Incarnation(header.incarnation.get()),
            Seq(header.seq.get()),
        );
        let number = header.number.get();
        let stream = Stream {
            number,
            hash: BatchHash(header.hash),
            position,
            claims_upto: header.claims_upto.get(),
            stream_bytes: header.stream_bytes.get(),
            whole: true,
            point: Some(Point { number, position }),
            sealed: None,
        };
        Some(Mark { kind, unix_ns: header.unix_ns.get(), stream })
    }
}

impl PreImage {
    pub(super) fn range(&self) -> BlockRange {
        BlockRange::new(self.first_block.get(), self.blocks.get().into())
    }

    /// Checksum and kind are right, the blocks lie inside their volume, and the data is
    /// exactly theirs. `sizes`: of the volumes, by id.
    pub(super) fn is_sound(&self, sizes: &[u64]) -> bool {
        let size = sizes.get(usize::from(self.volume.get())).copied().unwrap_or(0);
        let (all, blocks) = (BlockRange::of_volume(size), self.range());
        let data = u64::from(self.data_bytes.get());
        let whole = match self.kind.get() {
            ENTRY_ZERO => data == 0 && blocks.count > 0,
            ENTRY_DATA => blocks.count == 1 && data > 0 && data <= BLOCK_BYTES,
            _ => false,
        };
        self.magic.get() == ENTRY_MAGIC
            && self.entry_crc32c.get() == crc32c(self.as_bytes().split_at(ENTRY_CRC_COVERS).0)
            && whole
            && blocks.first < all.count
            && blocks.count <= all.count - blocks.first
            && (self.kind.get() == ENTRY_ZERO || blocks.extent(size).len == data)
    }
}
