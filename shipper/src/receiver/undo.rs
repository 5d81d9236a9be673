//! The undo log: what a broken phase overwrites, so that the last point can be
//! gone back to (rule R5; layout in docs/formats/receiver.md).
//!
//! Order: pre-images durable, then targets written. A block is saved once, in the
//! state it had at the point.

use super::medium::{LogFile, Medium, Target};
use super::stream::Point;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use std::path::{Path, PathBuf};
use towline_block::{
    BLOCK_BYTES, BlockRange, Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c, is_zero,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const UNDO_MAGIC: [u8; 8] = *b"TWLUNDO1";
pub const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"UENT");

const ENTRY_DATA: u16 = 1;
const ENTRY_ZERO: u16 = 2;

/// Which group and which point the log goes back to.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct UndoHeader {
    pub magic: [u8; 8],
    pub group_uuid: [u8; 16],
    pub point_number: U64,
    pub point_epoch: U32,
    pub point_incarnation: U32,
    pub point_seq: U64,
    pub reserved: [u8; 12],
    pub header_crc32c: U32,
}

/// One saved block with its content behind it, or a run of blocks that were zero.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct UndoEntry {
    pub magic: U32,
    pub kind: U16,
    pub volume: U16,
    pub first_block: U64,
    pub blocks: U32,
    pub data_bytes: U32,
    pub data_crc32c: U32,
    pub entry_crc32c: U32,
}

const UNDO_HEADER_BYTES: usize = size_of::<UndoHeader>();
const UNDO_ENTRY_BYTES: usize = size_of::<UndoEntry>();
const HEADER_CRC_COVERS: usize = std::mem::offset_of!(UndoHeader, header_crc32c);
const ENTRY_CRC_COVERS: usize = std::mem::offset_of!(UndoEntry, entry_crc32c);
const _: () = assert!(UNDO_HEADER_BYTES == 64 && UNDO_ENTRY_BYTES == 32);

/// Blocks of one run of zeroes; a longer run takes several entries.
const ZERO_BLOCKS_MAX: u64 = 1 << 20;

/// Which blocks of a volume are saved.
#[derive(Clone, Default)]
struct Saved(Vec<u64>);

impl Saved {
    fn has(&self, block: u64) -> bool {
        let word = self.0.get((block / 64) as usize).copied().unwrap_or(0);
        word >> (block % 64) & 1 == 1
    }

    fn set(&mut self, block: u64, on: bool) {
        let at = (block / 64) as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            let bit = 1 << (block % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}

/// The undo log of a broken phase; closed while the group is whole or has no point.
pub struct Undo {
    path: PathBuf,
    medium: Medium,
    group: GroupUuid,
    /// Of the volumes, by id: nothing outside them is believed or written.
    sizes: Vec<u64>,
    bytes_max: u64,
    open: Option<Open>,
}

struct Open {
    log: LogFile,
    point: Point,
    saved: Vec<Saved>,
}

impl Undo {
    /// Opens what is on disk. A log without a valid header was never built upon
    /// and counts as none.
    pub fn load(
        path: &Path,
        medium: Medium,
        group: GroupUuid,
        sizes: Vec<u64>,
        bytes_max: u64,
    ) -> Result<Undo> {
        let mut undo = Undo { path: path.to_owned(), medium, group, sizes, bytes_max, open: None };
        if !path.exists() {
            return Ok(undo);
        }
        let mut log = undo.medium.open(path)?;
        let Some(point) = read_header(&log, group)? else { return Ok(undo) };
        let mut saved = Vec::new();
        let mut at = UNDO_HEADER_BYTES as u64;
        while let Some((entry, next)) = read_entry(&log, at, &undo.sizes, &mut Vec::new())? {
            mark(&mut saved, &entry, true);
            at = next;
        }
        if at < log.end() {
            log.truncate(at)?;
        }
        undo.open = Some(Open { log, point, saved });
        Ok(undo)
    }

    /// The point that can be gone back to.
    pub fn point(&self) -> Option<Point> {
        self.open.as_ref().map(|open| open.point)
    }

    /// Starts saving for `point`, unless that is so already. A log for another
    /// point is a leftover.
    pub fn begin(&mut self, point: Point) -> Result<()> {
        if self.point() == Some(point) {
            return Ok(());
        }
        self.open = None;
        let mut log = self.medium.create(&self.path)?;
        let mut header = UndoHeader {
            magic: UNDO_MAGIC,
            group_uuid: self.group.0,
            point_number: point.number.into(),
            point_epoch: point.position.epoch.0.into(),
            point_incarnation: point.position.incarnation.0.into(),
            point_seq: point.position.seq.0.into(),
            reserved: [0; 12],
            header_crc32c: 0.into(),
        };
        let (covered, _) = header.as_bytes().split_at(HEADER_CRC_COVERS);
        header.header_crc32c = crc32c(covered).into();
        log.append(header.as_bytes())?;
        log.sync()?;
        self.medium.sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        self.open = Some(Open { log, point, saved: Vec::new() });
        Ok(())
    }

    /// Makes the present content of all blocks under `ranges` durable, as far as
    /// it is not saved yet. All or nothing.
    pub fn save(&mut self, targets: &[Target], ranges: &[(VolumeId, Extent)]) -> Result<()> {
        let bytes_max = self.bytes_max;
        let Some(open) = &mut self.open else { return Ok(()) };
        let before = open.log.end();
        let mut fresh = Vec::new();
        let saved = ranges
            .iter()
            .try_for_each(|(volume, extent)| {
                let Some(target) = targets.get(volume.index()) else { return Ok(()) };
                save_range(open, target, *volume, *extent, bytes_max, &mut fresh)
            })
            .and_then(|()| if fresh.is_empty() { Ok(()) } else { open.log.sync() });
        if saved.is_err() {
            fresh.iter().for_each(|entry| mark(&mut open.saved, entry, false));
            open.log.rewind(before);
        }
        saved
    }

    /// Writes every saved block back and flushes all targets. May be repeated.
    pub fn roll_back(&self, targets: &[Target]) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let mut at = UNDO_HEADER_BYTES as u64;
        let mut data = Vec::new();
        while let Some((entry, next)) = read_entry(&open.log, at, &self.sizes, &mut data)? {
            at = next;
            let Some(target) = targets.get(usize::from(entry.volume.get())) else { continue };
            let blocks = BlockRange::new(entry.first_block.get(), entry.blocks.get().into());
            let extent = blocks.extent(target.disk.size_bytes());
            if entry.kind.get() == ENTRY_ZERO {
                target.zero(extent, false)?;
            } else {
                target.write(extent.offset, &data)?;
            }
        }
        targets.iter().try_for_each(Target::sync)
    }

    /// The broken phase is over: removes the log.
    pub fn discard(&mut self) -> Result<()> {
        self.open = None;
        if !self.path.exists() {
            return Ok(());
        }
        self.medium.remove(&self.path)?;
        self.medium.sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

/// Saves the blocks of one range that are not saved yet, holes as zero runs.
fn save_range(
    open: &mut Open,
    target: &Target,
    volume: VolumeId,
    extent: Extent,
    bytes_max: u64,
    fresh: &mut Vec<UndoEntry>,
) -> Result<()> {
    let size = target.disk.size_bytes();
    let blocks = BlockRange::touching(extent);
    let mut zeroes = BlockRange::new(blocks.first, 0);
    let mut hole_end = 0;
    let mut buf = vec![0; BLOCK_BYTES as usize];
    for block in blocks.first..blocks.end() {
        let at = BlockRange::new(block, 1).extent(size);
        if open.saved.get(volume.index()).is_some_and(|saved| saved.has(block)) {
            flush_zeroes(open, volume, &mut zeroes, bytes_max, fresh)?;
            zeroes = BlockRange::new(block + 1, 0);
            continue;
        }
        if at.end() > hole_end {
            let run = target.disk.run_at(at.offset)?;
            hole_end = if run.is_data { 0 } else { run.end };
        }
        let data = buf.get_mut(..at.len as usize).unwrap_or_default();
        let zero = at.end() <= hole_end || {
            target.disk.read_at(data, at.offset)?;
            is_zero(data)
        };
        if zero && zeroes.count < ZERO_BLOCKS_MAX {
            zeroes.count += 1;
            continue;
        }
        flush_zeroes(open, volume, &mut zeroes, bytes_max, fresh)?;
        zeroes = BlockRange::new(block + u64::from(!zero), u64::from(zero));
        if !zero {
            put(open, volume, BlockRange::new(block, 1), data, bytes_max, fresh)?;
        }
    }
    flush_zeroes(open, volume, &mut zeroes, bytes_max, fresh)
}

fn flush_zeroes(
    open: &mut Open,
    volume: VolumeId,
    zeroes: &mut BlockRange,
    bytes_max: u64,
    fresh: &mut Vec<UndoEntry>,
) -> Result<()> {
    if zeroes.count == 0 {
        return Ok(());
    }
    put(open, volume, *zeroes, &[], bytes_max, fresh)
}

fn put(
    open: &mut Open,
    volume: VolumeId,
    blocks: BlockRange,
    data: &[u8],
    bytes_max: u64,
    fresh: &mut Vec<UndoEntry>,
) -> Result<()> {
    let len = (UNDO_ENTRY_BYTES + data.len()) as u64;
    if open.log.end() + len > bytes_max {
        let what = format!(
            "the undo store {} is full ({bytes_max} bytes): applying stops so that the last point \
             stays; give it more room, or wait until the resync is done elsewhere",
            open.log.path().display()
        );
        return Err(Error::new(ErrorKind::NoSpace, what));
    }
    let mut entry = UndoEntry {
        magic: ENTRY_MAGIC.into(),
        kind: if data.is_empty() { ENTRY_ZERO } else { ENTRY_DATA }.into(),
        volume: volume.0.into(),
        first_block: blocks.first.into(),
        blocks: (blocks.count as u32).into(),
        data_bytes: (data.len() as u32).into(),
        data_crc32c: crc32c(data).into(),
        entry_crc32c: 0.into(),
    };
    entry.entry_crc32c = crc32c(entry.as_bytes().split_at(ENTRY_CRC_COVERS).0).into();
    open.log.append(&[entry.as_bytes(), data].concat())?;
    mark(&mut open.saved, &entry, true);
    fresh.push(entry);
    Ok(())
}

fn mark(saved: &mut Vec<Saved>, entry: &UndoEntry, on: bool) {
    let volume = usize::from(entry.volume.get());
    if volume >= saved.len() {
        saved.resize(volume + 1, Saved::default());
    }
    if let Some(saved) = saved.get_mut(volume) {
        let first = entry.first_block.get();
        (first..first + u64::from(entry.blocks.get())).for_each(|block| saved.set(block, on));
    }
}

/// The blocks lie inside their volume, and the data is exactly theirs.
fn lies_inside(entry: &UndoEntry, sizes: &[u64]) -> bool {
    let size = sizes.get(usize::from(entry.volume.get())).copied().unwrap_or(0);
    let all = BlockRange::of_volume(size);
    let blocks = BlockRange::new(entry.first_block.get(), entry.blocks.get().into());
    if blocks.first >= all.count || blocks.count > all.count - blocks.first {
        return false;
    }
    let zero = entry.kind.get() == ENTRY_ZERO;
    zero || (blocks.count == 1 && blocks.extent(size).len == u64::from(entry.data_bytes.get()))
}

fn read_header(log: &LogFile, group: GroupUuid) -> Result<Option<Point>> {
    let mut bytes = [0; UNDO_HEADER_BYTES];
    if log.read_at(&mut bytes, 0)? < bytes.len() {
        return Ok(None);
    }
    let Ok(header) = UndoHeader::ref_from_bytes(&bytes) else { return Ok(None) };
    let covered = bytes.split_at(HEADER_CRC_COVERS).0;
    let known =
        header.magic == UNDO_MAGIC && header.group_uuid == group.0 && header.reserved == [0; 12];
    if !known || header.header_crc32c.get() != crc32c(covered) {
        return Ok(None);
    }
    let position = Position::new(
        Epoch(header.point_epoch.get()),
        Incarnation(header.point_incarnation.get()),
        Seq(header.point_seq.get()),
    );
    Ok(Some(Point { number: header.point_number.get(), position }))
}

/// The entry at `at`, its data, and where the next one begins; `None` at the end
/// or at what an unfinished write left.
fn read_entry(
    log: &LogFile,
    at: u64,
    sizes: &[u64],
    data: &mut Vec<u8>,
) -> Result<Option<(UndoEntry, u64)>> {
    let mut bytes = [0; UNDO_ENTRY_BYTES];
    if at >= log.end() || log.read_at(&mut bytes, at)? < bytes.len() {
        return Ok(None);
    }
    let covered = bytes.split_at(ENTRY_CRC_COVERS).0;
    let Ok(entry) = UndoEntry::read_from_bytes(&bytes) else { return Ok(None) };
    let len = entry.data_bytes.get();
    let sane = entry.magic.get() == ENTRY_MAGIC
        && entry.entry_crc32c.get() == crc32c(covered)
        && u64::from(len) <= BLOCK_BYTES
        && lies_inside(&entry, sizes)
        && matches!((entry.kind.get(), len), (ENTRY_ZERO, 0) | (ENTRY_DATA, 1..));
    if !sane {
        return Ok(None);
    }
    let at = at + UNDO_ENTRY_BYTES as u64;
    data.resize(len as usize, 0);
    if log.read_at(data, at)? < data.len() || crc32c(data) != entry.data_crc32c.get() {
        return Ok(None);
    }
    Ok(Some((entry, at + u64::from(len))))
}
