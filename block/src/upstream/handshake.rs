//! From a socket to the transmission phase: structured replies where offered, then GO.

use super::proto::{
    GREETING_MAGIC, Greeting, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionFrame, OptionReplyFrame,
    PAYLOAD_BYTES_MAX, handshake_flag, info, option, option_reply, transmission_flag,
};
use super::uri::{Address, NbdUri};
use crate::error::{Error, ErrorKind, Result};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// One step of connecting and of the handshake. A server that takes longer is as good as
/// away; the next attempt may find it better.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// How long a peer may leave sent bytes unacknowledged: a host that has vanished without
/// a word is noticed before the guest gives up (30 s).
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Longest option reply: a message or description of 4 KiB, and then some.
const REPLY_BYTES_MAX: u32 = 16 << 10;
/// Replies to GO that are looked at. Servers send three or four.
const REPLIES_MAX: usize = 64;

/// What the server said of its export, as far as it is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub size_bytes: u64,
    /// Offset and length of every request are multiples of this, a power of two.
    pub align: u32,
    /// Largest data of one request, a multiple of `align`.
    pub payload_bytes_max: u32,
    pub structured: bool,
    pub read_only: bool,
    pub can_flush: bool,
    pub can_fua: bool,
    pub can_zero: bool,
    /// A flush on one connection covers writes on all.
    pub multi_conn: bool,
}

/// The socket of a connection.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// In the transmission phase.
#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    pub terms: Terms,
}

impl Connection {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when nobody answers in time; [`ErrorKind::Open`] when
    /// who answers does not serve this export, or not as a server should.
    pub fn open(uri: &NbdUri) -> Result<Connection> {
        let failed = |error| {
            Error::io(format!("cannot reach {uri}"), error).with_kind(ErrorKind::Unreachable)
        };
        let mut stream = Stream::connect(&uri.address).map_err(failed)?;
        stream.set_timeouts(Some(STEP_WAIT)).map_err(failed)?;
        let terms = Haggler { stream: &mut stream, uri }.negotiate()?;
        stream.set_timeouts(None).map_err(failed)?;
        Ok(Connection { stream, terms })
    }
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
            Address::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, STEP_WAIT) {
                        Ok(stream) => return tcp(stream).map(Stream::Tcp),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// The peer reads the end after what was sent.
    pub fn end_sending(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Longest wait of one read or write.
    pub fn set_timeouts(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(wait)?;
                stream.set_write_timeout(wait)
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(wait)?;
                stream.set_write_timeout(wait)?;
                // It counts for a server that acknowledges and reads nothing, too.
                let silent = wait.map_or(SILENT_MAX, |wait| wait.max(SILENT_MAX));
                SockRef::from(stream).set_tcp_user_timeout(Some(silent))
            }
        }
    }
}

fn tcp(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(SILENT_MAX))?;
    let every = Duration::from_secs(5);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every))?;
    Ok(stream)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> OwnedFd {
        match stream {
            Stream::Unix(stream) => stream.into(),
            Stream::Tcp(stream) => stream.into(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buf),
            Stream::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buf),
            Stream::Tcp(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write_vectored(bufs),
            Stream::Tcp(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The handshake on any stream; tests haggle with bytes.
pub(super) struct Haggler<'a, S> {
    pub stream: &'a mut S,
    pub uri: &'a NbdUri,
}

struct Answer {
    kind: u32,
    data: Vec<u8>,
}

/// What is known before the server has said everything.
#[derive(Default)]
struct Found {
    export: Option<(u64, u16)>,
    sizes: Option<(u32, u32)>,
}

impl<S: Read + Write> Haggler<'_, S> {
    pub fn negotiate(&mut self) -> Result<Terms> {
        let mut greeting = Greeting::read_from_bytes(&[0; size_of::<Greeting>()])
            .expect("a greeting of zeroes is one");
        self.fill(greeting.as_mut_bytes())?;
        if greeting.magic.get() != GREETING_MAGIC || greeting.option_magic.get() != OPTION_MAGIC {
            return Err(self.broken("what answers there is no NBD server of this time"));
        }
        let offered = greeting.flags.get();
        if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(self.broken("it does not offer the fixed newstyle handshake"));
        }
        let flags = u32::from(offered & handshake_flag::OFFERED);
        self.send(&flags.to_be_bytes())?;
        self.ask(option::STRUCTURED_REPLY, &[])?;
        let structured = self.answer(option::STRUCTURED_REPLY)?.kind == option_reply::ACK;
        let mut go = (self.uri.export.len() as u32).to_be_bytes().to_vec();
        go.extend(self.uri.export.as_bytes());
        go.extend(1u16.to_be_bytes());
        go.extend(info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &go)?;
        let mut found = Found::default();
        for _ in 0..REPLIES_MAX {
            let answer = self.answer(option::GO)?;
            match answer.kind {
                option_reply::ACK => return self.terms(&found, structured),
                option_reply::INFO => found.take(&answer.data).ok_or_else(|| self.garbled())?,
                kind if kind & option_reply::ERROR_BIT != 0 => {
                    return Err(self.refused(kind, &answer.data));
                }
                _ => return Err(self.garbled()),
            }
        }
        Err(self.garbled())
    }

    fn terms(&self, found: &Found, structured: bool) -> Result<Terms> {
        let (size_bytes, flags) = found.export.ok_or_else(|| self.garbled())?;
        let (align, most) = found.sizes.unwrap_or((1, PAYLOAD_BYTES_MAX));
        let is_sound =
            align.is_power_of_two() && most >= align && i64::try_from(size_bytes).is_ok();
        if flags & transmission_flag::HAS_FLAGS == 0 || !is_sound {
            return Err(self.garbled());
        }
        let payload_bytes_max = most.min(PAYLOAD_BYTES_MAX) / align * align;
        let has = |flag: u16| flags & flag != 0;
        Ok(Terms {
            size_bytes,
            align,
            payload_bytes_max,
            structured,
            read_only: has(transmission_flag::READ_ONLY),
            can_flush: has(transmission_flag::SEND_FLUSH),
            can_fua: has(transmission_flag::SEND_FUA),
            can_zero: has(transmission_flag::SEND_WRITE_ZEROES),
            multi_conn: has(transmission_flag::CAN_MULTI_CONN),
        })
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let length = U32::new(data.len() as u32);
        let frame = OptionFrame { magic: U64::new(OPTION_MAGIC), option: U32::new(option), length };
        let mut bytes = frame.as_bytes().to_vec();
        bytes.extend(data);
        self.send(&bytes)
    }

    fn answer(&mut self, option: u32) -> Result<Answer> {
        let mut frame = OptionReplyFrame::read_from_bytes(&[0; size_of::<OptionReplyFrame>()])
            .expect("a frame of zeroes is one");
        self.fill(frame.as_mut_bytes())?;
        let is_ours = frame.magic.get() == OPTION_REPLY_MAGIC && frame.option.get() == option;
        if !is_ours || frame.length.get() > REPLY_BYTES_MAX {
            return Err(self.garbled());
        }
        let mut data = vec![0; frame.length.get() as usize];
        self.fill(&mut data)?;
        Ok(Answer { kind: frame.kind.get(), data })
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let result = self.stream.read_exact(buf);
        result.map_err(|error| self.lost(error))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.stream.write_all(bytes);
        result.map_err(|error| self.lost(error))
    }

    fn lost(&self, error: io::Error) -> Error {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let what =
                format!("{} says nothing in the handshake: it hangs or is stopped", self.uri);
            return Error::new(ErrorKind::Unreachable, what);
        }
        let what = format!("the handshake with {} did not end", self.uri);
        Error::io(what, error).with_kind(ErrorKind::Unreachable)
    }

    fn broken(&self, why: &str) -> Error {
        Error::new(ErrorKind::Open, format!("cannot use {}: {why}", self.uri))
    }

    fn garbled(&self) -> Error {
        self.broken("its handshake breaks the protocol")
    }

    fn refused(&self, kind: u32, text: &[u8]) -> Error {
        let why = match kind {
            option_reply::ERR_UNKNOWN => "it has no such export",
            option_reply::ERR_POLICY => "it does not serve us",
            option_reply::ERR_UNSUP => "it does not know NBD_OPT_GO",
            option_reply::ERR_TLS_REQD => "it asks for TLS, which is not supported here",
            option_reply::ERR_SHUTDOWN => "it is shutting down",
            option_reply::ERR_BLOCK_SIZE_REQD => "it asks for block sizes that we did not take",
            _ => "it refuses",
        };
        // Made harmless for a terminal and a log.
        let text: String = String::from_utf8_lossy(&text[..text.len().min(200)])
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        let error = self.broken(&format!("{why} ({text:?})"));
        match kind {
            option_reply::ERR_SHUTDOWN => error.with_kind(ErrorKind::Unreachable),
            _ => error,
        }
    }
}

impl Found {
    /// Takes one description; `None` when it breaks the protocol.
    fn take(&mut self, data: &[u8]) -> Option<()> {
        let (kind, data) = U16::read_from_prefix(data).ok()?;
        match kind.get() {
            info::EXPORT => {
                let (size, data) = U64::read_from_prefix(data).ok()?;
                let flags = U16::read_from_bytes(data).ok()?;
                self.export = Some((size.get(), flags.get()));
            }
            info::BLOCK_SIZE => {
                let [least, _, most] = <[U32; 3]>::read_from_bytes(data).ok()?;
                self.sizes = Some((least.get(), most.get()));
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
