//! Walks dirty blocks: claims a run, reads it behind the records it may hold, and
//! turns it into batches. Holes and zeroes travel as operations, never as data.

use crate::batch::{BatchBuilder, DATA_BYTES_MAX};
use crate::error::{Error, Result};
use std::fs::File;
use std::sync::Arc;
use towline_block::sys::uring::Fd;
use towline_block::{
    BLOCK_BYTES, DirectReader, Extent, Position, Seq, VolumeId, crc32c, disk::run_at, is_zero,
};
use towline_journal::Claim;

/// Data of one batch of blocks.
const CHUNK_BLOCKS: u64 = 64;
/// Blocks claimed at once where the source has a hole: 1 GiB.
const HOLE_BLOCKS: u64 = 16 * 1024;

const _: () = assert!(CHUNK_BLOCKS * BLOCK_BYTES <= DATA_BYTES_MAX as u64);

/// One volume's source, read only.
pub(crate) struct SourceReader {
    direct: Fd,
    /// The same open file, to look for holes.
    file: File,
    size_bytes: u64,
}

/// The round over all volumes.
pub(crate) struct Walker {
    sources: Vec<SourceReader>,
    reader: DirectReader,
    volume: usize,
    block: u64,
    current: Option<Part>,
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

impl Walker {
    /// `direct`: one reader descriptor a volume, in order.
    pub fn new(direct: Vec<(Fd, u64)>) -> Result<Walker> {
        let mut sources = Vec::new();
        for (fd, size_bytes) in direct {
            let file = fd
                .try_clone()
                .map_err(|e| Error::storage("cannot duplicate a source's descriptor", e))?;
            sources.push(SourceReader { direct: fd, file: file.into(), size_bytes });
        }
        let reader = DirectReader::new()?;
        Ok(Walker { sources, reader, volume: 0, block: 0, current: None })
    }

    /// Where to ask for the next claim, and for how much; `None` while one is being
    /// read. `skip` volumes were just found clean.
    pub fn wanted(&mut self) -> Option<(VolumeId, u64, u64)> {
        if self.current.is_some() {
            return None;
        }
        let source = self.sources.get(self.volume)?;
        let at = self.block * BLOCK_BYTES;
        let blocks = match run_at(&source.file, at, source.size_bytes) {
            Ok(run) if !run.is_data => {
                ((run.end - at.min(run.end)) / BLOCK_BYTES).clamp(CHUNK_BLOCKS, HOLE_BLOCKS)
            }
            _ => CHUNK_BLOCKS,
        };
        Some((VolumeId(self.volume as u16), self.block, blocks))
    }

    /// The answer to [`Walker::wanted`]. False when a whole round over all volumes
    /// found nothing from here on.
    pub fn granted(&mut self, claim: Option<Claim>) {
        match claim {
            Some(claim) => {
                self.block = claim.first_block + claim.blocks;
                self.current = Some(Part { claim, next_block: claim.first_block });
            }
            None => {
                self.block = 0;
                self.volume = (self.volume + 1) % self.sources.len().max(1);
            }
        }
    }

    /// The record that must be in the stream before the current claim is read (P).
    pub fn granted_at(&self) -> Option<u64> {
        self.current.as_ref().map(|part| part.claim.granted_at)
    }

    /// Reads the next chunk of the current claim. The caller has cut all records up
    /// to P and cuts none until the chunk is in the stream (R3).
    pub fn read(&mut self, at: Position, claims_upto: u64) -> Result<Option<Chunk>> {
        let Some(part) = &mut self.current else { return Ok(None) };
        let source = &self.sources[part.claim.volume.index()];
        let end_block = part.claim.first_block + part.claim.blocks;
        let batch = BatchBuilder::blocks(at, part.claim.id, claims_upto);
        let mut chunk = Chunk { batch, data_bytes: 0, completes: None };
        let (mut zero, mut data) = (None, Vec::new());
        while part.next_block < end_block && data.len() < CHUNK_BLOCKS as usize {
            let offset = part.next_block * BLOCK_BYTES;
            let run = run_at(&source.file, offset, source.size_bytes)
                .map_err(|e| Error::storage(format!("looking for holes at {offset}"), e))?;
            let block_end = (offset + BLOCK_BYTES).min(source.size_bytes);
            if !run.is_data && run.end >= block_end {
                // Whole blocks of hole, as many as there are.
                let whole = if run.end >= source.size_bytes {
                    end_block
                } else {
                    (run.end / BLOCK_BYTES).min(end_block)
                };
                extend(
                    &mut zero,
                    &mut chunk.batch,
                    part.claim.volume,
                    Extent::new(offset, (whole * BLOCK_BYTES).min(source.size_bytes) - offset),
                )?;
                part.next_block = whole;
                continue;
            }
            data.push(Extent::new(offset, block_end - offset));
            part.next_block += 1;
        }
        let volume = part.claim.volume;
        if part.next_block >= end_block {
            chunk.completes = Some(part.claim.id);
            chunk.batch.set_claims_upto(part.claim.id);
            self.current = None;
        }
        let source = &self.sources[volume.index()];
        let contents = self.reader.read(&source.direct, &data)?;
        for (extent, content) in data.iter().zip(&contents) {
            let bytes = content.as_slice();
            if is_zero(bytes) {
                extend(&mut zero, &mut chunk.batch, volume, *extent)?;
                continue;
            }
            chunk.batch.write(Seq::NONE, volume, extent.offset, bytes, crc32c(bytes))?;
            chunk.data_bytes += bytes.len() as u64;
        }
        flush_zero(&mut zero, &mut chunk.batch, volume)?;
        Ok(Some(chunk))
    }
}

/// Adds a zero range to the one being collected, or starts another.
fn extend(
    zero: &mut Option<Extent>,
    batch: &mut BatchBuilder,
    volume: VolumeId,
    extent: Extent,
) -> Result<()> {
    match zero {
        Some(open)
            if open.end() == extent.offset && open.len + extent.len <= u64::from(u32::MAX) =>
        {
            open.len += extent.len;
        }
        _ => {
            flush_zero(zero, batch, volume)?;
            *zero = Some(extent);
        }
    }
    Ok(())
}

fn flush_zero(zero: &mut Option<Extent>, batch: &mut BatchBuilder, volume: VolumeId) -> Result<()> {
    match zero.take() {
        Some(extent) => batch.zero(Seq::NONE, volume, extent, false),
        None => Ok(()),
    }
}

/// The descriptors that came over the link, as the walker takes them.
pub(crate) fn shared(fd: std::os::fd::OwnedFd) -> Fd {
    Arc::new(fd)
}
