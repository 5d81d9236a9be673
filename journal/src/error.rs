//! One error for the crate: a kind to decide by, a sentence to show, a source.

use std::{fmt, io};

pub type Result<T> = std::result::Result<T, Error>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The user's value is not usable; repeat with another.
    InvalidInput,
    /// Another process has the group; end it first.
    Busy,
    /// There is no such group, ring or process here.
    Missing,
    /// Bytes on disk, in shared memory or on the link are not what was written.
    Damaged,
    /// Written by a newer Towline; use that one. Nothing was touched.
    Newer,
    /// The operation does not fit the group's state; the message says which.
    Refused,
    /// No room in memory or on disk.
    NoSpace,
    /// The outside world failed.
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

    pub fn io(what: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error { kind, what: what.into(), source: Some(source) }
    }

    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
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

impl From<towline_block::Error> for Error {
    fn from(error: towline_block::Error) -> Error {
        use towline_block::ErrorKind as Block;
        let kind = match error.kind() {
            Block::InvalidInput => ErrorKind::InvalidInput,
            Block::Busy => ErrorKind::Busy,
            Block::Open => ErrorKind::Missing,
            Block::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error::new(kind, error.to_string())
    }
}
