//! One error for the crate: a kind to decide by, a sentence to show, a source.

use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration is not usable; repeat with another.
    InvalidInput,
    /// Somebody else listens on the address; end them or take another.
    InUse,
    /// Another cutover attempt has the gate; wait for its end.
    Busy,
    /// The hold or seal that this step builds on is over; start a new attempt.
    Lapsed,
    /// A volume did not answer in the time given; the step was taken back.
    Timeout,
    /// The source or its journal failed.
    Storage,
    /// The kernel, a socket or a thread failed.
    System,
    /// The server has ended.
    Gone,
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

    /// Something below failed; `what` says what was tried and where.
    pub fn caused(kind: ErrorKind, what: impl Into<String>, source: impl Into<Source>) -> Error {
        Error { kind, what: what.into(), source: Some(source.into()) }
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
        self.source.as_deref().map(|source| source as _)
    }
}
