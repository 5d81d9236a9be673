//! Walks dirty blocks: claims runs, reads them behind the records they may hold, and
//! turns them into batches. Holes and zeroes travel as operations, never as data;
//! suspect blocks as digests first ([`super::compare`]).

use super::compare::Compares;
use crate::batch::{BatchBuilder, COMPARES_MAX, DATA_BYTES_MAX};
use crate::error::{Error, Result};
use crate::wire::Compared;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use towline_block::disk::Run;
use towline_block::{
    AlignedBuf, BLOCK_BYTES, DirectReader, Extent, Position, Seq, SourceReader, VolumeId, crc32c,
    is_zero,
};
use towline_journal::Claim;
use towline_journal::map::ranges_of;

/// Blocks read for one batch: 4 MiB.
pub(crate) const CHUNK_BLOCKS: u64 = 64;
/// Blocks claimed at once where the source has a hole: 1 GiB.
const HOLE_BLOCKS: u64 = 16 * 1024;

const _: () = assert!(CHUNK_BLOCKS * BLOCK_BYTES <= DATA_BYTES_MAX as u64);
const _: () = assert!(CHUNK_BLOCKS as usize <= COMPARES_MAX);

/// The round over all volumes.
pub(crate) struct Walker {
    sources: Vec<SourceReader>,
    reader: DirectReader,
    volume: usize,
    block: u64,
    /// Of one request, in their order.
    current: VecDeque<Part>,
    compares: Compares,
    rounds: u64,
}

/// A claim, partly read.
struct Part {
    claim: Claim,
    next_block: u64,
}

impl Part {
    fn new(claim: Claim) -> Part {
        let next_block = claim.first_block;
        Part { claim, next_block }
    }

    fn is_read(&self) -> bool {
        self.next_block >= self.claim.range().end()
    }
}

/// Content of claimed blocks, ready to go.
pub(crate) struct Chunk {
    pub batch: BatchBuilder,
    pub data_bytes: u64,
    /// The last claim that is complete with this chunk.
    pub completes: Option<u64>,
}

impl Chunk {
    fn new(at: Position, claim: u64, claims_upto: u64, memory: Vec<u8>) -> Chunk {
        let batch = BatchBuilder::blocks(at, claim, claims_upto).reusing(memory);
        Chunk { batch, data_bytes: 0, completes: None }
    }

    fn complete(&mut self, claim: u64) {
        self.batch.set_claims_upto(claim);
        self.completes = Some(claim);
    }

    fn write(&mut self, volume: VolumeId, extent: Extent, bytes: &[u8]) -> Result<()> {
        self.data_bytes += bytes.len() as u64;
        self.batch.write(Seq::NONE, volume, extent.offset, bytes, crc32c(bytes))
    }
}

impl Walker {
    /// `passed`: what the proxy passed to read each volume by, in order, and its size.
    pub fn new(passed: Vec<(OwnedFd, u64)>) -> Result<Walker> {
        let mut sources = Vec::new();
        for (fd, size_bytes) in passed {
            sources.push(SourceReader::new(fd, size_bytes)?);
        }
        Ok(Walker {
            sources,
            reader: DirectReader::new()?,
            volume: 0,
            block: 0,
            current: VecDeque::new(),
            compares: Compares::default(),
            rounds: 0,
        })
    }

    /// Where to ask for the next claims, and for how many blocks; `None` while some are
    /// being read or enough of them are being compared.
    pub fn wanted(&mut self) -> Option<(VolumeId, u64, u64)> {
        if !self.current.is_empty() || self.compares.are_enough() {
            return None;
        }
        let source = self.sources.get(self.volume)?;
        let at = self.block * BLOCK_BYTES;
        let blocks = match source.run_at(at) {
            Ok(run) if !run.is_data => {
                (run.end.saturating_sub(at) / BLOCK_BYTES).clamp(CHUNK_BLOCKS, HOLE_BLOCKS)
            }
            _ => CHUNK_BLOCKS,
        };
        Some((VolumeId(self.volume as u16), self.block, blocks))
    }

    /// The answer to [`Walker::wanted`]; empty: nothing up to the end of the volume.
    pub fn granted(&mut self, claims: Vec<Claim>) {
        match claims.last() {
            Some(last) => {
                self.block = last.range().end();
                self.current.extend(claims.into_iter().map(Part::new));
            }
            None => {
                self.block = 0;
                self.volume = (self.volume + 1) % self.sources.len().max(1);
                self.rounds += u64::from(self.volume == 0);
            }
        }
    }

    /// How often it came to the end of all volumes.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The record that must be in the stream before the current claims are read: P of the
    /// last, which is no less than that of the others.
    pub fn granted_at(&self) -> Option<u64> {
        self.current.back().map(|part| part.claim.granted_at)
    }

    /// Reads the next chunk of the current claims: of several that are not compared, or of
    /// one that is. The caller has cut all records up to P and cuts none until the chunk is
    /// in the stream (R3).
    pub fn read(
        &mut self,
        at: Position,
        claims_upto: u64,
        memory: Vec<u8>,
    ) -> Result<Option<Chunk>> {
        let Some(front) = self.current.front() else { return Ok(None) };
        let (compare, volume) = (front.claim.compare, front.claim.volume);
        if !compare && self.compares.is_busy() {
            return Ok(None); // claims complete in order
        }
        let mut chunk = Chunk::new(at, front.claim.id, claims_upto, memory);
        let mut zeroes = Zeroes { volume, open: None };
        let source = &mut self.sources[volume.index()];
        let mut data = ChunkData::default();
        let mut complete = None;
        while let Some(part) = self.current.front_mut()
            && part.claim.compare == compare
        {
            part.next_data(source, &mut data, &mut zeroes, &mut chunk.batch)?;
            if !part.is_read() {
                break;
            }
            complete = Some(part.claim.id);
            if compare {
                break;
            }
            self.current.pop_front();
        }
        let data = data.extents;
        if !compare {
            chunk.batch.expect(data.len(), data.iter().map(|extent| extent.len as usize).sum());
        }
        let (mut compared, mut packed) = (0, Ok(()));
        source.read_each(&mut self.reader, &data, |index, bytes| {
            let Some(extent) = data.get(index).filter(|_| packed.is_ok()) else { return };
            packed = if is_zero(bytes) {
                zeroes.add(*extent, &mut chunk.batch)
            } else if compare {
                compared += 1;
                chunk.batch.compare(volume, *extent, blake3::hash(bytes).as_bytes())
            } else {
                chunk.write(volume, *extent, bytes)
            };
        })?;
        packed?;
        zeroes.flush(&mut chunk.batch)?;
        if compare {
            if let Some(part) = self.current.front() {
                self.compares.read(&part.claim, compared > 0, complete.is_some());
            }
            if complete.is_some() {
                self.current.pop_front();
            }
        } else if let Some(claim) = complete {
            chunk.complete(claim);
        }
        Ok(Some(chunk))
    }

    /// The chunk that was read last is in the stream as batch `number`.
    pub fn shipped(&mut self, number: u64) {
        self.compares.shipped(number);
    }

    pub fn verdict(&mut self, verdict: &Compared) {
        self.compares.verdict(verdict);
    }

    pub fn is_comparing(&self) -> bool {
        self.compares.is_busy()
    }

    /// Sends blocks that were compared and differ; completes what is settled.
    pub fn settle(&mut self, at: Position, claims_upto: u64) -> Result<Option<Chunk>> {
        let mut settled = self.compares.pop_equal();
        if let Some((claim, differing)) = self.compares.front_differing(CHUNK_BLOCKS as usize) {
            let mut chunk = Chunk::new(at, claim.id, settled.unwrap_or(claims_upto), Vec::new());
            let source = &mut self.sources[claim.volume.index()];
            let contents: Vec<AlignedBuf> = source.read(&mut self.reader, &differing)?;
            for (extent, content) in differing.iter().zip(&contents) {
                chunk.write(claim.volume, *extent, content.as_slice())?;
            }
            chunk.completes = settled;
            settled = self.compares.sent(differing.len());
            if let Some(claim) = settled {
                chunk.complete(claim);
            }
            return Ok(Some(chunk));
        }
        Ok(settled.map(|claim| {
            let mut chunk = Chunk::new(at, claim, claims_upto, Vec::new());
            chunk.complete(claim);
            chunk
        }))
    }
}

/// What is to be read for a chunk.
#[derive(Default)]
struct ChunkData {
    extents: Vec<Extent>,
    /// Blocks that these are of.
    blocks: u64,
}

impl Part {
    /// Moves on to the next chunk's blocks: holes become zeroes, what the target lacks of the
    /// rest is to be read.
    fn next_data(
        &mut self,
        source: &SourceReader,
        data: &mut ChunkData,
        zeroes: &mut Zeroes,
        batch: &mut BatchBuilder,
    ) -> Result<()> {
        let end_block = self.claim.range().end();
        // Data up to here; what has become a hole since reads as zeroes.
        let mut known = Run { is_data: true, end: 0 };
        while self.next_block < end_block && data.blocks < CHUNK_BLOCKS {
            let offset = self.next_block * BLOCK_BYTES;
            let block_end = (offset + BLOCK_BYTES).min(source.size_bytes());
            let run = if block_end <= known.end {
                known
            } else {
                source
                    .run_at(offset)
                    .map_err(|e| Error::storage(format!("looking for holes at {offset}"), e))?
            };
            if run.is_data {
                known = run;
            }
            if run.is_data || run.end < block_end {
                let ranges = ranges_of(self.claim.parts_of(self.next_block), block_end - offset);
                data.extents
                    .extend(ranges.map(|range| Extent::new(offset + range.offset, range.len)));
                data.blocks += 1;
                self.next_block += 1;
                continue;
            }
            // Whole blocks of hole, as many as there are.
            let whole = match run.end >= source.size_bytes() {
                true => end_block,
                false => (run.end / BLOCK_BYTES).min(end_block),
            };
            let end = (whole * BLOCK_BYTES).min(source.size_bytes());
            zeroes.add(Extent::new(offset, end - offset), batch)?;
            self.next_block = whole;
        }
        Ok(())
    }
}

/// Joins neighbouring zero ranges into one operation.
struct Zeroes {
    volume: VolumeId,
    open: Option<Extent>,
}

impl Zeroes {
    fn add(&mut self, extent: Extent, batch: &mut BatchBuilder) -> Result<()> {
        match &mut self.open {
            Some(open)
                if open.end() == extent.offset && open.len + extent.len <= u64::from(u32::MAX) =>
            {
                open.len += extent.len;
                Ok(())
            }
            _ => {
                self.flush(batch)?;
                self.open = Some(extent);
                Ok(())
            }
        }
    }

    fn flush(&mut self, batch: &mut BatchBuilder) -> Result<()> {
        match self.open.take() {
            Some(extent) => batch.zero(Seq::NONE, self.volume, extent, false),
            None => Ok(()),
        }
    }
}
