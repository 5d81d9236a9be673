//! What a target can be: a raw image file, a block device, or an export of another NBD server.

use super::remote::Remote;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use towline_block::disk::Run;
use towline_block::{Access, Disk, Extent, FileDisk, NbdUri};

/// How long a killed owner's last I/O may take to let go of a target.
pub const OWNER_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub enum TargetDisk {
    File(Arc<FileDisk>),
    Remote(Arc<Remote>),
}

impl From<FileDisk> for TargetDisk {
    fn from(disk: FileDisk) -> TargetDisk {
        TargetDisk::File(Arc::new(disk))
    }
}

/// The URI that a target's path is, if it is one.
fn uri(path: &Path) -> Result<Option<NbdUri>> {
    match path.to_str().filter(|text| NbdUri::is_meant_by(text)) {
        Some(text) => Ok(Some(text.parse()?)),
        None => Ok(None),
    }
}

/// The one form of a path or URI that means this place from everywhere.
pub fn place(path: &Path) -> PathBuf {
    match uri(path) {
        Ok(Some(uri)) => uri.to_string().into(),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Whether this names another server's disk.
pub fn is_remote(path: &Path) -> bool {
    matches!(uri(path), Ok(Some(_)))
}

/// Whether this is the path of a file that is not there yet.
pub fn is_to_be_made(path: &Path) -> bool {
    matches!(uri(path), Ok(None)) && !path.exists()
}

/// Looks at what is given as a target, before anything depends on it.
///
/// # Errors
/// As opening it; [`ErrorKind::InvalidInput`] for a file that cannot be made.
pub fn look(path: &Path) -> Result<()> {
    if let Some(uri) = uri(path)? {
        return Remote::open(uri).map(|_| ());
    }
    if path.exists() {
        return TargetDisk::open(path).map(|_| ());
    }
    let folder = std::path::absolute(path).ok();
    match folder.as_deref().and_then(Path::parent) {
        Some(folder) if folder.is_dir() => Ok(()),
        _ => {
            let what =
                format!("{} is in a folder that does not exist: make it first", path.display());
            Err(Error::new(ErrorKind::InvalidInput, what))
        }
    }
}

impl TargetDisk {
    /// Opens what is there, owned alone where that can be had.
    pub fn open(path: &Path) -> Result<TargetDisk> {
        if let Some(uri) = uri(path)? {
            return Ok(TargetDisk::Remote(Arc::new(Remote::open(uri)?)));
        }
        Ok(FileDisk::open(path, Access::Own { wait: OWNER_WAIT })?.into())
    }

    /// Opens what another process owns and writes.
    pub fn open_to_read(path: &Path) -> Result<TargetDisk> {
        match uri(path)? {
            Some(uri) => Ok(TargetDisk::Remote(Arc::new(Remote::open(uri)?))),
            None => Ok(FileDisk::open(path, Access::Read)?.into()),
        }
    }

    /// A sparse image file is made where nothing is; what is there has to be of this size.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it is not, and as [`TargetDisk::open`].
    pub fn open_or_create(path: &Path, size_bytes: u64) -> Result<TargetDisk> {
        let Some(uri) = uri(path)? else {
            let access = Access::Own { wait: OWNER_WAIT };
            return Ok(FileDisk::open_or_create(path, size_bytes, access)?.into());
        };
        let remote = Remote::open(uri)?;
        if remote.size_bytes() != size_bytes {
            let (path, is) = (remote.path().display(), remote.size_bytes());
            let what = format!(
                "{path} has {is} bytes, but {size_bytes} are needed: make the image behind it exactly \
                 that large"
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(TargetDisk::Remote(Arc::new(remote)))
    }

    /// A path or a URI.
    pub fn path(&self) -> &Path {
        match self {
            TargetDisk::File(disk) => disk.path(),
            TargetDisk::Remote(disk) => disk.path(),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        match self {
            TargetDisk::File(disk) => disk.size_bytes(),
            TargetDisk::Remote(disk) => disk.size_bytes(),
        }
    }

    /// Everything since the last flush that succeeded is written again. A file needs no such
    /// word: its descriptor is the same before and after a failure.
    pub fn start_over(&self) {
        if let TargetDisk::Remote(disk) = self {
            disk.start_over();
        }
    }

    /// Another server's, which may come back when it is gone.
    pub fn is_remote(&self) -> bool {
        matches!(self, TargetDisk::Remote(_))
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            TargetDisk::File(disk) => Ok(disk.read_at(buf, offset)?),
            TargetDisk::Remote(disk) => disk.read_at(buf, offset),
        }
    }

    /// The run of data or hole at `offset`; an export is not asked and is all data.
    pub fn run_at(&self, offset: u64) -> Result<Run> {
        match self {
            TargetDisk::File(disk) => Ok(disk.run_at(offset)?),
            TargetDisk::Remote(disk) => Ok(Run { is_data: true, end: disk.size_bytes() }),
        }
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            TargetDisk::File(disk) => Ok(disk.write_at(bytes, offset)?),
            TargetDisk::Remote(disk) => disk.write_at(bytes, offset),
        }
    }

    /// As [`TargetDisk::write_at`], past the page cache where there is one and it can be passed.
    pub fn write_passing(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            TargetDisk::File(disk) => Ok(disk.write_passing(bytes, offset)?),
            TargetDisk::Remote(disk) => disk.write_at(bytes, offset),
        }
    }

    /// Writes `parts` one behind the other, beginning at `offset`.
    pub fn write_run(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        match self {
            TargetDisk::File(disk) => {
                let mut at = offset;
                Ok(parts.iter().try_for_each(|part| {
                    disk.write_at(part, at)?;
                    at += part.len() as u64;
                    towline_block::Result::Ok(())
                })?)
            }
            TargetDisk::Remote(disk) => disk.write_run(parts, offset),
        }
    }

    pub fn zero(&self, extent: Extent, keep_allocated: bool) -> Result<()> {
        match self {
            TargetDisk::File(disk) => Ok(disk.zero(extent, keep_allocated)?),
            TargetDisk::Remote(disk) => disk.zero(extent, keep_allocated),
        }
    }

    pub fn flush(&self) -> Result<()> {
        match self {
            TargetDisk::File(disk) => Ok(disk.flush()?),
            TargetDisk::Remote(disk) => disk.flush(),
        }
    }

    /// As what a server serves once the target has taken over: from then on nothing is read or
    /// written here.
    pub fn served(&self) -> Arc<dyn Disk> {
        match self {
            TargetDisk::File(disk) => disk.clone(),
            TargetDisk::Remote(disk) => disk.release(),
        }
    }
}
