//! Byte layout of header and operation table. Little-endian, unaligned, so that
//! a batch can be read where it lies.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: [u8; 8] = *b"TWLBATCH";
pub const VERSION: u16 = 3;
/// Still read: its hash covers the data, too.
pub(crate) const VERSION_HASHES_DATA: u16 = 2;
/// Still read: the table before the data, nothing compressed, nothing sealed.
pub(crate) const VERSION_TABLE_FIRST: u16 = 1;

pub(crate) const KIND_RECORDS: u8 = 1;
pub(crate) const KIND_BLOCKS: u8 = 2;
pub(crate) const COMPRESSION_NONE: u8 = 0;
pub(crate) const COMPRESSION_UNITS: u8 = 1;

/// Everything behind the header is encrypted.
pub(crate) const FLAG_SEALED: u32 = 1;

/// How one unit is stored: the upper 8 bits of its row; the lower 24 are its length.
pub(crate) const UNIT_RAW: u8 = 0;
pub(crate) const UNIT_LZ4: u8 = 1;
pub(crate) const UNIT_ZSTD: u8 = 2;

pub(crate) const OP_WRITE: u8 = 1;
pub(crate) const OP_ZERO: u8 = 2;
pub(crate) const OP_TRIM: u8 = 3;
pub(crate) const OP_BARRIER: u8 = 4;
pub(crate) const OP_MARK: u8 = 5;
pub(crate) const OP_BREAK: u8 = 6;
pub(crate) const OP_HEAL: u8 = 7;
pub(crate) const OP_RESYNC: u8 = 8;
pub(crate) const OP_SEAL: u8 = 9;
pub(crate) const OP_COMPARE: u8 = 10;

/// Zero only: the range stays allocated.
pub(crate) const OP_FLAG_KEEP_ALLOCATED: u8 = 1;

/// First bytes of every batch. The checksum stands last, so that it covers a
/// prefix; identity comes before sizes, so that a reader can refuse early.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: U16,
    pub kind: u8,
    pub compression: u8,
    pub flags: U32,
    pub group_uuid: [u8; 16],
    pub session: [u8; 16],
    pub number: U64,
    pub prev_hash: [u8; 32],
    pub epoch: U32,
    pub incarnation: U32,
    pub first_seq: U64,
    pub last_seq: U64,
    pub claim_id: U64,
    pub claims_upto: U64,
    pub stream_bytes_before: U64,
    pub created_unix_ns: U64,
    pub op_count: U32,
    pub data_bytes: U32,
    pub table_crc32c: U32,
    pub stored_bytes: U32,
    pub unit_bytes: U32,
    pub stored_crc32c: U32,
    pub key_id: [u8; 16],
    pub salt: [u8; 32],
    pub reserved: [u8; 36],
    pub header_crc32c: U32,
}

/// One row of the operation table.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct OpEntry {
    pub kind: u8,
    pub flags: u8,
    pub volume: U16,
    pub len: U32,
    pub offset: U64,
    pub data_offset: U32,
    pub data_crc32c: U32,
    pub seq: U64,
}

pub const HEADER_BYTES: usize = size_of::<Header>();
pub const OP_BYTES: usize = size_of::<OpEntry>();
/// A row of the unit table.
pub(crate) const UNIT_ROW_BYTES: usize = size_of::<U32>();

/// What the header's own checksum covers: all before it.
pub(crate) const HEADER_CRC_COVERS: usize = std::mem::offset_of!(Header, header_crc32c);

const _: () = assert!(HEADER_BYTES == 256);
const _: () = assert!(OP_BYTES == 32);
const _: () = assert!(HEADER_CRC_COVERS == 252);
