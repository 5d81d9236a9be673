//! One error for the crate: a kind to decide by, a sentence to show, a source.

use std::{fmt, io};

pub type Result<T> = std::result::Result<T, Error>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What the caller does next, not what went wrong inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's or user's value is not usable; repeat with another.
    InvalidInput,
    /// Bytes that are not what they should be: damaged, torn, hostile. Nothing was used of them.
    Damaged,
    /// A format newer than this program; nothing was touched.
    TooNew,
    /// The batch has no room for this operation; seal it and start another.
    Full,
    /// The peer spoke out of turn or broke off.
    Protocol,
    /// The peer may not do this.
    NotAuthorised,
    /// The peer refused; see its sentence.
    Refused,
    /// The other side cannot be reached now; try again.
    Unreachable,
    /// Somebody else holds the directory or disk.
    Busy,
    /// A disk or file system failed this operation.
    Storage,
    /// A disk or file system has no room.
    NoSpace,
}

#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Source>,
}

impl Error {
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), source: None }
    }

    /// As [`Error::new`], with the error that led to it.
    pub fn caused(kind: ErrorKind, what: impl Into<String>, source: impl Into<Source>) -> Error {
        Error { kind, what: what.into(), source: Some(source.into()) }
    }

    /// A file operation failed; `what` says which and where.
    pub fn storage(what: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Storage,
        };
        Error::caused(kind, what, source)
    }

    /// The same, of something that has a name.
    pub(crate) fn of(self, name: impl fmt::Display) -> Error {
        Error { kind: self.kind, what: format!("{name}: {self}"), source: None }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Error {
        Error::new(ErrorKind::Damaged, what)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<towline_block::Error> for Error {
    fn from(error: towline_block::Error) -> Error {
        use towline_block::ErrorKind as Block;
        let kind = match error.kind() {
            Block::InvalidInput => ErrorKind::InvalidInput,
            Block::Busy => ErrorKind::Busy,
            Block::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Storage,
        };
        Error { kind, what: error.to_string(), source: None }
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
        self.source.as_ref().map(|source| &**source as _)
    }
}
