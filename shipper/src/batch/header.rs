//! The header that anybody may have written: what it may say, and where it puts the
//! parts of the batch.

use super::key::{KEY_ID_BYTES, KeyId, SALT_BYTES, TAG_BYTES};
use super::layout::{
    self, FLAG_SEALED, HEADER_BYTES, Header, MAGIC, OP_BYTES, OpEntry, UNIT_ROW_BYTES, VERSION,
    VERSION_HASHES_DATA, VERSION_TABLE_FIRST,
};
use super::pack::{UNIT_BYTES_MAX, UNIT_BYTES_MIN};
use super::{BATCH_BYTES_MAX, DATA_BYTES_MAX, OPS_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::BatchHash;
use std::ops::Range;
use towline_block::checksum::crc32c_of;
use towline_block::crc32c;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Where the parts lie behind the header.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub stored: Range<usize>,
    pub units: Range<usize>,
    pub table: Range<usize>,
    pub tag: Range<usize>,
    pub is_packed: bool,
    pub is_sealed: bool,
}

/// The two tables of a batch in plain text.
pub(super) struct Rows<'a> {
    pub units: &'a [U32],
    pub ops: &'a [OpEntry],
}

/// Length of the batch whose first [`HEADER_BYTES`] are given, from a header
/// that passed all its checks.
pub fn encoded_len(header: &[u8]) -> Result<usize> {
    let (header, _) = split(header)?;
    check(header)?;
    Ok(HEADER_BYTES + shape(header).tag.end)
}

/// Number of the batch that begins with these bytes, unchecked.
pub fn number_of(bytes: &[u8]) -> Option<u64> {
    split(bytes).ok().map(|(header, _)| header.number.get())
}

pub(super) fn split(bytes: &[u8]) -> Result<(&Header, &[u8])> {
    Header::ref_from_prefix(bytes).map_err(|_| {
        let len = bytes.len();
        Error::damaged(format!("a batch of {len} bytes is shorter than a batch header"))
    })
}

pub(super) fn cut_off() -> Error {
    Error::damaged("a part of the batch is cut off")
}

/// A sound header of a batch that is `len` bytes long.
pub(super) fn check_whole(header: &Header, len: usize) -> Result<Shape> {
    check(header)?;
    let shape = shape(header);
    let announced = HEADER_BYTES + shape.tag.end;
    if len != announced {
        let number = header.number;
        let what = format!("batch {number} has {len} bytes, its header says {announced}");
        return Err(Error::damaged(what));
    }
    Ok(shape)
}

/// Of a header that passed its checks: all sizes are within limits.
pub(super) fn shape(header: &Header) -> Shape {
    let ops = header.op_count.get() as usize * OP_BYTES;
    let data = header.data_bytes.get() as usize;
    let is_packed = header.compression != layout::COMPRESSION_NONE;
    let is_sealed = header.flags.get() & FLAG_SEALED != 0;
    if header.version.get() == VERSION_TABLE_FIRST {
        let end = ops + data;
        return Shape {
            stored: ops..end,
            units: end..end,
            table: 0..ops,
            tag: end..end,
            is_packed: false,
            is_sealed: false,
        };
    }
    let stored = header.stored_bytes.get() as usize;
    let units = if is_packed { data.div_ceil(header.unit_bytes.get() as usize) } else { 0 };
    let table = stored + units * UNIT_ROW_BYTES;
    let end = table + ops;
    Shape {
        stored: 0..stored,
        units: stored..table,
        table: table..end,
        tag: end..end + if is_sealed { TAG_BYTES } else { 0 },
        is_packed,
        is_sealed,
    }
}

/// What the next batch names as its predecessor. Data in the open is under the checksums of
/// its rows, and these are hashed; of what is sealed everything is, so that it can be checked
/// without the key.
pub(super) fn hash(header: &Header, shape: &Shape, bytes: &[u8]) -> BatchHash {
    let mut hasher = blake3::Hasher::new();
    if shape.is_sealed || header.version.get() <= VERSION_HASHES_DATA {
        hasher.update(bytes);
    } else {
        let tables = HEADER_BYTES + shape.stored.end;
        hasher.update(bytes.split_at(HEADER_BYTES).0).update(bytes.split_at(tables).1);
    }
    BatchHash(*hasher.finalize().as_bytes())
}

/// The tables of a body in plain text, checksums included.
pub(super) fn rows<'a>(header: &Header, shape: &Shape, body: &'a [u8]) -> Result<Rows<'a>> {
    let units = body.get(shape.units.clone()).ok_or_else(cut_off)?;
    let ops = body.get(shape.table.clone()).ok_or_else(cut_off)?;
    let number = header.number;
    if !shape.is_sealed && crc32c_of(&[units, ops]) != header.table_crc32c.get() {
        let what = format!("batch {number}: the operation table's checksum does not match");
        return Err(Error::damaged(what));
    }
    if !shape.is_sealed && shape.is_packed {
        let stored = body.get(shape.stored.clone()).ok_or_else(cut_off)?;
        if crc32c(stored) != header.stored_crc32c.get() {
            let what = format!("batch {number}: the checksum of the stored data does not match");
            return Err(Error::damaged(what));
        }
    }
    let units = <[U32]>::ref_from_bytes(units).map_err(|_| cut_off())?;
    let ops = <[OpEntry]>::ref_from_bytes(ops).map_err(|_| cut_off())?;
    Ok(Rows { units, ops })
}

fn check(header: &Header) -> Result<()> {
    if header.magic != MAGIC {
        return Err(Error::damaged("not a batch: the magic is wrong"));
    }
    if header.version.get() > VERSION {
        let what = format!(
            "the batch has format {}, this program reads up to {VERSION}: update it",
            header.version
        );
        return Err(Error::new(ErrorKind::TooNew, what));
    }
    let covered = zerocopy::IntoBytes::as_bytes(header).split_at(layout::HEADER_CRC_COVERS).0;
    if crc32c(covered) != header.header_crc32c.get() {
        return Err(Error::damaged("the batch header's checksum does not match"));
    }
    let sound = check_meaning(header).and_then(|()| check_sizes(header));
    sound.map_err(|what| Error::damaged(format!("batch {}: {what}", header.number)))
}

fn check_meaning(header: &Header) -> std::result::Result<(), &'static str> {
    if header.version.get() < VERSION_TABLE_FIRST {
        return Err("format 0 does not exist");
    }
    if header.reserved != [0; 36] {
        return Err("reserved bytes are not zero");
    }
    let number = header.number.get();
    if number == 0 || number == u64::MAX {
        return Err("the number is outside 1 .. 2^64-2");
    }
    if header.epoch.get() == 0 || header.incarnation.get() == 0 {
        return Err("epoch and incarnation start at 1");
    }
    let first_batch = number == 1;
    if first_batch && (header.prev_hash != [0; 32] || header.stream_bytes_before.get() != 0) {
        return Err("the first batch has no batch before it");
    }
    let (first, last) = (header.first_seq.get(), header.last_seq.get());
    let (range_ok, claim_ok) = match header.kind {
        layout::KIND_RECORDS => (1 <= first && first <= last, header.claim_id.get() == 0),
        layout::KIND_BLOCKS => (last.checked_add(1) == Some(first), header.claim_id.get() != 0),
        _ => return Err("a kind that this version does not know"),
    };
    if !range_ok || last == u64::MAX {
        return Err("the seq range is not possible for its kind");
    }
    if !claim_ok {
        return Err("the claim is not possible for its kind");
    }
    Ok(())
}

/// Sizes and how the body is stored: after this no part is larger than its limit.
fn check_sizes(header: &Header) -> std::result::Result<(), &'static str> {
    let (ops, data) = (header.op_count.get() as usize, header.data_bytes.get() as usize);
    if ops > OPS_MAX || data > DATA_BYTES_MAX {
        return Err("more operations or bytes than a batch may have");
    }
    let unsealed = header.key_id == [0; KEY_ID_BYTES] && header.salt == [0; SALT_BYTES];
    let (stored, unit) = (header.stored_bytes.get() as usize, header.unit_bytes.get() as usize);
    let stored_crc = header.stored_crc32c.get();
    if header.version.get() == VERSION_TABLE_FIRST {
        let plain = header.compression == layout::COMPRESSION_NONE && header.flags.get() == 0;
        let clean = stored == 0 && unit == 0 && stored_crc == 0 && unsealed;
        return if plain && clean { Ok(()) } else { Err("format 1 has nothing of this") };
    }
    match header.flags.get() {
        0 if !unsealed => return Err("a key of a batch that is not sealed"),
        0 => {}
        FLAG_SEALED => {
            if header.key_id == [0; KEY_ID_BYTES] {
                return Err("a sealed batch without the id of its key");
            }
            if header.table_crc32c.get() != 0 || stored_crc != 0 {
                return Err("a checksum of what is sealed");
            }
        }
        _ => return Err("flags that this version does not know"),
    }
    match header.compression {
        layout::COMPRESSION_NONE if stored == data && unit == 0 && stored_crc == 0 => Ok(()),
        layout::COMPRESSION_UNITS => {
            if !unit.is_power_of_two() || !(UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&unit) {
                return Err("units of a size that no unit has");
            }
            if stored.saturating_add(data.div_ceil(unit) * UNIT_ROW_BYTES) >= data {
                return Err("compressed data that is not smaller");
            }
            Ok(())
        }
        _ => Err("a compression that this version does not know"),
    }
}

/// The key of a sealed batch.
pub(super) fn key_id(header: &Header) -> KeyId {
    KeyId(header.key_id)
}

const _: () = assert!(
    BATCH_BYTES_MAX >= HEADER_BYTES + OPS_MAX * OP_BYTES + DATA_BYTES_MAX + TAG_BYTES,
    "unit rows fit where compression saved them"
);
