//! One mark's file: what the mark is, then the pre-images of what was overwritten
//! since (layout in docs/formats/receiver.md).
//!
//! A block is saved once, with the content it had at the mark. Order: pre-images
//! durable, then targets written. So a torn end was never built upon.

use super::Mark;
use super::layout::{
    ENTRY_CRC_COVERS, ENTRY_DATA, ENTRY_MAGIC, ENTRY_ZERO, HEADER_BYTES, MarkHeader,
    PRE_IMAGE_BYTES, PreImage,
};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::receiver::medium::{LogFile, Target};
use towline_block::{BLOCK_BYTES, BlockRange, Extent, VolumeId, crc32c, is_zero};
use zerocopy::{FromBytes, IntoBytes};

/// Blocks of one run of zeroes; a longer run takes several entries.
const ZERO_BLOCKS_MAX: u64 = 1 << 20;

/// A mark with its file.
pub(super) struct Segment {
    pub mark: Mark,
    pub log: LogFile,
    /// Which blocks are saved, of each volume. Empty in a segment that is closed.
    saved: Vec<Saved>,
}

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

impl Segment {
    /// An empty one in `log`, durable but for its name in the directory.
    pub fn create(mut log: LogFile, group: GroupUuid, mark: Mark) -> Result<Segment> {
        log.append(MarkHeader::of(group, &mark).as_bytes())?;
        log.sync()?;
        Ok(Segment { mark, log, saved: Vec::new() })
    }

    /// Opens a file; `None` when its header is not whole or of another group.
    pub fn open(log: LogFile, group: GroupUuid) -> Result<Option<Segment>> {
        let mut bytes = [0; HEADER_BYTES];
        if log.read_at(&mut bytes, 0)? < bytes.len() {
            return Ok(None);
        }
        let Some(mark) = MarkHeader::read(&bytes, group) else { return Ok(None) };
        Ok(Some(Segment { mark, log, saved: Vec::new() }))
    }

    /// Learns what is saved, so that more can be; a torn end is cut off. What lies
    /// before `durable` is believed without its content being read. Answers where
    /// the sound part ends.
    pub fn resume(&mut self, sizes: &[u64], durable: u64) -> Result<u64> {
        let (mut at, mut data) = (HEADER_BYTES as u64, Vec::new());
        loop {
            let Some((entry, next)) = read_entry(&self.log, at, self.log.end(), sizes)? else {
                break;
            };
            if next > durable && !read_data(&self.log, at, &entry, &mut data)? {
                break;
            }
            self.note(&entry, true);
            at = next;
        }
        if at < self.log.end() {
            self.log.truncate(at)?;
        }
        Ok(at)
    }

    /// The same mark with nothing saved: the targets stand at it. What a crash leaves of
    /// the old content is right, too.
    pub fn emptied(mut self) -> Result<Segment> {
        self.log.truncate(HEADER_BYTES as u64)?;
        self.saved = Vec::new();
        Ok(self)
    }

    /// Nothing more is saved here: frees memory and what a failed write left.
    pub fn close(&mut self) -> Result<()> {
        self.saved = Vec::new();
        self.log.truncate(self.log.end())
    }

    /// Makes the present content of all blocks under `ranges` durable, as far as it is
    /// not saved yet. All or nothing. `room`: bytes that may be added.
    pub fn save(
        &mut self,
        targets: &[Target],
        ranges: &[(VolumeId, Extent)],
        room: u64,
    ) -> Result<()> {
        let before = self.log.end();
        let mut save = Save::new(before.saturating_add(room));
        let saved = ranges
            .iter()
            .try_for_each(|(volume, extent)| match targets.get(volume.index()) {
                Some(target) => save.range(self, target, *volume, *extent),
                None => Ok(()),
            })
            .and_then(|()| match save.fresh.is_empty() {
                true => Ok(()),
                false => save.write(self).and_then(|()| self.log.sync()),
            });
        if saved.is_err() {
            save.fresh.iter().for_each(|entry| self.note(entry, false));
            self.log.rewind(before);
        }
        saved
    }

    /// Whether every entry is sound to the end of the file.
    pub fn check(&self, sizes: &[u64]) -> Result<()> {
        self.each(sizes, |_, _| Ok(()))
    }

    /// Writes every saved block back.
    pub fn restore(&self, targets: &[Target], sizes: &[u64]) -> Result<()> {
        self.each(sizes, |entry, data| {
            let Some(target) = targets.get(usize::from(entry.volume.get())) else { return Ok(()) };
            let extent = entry.range().extent(target.disk.size_bytes());
            match entry.kind.get() {
                ENTRY_ZERO => target.zero(extent, false),
                _ => target.write(extent.offset, data),
            }
        })
    }

    fn each(&self, sizes: &[u64], mut f: impl FnMut(&PreImage, &[u8]) -> Result<()>) -> Result<()> {
        let (mut at, mut data) = (HEADER_BYTES as u64, Vec::new());
        while at < self.log.end() {
            let sound = match read_entry(&self.log, at, self.log.end(), sizes)? {
                Some((entry, next)) if read_data(&self.log, at, &entry, &mut data)? => {
                    Some((entry, next))
                }
                _ => None,
            };
            let Some((entry, next)) = sound else {
                let what = format!(
                    "{} is damaged at byte {at}: its mark is lost",
                    self.log.path().display()
                );
                return Err(Error::damaged(what));
            };
            f(&entry, &data)?;
            at = next;
        }
        Ok(())
    }

    fn has(&self, volume: VolumeId, block: u64) -> bool {
        self.saved.get(volume.index()).is_some_and(|saved| saved.has(block))
    }

    fn note(&mut self, entry: &PreImage, on: bool) {
        let volume = usize::from(entry.volume.get());
        if volume >= self.saved.len() {
            self.saved.resize(volume + 1, Saved::default());
        }
        if let Some(saved) = self.saved.get_mut(volume) {
            let blocks = entry.range();
            (blocks.first..blocks.end()).for_each(|block| saved.set(block, on));
        }
    }
}

/// Entries written at once.
const WRITE_BYTES: usize = 1 << 20;

/// What one call of [`Segment::save`] adds.
struct Save {
    end_max: u64,
    fresh: Vec<PreImage>,
    /// Entries not written yet.
    entries: Vec<u8>,
    /// Content of the block at hand.
    block: Vec<u8>,
}

impl Save {
    fn new(end_max: u64) -> Save {
        Save { end_max, fresh: Vec::new(), entries: Vec::new(), block: Vec::new() }
    }

    fn write(&mut self, segment: &mut Segment) -> Result<()> {
        segment.log.append(&self.entries)?;
        self.entries.clear();
        Ok(())
    }

    /// Saves the blocks of one range that are not saved yet, holes as zero runs.
    fn range(
        &mut self,
        segment: &mut Segment,
        target: &Target,
        volume: VolumeId,
        extent: Extent,
    ) -> Result<()> {
        let size = target.disk.size_bytes();
        let blocks = BlockRange::touching(extent);
        let mut zeroes = BlockRange::new(blocks.first, 0);
        let mut hole_end = 0;
        let mut content = std::mem::take(&mut self.block);
        content.resize(BLOCK_BYTES as usize, 0);
        for block in blocks.first..blocks.end() {
            let at = BlockRange::new(block, 1).extent(size);
            if segment.has(volume, block) {
                self.zeroes(segment, volume, zeroes)?;
                zeroes = BlockRange::new(block + 1, 0);
                continue;
            }
            if at.end() > hole_end {
                let run = target.disk.run_at(at.offset)?;
                hole_end = if run.is_data { 0 } else { run.end };
            }
            let data = content.get_mut(..at.len as usize).unwrap_or_default();
            let zero = at.end() <= hole_end || {
                target.disk.read_at(data, at.offset)?;
                is_zero(data)
            };
            if zero && zeroes.count < ZERO_BLOCKS_MAX {
                zeroes.count += 1;
                continue;
            }
            self.zeroes(segment, volume, zeroes)?;
            zeroes = BlockRange::new(block + u64::from(!zero), u64::from(zero));
            if !zero {
                self.put(segment, volume, BlockRange::new(block, 1), data)?;
            }
        }
        self.block = content;
        self.zeroes(segment, volume, zeroes)
    }

    fn zeroes(&mut self, segment: &mut Segment, volume: VolumeId, run: BlockRange) -> Result<()> {
        if run.count == 0 {
            return Ok(());
        }
        self.put(segment, volume, run, &[])
    }

    fn put(
        &mut self,
        segment: &mut Segment,
        volume: VolumeId,
        blocks: BlockRange,
        data: &[u8],
    ) -> Result<()> {
        let len = (PRE_IMAGE_BYTES + data.len()) as u64;
        if segment.log.end() + self.entries.len() as u64 + len > self.end_max {
            let what = format!(
                "the undo store {} is full: give it more room (--marks-bytes)",
                segment.log.path().display()
            );
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        let mut entry = PreImage {
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
        self.entries.extend_from_slice(entry.as_bytes());
        self.entries.extend_from_slice(data);
        segment.note(&entry, true);
        self.fresh.push(entry);
        if self.entries.len() < WRITE_BYTES { Ok(()) } else { self.write(segment) }
    }
}

/// The entry at `at` and where the next one begins; `None` at the end or at what is no
/// entry, or reaches beyond `end`, where the file ends.
pub(in crate::receiver) fn read_entry(
    log: &LogFile,
    at: u64,
    end: u64,
    sizes: &[u64],
) -> Result<Option<(PreImage, u64)>> {
    let mut bytes = [0; PRE_IMAGE_BYTES];
    if at >= end || log.read_at(&mut bytes, at)? < bytes.len() {
        return Ok(None);
    }
    let Ok(entry) = PreImage::read_from_bytes(&bytes) else { return Ok(None) };
    let next = at + PRE_IMAGE_BYTES as u64 + u64::from(entry.data_bytes.get());
    Ok((entry.is_sound(sizes) && next <= end).then_some((entry, next)))
}

/// The content behind the entry at `at`; false when it fails its checksum.
pub(in crate::receiver) fn read_data(
    log: &LogFile,
    at: u64,
    entry: &PreImage,
    data: &mut Vec<u8>,
) -> Result<bool> {
    data.resize(entry.data_bytes.get() as usize, 0);
    let read = log.read_at(data, at + PRE_IMAGE_BYTES as u64)?;
    Ok(read == data.len() && crc32c(data) == entry.data_crc32c.get())
}
