//! Where a spill's segments lie: files of a folder.

use super::layout::{SEGMENT_BYTES, SPAN_ALIGN};
use super::span::SpanHead;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The place of a group's segments, numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    path: PathBuf,
}

/// A segment, opened: its bytes begin at `base` of the file.
pub struct OpenedSegment {
    pub file: File,
    pub base: u64,
    /// Past the page cache: what was written is with the device.
    pub direct: bool,
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
        Store { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Segments there are.
    pub fn count(&self) -> u32 {
        (0..).find(|number| !self.segment_path(*number).exists()).unwrap_or(u32::MAX)
    }

    /// For messages, and the file itself.
    pub fn segment_path(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:05}.seg"))
    }

    /// Opens a segment to be read, past the page cache where the file system can.
    pub fn open(&self, number: u32) -> io::Result<OpenedSegment> {
        self.open_with(number, OpenOptions::new().read(true))
    }

    /// Opens a segment to be written, making it if it is not there.
    pub fn open_for_writing(&self, number: u32) -> io::Result<OpenedSegment> {
        std::fs::create_dir_all(&self.path)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        self.open_with(number, &options)
    }

    fn open_with(&self, number: u32, options: &OpenOptions) -> io::Result<OpenedSegment> {
        let path = self.segment_path(number);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(&path);
        let (file, direct) = match direct {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (options.open(&path)?, false),
            opened => (opened?, true),
        };
        Ok(OpenedSegment { file, base: 0, direct })
    }

    /// Whether the whole segment has its room.
    pub fn is_whole(&self, segment: &OpenedSegment) -> io::Result<bool> {
        Ok(segment.file.metadata()?.len() >= segment.base + SEGMENT_BYTES)
    }

    /// Gives a segment's room back, where that is possible.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        std::fs::remove_file(self.segment_path(number))
    }

    /// Makes new names durable.
    pub fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}
