//! A blocking client, for what is not the guest's I/O: recovery, the activity map, the
//! shipper's reads.

use super::handshake::{Connection, Stream};
use super::session::{Ask, Ended, Session};
use crate::copy;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::receive_now;
use crate::sys::uring::Window;
use std::io::{IoSlice, Read, Write};
use std::time::Duration;

/// Longest wait for an answer. A server's disk may be slow; past this it counts as away.
pub const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Received at once.
const INPUT_BYTES: usize = 256 << 10;

pub struct Client {
    stream: Stream,
    session: Session,
    input: Vec<u8>,
    /// A request could not be sent as a whole: answers alone come from now on.
    is_half: bool,
}

impl Client {
    pub fn new(connection: Connection) -> Result<Client> {
        Client::with_patience(connection, ANSWER_WAIT)
    }

    /// As [`Client::new`], with another wait than [`ANSWER_WAIT`].
    pub fn with_patience(connection: Connection, wait: Duration) -> Result<Client> {
        let Connection { stream, terms } = connection;
        stream.set_timeouts(Some(wait)).map_err(lost)?;
        let input = vec![0; INPUT_BYTES];
        Ok(Client { stream, session: Session::new(terms), input, is_half: false })
    }

    /// The connection, for another use. Nothing may be under way.
    pub fn into_connection(self) -> Result<Connection> {
        self.stream.set_timeouts(None).map_err(lost)?;
        Ok(Connection { stream: self.stream, terms: *self.session.terms() })
    }

    /// Sends a request and does not wait for its answer, which [`Client::collect`] takes. `data`
    /// is what an [`Ask::Post`] writes; it is not copied.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn post(&mut self, id: u32, ask: Ask, data: &[&[u8]]) -> Result<()> {
        self.session.ask(id, ask);
        let head = self.session.take_unsent();
        let mut parts = Vec::with_capacity(1 + data.len());
        parts.push(IoSlice::new(&head));
        parts.extend(data.iter().map(|part| IoSlice::new(part)));
        let mut unsent = parts.as_mut_slice();
        while !unsent.is_empty() {
            match self.stream.write_vectored(unsent) {
                Ok(0) => return Err(lost(std::io::ErrorKind::WriteZero.into())),
                Ok(sent) => IoSlice::advance_slices(&mut unsent, sent),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_half = is_silence(&error) && self.stream.end_sending().is_ok();
                    return Err(lost(error));
                }
            }
        }
        self.session.recycle(head);
        Ok(())
    }

    /// Most bytes of one write.
    pub fn payload_bytes_max(&self) -> u32 {
        self.session.terms().payload_bytes_max
    }

    /// Whether a request could not be sent as a whole because the server took nothing more. What was
    /// posted before may still be answered; nothing more can be asked.
    pub fn is_half(&self) -> bool {
        self.is_half
    }

    /// Takes the answers that have come to what was posted; with `wait` at least some bytes of one.
    /// False when nothing came, with `wait` for all its patience: the server still has it all to do.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn collect(&mut self, wait: bool, ended: &mut Vec<Ended>) -> Result<bool> {
        let received = match wait {
            true => loop {
                match self.stream.read(&mut self.input) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) if is_silence(&error) => break None,
                    received => break Some(received),
                }
            },
            false => receive_now(&self.stream, &mut self.input).transpose(),
        };
        match received {
            Some(received) => self.feed(received.map_err(lost)?, ended).map(|()| true),
            None => Ok(false),
        }
    }

    fn feed(&mut self, received: usize, ended: &mut Vec<Ended>) -> Result<()> {
        if received == 0 {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.session.feed(&self.input[..received], ended).map_err(|violation| {
            let what = format!("the upstream server breaks the protocol: {}", violation.0);
            Error::new(ErrorKind::Unreachable, what)
        })
    }

    /// Asks all of it at once, and waits for every answer. Nothing else may be under way.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the connection was lost: it is of no more use.
    pub fn ask(&mut self, asks: Vec<Ask>) -> Result<Vec<Ended>> {
        let count = asks.len();
        for (id, ask) in asks.into_iter().enumerate() {
            self.session.ask(id as u32, ask);
        }
        let unsent = self.session.take_unsent();
        self.stream.write_all(&unsent).map_err(lost)?;
        self.session.recycle(unsent);
        let mut ended = Vec::with_capacity(count);
        while ended.len() < count {
            if !self.collect(true, &mut ended)? {
                return Err(lost(std::io::ErrorKind::TimedOut.into()));
            }
        }
        ended.sort_by_key(|answer| answer.id);
        Ok(ended)
    }

    pub fn flush(&mut self) -> Result<()> {
        for answer in self.ask(vec![Ask::Flush])? {
            answer.result.map_err(|e| Error::io("the upstream server cannot flush", e))?;
        }
        Ok(())
    }

    /// Fills `buf` from `offset`, whatever the server's alignment.
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let align = u64::from(self.session.terms().align);
        let mut start = offset - offset % align;
        let end = (offset + buf.len() as u64).next_multiple_of(align);
        let mut filled = 0;
        while filled < buf.len() {
            let len = (end - start) as usize;
            let window = Window::new(vec![0; len], 0, len);
            let answer = self.ask(vec![Ask::Read { offset: start, window }])?.pop();
            let Some(Ended { result, ask, .. }) = answer else { return Err(nothing()) };
            let read = result.map_err(|e| {
                Error::io(format!("the upstream server cannot read {len} bytes at {start}"), e)
            })?;
            let skip = (offset + filled as u64 - start) as usize;
            let got = read.saturating_sub(skip).min(buf.len() - filled);
            if got == 0 {
                return Err(nothing());
            }
            copy(&mut buf[filled..filled + got], &ask.into_window().buf[skip..skip + got]);
            filled += got;
            start += read as u64;
        }
        Ok(())
    }
}

/// The time that a socket waits is over.
fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn lost(error: std::io::Error) -> Error {
    Error::io("the connection to the server was lost", error).with_kind(ErrorKind::Unreachable)
}

fn nothing() -> Error {
    Error::new(ErrorKind::Io, "the upstream server read nothing")
}
