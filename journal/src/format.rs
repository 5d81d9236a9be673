//! Byte layout of the ring file. `docs/formats/journal.md` explains it; a test
//! compares that document's tables with these structs.
//!
//! Little-endian throughout. Reserved bytes are zero and checked.

use std::mem::{offset_of, size_of};
use towline_block::checksum::crc32c_of;
use towline_block::{Extent, VolumeId, crc32c};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const RING_MAGIC: [u8; 8] = *b"TWLRING\0";
pub const FORMAT_VERSION: u32 = 1;

/// Unit of the file's areas: superblock, volume table, counters, slots, payload, maps.
pub const PAGE_BYTES: u64 = 4096;
/// A group of 64 disks is beyond any VM or application group seen in the field.
pub const VOLUMES_MAX: usize = 64;
/// Largest payload of one record; larger requests become consecutive records.
/// 1 MiB keeps a batch's granularity and a small ring usable.
pub const RECORD_PAYLOAD_BYTES_MAX: u64 = 1 << 20;
/// Slots only control records may take, so that BREAK finds room in a full ring.
pub const CONTROL_SLOTS_RESERVED: u64 = 8;
/// Payloads begin at multiples of a cache line.
pub const PAYLOAD_ALIGN: u64 = 64;
/// Smallest ring: four records of the largest payload.
pub const RING_BYTES_MIN: u64 = 4 * RECORD_PAYLOAD_BYTES_MAX;
/// One slot for this many payload bytes, so that 4 KiB writes fill both alike.
pub const PAYLOAD_BYTES_PER_SLOT: u64 = 4096;
/// A position that means "no payload".
pub const NO_PAYLOAD: u64 = u64::MAX;

/// Page 0. Written once, before the ring is named in `state.json`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct Superblock {
    pub magic: [u8; 8],
    pub version: U32,
    pub epoch: U32,
    pub incarnation: U32,
    pub volume_count: U32,
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    pub boot_id: [u8; 16],
    pub slots: U64,
    pub payload_bytes: U64,
    pub slots_offset: U64,
    pub payload_offset: U64,
    pub maps_offset: U64,
    pub file_bytes: U64,
    pub block_bytes: U32,
    /// This ring continues streams that stand at or beyond
    /// (base_incarnation, base_seq, base_claims); zeroes: any stream.
    pub base_incarnation: U32,
    pub base_seq: U64,
    pub base_claims: U64,
    pub created_unix_ns: U64,
    pub group_name: [u8; 64],
    pub reserved: [u8; 3876],
    /// CRC-32C of all bytes of the page before this field.
    pub crc: U32,
}

/// One volume in the table behind the superblock.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct VolumeEntry {
    pub size_bytes: U64,
    /// Offset of the dirty bitmap in the file.
    pub dirty_offset: U64,
    /// Offset of the claimed bitmap in the file.
    pub claimed_offset: U64,
    /// Offset of the suspect bitmap in the file.
    pub suspect_offset: U64,
    /// 64-bit words of each bitmap.
    pub words: U64,
    pub name: [u8; 64],
    pub reserved: [u8; 20],
    /// CRC-32C of all bytes of the entry before this field.
    pub crc: U32,
}

/// One record's header. The commit word is stored last (release) and names the
/// record's whole number, so that a slot of an earlier lap never parses.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct Slot {
    /// seq << 2 | state.
    pub commit: U64,
    /// Monotonic position of the payload; modulo the payload area's size its place.
    pub payload_position: U64,
    pub offset: U64,
    pub len: U32,
    pub volume: U16,
    pub kind: u8,
    pub flags: u8,
    pub payload_crc: U32,
    /// CRC-32C of seq, incarnation and all other fields but commit and this one.
    pub header_crc: U32,
    pub unix_ns: U64,
    /// Control records: the control's argument. Otherwise 0.
    pub argument: U64,
    pub incarnation: U32,
    pub control: U32,
}

pub const SUPERBLOCK_BYTES: u64 = size_of::<Superblock>() as u64;
pub const VOLUME_ENTRY_BYTES: u64 = size_of::<VolumeEntry>() as u64;
pub const SLOT_BYTES: u64 = size_of::<Slot>() as u64;
pub const VOLUME_TABLE_OFFSET: u64 = PAGE_BYTES;
pub const COUNTERS_OFFSET: u64 =
    VOLUME_TABLE_OFFSET + (VOLUMES_MAX as u64 * VOLUME_ENTRY_BYTES).next_multiple_of(PAGE_BYTES);
pub const SLOTS_OFFSET: u64 = COUNTERS_OFFSET + PAGE_BYTES;

const _: () = assert!(SUPERBLOCK_BYTES == PAGE_BYTES);
const _: () = assert!(SLOT_BYTES == 64);
const _: () = assert!(VOLUME_ENTRY_BYTES == 128);
const _: () = assert!(RECORD_PAYLOAD_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(PAYLOAD_ALIGN.is_power_of_two());

/// Counters in the page behind the volume table, one to a cache line. Written by
/// the proxy only. After a crash none of them is trusted but `Acked*`, `Spilled`,
/// `NextClaim` and `Whole`, which change by single stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Counter {
    /// Last sequence number given out.
    Head = 0,
    /// All records up to here have their final outcome.
    Done = 1,
    /// All records up to here are durable at the target.
    Acked = 2,
    /// All claims up to here are durable at the target.
    AckedClaims = 3,
    /// Next claim id.
    NextClaim = 4,
    /// 1 while the stream holds every change: no BREAK without a HEAL.
    Whole = 5,
    DirtyBlocks = 6,
    ClaimedBlocks = 7,
    /// Monotonic end of the payloads given out.
    PayloadHead = 8,
    /// Monotonic start of the payloads still needed.
    PayloadTail = 9,
    /// Unix time of the last change begun, in nanoseconds; at most 1 ms behind.
    LastChangeNs = 10,
    /// Process id of the proxy.
    OwnerPid = 11,
    /// Unix time at which the proxy last published its figures, in nanoseconds.
    HeartbeatNs = 12,
    /// Latency added to writes, nanoseconds.
    AddedWriteP50Ns = 13,
    AddedWriteP99Ns = 14,
    /// Payload bytes journaled since the ring was made.
    JournaledBytes = 15,
    /// Bytes that went to the change map instead since the ring was made.
    MappedBytes = 16,
    /// BREAK records since the ring was made.
    Breaks = 17,
    /// Position of the last HEAL; 0: none yet.
    HealedSeq = 18,
    /// Bytes written by guests since the ring was made (all paths).
    GuestWrittenBytes = 19,
    /// Dirty or claimed blocks that are compared before they are sent.
    SuspectBlocks = 20,
    /// The same of reads, and of flushes and durable writes.
    AddedReadP50Ns = 21,
    AddedReadP99Ns = 22,
    AddedFlushP50Ns = 23,
    AddedFlushP99Ns = 24,
    /// Zeroes that segments of the spill were filled with before their first use, in bytes
    /// since the ring was made.
    SpillFilledBytes = 25,
    /// 1 once a write went on without its extent being hot durably (R7). Kept until a start
    /// has made everything hot: a killed owner's map is not to be believed.
    ActivityInvalid = 26,
    /// Records up to here may have been lost by a failed sync of the spill. A later sync, of
    /// this process or the next, says nothing of them.
    SpillLost = 27,
    /// All records up to here, that the target lacks, are in the spill. Trusted after a
    /// crash as `Acked`.
    Spilled = 32,
    /// All records up to here are in the spill and synced.
    SpillDurable = 33,
    /// Bytes of the spill that hold records the target lacks, and its size.
    SpillUsedBytes = 34,
    SpillBytes = 35,
    /// Bytes written to the spill since the ring was made, and the payload among them.
    SpillWrittenBytes = 36,
    SpillPayloadBytes = 37,
    /// About the time of the oldest record in the spill that the target lacks; 0: none.
    SpillOldestNs = 38,
    /// Where changes go: [`crate::spill::Rung`].
    Rung = 39,
    /// Steps of the ladder since the ring was made.
    LadderSteps = 40,
    /// 1 while the spill cannot be written, 2 while it is full.
    SpillFault = 41,
    /// Number of the last RESYNC that a resync appended; 0: none.
    ResyncSeq = 42,
    /// Bytes of the spill that hold the history of the incarnation before this one; 0
    /// once the target has passed it.
    HistoryBytes = 43,
    /// Times that the spill was synced by itself, not by the flush of a source.
    SpillSyncs = 44,
    /// Bytes written to the activity map since the ring was made.
    ActivityWrittenBytes = 45,
    /// Bytes of change maps saved to disk since the ring was made.
    MapWrittenBytes = 46,
    /// Bytes of `state.json` and `ladder.json` written since the ring was made.
    StateWrittenBytes = 47,
}

/// First line of the stripes: counters that every append raises, a line for each volume
/// (modulo [`STRIPES`]), so that producers do not take them from each other.
const STRIPES_FIRST: u64 = 48;
pub const STRIPES: u64 = 16;
const _: () = assert!((STRIPES_FIRST + STRIPES) * 64 == PAGE_BYTES);

impl Counter {
    /// Where it is in the file; of a striped counter what a ring of before has there.
    pub const fn offset(self) -> u64 {
        match self {
            // Beside the head: one append stores both, and takes one line for it.
            Counter::PayloadHead => COUNTERS_OFFSET + 8,
            _ => COUNTERS_OFFSET + self as u64 * 64,
        }
    }

    /// Where a striped counter is in the line of a stripe.
    pub const fn striped_offset(self, stripe: u64) -> Option<u64> {
        let word = match self {
            Counter::GuestWrittenBytes => 0,
            Counter::JournaledBytes => 1,
            Counter::MappedBytes => 2,
            _ => return None,
        };
        Some(COUNTERS_OFFSET + (STRIPES_FIRST + stripe % STRIPES) * 64 + word * 8)
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A slot whose owner died before it was complete; nothing happened.
    Void = 0,
    Write = 1,
    Zero = 2,
    Trim = 3,
    Barrier = 4,
    /// Reserved for named points.
    Mark = 5,
    Control = 6,
}

impl Kind {
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Void,
            1 => Kind::Write,
            2 => Kind::Zero,
            3 => Kind::Trim,
            4 => Kind::Barrier,
            5 => Kind::Mark,
            6 => Kind::Control,
            _ => return None,
        })
    }
}

/// Meaning of a control record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Control {
    /// First record of an incarnation: what the change map holds is to be sent.
    Resync = 1,
    /// From here on changes go past the journal (R5).
    Break = 2,
    /// From here on the journal holds every change again (R4, R5).
    Heal = 3,
    /// Nothing follows in this epoch, if the target promotes attempt `argument`.
    Seal = 4,
}

impl Control {
    pub fn from_code(code: u32) -> Option<Control> {
        Some(match code {
            1 => Control::Resync,
            2 => Control::Break,
            3 => Control::Heal,
            4 => Control::Seal,
            _ => return None,
        })
    }
}

/// Life of a record: reserved -> intent -> done | failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum SlotState {
    Empty = 0,
    /// Visible; the source operation may or may not have happened.
    Intent = 1,
    Done = 2,
    /// A tombstone: readers skip it, its blocks are dirty.
    Failed = 3,
}

impl SlotState {
    pub fn is_final(self) -> bool {
        matches!(self, SlotState::Done | SlotState::Failed)
    }
}

/// Last number of a record: a commit word has two bits less than a word.
pub const SEQ_MAX: u64 = u64::MAX >> 2;

/// The commit word.
pub const fn commit_word(seq: u64, state: SlotState) -> u64 {
    seq << 2 | state as u64
}

/// Number and state of a commit word.
pub const fn commit_parts(word: u64) -> (u64, SlotState) {
    let state = match word & 3 {
        1 => SlotState::Intent,
        2 => SlotState::Done,
        3 => SlotState::Failed,
        _ => SlotState::Empty,
    };
    (word >> 2, state)
}

impl Slot {
    /// A header without payload, argument or control code.
    pub fn new(kind: Kind, volume: VolumeId, extent: Extent, unix_ns: u64) -> Slot {
        Slot {
            commit: 0.into(),
            payload_position: NO_PAYLOAD.into(),
            offset: extent.offset.into(),
            len: u32::try_from(extent.len).expect("a record is at most 4 GiB").into(),
            volume: volume.0.into(),
            kind: kind as u8,
            flags: 0,
            payload_crc: 0.into(),
            header_crc: 0.into(),
            unix_ns: unix_ns.into(),
            argument: 0.into(),
            incarnation: 0.into(),
            control: 0.into(),
        }
    }

    /// The header checksum for record `seq`.
    pub fn checksum(&self, seq: u64) -> u32 {
        // In one piece: three are three times as slow, and every append pays.
        const AFTER_COMMIT: usize = offset_of!(Slot, payload_position);
        const CRC_AT: usize = offset_of!(Slot, header_crc);
        let bytes = self.as_bytes();
        let mut covered = [0; SLOT_BYTES as usize - 4];
        covered[..8].copy_from_slice(&seq.to_le_bytes());
        covered[8..CRC_AT].copy_from_slice(&bytes[AFTER_COMMIT..CRC_AT]);
        covered[CRC_AT..].copy_from_slice(&bytes[CRC_AT + 4..]);
        crc32c(&covered)
    }
}

impl Superblock {
    pub fn checksum(&self) -> u32 {
        crc32c_of(&[&self.as_bytes()[..offset_of!(Superblock, crc)]])
    }
}

impl VolumeEntry {
    pub fn checksum(&self) -> u32 {
        crc32c_of(&[&self.as_bytes()[..offset_of!(VolumeEntry, crc)]])
    }
}

/// A name in a fixed field, zero-padded.
pub fn name_field(name: &str) -> [u8; 64] {
    let mut field = [0; 64];
    let len = name.len().min(field.len());
    field[..len].copy_from_slice(&name.as_bytes()[..len]);
    field
}

/// The name in a fixed field, up to the first zero.
pub fn name_of(field: &[u8; 64]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
