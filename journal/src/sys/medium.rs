//! What a file's file system promises of a write.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// ext4, or its elders that the same code or rules serve.
pub fn is_ext4(file: &File) -> io::Result<bool> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` is a writable struct, alive here; the descriptor is borrowed.
    if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, so every field is initialised whatever the kernel wrote.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_type == libc::EXT4_SUPER_MAGIC)
}

/// Whether O_DIRECT really passes the page cache. ext4 also takes it where it does not.
pub fn takes_direct(file: &File) -> io::Result<bool> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, `stat` a writable struct, both alive here.
    let result = unsafe {
        let path = c"".as_ptr();
        let fd = file.as_raw_fd();
        libc::statx(fd, path, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, stat.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, so every field is initialised whatever the kernel wrote.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0)
}
