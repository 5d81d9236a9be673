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
    role: Role,
    terms: Terms,
}

/// What an export is used as, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Source,
    Target,
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
        Upstream::open_as(uri, Role::Source)
    }

    /// As [`Upstream::open`], in another role.
    pub fn open_as(uri: NbdUri, role: Role) -> Result<Upstream> {
        let connection = Connection::open(&uri)?;
        let terms = connection.terms;
        check(&uri, role, &terms)?;
        let path = PathBuf::from(uri.to_string());
        let idle = Mutex::new(Some(connection));
        Ok(Upstream { connector: Connector { uri, role, terms }, path, idle })
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

    /// Gives a connection back for the next use.
    pub fn put_connection(&self, connection: Connection) {
        *self.idle() = Some(connection);
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
        check(&self.uri, self.role, &connection.terms)?;
        match changed(&self.terms, &connection.terms) {
            None => Ok(connection),
            Some(what) => Err(Error::new(
                ErrorKind::Open,
                format!("{} {what}: it is not what this volume was started with", self.uri),
            )),
        }
    }
}

/// What keeps a new connection's export from taking over where the old one's ended:
/// operations under way were cut for the old terms.
fn changed(was: &Terms, is: &Terms) -> Option<String> {
    if was.size_bytes != is.size_bytes {
        return Some(format!("has {} bytes now, and had {}", is.size_bytes, was.size_bytes));
    }
    if was.align < is.align {
        return Some(format!("has blocks of {} bytes now, and had {}", is.align, was.align));
    }
    if was.can_fua && !is.can_fua {
        return Some("offers FUA no more".to_owned());
    }
    let zeroes_lost = was.can_zero && !is.can_zero;
    zeroes_lost.then(|| "offers WRITE_ZEROES no more".to_owned())
}

fn check(uri: &NbdUri, role: Role, terms: &Terms) -> Result<()> {
    let align = u64::from(terms.align);
    let why = if terms.read_only {
        "it is read-only: start its server so that it may be written"
    } else if !terms.can_flush {
        "it cannot flush, so that nothing could be known to be durable: choose a server, plugin or \
         cache mode that can"
    } else if align > DIRECT_ALIGN as u64 {
        "its blocks are larger than 4 KiB: choose a smaller block size"
    } else if !terms.size_bytes.is_multiple_of(align) {
        "its size is no multiple of its blocks"
    } else {
        return Ok(());
    };
    let role = match role {
        Role::Source => "source",
        Role::Target => "target",
    };
    Err(Error::new(ErrorKind::Unsupported, format!("cannot use {uri} as a {role}: {why}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_offers_less_than_before_does_not_take_over() {
        let was = Terms {
            size_bytes: 1 << 20,
            align: 512,
            payload_bytes_max: 1 << 20,
            structured: true,
            read_only: false,
            can_flush: true,
            can_fua: true,
            can_zero: true,
            multi_conn: true,
        };
        let same = Terms { align: 1, payload_bytes_max: 4096, structured: false, ..was };
        assert_eq!(changed(&was, &same), None);
        let more = Terms { can_fua: false, can_zero: false, ..was };
        assert_eq!(changed(&more, &was), None);
        for less in [
            Terms { size_bytes: 2 << 20, ..was },
            Terms { align: 4096, ..was },
            Terms { can_fua: false, ..was },
            Terms { can_zero: false, ..was },
        ] {
            assert!(changed(&was, &less).is_some(), "{less:?}");
        }
    }
}
