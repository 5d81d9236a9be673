//! Walks dirty blocks: claims a run, reads it behind the records it may hold, and
//! turns it into batches. Holes and zeroes travel as operations, never as data;
//! suspect blocks as digests first ([`super::compare`]).

use super::compare::Compares;
use crate::batch::{BatchBuilder, COMPARES_MAX, DATA_BYTES_MAX};
use crate::error::{Error, Result};
use crate::wire::Compared;
use std::os::fd::OwnedFd;
use towline_block::{
    AlignedBuf, BLOCK_BYTES, DirectReader, Extent, Position, Seq, SourceReader, VolumeId, crc32c,
    is_zero,
};
use towline_journal::Claim;

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
    current: Option<Part>,
    compares: Compares,
    rounds: u64,
}

/// A claim, partly read.
struct Part {
    claim: Claim,
    next_block: u64,
}

/// Content of claimed blocks, ready to go.
pub(crate) struct Chunk {
    pub batch: BatchBuilder,
    pub data_bytes: u64,
    /// Set when the claim is complete with this chunk.
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
            current: None,
            compares: Compares::default(),
            rounds: 0,
        })
    }

    /// Where to ask for the next claim, and for how much; `None` while one is being
    /// read or enough of them are being compared.
    pub fn wanted(&mut self) -> Option<(VolumeId, u64, u64)> {
        if self.current.is_some() || self.compares.are_enough() {
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

    /// The answer to [`Walker::wanted`].
    pub fn granted(&mut self, claim: Option<Claim>) {
        match claim {
            Some(claim) => {
                self.block = claim.first_block + claim.blocks;
                self.current = Some(Part { claim, next_block: claim.first_block });
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

    /// The record that must be in the stream before the current claim is read (P).
    pub fn granted_at(&self) -> Option<u64> {
        self.current.as_ref().map(|part| part.claim.granted_at)
    }

    /// Reads the next chunk of the current claim. The caller has cut all records up
    /// to P and cuts none until the chunk is in the stream (R3).
    pub fn read(
        &mut self,
        at: Position,
        claims_upto: u64,
        memory: Vec<u8>,
    ) -> Result<Option<Chunk>> {
        let Some(part) = &mut self.current else { return Ok(None) };
        let claim = part.claim;
        if !claim.compare && self.compares.is_busy() {
            return Ok(None); // claims complete in order
        }
        let mut chunk = Chunk::new(at, claim.id, claims_upto, memory);
        let mut zeroes = Zeroes { volume: claim.volume, open: None };
        let source = &mut self.sources[claim.volume.index()];
        let end_block = claim.first_block + claim.blocks;
        let data = part.next_data(source, end_block, &mut zeroes, &mut chunk.batch)?;
        let is_last = part.next_block >= end_block;
        if is_last {
            self.current = None;
        }
        if !claim.compare {
            chunk.batch.expect(data.len(), data.iter().map(|extent| extent.len as usize).sum());
        }
        let (mut compared, mut packed) = (0, Ok(()));
        source.read_each(&mut self.reader, &data, |index, bytes| {
            let Some(extent) = data.get(index).filter(|_| packed.is_ok()) else { return };
            packed = if is_zero(bytes) {
                zeroes.add(*extent, &mut chunk.batch)
            } else if claim.compare {
                compared += 1;
                chunk.batch.compare(claim.volume, *extent, blake3::hash(bytes).as_bytes())
            } else {
                chunk.write(claim.volume, *extent, bytes)
            };
        })?;
        packed?;
        zeroes.flush(&mut chunk.batch)?;
        if claim.compare {
            self.compares.read(claim, compared > 0, is_last);
        } else if is_last {
            chunk.complete(claim.id);
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

impl Part {
    /// Moves on to the next chunk's blocks: holes become zeroes, the rest is returned
    /// to be read.
    fn next_data(
        &mut self,
        source: &SourceReader,
        end_block: u64,
        zeroes: &mut Zeroes,
        batch: &mut BatchBuilder,
    ) -> Result<Vec<Extent>> {
        let mut data = Vec::new();
        while self.next_block < end_block && data.len() < CHUNK_BLOCKS as usize {
            let offset = self.next_block * BLOCK_BYTES;
            let run = source
                .run_at(offset)
                .map_err(|e| Error::storage(format!("looking for holes at {offset}"), e))?;
            let block_end = (offset + BLOCK_BYTES).min(source.size_bytes());
            if run.is_data || run.end < block_end {
                data.push(Extent::new(offset, block_end - offset));
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
        Ok(data)
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
