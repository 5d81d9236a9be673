//! Where a spill's segments lie: files of a folder, or stretches of a device.

use super::device::{DEVICE_SEGMENTS_OFFSET, Device, Holder};
use super::layout::{SEGMENT_BYTES, SPAN_ALIGN};
use super::span::SpanHead;
use crate::state::{GroupDir, GroupState, Hex16};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The place of a group's segments, numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    path: PathBuf,
    /// Set where `path` is a device, and not a folder.
    device: Option<Hex16>,
}

/// A segment, opened: its bytes begin at `base` of the file.
pub struct OpenedSegment {
    pub file: File,
    pub base: u64,
    /// Past the page cache: what was written is with the device.
    pub direct: bool,
    /// A write changes bytes and nothing else: there is no file system below.
    pub in_place: bool,
}

impl OpenedSegment {
    /// The header of the span that begins at `offset` of the segment.
    pub(super) fn head_at(&self, offset: u64) -> Option<SpanHead> {
        const PAGE: usize = SPAN_ALIGN as usize;
        let mut storage = vec![0; 2 * PAGE];
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(PAGE) - address;
        let page = &mut storage[start..start + PAGE];
        self.file.read_exact_at(page, self.base + offset).ok()?;
        SpanHead::parse(page, offset).ok()
    }
}

impl Store {
    pub fn folder(path: PathBuf) -> Store {
        Store { path, device: None }
    }

    /// A device that the group has taken as `id`.
    pub fn device(path: PathBuf, id: Hex16) -> Store {
        Store { path, device: Some(id) }
    }

    /// Where `state.json` says.
    pub fn of(dir: &GroupDir, state: Option<&GroupState>) -> Store {
        match state.and_then(|state| state.spill.as_ref()) {
            Some(device) => Store::device(device.path.clone(), device.id),
            None => Store::folder(dir.spill_path()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Segments are made and removed as needed. A device has what it has.
    pub fn is_elastic(&self) -> bool {
        self.device.is_none()
    }

    /// Segments there are; none on a device that is not there, or not the group's.
    pub fn count(&self) -> u32 {
        match self.device {
            None => (0..).find(|number| !self.segment_path(*number).exists()).unwrap_or(u32::MAX),
            Some(id) => match Device::view(&self.path) {
                Ok(device) if device.holder.is(id) => device.segments(),
                Ok(_) => 0,
                Err(error) => {
                    tracing::error!("{error}");
                    0
                }
            },
        }
    }

    /// Whether the device is a newer Towline's.
    pub fn is_newer(&self) -> bool {
        self.device.is_some()
            && Device::view(&self.path).is_ok_and(|device| device.holder == Holder::Newer)
    }

    pub(super) fn segment_path(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:05}.seg"))
    }

    /// A segment, for messages.
    pub fn name(&self, number: u32) -> String {
        match self.device {
            None => self.segment_path(number).display().to_string(),
            Some(_) => format!("segment {number} of {}", self.path.display()),
        }
    }

    /// Opens a segment to be read, past the page cache where the file system can.
    pub fn open(&self, number: u32) -> io::Result<OpenedSegment> {
        self.open_with(number, OpenOptions::new().read(true))
    }

    /// Opens a segment to be read through the page cache: beside its owner, who is not held up
    /// by such a read.
    pub(super) fn open_cached(&self, number: u32) -> io::Result<OpenedSegment> {
        let (path, base) = self.place(number);
        Ok(OpenedSegment { file: File::open(path)?, base, direct: false, in_place: false })
    }

    /// Opens a segment to be written, making it if it is not there.
    pub fn open_for_writing(&self, number: u32) -> io::Result<OpenedSegment> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if self.is_elastic() {
            std::fs::create_dir_all(&self.path)?;
            options.create(true).truncate(false).mode(0o600);
        }
        self.open_with(number, &options)
    }

    fn open_with(&self, number: u32, options: &OpenOptions) -> io::Result<OpenedSegment> {
        let (path, base) = self.place(number);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(&path);
        let (file, direct) = match direct {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (options.open(&path)?, false),
            opened => (opened?, true),
        };
        let in_place = self.device.is_some() && file.metadata()?.file_type().is_block_device();
        Ok(OpenedSegment { file, base, direct, in_place })
    }

    /// The file of a segment, and where the segment begins in it.
    fn place(&self, number: u32) -> (PathBuf, u64) {
        match self.device {
            None => (self.segment_path(number), 0),
            Some(_) => {
                let base = DEVICE_SEGMENTS_OFFSET + u64::from(number) * SEGMENT_BYTES;
                (self.path.clone(), base)
            }
        }
    }

    /// Whether the whole segment has its room.
    pub fn is_whole(&self, segment: &OpenedSegment) -> io::Result<bool> {
        Ok(!self.is_elastic() || segment.file.metadata()?.len() >= segment.base + SEGMENT_BYTES)
    }

    /// Gives a segment's room back. Of a device there is none to give.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        match self.is_elastic() {
            true => std::fs::remove_file(self.segment_path(number)),
            false => Ok(()),
        }
    }

    /// Makes new names durable.
    pub fn sync_names(&self) -> io::Result<()> {
        match self.is_elastic() {
            true => File::open(&self.path)?.sync_all(),
            false => Ok(()),
        }
    }
}
