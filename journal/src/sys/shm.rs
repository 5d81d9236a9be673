//! Room in the file system where rings live.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Allocates the file's blocks now, so that a full file system is an error here
/// and not a SIGBUS under a guest's write later.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is passed; the descriptor is borrowed for the call.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
