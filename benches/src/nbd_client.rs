//! A small blocking NBD client: fixed newstyle, structured replies if offered, a
//! pipeline of any depth on one connection.
//!
//! Promises: requests are sent as given, out-of-range ones too, so that a server's
//! own refusals are seen; an error reply carries its number and the server's text;
//! while a send is stuck, replies are read, so that a server which answers in
//! order never deadlocks with it. Must not reconnect or retry: who calls knows
//! what a lost connection means for what was in flight.

mod handshake;
mod reply;
mod stream;
#[cfg(test)]
mod tests;

pub use handshake::ExportInfo;
pub use towline_block::upstream::{Address, NbdUri};

use crate::error::{Error, ErrorKind, Result};
use reply::{Flight, Receiver};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};
pub(crate) use stream::Stream;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;

/// Payloads up to this size are copied behind their header and leave together;
/// larger ones are sent from where they lie.
const COPIED_PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Requests gathered by [`Client::push`] are sent by themselves beyond this.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// One request. Buffers of reads travel to the [`Completion`] and can be used again.
#[derive(Debug)]
pub enum Request<'a> {
    /// Fills `buf`, whose length says how much to read.
    Read {
        offset: u64,
        buf: Vec<u8>,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        len: u32,
        fua: bool,
        no_hole: bool,
    },
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
}

/// Names a request in flight on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// The server's error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    /// NBD's number, which is Linux's (ESHUTDOWN = 108).
    pub errno: u32,
    /// The server's own words; empty with simple replies.
    pub text: String,
}

/// A request's outcome: the bytes read (empty for all else), or the error reply.
#[derive(Debug)]
pub struct Completion {
    pub cookie: Cookie,
    pub result: std::result::Result<Vec<u8>, ReplyError>,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For connecting, for each step of the handshake, and for a reply.
    pub timeout: Duration,
    /// Ask for structured replies.
    pub structured: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { timeout: Duration::from_secs(30), structured: true }
    }
}

#[derive(Debug)]
pub struct Client {
    stream: Stream,
    export: ExportInfo,
    structured: bool,
    timeout: Duration,
    receiver: Receiver,
    outgoing: Vec<u8>,
    /// Connections whose stream position is unknown take no more requests.
    broken: bool,
}

impl Client {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// `Unreachable` when nobody answers, `Refused` when the server declines the
    /// export, `Protocol`, `Disconnected` or `TimedOut` in the handshake.
    pub fn connect(uri: &NbdUri, options: Options) -> Result<Client> {
        let mut stream = Stream::connect(&uri.address, options.timeout)?;
        let (export, structured) =
            handshake::negotiate(&mut stream, &uri.export, options.structured, options.timeout)?;
        Ok(Client {
            stream,
            export,
            structured,
            timeout: options.timeout,
            receiver: Receiver::new(),
            outgoing: Vec::with_capacity(GATHERED_BYTES_MAX),
            broken: false,
        })
    }

    pub fn export(&self) -> &ExportInfo {
        &self.export
    }

    /// Whether the server agreed to structured replies.
    pub fn is_structured(&self) -> bool {
        self.structured
    }

    /// Requests sent or gathered whose completion was not yet taken.
    pub fn in_flight(&self) -> usize {
        self.receiver.in_flight()
    }

    /// Gathers a request; it leaves with the next [`Client::send`],
    /// [`Client::submit`] or [`Client::complete`].
    pub fn push(&mut self, request: Request<'_>) -> Result<Cookie> {
        self.check_usable()?;
        let (command, flags, offset, len, data): (u16, u16, u64, u32, &[u8]) = match &request {
            Request::Read { offset, buf } => (0, 0, *offset, length(buf.len())?, &[]),
            Request::Write { offset, data, fua } => {
                (1, u16::from(*fua) * FLAG_FUA, *offset, length(data.len())?, data)
            }
            Request::Flush => (3, 0, 0, 0, &[]),
            Request::Trim { offset, len, fua } => {
                (4, u16::from(*fua) * FLAG_FUA, *offset, *len, &[])
            }
            Request::WriteZeroes { offset, len, fua, no_hole } => {
                let flags = (u16::from(*fua) * FLAG_FUA) | (u16::from(*no_hole) * FLAG_NO_HOLE);
                (6, flags, *offset, *len, &[])
            }
        };
        let flight = match request {
            Request::Read { offset, buf } => Flight::read(offset, buf),
            _ => Flight::plain(),
        };
        let cookie = self.receiver.expect(flight);
        self.outgoing.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.outgoing.extend_from_slice(&flags.to_be_bytes());
        self.outgoing.extend_from_slice(&command.to_be_bytes());
        self.outgoing.extend_from_slice(&cookie.0.to_be_bytes());
        self.outgoing.extend_from_slice(&offset.to_be_bytes());
        self.outgoing.extend_from_slice(&len.to_be_bytes());
        if data.len() <= COPIED_PAYLOAD_BYTES_MAX {
            self.outgoing.extend_from_slice(data);
            if self.outgoing.len() > GATHERED_BYTES_MAX {
                self.send()?;
            }
        } else {
            self.send_with(data)?;
        }
        Ok(cookie)
    }

    /// Sends what was gathered.
    pub fn send(&mut self) -> Result<()> {
        self.send_with(&[])
    }

    /// [`Client::push`] and [`Client::send`].
    pub fn submit(&mut self, request: Request<'_>) -> Result<Cookie> {
        let cookie = self.push(request)?;
        self.send()?;
        Ok(cookie)
    }

    /// The next completion in the order of arrival, waiting for it as long as the
    /// connection's timeout. After any error the connection is of no more use.
    pub fn complete(&mut self) -> Result<Completion> {
        let timeout = self.timeout;
        match self.complete_within(timeout)? {
            Some(completion) => Ok(completion),
            None => {
                self.broken = true;
                Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("no reply for {} s, {} in flight", timeout.as_secs(), self.in_flight()),
                ))
            }
        }
    }

    /// As [`Client::complete`], but `None` when nothing came in time; the
    /// connection stays good. Times below a millisecond count as one.
    pub fn complete_within(&mut self, timeout: Duration) -> Result<Option<Completion>> {
        self.send()?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(completion) = self.receiver.take() {
                return Ok(Some(completion));
            }
            self.check_usable()?;
            if self.in_flight() == 0 {
                return Err(Error::new(ErrorKind::InvalidInput, "nothing is in flight"));
            }
            // Whole `timeout` while much of it is left: changing it costs a system call.
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if left * 2 > timeout { timeout } else { left };
            if !self.receive(wait)? && Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// A completion that has already been received, without waiting or reading.
    pub fn completed(&mut self) -> Option<Completion> {
        self.receiver.take()
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.roundtrip(Request::Read { offset, buf: vec![0; len] })
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.roundtrip(Request::Write { offset, data, fua: false }).map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.roundtrip(Request::Flush).map(drop)
    }

    /// One request on an otherwise idle connection; an error reply is an error of
    /// kind [`ErrorKind::Reply`].
    pub fn roundtrip(&mut self, request: Request<'_>) -> Result<Vec<u8>> {
        if self.in_flight() != 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "requests are in flight"));
        }
        self.submit(request)?;
        self.complete()?.result.map_err(|reply| {
            let io = io::Error::from_raw_os_error(reply.errno as i32);
            Error::new(ErrorKind::Reply(reply.errno), format!("server: {} ({io})", reply.text))
        })
    }

    /// Says goodbye in order. Dropping a client merely closes the connection.
    pub fn disconnect(mut self) -> Result<()> {
        self.check_usable()?;
        self.outgoing.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        self.outgoing.extend_from_slice(&[0, 0, 0, 2]);
        self.outgoing.extend_from_slice(&[0; 20]);
        self.send()
    }

    fn check_usable(&self) -> Result<()> {
        match self.broken {
            true => Err(Error::new(ErrorKind::Disconnected, "the connection broke before")),
            false => Ok(()),
        }
    }

    /// Sends what was gathered, then `data`. Reads replies while it is stuck.
    fn send_with(&mut self, data: &[u8]) -> Result<()> {
        let total = self.outgoing.len() + data.len();
        let mut sent = 0;
        let mut progress_at: Option<Instant> = None;
        while sent < total {
            let head = self.outgoing.get(sent..).unwrap_or_default();
            let tail = &data[sent.saturating_sub(self.outgoing.len())..];
            match self.stream.send(&[IoSlice::new(head), IoSlice::new(tail)]) {
                Ok(n) => {
                    sent += n;
                    progress_at = None;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let since = *progress_at.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.timeout {
                        return Err(self.broke("the server takes no more requests", e));
                    }
                    if self.in_flight() > 0 && self.receive(Duration::ZERO)? {
                        progress_at = None;
                    }
                }
                Err(e) => return Err(self.broke("cannot send a request", e)),
            }
        }
        self.outgoing.clear();
        Ok(())
    }

    /// One read from the socket; says whether anything came within `timeout`.
    fn receive(&mut self, timeout: Duration) -> Result<bool> {
        if let Err(e) = self.stream.set_read_timeout(timeout) {
            return Err(self.broke("cannot set a socket option", e));
        }
        match self.stream.receive(self.receiver.space()) {
            Ok(0) => {
                self.broken = true;
                Err(Error::new(ErrorKind::Disconnected, "the server ended the connection"))
            }
            Ok(n) => {
                let parsed = self.receiver.received(n);
                self.broken |= parsed.is_err();
                parsed.map(|()| true)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(self.broke("cannot receive a reply", e)),
        }
    }

    fn broke(&mut self, what: &str, source: io::Error) -> Error {
        self.broken = true;
        Error::socket(what, source)
    }
}

/// A connection that gets simple replies only, for who does the rest itself.
pub(crate) fn connect_plain(uri: &NbdUri) -> Result<(Stream, ExportInfo)> {
    let timeout = Options::default().timeout;
    let mut stream = Stream::connect(&uri.address, timeout)?;
    let (export, _) = handshake::negotiate(&mut stream, &uri.export, false, timeout)?;
    Ok((stream, export))
}

fn length(len: usize) -> Result<u32> {
    u32::try_from(len)
        .map_err(|_| Error::new(ErrorKind::InvalidInput, "a request of 4 GiB or more"))
}
