//! A blocking client, for what is not the guest's I/O: recovery, the activity map, the
//! shipper's reads.

use super::handshake::{Connection, Stream};
use super::session::{Ask, Ended, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::uring::Window;
use std::io::{Read, Write};
use std::time::Duration;

/// Longest wait for an answer. A server's disk may be slow; past this it counts as away.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Received at once.
const INPUT_BYTES: usize = 256 << 10;

pub struct Client {
    stream: Stream,
    session: Session,
    input: Vec<u8>,
}

impl Client {
    pub fn new(connection: Connection) -> Result<Client> {
        let Connection { stream, terms } = connection;
        stream.set_timeouts(Some(ANSWER_WAIT)).map_err(lost)?;
        Ok(Client { stream, session: Session::new(terms), input: vec![0; INPUT_BYTES] })
    }

    /// The connection, for another use. Nothing is under way between two calls.
    pub fn into_connection(self) -> Result<Connection> {
        self.stream.set_timeouts(None).map_err(lost)?;
        Ok(Connection { stream: self.stream, terms: *self.session.terms() })
    }

    /// Asks all of it at once, and waits for every answer.
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
            let received = self.stream.read(&mut self.input).map_err(lost)?;
            if received == 0 {
                return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let fed = self.session.feed(&self.input[..received], &mut ended);
            fed.map_err(|violation| {
                let what = format!("the upstream server breaks the protocol: {}", violation.0);
                Error::new(ErrorKind::Unreachable, what)
            })?;
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
            buf[filled..filled + got].copy_from_slice(&ask.into_window().buf[skip..skip + got]);
            filled += got;
            start += read as u64;
        }
        Ok(())
    }
}

fn lost(error: std::io::Error) -> Error {
    Error::io("the connection to the server was lost", error).with_kind(ErrorKind::Unreachable)
}

fn nothing() -> Error {
    Error::new(ErrorKind::Io, "the upstream server read nothing")
}
