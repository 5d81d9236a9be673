//! File system calls that std does not offer.
//!
//! Invariant 1: every call takes a descriptor borrowed for its whole duration.
//! Invariant 2: a call that passes memory to the kernel passes a buffer, a C string or a
//! struct borrowed for its whole duration, with its own length.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

fn offset_arg(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (offset_arg(offset)?, offset_arg(len)?);
    loop {
        // SAFETY: invariant 1.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Deallocates; reads back zero.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Reads back zero, stays allocated.
pub fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: invariant 1. The shared file position it moves is used by nobody:
    // all reads and writes of this crate name their offset.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset_arg(offset)?, whence) };
    if at >= 0 {
        return Ok(Some(at as u64));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(error),
    }
}

/// First byte of data at or after `offset`; `None` when only a hole follows.
pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// First byte of a hole at or after `offset`; the end of the file counts as one.
pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

/// Reads what the page cache has from `offset` on, without waiting for the disk: maybe
/// less than asked, `None` when it has nothing. What it lacks it begins to read.
///
/// # Errors
/// `EOPNOTSUPP` where the file system cannot tell.
pub fn read_cached(file: &File, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    let iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let (fd, at) = (file.as_raw_fd(), offset_arg(offset)?);
    loop {
        // SAFETY: invariants 1 and 2.
        let read = unsafe { libc::preadv2(fd, &raw const iov, 1, at, libc::RWF_NOWAIT) };
        if let Ok(bytes) = usize::try_from(read) {
            return Ok(Some(bytes));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// Reads as `pread(2)` does and leaves the page cache as it was: what it has is taken from
/// there, what had to be read for it is dropped behind. Maybe less than asked.
///
/// # Errors
/// As pread(2).
pub fn read_passing(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let (fd, at) = (file.as_raw_fd(), offset_arg(offset)?);
    loop {
        // SAFETY: invariants 1 and 2.
        let read = unsafe { libc::preadv2(fd, &raw const iov, 1, at, libc::RWF_DONTCACHE) };
        if let Ok(bytes) = usize::try_from(read) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::Interrupted, _) => {}
            // A file system, or a kernel before 6.14, that does not know the flag.
            (_, Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)) => break,
            _ => return Err(error),
        }
    }
    let read = file.read_at(into, offset)?;
    let len = offset_arg(read as u64)?;
    // SAFETY: invariant 1. Advice only, so no result.
    unsafe { libc::posix_fadvise(fd, at, len, libc::POSIX_FADV_DONTNEED) };
    Ok(read)
}

/// The same file once more, for writes past the page cache; reopened by its descriptor, so that it is
/// the same one whatever its path names by now.
///
/// # Errors
/// `EINVAL` where the file system does not take O_DIRECT.
pub fn open_passing(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = libc::O_DIRECT | libc::O_NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)
}

/// Writes to a file of [`open_passing`]; how much of it the file takes that way. Address, offset and
/// length are aligned for O_DIRECT.
///
/// # Errors
/// As pwrite(2), but that the disk asks for another alignment.
pub fn write_passing(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(written) => done += written,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Begins to write all dirty pages back, and waits for none. Advice only, so no result: a
/// failure is told by the sync that follows.
pub fn begin_write_back(file: &File) {
    // SAFETY: invariant 1.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// No readahead: a page cache filled in large folios makes later 4 KiB writes an
/// order of magnitude dearer (docs/design/0001). Advice only, so no result.
pub fn advise_random(file: &File) {
    // SAFETY: invariant 1.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}

/// Free bytes, for everybody, of the file system that holds `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: invariant 2.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, so every field is initialised whatever the kernel wrote.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
