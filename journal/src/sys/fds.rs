//! Bytes with descriptors over a unix socket (SCM_RIGHTS, unix(7)).
//!
//! Invariants that make the unsafe blocks sound:
//! 1. Every pointer in the message header refers to a local that outlives the call.
//! 2. The control buffer is aligned as `cmsghdr` (an array of u64) and its space is
//!    computed by CMSG_SPACE for `FDS_MAX` descriptors.
//! 3. A received descriptor is wrapped in `OwnedFd` exactly once, right away.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// One ring and one reader a volume; also the kernel's SCM_MAX_FD is 253.
pub const FDS_MAX: usize = 1 + crate::format::VOLUMES_MAX;
const CONTROL_WORDS: usize = 8 + FDS_MAX;

/// Sends `bytes`, the descriptors with the first of them. Returns bytes sent.
pub fn send_with_fds(
    socket: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    assert!(fds.len() <= FDS_MAX, "{} descriptors exceed {FDS_MAX}", fds.len());
    let mut control = [0u64; CONTROL_WORDS];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let data_bytes = (fds.len() * size_of::<RawFd>()) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(data_bytes) } as usize;
        assert!(message.msg_controllen <= size_of_val(&control), "the control buffer fits");
        // SAFETY: invariants 1 and 2; the first header lies inside the control buffer,
        // and its data has room for `fds.len()` descriptors.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(data_bytes) as usize;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (index, fd) in fds.iter().enumerate() {
                data.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: invariant 1.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(sent as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives bytes and the descriptors that came with them. 0 bytes: end of stream.
pub fn recv_with_fds(
    socket: &UnixStream,
    into: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let received = loop {
        // SAFETY: invariant 1.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: invariants 1 to 3; the kernel wrote whole control messages and their
    // lengths into the buffer.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_usable() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        file.rewind().unwrap();
        assert_eq!(send_with_fds(&left, b"x", &[file.as_fd()]).unwrap(), 1);
        let (mut byte, mut fds) = ([0; 4], Vec::new());
        assert_eq!(recv_with_fds(&right, &mut byte, &mut fds).unwrap(), 1);
        let mut text = String::new();
        File::from(fds.pop().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("through", 0));
    }
}
