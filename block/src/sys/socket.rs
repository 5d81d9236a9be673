//! Socket calls that neither wait nor go through the ring: for data that is there, or
//! room that is, they cost one system call and no completion.
//!
//! Invariant 1: the descriptor and the buffer are borrowed for the whole call, and the
//! length given to the kernel is the buffer's.

use super::uring::Fd;
use std::io;
use std::os::fd::AsRawFd;

/// Receives what is there: `None` when nothing is. 0 is the end of the stream.
pub fn receive_now(fd: &Fd, into: &mut [u8]) -> io::Result<Option<usize>> {
    let (pointer, len) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: invariant 1.
    moved(unsafe { libc::recv(fd.as_raw_fd(), pointer, len, libc::MSG_DONTWAIT) })
}

/// Sends as much as there is room for: `None` when there is none.
pub fn send_now(fd: &Fd, bytes: &[u8]) -> io::Result<Option<usize>> {
    let (pointer, len) = (bytes.as_ptr().cast(), bytes.len());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: invariant 1.
    moved(unsafe { libc::send(fd.as_raw_fd(), pointer, len, flags) })
}

fn moved(result: isize) -> io::Result<Option<usize>> {
    if let Ok(bytes) = usize::try_from(result) {
        return Ok(Some(bytes));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn neither_call_waits() {
        let (left, right) = UnixStream::pair().unwrap();
        let (left, right): (Fd, Fd) = (Arc::new(left.into()), Arc::new(right.into()));
        let mut buf = [0; 8];
        assert_eq!(receive_now(&right, &mut buf).unwrap(), None);
        assert_eq!(send_now(&left, b"abc").unwrap(), Some(3));
        assert_eq!(receive_now(&right, &mut buf).unwrap(), Some(3));
        assert_eq!(&buf[..3], b"abc");
        let large = vec![0; 1 << 20];
        while send_now(&left, &large).unwrap().is_some() {}
        drop(right);
        assert!(send_now(&left, b"abc").is_err());
        drop(left);
    }

    #[test]
    fn the_end_of_the_stream_is_told_apart_from_nothing() {
        let (left, right) = UnixStream::pair().unwrap();
        let right: Fd = Arc::new(right.into());
        drop(left);
        assert_eq!(receive_now(&right, &mut [0; 8]).unwrap(), Some(0));
    }
}
