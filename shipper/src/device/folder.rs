//! A group's folder on one device. The only place that makes names of what lies there.
//!
//! A device is another's disk: only plain files are opened, no link is followed, and no
//! more is read than belongs there.

use super::map::MAP_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::SetId;
use crate::receiver::medium::Medium;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use towline_block::GroupName;
use towline_block::sys::free_bytes;

const DEVICE_VERSION: u32 = 1;
const DEVICE_BYTES_MAX: u64 = 4096;

/// `device.json`: tells a device that is there from an empty mount point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceFile {
    version: u32,
    pub set: SetId,
    /// From 1.
    pub device: u32,
}

/// `DIR/<group>` of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    pub fn of(device: &Path, group: &GroupName) -> Folder {
        Folder { dir: device.join(group.as_str()) }
    }

    /// A folder of this form that is no device.
    pub(crate) fn at(dir: PathBuf) -> Folder {
        Folder { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest")
    }

    /// Of pack `number`, from 1.
    pub fn map(&self, number: usize) -> PathBuf {
        self.dir.join("maps").join(format!("{number:08}.map"))
    }

    pub fn pack(&self, number: usize) -> PathBuf {
        self.dir.join("packs").join(format!("{number:08}.pack"))
    }

    /// A pack that is not closed.
    pub(crate) fn part(&self, number: usize) -> PathBuf {
        self.dir.join("packs").join(format!("{number:08}.part"))
    }

    /// Of the source's own copy: where the devices are.
    pub(crate) fn folders(&self) -> PathBuf {
        self.dir.join("folders.json")
    }

    fn device(&self) -> PathBuf {
        self.dir.join("device.json")
    }

    fn parts(&self) -> [PathBuf; 3] {
        [self.dir.clone(), self.dir.join("maps"), self.dir.join("packs")]
    }

    /// Makes what is missing of the folders below it, durably.
    pub(crate) fn make(&self, medium: &Medium) -> Result<()> {
        for dir in self.parts() {
            std::fs::create_dir_all(&dir)
                .map_err(|e| Error::storage(format!("cannot make {}", dir.display()), e))?;
        }
        if !self.is_plain() {
            let what = format!("{} or a folder in it is a link", self.dir.display());
            return Err(Error::new(ErrorKind::Refused, what));
        }
        medium.sync_dir(&self.dir)?;
        medium.sync_dir(self.dir.parent().unwrap_or(Path::new("/")))
    }

    /// What is written there must not land elsewhere.
    fn is_plain(&self) -> bool {
        let plain = |dir: &PathBuf| dir.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        self.parts().iter().all(plain)
    }

    /// Which device it is; `None` for none.
    pub(crate) fn identity(&self) -> Result<Option<DeviceFile>> {
        let path = self.device();
        let Some(bytes) = read(&path, DEVICE_BYTES_MAX)? else { return Ok(None) };
        let file: DeviceFile = serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!("{} is damaged", path.display());
            Error::caused(ErrorKind::Damaged, what, e)
        })?;
        if file.version > DEVICE_VERSION {
            let what = format!("{} is of a newer version: update towline", path.display());
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        Ok(Some(file))
    }

    pub(crate) fn identify(&self, set: SetId, device: u32, medium: &Medium) -> Result<()> {
        self.make(medium)?;
        let file = DeviceFile { version: DEVICE_VERSION, set, device };
        let bytes = serde_json::to_vec(&file)
            .map_err(|e| Error::caused(ErrorKind::InvalidInput, "cannot write device.json", e))?;
        medium.replace_plain(&self.device(), &bytes)
    }

    /// Whether it is this device of this set now.
    pub(crate) fn is_there(&self, set: SetId, device: u32) -> bool {
        let is_it = |found: DeviceFile| (found.set, found.device) == (set, device);
        self.is_plain() && self.identity().is_ok_and(|found| found.is_some_and(is_it))
    }

    pub(crate) fn read_map(&self, number: usize) -> Result<Option<Vec<u8>>> {
        read(&self.map(number), MAP_BYTES_MAX)
    }

    /// Bytes that may be written there.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let mut dir = self.dir.as_path();
        // Of a folder that is not made yet: of where it will be.
        while !dir.exists() {
            dir = match dir.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
        }
        free_bytes(dir).map_err(|e| {
            Error::storage(format!("cannot tell the free space of {}", dir.display()), e)
        })
    }
}

/// The plain file there, not by a link; `None` when nothing is there.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    let failed = |e| Error::storage(format!("cannot read {}", path.display()), e);
    // A pipe must not make anybody wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Err(no_file(path)),
        Err(e) => return Err(failed(e)),
    };
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(Some(file)),
        false => Err(no_file(path)),
    }
}

fn no_file(path: &Path) -> Error {
    Error::damaged(format!("{} is no plain file", path.display()))
}

/// A whole small file.
pub(crate) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(max + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::storage(format!("cannot read {}", path.display()), e))?;
    match bytes.len() as u64 <= max {
        true => Ok(Some(bytes)),
        false => Err(Error::damaged(format!("{} is larger than it can be", path.display()))),
    }
}
