//! The export as a disk: identified, read and flushed by anyone; changed by the volume's
//! thread, which takes the connection over.

use super::client::Client;
use super::handshake::{Connection, Terms};
use super::uri::NbdUri;
use crate::buffer::DIRECT_ALIGN;
use crate::crc32c;
use crate::device::{Backend, Disk, Syncer};
use crate::disk::{Access, DiskKind, Identity, Run, Stamp};
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the export is and what it must still be when the connection is made anew.
#[derive(Clone, Debug)]
pub struct Connector {
    uri: NbdUri,
    terms: Terms,
}

/// An export that is written as well. Nobody keeps others from writing it (R9): an NBD
/// server has no lock that outlives its client's last write.
#[derive(Debug)]
pub struct Upstream {
    connector: Connector,
    /// The URI, as everyone else has a path.
    path: PathBuf,
    /// Between two uses.
    idle: Mutex<Option<Connection>>,
}

impl Upstream {
    /// Connects, and refuses what cannot be served faithfully.
    ///
    /// # Errors
    /// As [`Connection::open`], and [`ErrorKind::Unsupported`] for an export that is
    /// read-only, cannot flush, or has blocks of more than 4 KiB.
    pub fn open(uri: NbdUri) -> Result<Upstream> {
        let connection = Connection::open(&uri)?;
        let terms = connection.terms;
        check(&uri, &terms)?;
        let path = PathBuf::from(uri.to_string());
        let idle = Mutex::new(Some(connection));
        Ok(Upstream { connector: Connector { uri, terms }, path, idle })
    }

    pub fn terms(&self) -> &Terms {
        &self.connector.terms
    }

    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The connection that was made to look at the export, if nothing went wrong with it.
    pub fn take_connection(&self) -> Option<Connection> {
        self.idle().take()
    }

    fn idle(&self) -> MutexGuard<'_, Option<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connector {
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// A new connection to the same export.
    ///
    /// # Errors
    /// As [`Upstream::open`], and [`ErrorKind::Open`] when it is another export by now.
    pub fn connect(&self) -> Result<Connection> {
        let connection = Connection::open(&self.uri)?;
        check(&self.uri, &connection.terms)?;
        let (was, is) = (self.terms, connection.terms);
        if was.size_bytes != is.size_bytes || was.align < is.align {
            let what = format!(
                "{} has {} bytes in blocks of {} now, and had {} in blocks of {}: it is not the \
                 disk that this volume was started with",
                self.uri, is.size_bytes, is.align, was.size_bytes, was.align
            );
            return Err(Error::new(ErrorKind::Open, what));
        }
        Ok(connection)
    }
}

fn check(uri: &NbdUri, terms: &Terms) -> Result<()> {
    let align = u64::from(terms.align);
    let why = if terms.read_only {
        "it is read-only"
    } else if !terms.can_flush {
        "it cannot flush, so that no flush of the guest would mean anything"
    } else if align > DIRECT_ALIGN as u64 {
        "its blocks are larger than 4 KiB"
    } else if !terms.size_bytes.is_multiple_of(align) {
        "its size is no multiple of its blocks"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Unsupported, format!("cannot use {uri} as a source: {why}")))
}

impl Disk for Upstream {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.connector.terms.size_bytes
    }

    fn access(&self) -> Access {
        Access::Own { wait: Duration::ZERO }
    }

    /// Tells URIs apart; what is behind one cannot be known (R10).
    fn identity(&self) -> Result<Identity> {
        let device = u64::from(crc32c(self.path.as_os_str().as_encoded_bytes()));
        let size_bytes = self.size_bytes();
        Ok(Identity { kind: DiskKind::Upstream, device, inode: 0, size_bytes })
    }

    fn stamp(&self) -> Result<Option<Stamp>> {
        Ok(None)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut idle = self.idle();
        let connection = match idle.take() {
            Some(connection) => connection,
            None => self.connector.connect()?,
        };
        let mut client = Client::new(connection)?;
        client.read_at(buf, offset)?;
        *idle = Some(client.into_connection()?);
        Ok(())
    }

    /// Not asked: all data, as of a disk that does not tell.
    fn run_at(&self, _offset: u64) -> Result<Run> {
        Ok(Run { is_data: true, end: self.size_bytes() })
    }

    /// By a connection of its own, which covers the volume's only where the server says so.
    fn syncer(&self) -> Result<Syncer> {
        let connector = self.connector.clone();
        Ok(Box::new(move || {
            let connection = connector.connect()?;
            if !connection.terms.multi_conn {
                let what = "the upstream server does not flush for other connections";
                return Err(Error::new(ErrorKind::Unreachable, what));
            }
            Client::new(connection)?.flush()
        }))
    }

    fn backend(&self) -> Backend<'_> {
        Backend::Upstream(self)
    }
}
