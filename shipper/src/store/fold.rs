//! Folding: operations from the newest to the oldest come in, each with what no newer one
//! covers comes out, as batches of a base. Memory grows with the number of separate ranges,
//! not with the size of the volumes.

use super::object::{At, ObjectHeader};
use super::{OBJECT_BYTES, OBJECT_HEADER_BYTES};
use crate::batch::{BatchBuilder, BatchView, Chain, Encoder, GroupKey, Method, Op};
use crate::error::{Error, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use crate::receiver::Stream;
use bytes::Bytes;
use std::collections::BTreeMap;
use towline_block::{Extent, Position, Seq, VolumeId, crc32c};
use zerocopy::IntoBytes;

/// Ranges of one volume, apart from each other: end by start.
#[derive(Debug, Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds a range; answers what of it was not covered.
    fn insert(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut low, mut high, mut at) = (start, end, start);
        let mut gaps = Vec::new();
        let before = self.0.range(..start).next_back().filter(|(_, e)| **e >= start);
        let first = before.map_or(start, |(s, _)| *s);
        let met: Vec<(u64, u64)> = self.0.range(first..=end).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in met {
            if s > at {
                gaps.push((at, s.min(end)));
            }
            at = at.max(e);
            (low, high) = (low.min(s), high.max(e));
            self.0.remove(&s);
        }
        if at < end {
            gaps.push((at, end));
        }
        self.0.insert(low, high);
        gaps
    }
}

/// A part that is done.
pub(crate) struct Part {
    pub index: u32,
    pub header: ObjectHeader,
    pub bytes: Bytes,
}

pub(crate) struct Folder {
    covered: Vec<Covered>,
    group: GroupUuid,
    owner: SessionId,
    generation: u32,
    /// Where the base stands.
    at: Position,
    claims_upto: u64,
    encoder: Encoder,
    chain: Chain,
    batch: BatchBuilder,
    part: Vec<u8>,
    first: u64,
    count: u32,
    parts: u32,
    bytes: u64,
    created_unix_ns: u64,
}

impl Folder {
    pub fn new(
        (group, owner, generation): (GroupUuid, SessionId, u32),
        volumes: usize,
        after: &Stream,
        key: Option<GroupKey>,
        created_unix_ns: u64,
    ) -> Folder {
        Folder {
            covered: (0..volumes).map(|_| Covered::default()).collect(),
            group,
            owner,
            generation,
            at: after.position,
            claims_upto: after.claims_upto,
            encoder: Encoder::new(Method::Zstd, key),
            chain: Chain {
                group,
                session: owner,
                number: 0,
                hash: BatchHash::NONE,
                stream_bytes: 0,
            },
            batch: builder(after.position, after.claims_upto),
            part: Vec::new(),
            first: 1,
            count: 0,
            parts: 0,
            bytes: 0,
            created_unix_ns,
        }
    }

    /// A batch older than all before it, or apart from them. Answers a part that it filled.
    pub fn add(&mut self, batch: &BatchView<'_>) -> Result<Vec<Part>> {
        let ops: Vec<Op<'_>> = batch.ops().map(|entry| entry.op).collect();
        let mut done = Vec::new();
        for op in ops.into_iter().rev() {
            let Some((volume, extent)) = op.touches() else { continue };
            let covered = self.covered.get_mut(volume.index());
            let covered =
                covered.ok_or_else(|| Error::damaged("a batch names an unknown volume"))?;
            for (start, end) in covered.insert(extent.offset, extent.end()) {
                let piece = Extent::new(start, end - start);
                self.push(op, volume, piece, &mut done)?;
            }
        }
        Ok(done)
    }

    fn push(
        &mut self,
        op: Op<'_>,
        volume: VolumeId,
        piece: Extent,
        done: &mut Vec<Part>,
    ) -> Result<()> {
        let payload = match op {
            Op::Write { offset, payload, .. } => {
                let from = (piece.offset - offset) as usize;
                payload.get(from..from + piece.len as usize).unwrap_or_default()
            }
            _ => &[],
        };
        if !self.batch.fits(payload.len()) {
            self.end_batch(done)?;
        }
        match op {
            Op::Write { .. } => {
                self.batch.write(Seq::NONE, volume, piece.offset, payload, crc32c(payload))
            }
            Op::Zero { keep_allocated, .. } => {
                self.batch.zero(Seq::NONE, volume, piece, keep_allocated)
            }
            _ => self.batch.trim(Seq::NONE, volume, piece),
        }
    }

    fn end_batch(&mut self, done: &mut Vec<Part>) -> Result<()> {
        if self.batch.op_count() == 0 {
            return Ok(());
        }
        let next = builder(self.at, self.claims_upto);
        let batch = std::mem::replace(&mut self.batch, next);
        let sealed = self.encoder.encode(batch, &self.chain, self.created_unix_ns)?;
        self.chain.advance(&sealed);
        if self.count == 0 {
            self.part = vec![0; OBJECT_HEADER_BYTES];
            self.first = sealed.number;
        }
        self.part.extend_from_slice(&sealed.bytes);
        self.count += 1;
        if self.part.len() >= OBJECT_BYTES {
            done.extend(self.end_part());
        }
        Ok(())
    }

    fn end_part(&mut self) -> Option<Part> {
        if self.count == 0 {
            return None;
        }
        self.parts += 1;
        let mut bytes = std::mem::take(&mut self.part);
        let at = At {
            group: self.group,
            owner: self.owner,
            session: self.generation,
            index: self.parts,
        };
        let after = Stream {
            number: self.chain.number,
            hash: self.chain.hash,
            position: self.at,
            claims_upto: self.claims_upto,
            stream_bytes: self.chain.stream_bytes,
            ..Stream::default()
        };
        let body = (bytes.len() - OBJECT_HEADER_BYTES) as u64;
        let header = ObjectHeader::part(at, self.first, self.count, body, &after);
        let (place, _) = bytes.split_at_mut(OBJECT_HEADER_BYTES);
        place.copy_from_slice(header.as_bytes());
        self.bytes += bytes.len() as u64;
        self.count = 0;
        Some(Part { index: self.parts, header, bytes: bytes.into() })
    }

    /// What is left.
    pub fn finish(&mut self) -> Result<Vec<Part>> {
        let mut done = Vec::new();
        self.end_batch(&mut done)?;
        done.extend(self.end_part());
        Ok(done)
    }

    /// Parts so far, their bytes, and the hash of the last batch.
    pub fn made(&self) -> (u32, u64, BatchHash) {
        (self.parts, self.bytes, self.chain.hash)
    }
}

/// All of a base is one claim that nobody made.
fn builder(at: Position, claims_upto: u64) -> BatchBuilder {
    BatchBuilder::blocks(at, 1, claims_upto)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gaps_are_what_was_not_covered(ranges in prop::collection::vec((0_u64..64, 1_u64..20), 0..40)) {
            let mut covered = Covered::default();
            let mut model = [false; 128];
            for (start, len) in ranges {
                let mut now = [false; 128];
                for (s, e) in covered.insert(start, start + len) {
                    now[s as usize..e as usize].fill(true);
                }
                for at in 0..128_u64 {
                    let is_new = (start..start + len).contains(&at) && !model[at as usize];
                    prop_assert_eq!(now[at as usize], is_new, "byte {}", at);
                }
                model[start as usize..(start + len) as usize].fill(true);
            }
        }
    }
}
