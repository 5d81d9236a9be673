//! `activity.map`: a header sector, then sectors of bits. A sector is the unit that a
//! disk writes whole: each has its own checksum, and any mix of old and new sectors is
//! sound, because a sector only says of its own extents that they are hot or cold.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use towline_block::crc32c;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const ACTIVITY_MAGIC: [u8; 8] = *b"TWLACTIV";
pub const ACTIVITY_VERSION: u32 = 1;
/// What any disk writes whole.
pub const SECTOR_BYTES: usize = 512;
/// 64-bit words of bits in a sector; the rest is its number and checksum.
pub const SECTOR_WORDS: usize = 62;

/// First sector.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ActivityHeader {
    pub magic: [u8; 8],
    pub version: U32,
    pub incarnation: U32,
    pub group_uuid: [u8; 16],
    pub base_incarnation: U32,
    pub volume_count: U32,
    pub base_seq: U64,
    pub base_claims: U64,
    pub extent_bytes: U64,
    pub sectors: U64,
    pub reserved: [u8; 436],
    /// CRC-32C of all bytes of the sector before this field.
    pub crc: U32,
}

/// A sector of bits.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ActivitySector {
    pub words: [U64; SECTOR_WORDS],
    /// Its place, from 0.
    pub number: U64,
    pub incarnation: U32,
    /// CRC-32C of all bytes of the sector before this field.
    pub crc: U32,
}

const _: () = assert!(size_of::<ActivityHeader>() == SECTOR_BYTES);
const _: () = assert!(size_of::<ActivitySector>() == SECTOR_BYTES);

/// Where a target must stand for cold extents to be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    pub incarnation: u32,
    pub seq: u64,
    pub claims: u64,
}

/// What a lost ring leaves to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub base: Base,
    /// Hot bits, a volume.
    pub hot: Vec<Vec<u64>>,
}

pub(super) struct MapFile {
    file: File,
    path: PathBuf,
    group_uuid: [u8; 16],
    incarnation: u32,
    base: Base,
    /// First sector of each volume.
    first: Vec<u64>,
    sectors: u64,
    /// What the file says, or is being told: ahead of the bits that writers look at when
    /// extents become hot, behind them when they go cold.
    words: Vec<Vec<u64>>,
    /// Bytes written and not counted yet.
    written: AtomicU64,
    /// Called between a write and its sync.
    #[cfg(test)]
    pub before_sync: Option<Box<dyn Fn() + Send>>,
}

impl MapFile {
    /// Writes a whole map; the old one is replaced only when the new one is durable.
    pub fn create(
        path: &Path,
        group_uuid: [u8; 16],
        incarnation: u32,
        base: Base,
        extents: &[u64],
        words: Vec<Vec<u64>>,
    ) -> Result<MapFile> {
        let (first, sectors) = places(extents);
        let mut bytes = header(group_uuid, incarnation, base, &first, sectors).as_bytes().to_vec();
        for (words, first) in words.iter().zip(&first) {
            for at in 0..words.len().div_ceil(SECTOR_WORDS) as u64 {
                bytes.extend_from_slice(sector(words, at, first + at, incarnation).as_bytes());
            }
        }
        crate::durable::replace(path, &bytes)?;
        let file = open_rw(path)?;
        let path = path.to_owned();
        Ok(MapFile {
            file,
            path,
            group_uuid,
            incarnation,
            base,
            first,
            sectors,
            words,
            written: AtomicU64::new(bytes.len() as u64),
            #[cfg(test)]
            before_sync: None,
        })
    }

    /// Opens the map of this very incarnation; `None` when it is missing, of another
    /// incarnation, or damaged.
    pub fn open(
        path: &Path,
        group_uuid: [u8; 16],
        incarnation: u32,
        sizes: &[u64],
    ) -> Result<Option<MapFile>> {
        let Some((bytes, found)) = load(path, group_uuid, incarnation, sizes)? else {
            return Ok(None);
        };
        let file = open_rw(path)?;
        // A killed owner may have written hot bits and not synced them: nobody would wait
        // for them any more.
        sync(&file, path)?;
        let (first, sectors) = places(&extent_counts(sizes));
        debug_assert_eq!(bytes, (sectors as usize + 1) * SECTOR_BYTES);
        Ok(Some(MapFile {
            file,
            path: path.to_owned(),
            group_uuid,
            incarnation,
            base: found.base,
            first,
            sectors,
            words: found.hot,
            written: AtomicU64::new(0),
            #[cfg(test)]
            before_sync: None,
        }))
    }

    /// What the file says of each extent, a volume.
    pub fn words(&self) -> &[Vec<u64>] {
        &self.words
    }

    /// Says of these extents that they are hot, or cold; durable on return. After a
    /// failure it is not known what the disk has, until [`MapFile::store_all`] succeeds.
    pub fn mark(&mut self, extents: &[(usize, u64)], hot: bool) -> Result<()> {
        let bits_a_sector = (SECTOR_WORDS * 64) as u64;
        let mut sectors = Vec::new();
        for (volume, extent) in extents {
            let (word, bit) =
                (&mut self.words[*volume][(extent / 64) as usize], 1 << (extent % 64));
            *word = if hot { *word | bit } else { *word & !bit };
            sectors.push((*volume, extent / bits_a_sector));
        }
        sectors.sort_unstable();
        sectors.dedup();
        for (volume, sector) in sectors {
            self.write_sector(volume, sector)?;
        }
        self.sync()
    }

    /// Says that every extent is hot.
    pub fn mark_all(&mut self) -> Result<()> {
        self.words.iter_mut().for_each(|words| words.fill(u64::MAX));
        self.store_all()
    }

    pub fn store_all(&mut self) -> Result<()> {
        for volume in 0..self.words.len() {
            for sector in 0..self.words[volume].len().div_ceil(SECTOR_WORDS) as u64 {
                self.write_sector(volume, sector)?;
            }
        }
        self.sync()
    }

    /// The base first, durably; only then may bits that rely on it be cleared.
    pub fn set_base(&mut self, base: Base) -> Result<()> {
        if base == self.base {
            return Ok(());
        }
        self.base = base;
        self.store_header()
    }

    /// Bytes written since the last call.
    pub fn take_written_bytes(&self) -> u64 {
        self.written.swap(0, Ordering::Relaxed)
    }

    fn write_sector(&self, volume: usize, at: u64) -> Result<()> {
        let number = self.first[volume] + at;
        let content = sector(&self.words[volume], at, number, self.incarnation);
        self.write(content.as_bytes(), number + 1)
    }

    fn store_header(&mut self) -> Result<()> {
        let content =
            header(self.group_uuid, self.incarnation, self.base, &self.first, self.sectors);
        self.write(content.as_bytes(), 0)?;
        self.sync()
    }

    fn write(&self, bytes: &[u8], sector: u64) -> Result<()> {
        let at = sector * SECTOR_BYTES as u64;
        crate::durable::about(crate::durable::Event::WriteAt { file: &self.path, at, bytes });
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        #[cfg(test)]
        if let Some(before_sync) = &self.before_sync {
            before_sync();
        }
        sync(&self.file, &self.path)
    }
}

fn sync(file: &File, path: &Path) -> Result<()> {
    crate::durable::about(crate::durable::Event::Sync { file: path });
    file.sync_data().map_err(|e| Error::io(format!("cannot flush {}", path.display()), e))
}

fn open_rw(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
}

/// Sector `at` of a volume's bits, `number` of the file's.
fn sector(words: &[u64], at: u64, number: u64, incarnation: u32) -> ActivitySector {
    let start = at as usize * SECTOR_WORDS;
    let word = |at: usize| words.get(start + at).copied().unwrap_or(0);
    let mut content = ActivitySector {
        words: std::array::from_fn(|at| word(at).into()),
        number: number.into(),
        incarnation: incarnation.into(),
        crc: 0.into(),
    };
    content.crc = crc32c(&content.as_bytes()[..SECTOR_BYTES - 4]).into();
    content
}

fn header(
    group_uuid: [u8; 16],
    incarnation: u32,
    base: Base,
    first: &[u64],
    sectors: u64,
) -> ActivityHeader {
    let mut header = ActivityHeader {
        magic: ACTIVITY_MAGIC,
        version: ACTIVITY_VERSION.into(),
        incarnation: incarnation.into(),
        group_uuid,
        base_incarnation: base.incarnation.into(),
        volume_count: (first.len() as u32).into(),
        base_seq: base.seq.into(),
        base_claims: base.claims.into(),
        extent_bytes: super::EXTENT_BYTES.into(),
        sectors: sectors.into(),
        reserved: [0; 436],
        crc: 0.into(),
    };
    header.crc = crc32c(&header.as_bytes()[..SECTOR_BYTES - 4]).into();
    header
}

/// Extents of volumes of these sizes.
pub(super) fn extent_counts(sizes: &[u64]) -> Vec<u64> {
    sizes.iter().map(|size| size.div_ceil(super::EXTENT_BYTES)).collect()
}

/// First sector of each volume's bits, and how many there are.
fn places(extents: &[u64]) -> (Vec<u64>, u64) {
    let mut next = 0;
    let mut first = Vec::new();
    for count in extents {
        first.push(next);
        next += count.div_ceil(64).div_ceil(SECTOR_WORDS as u64);
    }
    (first, next)
}

/// Reads the map of an incarnation, without touching it.
pub(crate) fn find(
    path: &Path,
    group_uuid: [u8; 16],
    incarnation: u32,
    sizes: &[u64],
) -> Result<Option<Found>> {
    Ok(load(path, group_uuid, incarnation, sizes)?.map(|(_, found)| found))
}

fn load(
    path: &Path,
    group_uuid: [u8; 16],
    incarnation: u32,
    sizes: &[u64],
) -> Result<Option<(usize, Found)>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
    };
    match parse(&bytes, group_uuid, incarnation, sizes) {
        Ok(found) => Ok(Some((bytes.len(), found))),
        Err(e) if e.kind() == ErrorKind::Newer => Err(e),
        Err(e) => {
            tracing::error!("{}: {e}", path.display());
            Ok(None)
        }
    }
}

pub(crate) fn parse(
    bytes: &[u8],
    group_uuid: [u8; 16],
    incarnation: u32,
    sizes: &[u64],
) -> Result<Found> {
    let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("activity map: {what}"));
    let (header, rest) =
        ActivityHeader::ref_from_prefix(bytes).map_err(|_| damaged("header is short"))?;
    if header.magic != ACTIVITY_MAGIC {
        return Err(damaged("magic is wrong"));
    }
    if header.version.get() > ACTIVITY_VERSION {
        let what = "the activity map was written by a newer Towline: use that one";
        return Err(Error::new(ErrorKind::Newer, what));
    }
    if crc32c(&header.as_bytes()[..SECTOR_BYTES - 4]) != header.crc.get() {
        return Err(damaged("header fails its checksum"));
    }
    let extents = extent_counts(sizes);
    let (first, sectors) = places(&extents);
    let ours = header.version.get() == ACTIVITY_VERSION
        && header.group_uuid == group_uuid
        && header.incarnation.get() == incarnation
        && header.extent_bytes.get() == super::EXTENT_BYTES
        && header.volume_count.get() as usize == sizes.len()
        && header.sectors.get() == sectors
        && header.reserved.iter().all(|byte| *byte == 0)
        && rest.len() as u64 == sectors * SECTOR_BYTES as u64;
    if !ours {
        return Err(damaged("it belongs to another group, incarnation or set of volumes"));
    }
    let content = <[ActivitySector]>::ref_from_bytes(rest).map_err(|_| damaged("it is short"))?;
    for (number, sector) in content.iter().enumerate() {
        let sound = crc32c(&sector.as_bytes()[..SECTOR_BYTES - 4]) == sector.crc.get()
            && sector.number.get() == number as u64
            && sector.incarnation.get() == incarnation;
        if !sound {
            return Err(damaged(&format!("sector {number} fails its checks")));
        }
    }
    let words_of = |(count, first): (&u64, &u64)| -> Vec<u64> {
        (0..count.div_ceil(64) as usize)
            .map(|word| {
                let sector = &content[*first as usize + word / SECTOR_WORDS];
                sector.words[word % SECTOR_WORDS].get()
            })
            .collect()
    };
    Ok(Found {
        base: Base {
            incarnation: header.base_incarnation.get(),
            seq: header.base_seq.get(),
            claims: header.base_claims.get(),
        },
        hot: extents.iter().zip(&first).map(words_of).collect(),
    })
}
