//! Where the devices of an export were: `device/folders.json` in the group's state
//! directory. It tells a folder whose device is away from one for a new device.

use super::folder;
use crate::error::{Error, ErrorKind, Result};
use crate::receiver::medium::Medium;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
/// 1024 devices in folders of any length.
const BYTES_MAX: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct Places {
    version: u32,
    /// Each folder once, the one that was noted last at the end.
    folders: Vec<Place>,
    /// Devices that have the manifest of the finished export.
    complete: BTreeSet<u32>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    /// Without links.
    dir: PathBuf,
    /// That was last in it.
    device: u32,
}

impl Places {
    pub fn none() -> Places {
        Places { version: VERSION, folders: Vec::new(), complete: BTreeSet::new() }
    }

    /// None are known of an export that was begun before they were noted.
    pub fn load(path: &Path) -> Result<Places> {
        let Some(bytes) = folder::read(path, BYTES_MAX)? else { return Ok(Places::none()) };
        let places: Places = serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!(
                "{} is damaged: remove it once all devices of the export are plugged in",
                path.display()
            );
            Error::caused(ErrorKind::Damaged, what, e)
        })?;
        if places.version > VERSION {
            let what = format!("{} is of a newer version: update towline", path.display());
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        Ok(places)
    }

    pub fn store(&self, path: &Path, medium: &Medium) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|e| {
            Error::caused(ErrorKind::InvalidInput, format!("cannot write {}", path.display()), e)
        })?;
        medium.replace_plain(path, &bytes)
    }

    /// Where the device was last.
    pub fn folder(&self, device: u32) -> Option<&Path> {
        let last = self.folders.iter().rfind(|place| place.device == device);
        last.map(|place| place.dir.as_path())
    }

    /// The device that was last in the folder `dir`.
    pub fn device(&self, dir: &Path) -> Option<u32> {
        let dir = whole(dir);
        self.folders.iter().find(|place| place.dir == dir).map(|place| place.device)
    }

    pub fn note(&mut self, device: u32, dir: &Path) {
        let dir = whole(dir);
        self.folders.retain(|place| place.dir != dir);
        self.folders.push(Place { dir, device });
    }

    pub fn is_complete(&self, device: u32) -> bool {
        self.complete.contains(&device)
    }

    /// Answers whether that is news.
    pub fn note_complete(&mut self, device: u32) -> bool {
        self.complete.insert(device)
    }
}

/// The same folder has the same name from everywhere, also while it is not there.
fn whole(dir: &Path) -> PathBuf {
    let whole = dir.canonicalize().or_else(|_| std::path::absolute(dir));
    whole.unwrap_or_else(|_| dir.to_owned())
}
