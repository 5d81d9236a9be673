//! A raw image file or a block device, opened, owned and identified.
//!
//! By default reads and writes go through the page cache: measured on ext4, an inline
//! `pwrite` costs a fifth of an io_uring write that the kernel punts to a worker
//! (docs/design/0001). A disk opened past the page cache ([`Cache::Direct`]) is written
//! by callers that own a [`crate::sys::uring::Driver`]; so are flushes and background
//! reads of either kind.

use crate::buffer::DIRECT_ALIGN;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{self, uring::Fd};
use crate::{Extent, zero};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Piece in which zeroes are written where the file system cannot zero by itself.
const ZERO_PIECE_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only, shared with anyone.
    Read,
    /// Read and write, owned alone: waits up to the given time for a former
    /// owner. The kernel keeps a killed owner's lock until its last I/O ended,
    /// so a new owner never races with an old one's writes.
    Own { wait: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    File,
    BlockDevice,
    /// An export of another NBD server.
    Upstream,
}

/// Which disk this is. Two disks with equal identities are the same disk on this
/// host, as far as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub kind: DiskKind,
    /// File: number of its file system's device. Block device: its own number. Upstream:
    /// checksum of its URI.
    pub device: u64,
    /// File: inode number. Else 0.
    pub inode: u64,
    pub size_bytes: u64,
}

/// When a file was last changed; other disks do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    pub modified_ns: i128,
}

/// Whether the owner's I/O goes through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    Page,
    /// O_DIRECT: address, offset and length of every operation on [`FileDisk::fd`] are
    /// multiples of [`DIRECT_ALIGN`].
    Direct,
}

#[derive(Debug)]
pub struct FileDisk {
    /// Carries the lock; with [`Cache::Direct`] it is O_DIRECT itself, so that the lock
    /// of a killed owner lasts until the last of its I/O has ended (R9).
    file: Arc<File>,
    /// Of a direct disk: reads through the page cache, of any alignment.
    buffered: Option<File>,
    fd: Fd,
    /// For large writes past the page cache, once there was one; `None` where there is no such way.
    passing: OnceLock<Option<File>>,
    /// The file system tells what the page cache has.
    tells_cached: bool,
    path: PathBuf,
    kind: DiskKind,
    size_bytes: u64,
    access: Access,
}

impl FileDisk {
    /// Opens a raw image file or a block device.
    ///
    /// # Errors
    /// [`ErrorKind::Open`] when it is missing, not permitted or neither a regular
    /// file nor a block device; [`ErrorKind::Busy`] when another process owns it.
    pub fn open(path: &Path, access: Access) -> Result<FileDisk> {
        FileDisk::open_cached(path, access, Cache::Page)
    }

    /// As [`FileDisk::open`], past the page cache or through it.
    ///
    /// # Errors
    /// As there, and [`ErrorKind::Unsupported`] when the disk does not take O_DIRECT or
    /// its size is no multiple of [`DIRECT_ALIGN`].
    pub fn open_cached(path: &Path, access: Access, cache: Cache) -> Result<FileDisk> {
        let what = || format!("cannot open {}", path.display());
        let direct = if cache == Cache::Direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(matches!(access, Access::Own { .. }))
            .custom_flags(libc::O_NONBLOCK | direct)
            .open(path)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EINVAL) if cache == Cache::Direct => no_direct(path),
                _ => Error::io(what(), e).with_kind(ErrorKind::Open),
            })?;
        let kind = kind_of(&file, path)?;
        if let Access::Own { wait } = access {
            own(&file, path, wait)?;
        }
        let size_bytes = (&file)
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io(format!("cannot tell the size of {}", path.display()), e))?;
        if cache == Cache::Direct && size_bytes % DIRECT_ALIGN as u64 != 0 {
            return Err(no_direct(path));
        }
        let buffered = match cache {
            Cache::Page => None,
            Cache::Direct => Some(File::open(path).map_err(|e| Error::io(what(), e))?),
        };
        sys::advise_random(&file);
        let fd = file.try_clone().map_err(|e| Error::io(what(), e))?;
        let tells_cached = cache == Cache::Page && sys::read_cached(&file, &mut [0], 0).is_ok();
        let disk = FileDisk {
            file: Arc::new(file),
            buffered,
            fd: Arc::new(fd.into()),
            passing: OnceLock::new(),
            tells_cached,
            path: path.to_owned(),
            kind,
            size_bytes,
            access,
        };
        match disk.buffered.as_ref().map(|buffered| buffered.metadata()) {
            Some(Ok(meta)) if meta.ino() != disk.metadata()?.ino() => Err(Error::new(
                ErrorKind::Open,
                format!("{} was replaced while it was opened: start again", path.display()),
            )),
            Some(Err(e)) => Err(Error::io(what(), e)),
            _ => Ok(disk),
        }
    }

    /// Creates a sparse image file of `size_bytes`, or opens an existing disk and
    /// checks that its size is exactly that.
    pub fn open_or_create(path: &Path, size_bytes: u64, access: Access) -> Result<FileDisk> {
        let fresh = OpenOptions::new().write(true).create_new(true).open(path);
        match fresh {
            Ok(file) => file
                .set_len(size_bytes)
                .map_err(|e| Error::io(format!("cannot size {}", path.display()), e))?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                let what = format!("cannot create {}", path.display());
                return Err(Error::io(what, e).with_kind(ErrorKind::Open));
            }
        }
        let disk = FileDisk::open(path, access)?;
        if disk.size_bytes != size_bytes {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} has {} bytes, but {size_bytes} are needed: give a disk of exactly that \
                     size, or a path that does not exist yet",
                    path.display(),
                    disk.size_bytes
                ),
            ));
        }
        Ok(disk)
    }

    /// A second, read-only descriptor of the same disk for background reads:
    /// O_DIRECT where the file system takes it, so that reading leaves the guest's
    /// page cache alone. It does not share the ownership lock.
    pub fn open_direct(&self) -> Result<Fd> {
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let file = match open(libc::O_DIRECT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(0),
            other => other,
        }
        .map_err(|e| Error::io(format!("cannot open {} to read", self.path.display()), e))?;
        sys::advise_random(&file);
        Ok(Arc::new(file.into()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub fn access(&self) -> Access {
        self.access
    }

    pub fn cache(&self) -> Cache {
        if self.buffered.is_some() { Cache::Direct } else { Cache::Page }
    }

    /// The descriptor for asynchronous flushes; of a direct disk for everything.
    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    pub fn identity(&self) -> Result<Identity> {
        let meta = self.metadata()?;
        let (device, inode) = match self.kind {
            DiskKind::File => (meta.dev(), meta.ino()),
            DiskKind::BlockDevice | DiskKind::Upstream => (meta.rdev(), 0),
        };
        Ok(Identity { kind: self.kind, device, inode, size_bytes: self.size_bytes })
    }

    pub fn stamp(&self) -> Result<Option<Stamp>> {
        if self.kind == DiskKind::BlockDevice {
            return Ok(None);
        }
        let meta = self.metadata()?;
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Some(Stamp { modified_ns }))
    }

    fn metadata(&self) -> Result<std::fs::Metadata> {
        self.file
            .metadata()
            .map_err(|e| Error::io(format!("cannot stat {}", self.path.display()), e))
    }

    /// Fills `buf` from `offset`; the range must lie inside the disk.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(Extent::new(offset, buf.len() as u64))?;
        let file = self.buffered.as_ref().unwrap_or(&self.file);
        file.read_exact_at(buf, offset).map_err(|e| self.failed("read", offset, e))
    }

    /// As [`FileDisk::read_at`], but only from the page cache: false when it lacks some
    /// of it, and `buf` is of no use. Where the file system does not tell what its page
    /// cache has (those in memory), it is read as it comes.
    pub fn read_now(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        if !self.tells_cached {
            return self.read_at(buf, offset).map(|()| true);
        }
        self.check(Extent::new(offset, buf.len() as u64))?;
        let read = sys::read_cached(&self.file, buf, offset);
        let read = read.map_err(|e| self.failed("read", offset, e))?;
        Ok(read == Some(buf.len()))
    }

    /// Writes all of `buf` at `offset`, through the page cache.
    ///
    /// # Panics
    /// On a direct disk: its owner writes by [`FileDisk::fd`].
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        assert!(self.cache() == Cache::Page, "an inline write to a direct disk");
        self.check(Extent::new(offset, buf.len() as u64))?;
        self.file.write_all_at(buf, offset).map_err(|e| self.failed("write", offset, e))
    }

    /// As [`FileDisk::write_at`], past the page cache where the disk takes that and `buf` and
    /// `offset` are aligned to [`DIRECT_ALIGN`]: no memory of the host is filled with what nobody
    /// will read, and nothing is left to write back. Dear for little: it waits for the disk.
    ///
    /// The kernel keeps page cache and disk coherent where both ways are used in turns, not at once.
    pub fn write_passing(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check(Extent::new(offset, buf.len() as u64))?;
        let is_aligned = (buf.as_ptr().addr() as u64 | offset).is_multiple_of(DIRECT_ALIGN as u64);
        let mut done = 0;
        if is_aligned
            && let Some(file) = self.passing.get_or_init(|| sys::open_passing(&self.file).ok())
        {
            let whole = &buf[..buf.len() / DIRECT_ALIGN * DIRECT_ALIGN];
            done = sys::write_passing(file, whole, offset)
                .map_err(|e| self.failed("write", offset, e))?;
        }
        self.write_at(&buf[done..], offset + done as u64)
    }

    /// Makes the range read as zero. `keep_allocated` as in NBD_CMD_FLAG_NO_HOLE.
    /// Where the file system has no such operation, zeroes are written.
    pub fn zero(&self, extent: Extent, keep_allocated: bool) -> Result<()> {
        self.check(extent)?;
        if extent.is_empty() {
            return Ok(());
        }
        let asked = if keep_allocated { sys::zero_range } else { sys::punch_hole };
        match asked(&self.file, extent.offset, extent.len) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.write_zeroes(extent),
            result => result.map_err(|e| self.failed("zero", extent.offset, e)),
        }
    }

    fn write_zeroes(&self, extent: Extent) -> Result<()> {
        static ZEROES: [u8; ZERO_PIECE_BYTES] = [0; ZERO_PIECE_BYTES];
        for piece in extent.pieces(ZERO_PIECE_BYTES as u64) {
            self.write_at(&ZEROES[..piece.len as usize], piece.offset)?;
        }
        Ok(())
    }

    /// Begins what a flush that follows soon will wait for.
    pub fn begin_write_back(&self) {
        sys::begin_write_back(&self.file);
    }

    /// fdatasync.
    pub fn flush(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::io(format!("cannot flush {}", self.path.display()), e))
    }

    /// Whether the byte at `offset` is data or hole, and where that run ends (at
    /// most the end of the disk). A disk that does not tell is all data.
    pub fn run_at(&self, offset: u64) -> Result<Run> {
        run_at(&self.file, offset, self.size_bytes)
            .map_err(|e| self.failed("look for holes", offset, e))
    }

    fn check(&self, extent: Extent) -> Result<()> {
        if extent.within(self.size_bytes) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} bytes at {} reach past the end of {} ({} bytes)",
                extent.len,
                extent.offset,
                self.path.display(),
                self.size_bytes
            ),
        ))
    }

    fn failed(&self, verb: &str, offset: u64, error: std::io::Error) -> Error {
        Error::io(format!("cannot {verb} {} at {offset}", self.path.display()), error)
    }
}

/// A stretch of data or of hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub is_data: bool,
    pub end: u64,
}

/// As [`FileDisk::run_at`], on any descriptor of a disk of `size_bytes`.
pub fn run_at(file: &File, offset: u64, size_bytes: u64) -> std::io::Result<Run> {
    if offset >= size_bytes {
        return Ok(Run { is_data: false, end: size_bytes });
    }
    let data = match sys::seek_data(file, offset) {
        Ok(Some(data)) => data,
        Ok(None) => return Ok(Run { is_data: false, end: size_bytes }),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(Run { is_data: true, end: size_bytes });
        }
        Err(e) => return Err(e),
    };
    if data > offset {
        return Ok(Run { is_data: false, end: data.min(size_bytes) });
    }
    let hole = sys::seek_hole(file, offset)?.unwrap_or(size_bytes);
    Ok(Run { is_data: true, end: hole.clamp(offset + 1, size_bytes) })
}

fn no_direct(path: &Path) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "{} cannot be used past the page cache (no O_DIRECT there, or its size is no multiple \
             of {DIRECT_ALIGN} bytes): choose cache = \"page\"",
            path.display()
        ),
    )
}

fn kind_of(file: &File, path: &Path) -> Result<DiskKind> {
    let meta =
        file.metadata().map_err(|e| Error::io(format!("cannot stat {}", path.display()), e))?;
    if meta.file_type().is_block_device() {
        return Ok(DiskKind::BlockDevice);
    }
    if meta.is_file() {
        return Ok(DiskKind::File);
    }
    Err(Error::new(
        ErrorKind::Open,
        format!("{} is neither a raw image file nor a block device", path.display()),
    ))
}

fn own(file: &File, path: &Path, wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => {
                return Err(Error::io(format!("cannot lock {}", path.display()), e));
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "{} is owned by another process: end the proxy, receiver or virtual \
                         machine that uses it first",
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Zero test of a whole disk range, for tools and tests.
pub fn reads_zero(disk: &FileDisk, extent: Extent) -> Result<bool> {
    let mut buf = vec![0; ZERO_PIECE_BYTES];
    for piece in extent.pieces(ZERO_PIECE_BYTES as u64) {
        let buf = &mut buf[..piece.len as usize];
        disk.read_at(buf, piece.offset)?;
        if !zero::is_zero(buf) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
