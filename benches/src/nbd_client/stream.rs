//! A blocking socket, unix or TCP, with the two timeouts the client lives by.

use super::Address;
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long one send may stay stuck before the client reads what has arrived: a
/// server that answers in order and is blocked on its replies takes no requests.
/// Only a jammed connection pays it, once a piece.
const JAM: Duration = Duration::from_millis(2);

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    read_timeout: Duration,
}

impl Stream {
    pub(super) fn connect(address: &Address, timeout: Duration) -> Result<Stream> {
        let what = || match address {
            Address::Unix(path) => format!("cannot connect to {}", path.display()),
            Address::Tcp(host, port) => format!("cannot connect to {host}:{port}"),
        };
        let unreachable = |e| Error::io(ErrorKind::Unreachable, what(), e);
        let socket = match address {
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path).map_err(unreachable)?),
            Address::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                let candidates = (host.as_str(), *port).to_socket_addrs().map_err(unreachable)?;
                let connected = candidates.into_iter().find_map(|at| {
                    TcpStream::connect_timeout(&at, timeout).map_err(|e| last = e).ok()
                });
                let tcp = connected.ok_or_else(|| unreachable(last))?;
                tcp.set_nodelay(true).map_err(unreachable)?;
                Socket::Tcp(tcp)
            }
        };
        let stream = Stream { socket, read_timeout: timeout };
        match &stream.socket {
            Socket::Unix(s) => s.set_write_timeout(Some(JAM)),
            Socket::Tcp(s) => s.set_write_timeout(Some(JAM)),
        }
        .and_then(|()| stream.apply_read_timeout(timeout))
        .map_err(unreachable)?;
        Ok(stream)
    }

    /// How long a read may wait. One system call when it changes, none otherwise.
    pub(crate) fn set_read_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        // The kernel takes zero for "for ever".
        let timeout = timeout.max(Duration::from_millis(1));
        if timeout != self.read_timeout {
            self.apply_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    /// The same connection for another thread; timeouts are the socket's, so both
    /// have them.
    pub(crate) fn try_clone(&self) -> io::Result<Stream> {
        let socket = match &self.socket {
            Socket::Unix(s) => Socket::Unix(s.try_clone()?),
            Socket::Tcp(s) => Socket::Tcp(s.try_clone()?),
        };
        Ok(Stream { socket, read_timeout: self.read_timeout })
    }

    fn apply_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(s) => s.set_read_timeout(Some(timeout)),
            Socket::Tcp(s) => s.set_read_timeout(Some(timeout)),
        }
    }

    /// Sends a part of `parts`; `WouldBlock` when the connection is jammed.
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Unix(s) => s.write_vectored(parts),
            Socket::Tcp(s) => s.write_vectored(parts),
        }
    }

    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Unix(s) => s.read(buf),
            Socket::Tcp(s) => s.read(buf),
        }
    }
}
