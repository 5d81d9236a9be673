//! One error for the crate: a kind to decide by, a sentence to show, a source.

use std::{fmt, io};

pub type Result<T> = std::result::Result<T, Error>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The value given is not usable; repeat with another.
    InvalidInput,
    /// Nobody answers at the address; try again later.
    Unreachable,
    /// The server answered and declined the export; its text is in the message.
    Refused,
    /// The server answered this request with an NBD error number.
    Reply(u32),
    /// The other side did not follow the protocol; the connection is of no more use.
    Protocol,
    /// The connection ended or broke; what was in flight has an unknown outcome.
    Disconnected,
    /// No reply within the time given; what was in flight has an unknown outcome.
    TimedOut,
    /// A local file failed.
    Io,
}

#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

impl Error {
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), source: None }
    }

    pub fn io(kind: ErrorKind, what: impl Into<String>, source: io::Error) -> Error {
        Error { kind, what: what.into(), source: Some(source) }
    }

    /// A socket operation failed: ended, timed out or broken.
    pub(crate) fn socket(what: &str, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            _ => ErrorKind::Disconnected,
        };
        Error::io(kind, what, source)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The NBD error number, when the server replied with one.
    pub fn errno(&self) -> Option<u32> {
        match self.kind {
            ErrorKind::Reply(errno) => Some(errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
