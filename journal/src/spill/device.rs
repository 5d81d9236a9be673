//! A block device, or a file of a fixed size, as the place of a spill: whose it is.
//!
//! Its first page names the group ([`DeviceHeader`]); segments follow from
//! [`DEVICE_SEGMENTS_OFFSET`] on. A device that holds anything else is refused untouched
//! unless the operator says that it may be overwritten. Looking never writes; the owner
//! holds the device exclusively as long as it may write (docs/formats/spill.md).

use super::layout::SEGMENT_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{PAGE_BYTES, name_field, name_of};
use crate::state::{Hex16, pause};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use towline_block::{crc32c, is_zero};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const DEVICE_MAGIC: [u8; 8] = *b"TWLSPDEV";
pub const DEVICE_VERSION: u32 = 1;
/// Where segment 0 begins: behind the header, aligned for any device.
pub const DEVICE_SEGMENTS_OFFSET: u64 = 1 << 20;
/// So many bytes at both ends are zero in a blank device: there partition tables, file
/// systems, volume managers and RAIDs keep what tells of them.
const BLANK_BYTES: u64 = 1 << 20;
/// 1 TiB: more would take longer to look through at a start than guests should wait.
const DEVICE_SEGMENTS_MAX: u64 = 16_384;
/// A killed owner's last writes hold the device for an instant: tried so often, 5 ms apart.
const OPEN_TRIES: u32 = 100;

const PAGE: usize = PAGE_BYTES as usize;

/// First page of the device.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceHeader {
    pub magic: [u8; 8],
    pub version: U32,
    pub reserved: U32,
    pub group_uuid: [u8; 16],
    /// Made when the group takes the device; `state.json` names it.
    pub device_id: [u8; 16],
    pub segment_bytes: U64,
    pub segments_offset: U64,
    pub created_unix_ns: U64,
    pub group_name: [u8; 64],
    pub reserved_2: [u8; 3956],
    /// CRC-32C of all bytes of the page before this field.
    pub crc: U32,
}

const _: () = assert!(size_of::<DeviceHeader>() == PAGE);

/// What the first page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nothing, at both ends.
    Blank,
    Group {
        uuid: [u8; 16],
        id: Hex16,
        name: String,
    },
    /// A newer Towline's.
    Newer,
    /// Something else.
    Other,
}

impl Holder {
    pub fn is(&self, device: Hex16) -> bool {
        matches!(self, Holder::Group { id, .. } if *id == device)
    }
}

/// A device, opened.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
    segments: u32,
    pub holder: Holder,
}

impl Device {
    /// Opens it to look, beside its owner.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is no device that a spill could lie on.
    pub fn view(path: &Path) -> Result<Device> {
        let file = open(path, OpenOptions::new().read(true), 0).map_err(|e| cannot(path, e))?;
        Device::look(path, file)
    }

    /// Opens it to own it, exclusively: neither mounted nor in use by anything else, nor
    /// will it be until this is dropped. Writes nothing.
    ///
    /// # Errors
    /// As [`Device::view`], and [`ErrorKind::Busy`] when somebody else uses it.
    pub fn own(path: &Path) -> Result<Device> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // On a block device, without O_CREAT: fails while it is in use.
        let is_block = std::fs::metadata(path).map_err(|e| cannot(path, e))?.file_type();
        let flags = if is_block.is_block_device() { libc::O_EXCL } else { 0 };
        for attempt in 1.. {
            let opened = open(path, &options, flags).and_then(|file| match file.try_lock() {
                Ok(()) => Ok(file),
                Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
                Err(TryLockError::Error(e)) => Err(e),
            });
            match opened {
                Ok(file) => return Device::look(path, file),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    if attempt == OPEN_TRIES {
                        break;
                    }
                    pause();
                }
                Err(e) => return Err(cannot(path, e)),
            }
        }
        let what = format!(
            "{} is in use (mounted, part of something, or another proxy's): give a device of its \
             own to --spill",
            path.display()
        );
        Err(Error::new(ErrorKind::Busy, what))
    }

    fn look(path: &Path, file: File) -> Result<Device> {
        let what = |e| cannot(path, e);
        let bytes = (&file).seek(SeekFrom::End(0)).map_err(what)?;
        let room = bytes.saturating_sub(DEVICE_SEGMENTS_OFFSET) / SEGMENT_BYTES;
        if room == 0 {
            let least = DEVICE_SEGMENTS_OFFSET + SEGMENT_BYTES;
            let what = format!("{} has {bytes} bytes: {least} are the least", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let holder = holder_of(&file, bytes).map_err(what)?;
        let segments = room.min(DEVICE_SEGMENTS_MAX) as u32;
        Ok(Device { path: path.to_owned(), file, segments, holder })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// Whether the group has it, and as which device.
    pub fn id_of(&self, group_uuid: &[u8; 16]) -> Option<Hex16> {
        match &self.holder {
            Holder::Group { uuid, id, .. } if uuid == group_uuid => Some(*id),
            _ => None,
        }
    }

    /// Whether the group may take it.
    ///
    /// # Errors
    /// [`ErrorKind::Newer`], or [`ErrorKind::Refused`] with what it holds.
    pub fn check(&self, group_uuid: Option<&[u8; 16]>, overwrite: bool) -> Result<()> {
        let path = self.path.display();
        let held = match &self.holder {
            Holder::Blank => return Ok(()),
            Holder::Group { uuid, .. } if Some(uuid) == group_uuid => return Ok(()),
            Holder::Newer => {
                let what = format!("{path} is the spill of a newer Towline: use that one");
                return Err(Error::new(ErrorKind::Newer, what));
            }
            _ if overwrite => return Ok(()),
            Holder::Group { name, .. } => {
                format!("is the spill of group {name}, with another state directory than this one")
            }
            Holder::Other => "is not empty".into(),
        };
        let what = format!(
            "{path} {held}: it is left untouched. If nobody needs what it holds, start once with \
             --spill-overwrite"
        );
        Err(Error::new(ErrorKind::Refused, what))
    }

    /// Writes the group's name on it, durably. Only after [`Device::check`].
    pub fn claim(&mut self, group_uuid: [u8; 16], name: &str, unix_ns: u64) -> Result<Hex16> {
        if self.holder == Holder::Other {
            self.wipe_ends().map_err(|e| cannot(&self.path, e))?;
        }
        let id = Hex16::random();
        let page = header(group_uuid, id, name, unix_ns);
        let mut buffer = Aligned::new(PAGE);
        buffer.bytes().copy_from_slice(page.as_bytes());
        self.file
            .write_all_at(buffer.bytes(), 0)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| cannot(&self.path, e))?;
        self.holder = Holder::Group { uuid: group_uuid, id, name: name.to_owned() };
        Ok(id)
    }

    /// Nothing of what was there is to be taken for itself any more.
    fn wipe_ends(&mut self) -> io::Result<()> {
        let bytes = (&self.file).seek(SeekFrom::End(0))?;
        let mut zeroes = Aligned::new(BLANK_BYTES as usize);
        self.file.write_all_at(zeroes.bytes(), last_at(bytes))?;
        self.file.write_all_at(zeroes.bytes(), 0)?;
        self.file.sync_all()
    }
}

/// The page that says whose device it is.
fn header(group_uuid: [u8; 16], id: Hex16, name: &str, unix_ns: u64) -> DeviceHeader {
    let mut header = DeviceHeader {
        magic: DEVICE_MAGIC,
        version: DEVICE_VERSION.into(),
        reserved: 0.into(),
        group_uuid,
        device_id: id.0,
        segment_bytes: SEGMENT_BYTES.into(),
        segments_offset: DEVICE_SEGMENTS_OFFSET.into(),
        created_unix_ns: unix_ns.into(),
        group_name: name_field(name),
        reserved_2: [0; 3956],
        crc: 0.into(),
    };
    header.crc = crc32c(&header.as_bytes()[..PAGE - 4]).into();
    header
}

/// What a first page says; `None` when it is not ours.
pub fn parse(page: &[u8]) -> Option<Holder> {
    let (header, _) = DeviceHeader::ref_from_prefix(page).ok()?;
    if header.magic != DEVICE_MAGIC {
        return None;
    }
    if header.version.get() > DEVICE_VERSION {
        return Some(Holder::Newer);
    }
    let sound = crc32c(&header.as_bytes()[..PAGE - 4]) == header.crc.get()
        && header.version.get() == DEVICE_VERSION
        && header.segment_bytes.get() == SEGMENT_BYTES
        && header.segments_offset.get() == DEVICE_SEGMENTS_OFFSET
        && header.reserved.get() == 0
        && is_zero(&header.reserved_2);
    sound.then(|| Holder::Group {
        uuid: header.group_uuid,
        id: Hex16(header.device_id),
        name: name_of(&header.group_name),
    })
}

fn holder_of(file: &File, bytes: u64) -> io::Result<Holder> {
    let mut first = Aligned::new(PAGE);
    file.read_exact_at(first.bytes(), 0)?;
    if let Some(holder) = parse(first.bytes()) {
        return Ok(holder);
    }
    let mut buffer = Aligned::new(BLANK_BYTES as usize);
    file.read_exact_at(buffer.bytes(), 0)?;
    let is_blank = is_zero(buffer.bytes()) && {
        file.read_exact_at(buffer.bytes(), last_at(bytes))?;
        is_zero(buffer.bytes())
    };
    Ok(if is_blank { Holder::Blank } else { Holder::Other })
}

/// Where the last [`BLANK_BYTES`] begin, down to a page: O_DIRECT takes no other offset.
fn last_at(bytes: u64) -> u64 {
    (bytes - BLANK_BYTES) / PAGE_BYTES * PAGE_BYTES
}

/// Past the page cache where that is possible.
fn open(path: &Path, options: &OpenOptions, flags: i32) -> io::Result<File> {
    match options.clone().custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            options.clone().custom_flags(flags).open(path)
        }
        opened => opened,
    }
}

fn cannot(path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot use {} for the spill", path.display()), error)
}

/// Memory aligned for O_DIRECT.
struct Aligned {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let storage = vec![0; len + PAGE];
        let address = storage.as_ptr().addr();
        Aligned { start: address.next_multiple_of(PAGE) - address, storage, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests;
