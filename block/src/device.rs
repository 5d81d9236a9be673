//! What a journaled disk is to those who do not serve it.
//!
//! ```text
//!  Disk ──> FileDisk   raw image file or block device
//!       └─> Upstream   an export of another NBD server
//! ```

use crate::Extent;
use crate::disk::{Access, FileDisk, Identity, Run, Stamp};
use crate::error::Result;
use crate::upstream::Upstream;
use std::path::Path;

/// Flushes a source on its own account; see [`Disk::syncer`].
pub type Syncer = Box<dyn FnMut() -> Result<()> + Send>;

/// A disk that can be told apart, read and flushed. Its changes are made by the volume's
/// thread, by what [`Disk::backend`] shows.
pub trait Disk: std::fmt::Debug + Send + Sync {
    /// For messages and for the state: a path or a URI.
    fn path(&self) -> &Path;
    fn size_bytes(&self) -> u64;
    fn access(&self) -> Access;
    fn identity(&self) -> Result<Identity>;
    /// When it was last changed; `None` where that cannot be known.
    fn stamp(&self) -> Result<Option<Stamp>>;
    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// The run of data or hole at `offset`.
    fn run_at(&self, offset: u64) -> Result<Run>;
    /// Flushes that tell nobody else's errors: the kernel reports a failed write-back once
    /// to every open file, and the guests' own must get theirs.
    /// [`crate::ErrorKind::Unreachable`] means that the disk could not be asked.
    fn syncer(&self) -> Result<Syncer>;
    fn backend(&self) -> Backend<'_>;
}

/// A disk that is read and changed by blocking calls, from many threads; nobody's source.
/// Ranges lie inside it.
pub trait PlainDisk: Send + Sync {
    fn size_bytes(&self) -> u64;
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes the range read as zero.
    fn zero(&self, extent: Extent) -> Result<()>;
    fn flush(&self) -> Result<()>;
}

/// How a disk is changed.
#[derive(Clone, Copy, Debug)]
pub enum Backend<'a> {
    File(&'a FileDisk),
    Upstream(&'a Upstream),
}

impl Disk for FileDisk {
    fn path(&self) -> &Path {
        FileDisk::path(self)
    }

    fn size_bytes(&self) -> u64 {
        FileDisk::size_bytes(self)
    }

    fn access(&self) -> Access {
        FileDisk::access(self)
    }

    fn identity(&self) -> Result<Identity> {
        FileDisk::identity(self)
    }

    fn stamp(&self) -> Result<Option<Stamp>> {
        FileDisk::stamp(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        FileDisk::read_at(self, buf, offset)
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        FileDisk::run_at(self, offset)
    }

    fn syncer(&self) -> Result<Syncer> {
        let path = FileDisk::path(self).to_owned();
        let what = format!("cannot open {}", path.display());
        let file = std::fs::File::open(&path).map_err(|e| crate::Error::io(what, e))?;
        Ok(Box::new(move || {
            file.sync_data()
                .map_err(|e| crate::Error::io(format!("cannot flush {}", path.display()), e))
        }))
    }

    fn backend(&self) -> Backend<'_> {
        Backend::File(self)
    }
}
