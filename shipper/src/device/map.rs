//! A pack's map: its batches, and which blocks they touch. It lies on every device, so that
//! of a pack that is lost it is known what is lost.

use super::blocks::BlockRun;
use crate::batch::{BATCH_BYTES_MAX, HEADER_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Digest;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAP_MAGIC: [u8; 8] = *b"TWLDVMAP";
const VERSION: u16 = 1;

/// Rows of a map, all together: 8 GiB of batches of 4 KiB, or a scattered write a row. A
/// pack with more is closed.
pub(crate) const ROWS_MAX: usize = 1 << 21;
/// A whole map.
pub(crate) const MAP_BYTES_MAX: u64 =
    (size_of::<MapHeader>() + ROWS_MAX * 2 * size_of::<BatchRow>()) as u64;

/// First bytes of a map.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct MapHeader {
    pub magic: [u8; 8],
    pub version: U16,
    pub reserved: [u8; 2],
    pub batch_count: U32,
    pub touched_count: U32,
    pub covered_count: U32,
    pub pack_bytes: U64,
}

#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct BatchRow {
    pub bytes: U32,
    pub hash: [u8; 32],
}

#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(crate) struct RunRow {
    pub volume: U16,
    pub reserved: U16,
    pub blocks: U32,
    pub first_block: U64,
}

const _: () = assert!(size_of::<MapHeader>() == 32);
const _: () = assert!(size_of::<BatchRow>() == 36);
const _: () = assert!(size_of::<RunRow>() == 16);

/// What a pack holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackMap {
    /// Length and digest of each batch, in order.
    pub batches: Vec<(u32, Digest)>,
    /// Blocks that any of its operations changes.
    pub touched: Vec<BlockRun>,
    /// Of these: blocks of which it holds all content, whatever was there before.
    pub covered: Vec<BlockRun>,
}

impl PackMap {
    pub fn pack_bytes(&self) -> u64 {
        self.batches.iter().map(|(bytes, _)| u64::from(*bytes)).sum()
    }

    pub fn encode(&self) -> Vec<u8> {
        let (touched, covered) = (rows(&self.touched), rows(&self.covered));
        let header = MapHeader {
            magic: MAP_MAGIC,
            version: VERSION.into(),
            reserved: [0; 2],
            batch_count: (self.batches.len() as u32).into(),
            touched_count: (touched.len() as u32).into(),
            covered_count: (covered.len() as u32).into(),
            pack_bytes: self.pack_bytes().into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        for (len, digest) in &self.batches {
            let row = BatchRow { bytes: (*len).into(), hash: digest.0 };
            bytes.extend_from_slice(row.as_bytes());
        }
        bytes.extend_from_slice(touched.as_bytes());
        bytes.extend_from_slice(covered.as_bytes());
        bytes
    }

    /// The map that the manifest names by `digest`, for volumes of these sizes.
    ///
    /// # Errors
    /// [`ErrorKind::TooNew`] for a later format; [`ErrorKind::Damaged`] for all else.
    pub fn decode(bytes: &[u8], digest: Digest, sizes: &[u64]) -> Result<PackMap> {
        if Digest::of(bytes) != digest {
            return Err(Error::damaged("it is not the map that the manifest names"));
        }
        let wrong = || Error::damaged("its header contradicts itself");
        let (header, rest) = MapHeader::read_from_prefix(bytes).map_err(|_| wrong())?;
        if header.version.get() > VERSION && header.magic == MAP_MAGIC {
            let version = header.version;
            let what = format!("it has format {version}, newer than this program: update it");
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let count = |count: U32| count.get() as usize;
        let batches_end = count(header.batch_count) * size_of::<BatchRow>();
        let touched_end = batches_end + count(header.touched_count) * size_of::<RunRow>();
        let covered_end = touched_end + count(header.covered_count) * size_of::<RunRow>();
        if header.magic != MAP_MAGIC
            || header.version.get() != VERSION
            || header.reserved != [0; 2]
            || rest.len() != covered_end
        {
            return Err(wrong());
        }
        let part = |range| rest.get(range).ok_or_else(wrong);
        let batches = <[BatchRow]>::ref_from_bytes(part(0..batches_end)?).map_err(|_| wrong())?;
        let touched = part(batches_end..touched_end)?;
        let map = PackMap {
            batches: batches.iter().map(|row| (row.bytes.get(), Digest(row.hash))).collect(),
            touched: runs(touched, sizes)?,
            covered: runs(part(touched_end..covered_end)?, sizes)?,
        };
        let sizes_fit = map
            .batches
            .iter()
            .all(|(bytes, _)| (HEADER_BYTES..=BATCH_BYTES_MAX).contains(&(*bytes as usize)));
        match sizes_fit && map.pack_bytes() == header.pack_bytes.get() {
            true => Ok(map),
            false => Err(wrong()),
        }
    }
}

/// A row holds at most 2^32 - 1 blocks.
fn rows(runs: &[BlockRun]) -> Vec<RunRow> {
    let pieces = runs.iter().flat_map(|run| {
        let (first, end) = (run.blocks.first, run.blocks.end());
        (first..end).step_by(u32::MAX as usize).map(move |at| RunRow {
            volume: run.volume.0.into(),
            reserved: 0.into(),
            blocks: ((end - at).min(u32::MAX.into()) as u32).into(),
            first_block: at.into(),
        })
    });
    pieces.collect()
}

fn runs(bytes: &[u8], sizes: &[u64]) -> Result<Vec<BlockRun>> {
    let wrong = || Error::damaged("it names blocks that the volumes do not have");
    let rows = <[RunRow]>::ref_from_bytes(bytes).map_err(|_| wrong())?;
    let run = |row: &RunRow| {
        let run =
            BlockRun::from((row.volume.get(), row.first_block.get(), u64::from(row.blocks.get())));
        let sound = row.reserved.get() == 0 && run.blocks.count > 0 && run.is_within(sizes);
        sound.then_some(run).ok_or_else(wrong)
    };
    rows.iter().map(run).collect()
}
