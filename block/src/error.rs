//! One error for the crate: a kind to decide by, a sentence to show, a source.

use std::{fmt, io};

pub type Result<T> = std::result::Result<T, Error>;

/// What the caller does next, not what went wrong inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's or user's value is not usable; repeat with another.
    InvalidInput,
    /// Somebody else holds the disk; wait for them or end them.
    Busy,
    /// The file or device is not there or may not be opened.
    Open,
    /// The device or file system failed this operation.
    Io,
    /// The device or file system has no room.
    NoSpace,
    /// The upstream server cannot be reached; another attempt may find it.
    Unreachable,
    /// The kernel, or the upstream server, lacks what is needed.
    Unsupported,
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

    /// An operation of the outside world failed; `what` says which and where.
    pub fn io(what: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => ErrorKind::Unsupported,
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

    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
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
