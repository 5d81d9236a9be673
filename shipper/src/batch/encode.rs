//! From a builder that is done to the bytes of a batch: coalesced, compressed, sealed,
//! hashed. Owns the memory that goes round from batch to batch.
//!
//! Payloads were copied once, into the builder; without compression they stay where they
//! are, and header and table are put around them.

use super::Kind;
use super::build::{BatchBuilder, Chain, Parts};
use super::bytes_after;
use super::header;
use super::key::{GroupKey, KEY_ID_BYTES, SALT_BYTES, TAG_BYTES};
use super::layout::{self, HEADER_BYTES, Header, MAGIC, VERSION};
use super::pack::{Method, Packer, UNIT_BYTES};
use crate::error::Result;
use crate::ids::{BatchHash, Digest};
use towline_block::checksum::crc32c_of;
use towline_block::crc32c;
use towline_block::{Extent, Position, VolumeId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

/// Buffers kept for batches to come; more would be a second window.
const SPARE_MAX: usize = 4;

/// An encoded batch and what the chain needs of it.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub bytes: Vec<u8>,
    pub hash: BatchHash,
    pub is_sealed: bool,
    pub number: u64,
    /// Position of the stream after this batch.
    pub position: Position,
    pub claims_upto: u64,
    /// Rows of its operation table.
    pub op_count: u32,
    /// Sum of the sizes of all batches, this one included.
    pub stream_bytes: u64,
    /// What it says of the group's wholeness: whole after a HEAL, broken after a BREAK or
    /// RESYNC; `None`: as before.
    pub whole: Option<bool>,
    /// Its last operation is the SEAL at its position.
    pub ends_in_seal: bool,
    pub gains: Gains,
    /// The ranges that it changes, where the encoder was asked to tell.
    pub touches: Vec<(VolumeId, Extent)>,
}

impl Sealed {
    /// Of all its bytes.
    pub fn digest(&self) -> Digest {
        if self.is_sealed { Digest(self.hash.0) } else { Digest::of(&self.bytes) }
    }
}

/// What coalescing and compressing made of the payloads of one batch, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gains {
    /// As they were pushed.
    pub payload_bytes: u64,
    /// Of these: not shipped, since a later operation of the batch overwrites them.
    pub coalesced_bytes: u64,
    /// What lies in the batch for the rest.
    pub stored_bytes: u64,
}

/// Makes batches of builders.
pub struct Encoder {
    packer: Packer,
    key: Option<GroupKey>,
    tells_touches: bool,
    spare: Vec<Vec<u8>>,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new(Method::None, None)
    }
}

impl Encoder {
    /// With a key every batch is sealed.
    pub fn new(method: Method, key: Option<GroupKey>) -> Encoder {
        Encoder { packer: Packer::new(method), key, tells_touches: false, spare: Vec::new() }
    }

    /// Batches say which ranges they change, for whoever keeps account of it.
    pub fn telling_touches(self) -> Encoder {
        Encoder { tells_touches: true, ..self }
    }

    pub fn set_method(&mut self, method: Method) {
        self.packer.set_method(method);
    }

    pub fn method(&self) -> Method {
        self.packer.method()
    }

    /// Memory for [`BatchBuilder::reusing`].
    pub fn spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives memory of a batch that is not needed any more back.
    pub fn recycle(&mut self, memory: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(memory);
        }
    }

    /// Encodes the batch as the one after `chain`; the caller then advances its chain.
    ///
    /// # Errors
    /// Only where it compresses or seals.
    pub fn encode(
        &mut self,
        mut batch: BatchBuilder,
        chain: &Chain,
        created_unix_ns: u64,
    ) -> Result<Sealed> {
        let payload_bytes = batch.data_bytes() as u64;
        let coalesced_bytes = batch.coalesce() as u64;
        let mut parts = batch.into_parts();
        let mut header = header_of(&parts, chain, created_unix_ns);
        let units = self.pack(&mut parts, &mut header)?;
        let touches = if self.tells_touches { touches(&parts) } else { Vec::new() };
        let (whole, ends_in_seal) = (wholeness(&parts), ends_in_seal(&parts));
        header.table_crc32c = crc32c_of(&[units.as_bytes(), parts.table.as_bytes()]).into();
        let mut bytes = parts.buf;
        bytes.extend_from_slice(units.as_bytes());
        bytes.extend_from_slice(parts.table.as_bytes());
        match &self.key {
            Some(key) => seal(key, rand::random(), &mut header, &mut bytes)?,
            None => put_header(&mut header, &mut bytes),
        }
        let stored_bytes = header.stored_bytes.get().into();
        Ok(Sealed {
            hash: header::hash(&header, &header::shape(&header), &bytes),
            is_sealed: self.key.is_some(),
            number: chain.number + 1,
            position: parts.position,
            claims_upto: parts.claims_upto,
            op_count: parts.table.len() as u32,
            stream_bytes: bytes_after(chain.stream_bytes, bytes.len()),
            whole,
            ends_in_seal,
            gains: Gains { payload_bytes, coalesced_bytes, stored_bytes },
            touches,
            bytes,
        })
    }

    /// Compresses where that gains something.
    fn pack(&mut self, parts: &mut Parts, header: &mut Header) -> Result<Vec<U32>> {
        if self.packer.method() == Method::None {
            return Ok(Vec::new());
        }
        let mut packed = self.spare();
        packed.clear();
        packed.resize(HEADER_BYTES, 0);
        let (_, data) = parts.buf.split_at(HEADER_BYTES);
        let units = self.packer.pack(data, &mut packed)?;
        let Some(units) = units else {
            self.recycle(packed);
            return Ok(Vec::new());
        };
        let (_, stored) = packed.split_at(HEADER_BYTES);
        header.compression = layout::COMPRESSION_UNITS;
        header.stored_bytes = (stored.len() as u32).into();
        header.unit_bytes = (UNIT_BYTES as u32).into();
        header.stored_crc32c = crc32c(stored).into();
        self.recycle(std::mem::replace(&mut parts.buf, packed));
        Ok(units)
    }
}

fn wholeness(parts: &Parts) -> Option<bool> {
    parts.table.iter().rev().find_map(|op| match op.kind {
        layout::OP_HEAL => Some(true),
        layout::OP_BREAK | layout::OP_RESYNC => Some(false),
        _ => None,
    })
}

fn touches(parts: &Parts) -> Vec<(VolumeId, Extent)> {
    let changes = parts.table.iter().filter(|op| op.kind <= layout::OP_TRIM);
    let range = |op: &layout::OpEntry| {
        (VolumeId(op.volume.get()), Extent::new(op.offset.get(), op.len.get().into()))
    };
    changes.map(range).collect()
}

fn ends_in_seal(parts: &Parts) -> bool {
    let last = parts.table.last();
    last.is_some_and(|op| op.kind == layout::OP_SEAL && op.seq.get() == parts.position.seq.0)
}

fn header_of(parts: &Parts, chain: &Chain, created_unix_ns: u64) -> Header {
    let data_bytes = (parts.buf.len() - HEADER_BYTES) as u32;
    Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: match parts.kind {
            Kind::Records => layout::KIND_RECORDS,
            Kind::Blocks => layout::KIND_BLOCKS,
        },
        compression: layout::COMPRESSION_NONE,
        flags: 0.into(),
        group_uuid: chain.group.0,
        session: chain.session.0,
        number: (chain.number + 1).into(),
        prev_hash: chain.hash.0,
        epoch: parts.position.epoch.0.into(),
        incarnation: parts.position.incarnation.0.into(),
        first_seq: parts.first.0.into(),
        last_seq: parts.position.seq.0.into(),
        claim_id: parts.claim_id.into(),
        claims_upto: parts.claims_upto.into(),
        stream_bytes_before: chain.stream_bytes.into(),
        created_unix_ns: created_unix_ns.into(),
        op_count: (parts.table.len() as u32).into(),
        data_bytes: data_bytes.into(),
        table_crc32c: 0.into(),
        stored_bytes: data_bytes.into(),
        unit_bytes: 0.into(),
        stored_crc32c: 0.into(),
        key_id: [0; KEY_ID_BYTES],
        salt: [0; SALT_BYTES],
        reserved: [0; 36],
        header_crc32c: 0.into(),
    }
}

fn put_header(header: &mut Header, bytes: &mut [u8]) {
    let (covered, _) = header.as_bytes().split_at(layout::HEADER_CRC_COVERS);
    header.header_crc32c = crc32c(covered).into();
    let (place, _) = bytes.split_at_mut(HEADER_BYTES);
    place.copy_from_slice(header.as_bytes());
}

/// Encrypts what is behind the header. Checksums of the plain text do not stay in the
/// open: the tag covers all.
fn seal(
    key: &GroupKey,
    salt: [u8; SALT_BYTES],
    header: &mut Header,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    header.flags = layout::FLAG_SEALED.into();
    header.key_id = key.id.0;
    header.salt = salt;
    header.table_crc32c = 0.into();
    header.stored_crc32c = 0.into();
    put_header(header, bytes);
    let (head, body) = bytes.split_at_mut(HEADER_BYTES);
    let tag: [u8; TAG_BYTES] = key.seal(&salt, head, body)?;
    bytes.extend_from_slice(&tag);
    Ok(())
}
