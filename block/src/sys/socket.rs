//! Socket calls that neither wait nor go through the ring: for data that is there, or
//! room that is, they cost one system call and no completion.
//!
//! Invariant 1: the descriptor and the buffer are borrowed for the whole call, and the
//! length given to the kernel is the buffer's.

use super::uring::Fd;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Receives what is there: `None` when nothing is. 0 is the end of the stream.
pub fn receive_now(fd: &impl AsFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    let (pointer, len) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: invariant 1.
    moved(unsafe { libc::recv(fd.as_fd().as_raw_fd(), pointer, len, libc::MSG_DONTWAIT) })
}

/// Sends as much as there is room for: `None` when there is none.
pub fn send_now(fd: &Fd, bytes: &[u8]) -> io::Result<Option<usize>> {
    let (pointer, len) = (bytes.as_ptr().cast(), bytes.len());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: invariant 1.
    moved(unsafe { libc::send(fd.as_raw_fd(), pointer, len, flags) })
}

/// TCP_RTO_MAX_MS of tcp(7), since Linux 6.15; not in `libc` yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// Sends again what a TCP peer does not acknowledge, also the first packet of a connection,
/// after at most so long, instead of twice as long each time up to two minutes: soon after a
/// dead link is alive again.
///
/// # Errors
/// Where the kernel does not know it (before Linux 6.15), and outside of 1 to 120 s.
pub fn cap_retransmission(fd: BorrowedFd<'_>, longest: Duration) -> io::Result<()> {
    let ms = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
    set_tcp(fd, TCP_RTO_MAX_MS, ms)
}

/// Takes no more of a TCP stream into the kernel than so many bytes that were not sent
/// yet: they stay with whoever can still send them another way (TCP_NOTSENT_LOWAT).
///
/// # Errors
/// Where the descriptor is no TCP socket.
pub fn limit_unsent(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set_tcp(fd, libc::TCP_NOTSENT_LOWAT, bytes)
}

fn set_tcp(fd: BorrowedFd<'_>, option: libc::c_int, value: u32) -> io::Result<()> {
    let (pointer, len) = ((&raw const value).cast(), size_of::<u32>() as libc::socklen_t);
    // SAFETY: invariant 1; the option's value is an int, which the kernel copies.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, option, pointer, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
    fn options_of_tcp_are_taken_and_refused_elsewhere() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        limit_unsent(tcp.as_fd(), 1 << 20).unwrap();
        let mut stored = 0_u32;
        let mut len = size_of::<u32>() as libc::socklen_t;
        let pointer = (&raw mut stored).cast();
        let level = libc::IPPROTO_TCP;
        let option = libc::TCP_NOTSENT_LOWAT;
        // SAFETY: the kernel writes at most `len` bytes to `stored`.
        let got =
            unsafe { libc::getsockopt(tcp.as_raw_fd(), level, option, pointer, &raw mut len) };
        assert_eq!((got, stored), (0, 1 << 20));
        // An older kernel says that it does not know it.
        if let Err(error) = cap_retransmission(tcp.as_fd(), Duration::from_secs(1)) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
        }

        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(limit_unsent(unix.as_fd(), 1 << 20).is_err());
    }

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
