//! An object: a header that says where it belongs and where the stream stands after it,
//! then whole batches, one after the other. An END has no batches, and what was folded into a
//! base has none any more.

use crate::batch::{HEADER_BYTES, encoded_len};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use crate::receiver::{Point, Stream};
use towline_block::{Epoch, Incarnation, Position, Seq, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"TWLOBJCT";
/// Of what every shipper writes.
const VERSION: u16 = 1;
/// Of what came with compaction.
const VERSION_FOLDED: u16 = 2;
const KIND_BATCHES: u8 = 1;
const KIND_END: u8 = 2;
const KIND_FOLDED: u8 = 3;
const KIND_PART: u8 = 4;
const FLAG_WHOLE: u8 = 1;
const FLAG_POINT: u8 = 2;
const FLAG_SEALED: u8 = 4;

/// First bytes of every object. Identity before sizes; the checksum last.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct ObjectHeader {
    pub magic: [u8; 8],
    pub version: U16,
    pub kind: u8,
    pub flags: u8,
    pub batch_count: U32,
    pub group_uuid: [u8; 16],
    pub owner: [u8; 16],
    pub session: U32,
    pub index: U32,
    pub first_number: U64,
    pub body_bytes: U64,
    pub number: U64,
    pub hash: [u8; 32],
    pub epoch: U32,
    pub incarnation: U32,
    pub seq: U64,
    pub claims_upto: U64,
    pub stream_bytes: U64,
    pub point_number: U64,
    pub point_epoch: U32,
    pub point_incarnation: U32,
    pub point_seq: U64,
    pub reserved: [u8; 84],
    pub header_crc32c: U32,
}

pub const OBJECT_HEADER_BYTES: usize = size_of::<ObjectHeader>();
const _: () = assert!(OBJECT_HEADER_BYTES == 256);
const CRC_COVERS: usize = OBJECT_HEADER_BYTES - 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    Batches,
    /// The session ends before this place; the next one goes on with the same stream.
    End,
    /// Had batches; a base has what they did.
    Folded,
    /// Batches of a base, which are a chain of their own.
    Part,
}

/// Where an object belongs, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub group: GroupUuid,
    /// The run of the shipper that wrote it; for an END: that owns the session after it.
    pub owner: SessionId,
    pub session: u32,
    pub index: u32,
}

impl ObjectHeader {
    /// The object at `at` that holds `batch_count` batches from `first_number` on;
    /// `after` is the stream behind them.
    pub fn batches(
        at: At,
        first_number: u64,
        batch_count: u32,
        body_bytes: u64,
        after: &Stream,
    ) -> ObjectHeader {
        let (kind, count) = (KIND_BATCHES, batch_count);
        ObjectHeader::new(at, kind, after, first_number, count, body_bytes)
    }

    pub fn end(at: At, after: &Stream) -> ObjectHeader {
        ObjectHeader::new(at, KIND_END, after, after.number + 1, 0, 0)
    }

    /// A part of a base: `at` has its generation in place of a session, and its owner made it.
    pub fn part(
        at: At,
        first_number: u64,
        batch_count: u32,
        body_bytes: u64,
        after: &Stream,
    ) -> ObjectHeader {
        ObjectHeader::new(at, KIND_PART, after, first_number, batch_count, body_bytes)
    }

    /// What lies in the place of this object of batches once a base has what they did: all
    /// that says where the stream stands stays. An END stays as it is.
    pub fn folded(&self) -> ObjectHeader {
        let mut folded = self.clone();
        if self.kind == KIND_BATCHES {
            folded.kind = KIND_FOLDED;
            folded.version = VERSION_FOLDED.into();
            folded.set_crc();
        }
        folded
    }

    fn set_crc(&mut self) {
        let (covered, _) = self.as_bytes().split_at(CRC_COVERS);
        self.header_crc32c = crc32c(covered).into();
    }

    fn new(
        at: At,
        kind: u8,
        after: &Stream,
        first_number: u64,
        batch_count: u32,
        body_bytes: u64,
    ) -> ObjectHeader {
        let point = after.point.unwrap_or(Point { number: 0, position: Position::default() });
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let mut header = ObjectHeader {
            magic: MAGIC,
            version: version_of(kind).into(),
            kind,
            flags: flag(after.whole, FLAG_WHOLE)
                | flag(after.point.is_some(), FLAG_POINT)
                | flag(after.sealed.is_some(), FLAG_SEALED),
            batch_count: batch_count.into(),
            group_uuid: at.group.0,
            owner: at.owner.0,
            session: at.session.into(),
            index: at.index.into(),
            first_number: first_number.into(),
            body_bytes: body_bytes.into(),
            number: after.number.into(),
            hash: after.hash.0,
            epoch: after.position.epoch.0.into(),
            incarnation: after.position.incarnation.0.into(),
            seq: after.position.seq.0.into(),
            claims_upto: after.claims_upto.into(),
            stream_bytes: after.stream_bytes.into(),
            point_number: point.number.into(),
            point_epoch: point.position.epoch.0.into(),
            point_incarnation: point.position.incarnation.0.into(),
            point_seq: point.position.seq.0.into(),
            reserved: [0; 84],
            header_crc32c: 0.into(),
        };
        header.set_crc();
        header
    }

    /// The header at the start of `bytes`, if it is sound and of this place.
    ///
    /// # Errors
    /// [`ErrorKind::TooNew`] for a later format; [`ErrorKind::Damaged`] for all else.
    pub fn read(bytes: &[u8], group: GroupUuid, session: u32, index: u32) -> Result<ObjectHeader> {
        let name = super::names::object(session, index);
        let header = ObjectHeader::check(bytes, group, session, index, &name)?;
        match header.kind() {
            ObjectKind::Part => Err(Error::damaged(format!("object {name} is a base's part"))),
            _ => Ok(header),
        }
    }

    /// As [`ObjectHeader::read`], of a part of a base.
    pub fn read_part(
        bytes: &[u8],
        group: GroupUuid,
        generation: u32,
        part: u32,
    ) -> Result<ObjectHeader> {
        let name = format!("part {part} of base {generation}");
        let header = ObjectHeader::check(bytes, group, generation, part, &name)?;
        match header.kind() {
            ObjectKind::Part => Ok(header),
            _ => Err(Error::damaged(format!("object {name} is no part of a base"))),
        }
    }

    fn check(
        bytes: &[u8],
        group: GroupUuid,
        session: u32,
        index: u32,
        name: &str,
    ) -> Result<ObjectHeader> {
        let damaged = |what: &str| Err(Error::damaged(format!("object {name} {what}")));
        let Ok((header, _)) = ObjectHeader::read_from_prefix(bytes) else {
            return damaged("is cut off");
        };
        if header.magic != MAGIC {
            return damaged("is no object of a store of Towline's");
        }
        if header.version.get() > VERSION_FOLDED {
            let version = header.version;
            let what =
                format!("object {name} has format {version}, newer than this program: update it");
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let (covered, _) = header.as_bytes().split_at(CRC_COVERS);
        if crc32c(covered) != header.header_crc32c.get() {
            return damaged("has a header whose checksum does not match");
        }
        if header.group_uuid != group.0 {
            return damaged("is of another group");
        }
        if (header.session.get(), header.index.get()) != (session, index) {
            return damaged("belongs at another place");
        }
        match header.is_consistent() {
            true => Ok(header),
            false => damaged("has a header that contradicts itself"),
        }
    }

    fn is_consistent(&self) -> bool {
        let (count, first) = (u64::from(self.batch_count.get()), self.first_number.get());
        let ends_at = first.checked_add(count) == self.number.get().checked_add(1);
        let body = self.body_bytes.get();
        let kind_fits = match self.kind {
            KIND_BATCHES | KIND_FOLDED | KIND_PART => {
                count > 0 && body >= count * HEADER_BYTES as u64
            }
            KIND_END => count == 0 && body == 0,
            _ => false,
        };
        let flags_known = self.flags & !(FLAG_WHOLE | FLAG_POINT | FLAG_SEALED) == 0;
        kind_fits
            && ends_at
            && first > 0
            && flags_known
            && self.version.get() == version_of(self.kind)
            && self.reserved == [0; 84]
    }

    pub fn kind(&self) -> ObjectKind {
        match self.kind {
            KIND_END => ObjectKind::End,
            KIND_FOLDED => ObjectKind::Folded,
            KIND_PART => ObjectKind::Part,
            _ => ObjectKind::Batches,
        }
    }

    pub fn owner(&self) -> SessionId {
        SessionId(self.owner)
    }

    /// The stream after this object.
    pub fn after(&self) -> Stream {
        let position = |epoch: U32, incarnation: U32, seq: U64| {
            Position::new(Epoch(epoch.get()), Incarnation(incarnation.get()), Seq(seq.get()))
        };
        let here = position(self.epoch, self.incarnation, self.seq);
        let point = Point {
            number: self.point_number.get(),
            position: position(self.point_epoch, self.point_incarnation, self.point_seq),
        };
        Stream {
            number: self.number.get(),
            hash: BatchHash(self.hash),
            position: here,
            claims_upto: self.claims_upto.get(),
            stream_bytes: self.stream_bytes.get(),
            whole: self.flags & FLAG_WHOLE != 0,
            point: (self.flags & FLAG_POINT != 0).then_some(point),
            sealed: (self.flags & FLAG_SEALED != 0).then_some(here),
        }
    }

    /// The batches of the whole object `bytes`, each of which has the length that its own
    /// header says. Nothing more of them is checked here.
    pub fn split<'a>(&self, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        let name = super::names::object(self.session.get(), self.index.get());
        let wrong = |what: &str| Error::damaged(format!("object {name} {what}"));
        let mut rest = bytes.get(OBJECT_HEADER_BYTES..).unwrap_or_default();
        if rest.len() as u64 != self.body_bytes.get() {
            return Err(wrong("has not the length that its header says"));
        }
        let mut batches = Vec::new();
        while !rest.is_empty() {
            let len = encoded_len(rest)?;
            let (batch, behind) =
                rest.split_at_checked(len).ok_or_else(|| wrong("ends inside a batch"))?;
            batches.push(batch);
            rest = behind;
        }
        match batches.len() as u64 == u64::from(self.batch_count.get()) {
            true => Ok(batches),
            false => Err(wrong("has not as many batches as its header says")),
        }
    }
}

fn version_of(kind: u8) -> u16 {
    match kind {
        KIND_BATCHES | KIND_END => VERSION,
        _ => VERSION_FOLDED,
    }
}
