//! The devices of one export that are here, read by whoever verifies or imports them.

use super::blocks::BlockSet;
use super::folder::{self, Folder};
use super::manifest::{MANIFEST_BYTES_MAX, Manifest};
use super::map::PackMap;
use super::pack::PackReader;
use super::sign::Trust;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use towline_block::GroupName;

/// Folders of one export, in any order; more of them may be elsewhere.
pub struct DeviceSet {
    /// The longest that was found.
    pub manifest: Manifest,
    folders: Vec<Folder>,
    sizes: Vec<u64>,
}

/// What became of a pack at the target.
pub(crate) enum Fate<'a> {
    /// All of it is there, but what it would have written to these blocks.
    Applied(&'a [super::BlockRun]),
    Lost,
}

impl DeviceSet {
    /// Reads the manifests in these devices' folders.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when none has an export (of that group);
    /// [`ErrorKind::NotAuthorised`] when a manifest is not signed by who may write its
    /// group; [`ErrorKind::Refused`] when they are of more than one export.
    pub fn open(dirs: &[PathBuf], group: Option<&GroupName>, trust: &Trust) -> Result<DeviceSet> {
        let group = match group {
            Some(group) => group.clone(),
            None => only_group(dirs)?,
        };
        let mut best: Option<Manifest> = None;
        let mut folders = Vec::new();
        for dir in dirs {
            let folder = Folder::of(dir, &group);
            let Some(bytes) = folder::read(&folder.manifest(), MANIFEST_BYTES_MAX)? else {
                tracing::warn!("{} has nothing of group {group}", dir.display());
                continue;
            };
            let in_file = |e: Error| Error::caused(e.kind(), dir.display().to_string(), e);
            let manifest = Manifest::decode(&bytes, trust).map_err(in_file)?;
            if manifest.group != group {
                let what = format!("{} is of group {}, not {group}", dir.display(), manifest.group);
                return Err(Error::new(ErrorKind::Refused, what));
            }
            best = Some(match best {
                Some(best) => longer(best, manifest, dir)?,
                None => manifest,
            });
            folders.push(folder);
        }
        let manifest = best.ok_or_else(|| {
            let what = format!("no export of group {group} is in the folders that were given");
            Error::new(ErrorKind::Unreachable, what)
        })?;
        Ok(DeviceSet { sizes: manifest.sizes(), manifest, folders })
    }

    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// The map of a pack, from whichever device has it whole.
    pub fn map(&self, number: usize) -> Option<PackMap> {
        let digest = self.manifest.pack(number)?.map;
        self.folders.iter().find_map(|folder| {
            let bytes = folder.read_map(number).ok().flatten()?;
            PackMap::decode(&bytes, digest, &self.sizes).ok()
        })
    }

    /// Whether any device here has a file for the pack.
    pub fn has(&self, number: usize) -> bool {
        self.folders.iter().any(|folder| folder.pack(number).symlink_metadata().is_ok())
    }

    /// The pack, to be read; `None` when it is not here.
    pub(crate) fn reader<'a>(
        &self,
        number: usize,
        map: &'a PackMap,
    ) -> Result<Option<PackReader<'a>>> {
        let mut failed = None;
        for folder in &self.folders {
            let before = self.manifest.before(number);
            match PackReader::open(folder, number, map, self.manifest.group_uuid, before) {
                Ok(Some(reader)) => return Ok(Some(reader)),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// The blocks of which the target does not have what the source had where the export
    /// ended; `None` when the map of a lost pack is lost, too: then it may be any.
    pub(crate) fn lacking<'a>(&self, fate: impl Fn(usize) -> Fate<'a>) -> Option<BlockSet> {
        let mut lacking = BlockSet::new(&self.sizes);
        for number in self.manifest.numbers() {
            let fate = fate(number);
            if matches!(fate, Fate::Applied(_)) && lacking.is_empty() {
                // Nothing that it could make good.
                if let Fate::Applied(except) = fate {
                    except.iter().for_each(|run| lacking.insert(run));
                }
                continue;
            }
            let map = self.map(number);
            match fate {
                // Without its map it makes nothing good, which costs bytes only.
                Fate::Applied(except) => {
                    map.iter().flat_map(|map| &map.covered).for_each(|run| lacking.remove(run));
                    except.iter().for_each(|run| lacking.insert(run));
                }
                Fate::Lost => map?.touched.iter().for_each(|run| lacking.insert(run)),
            }
        }
        Some(lacking)
    }
}

/// The one group that the devices carry.
fn only_group(dirs: &[PathBuf]) -> Result<GroupName> {
    let mut groups = BTreeSet::new();
    for dir in dirs {
        let entries = std::fs::read_dir(dir).map_err(|e| {
            let what = format!("the device's folder {} is not there", dir.display());
            Error::caused(ErrorKind::Unreachable, what, e)
        })?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let group = name.to_str().and_then(|name| name.parse::<GroupName>().ok());
            groups.extend(group.filter(|group| Folder::of(dir, group).manifest().exists()));
        }
    }
    match (groups.len(), groups.pop_first()) {
        (1, Some(group)) => Ok(group),
        (0, _) => Err(Error::new(ErrorKind::Unreachable, "there is no export in these folders")),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            "the devices carry several groups: say which with --group",
        )),
    }
}

/// Of two manifests of one export the longer, which the shorter must begin.
fn longer(left: Manifest, right: Manifest, dir: &Path) -> Result<Manifest> {
    if left.set != right.set || left.group_uuid != right.group_uuid {
        let what = format!(
            "{} carries another export ({}) than the folders before it ({}): import one at a time",
            dir.display(),
            right.set,
            left.set
        );
        return Err(Error::new(ErrorKind::Refused, what));
    }
    let right_is_longer = (right.packs.len(), right.finished) > (left.packs.len(), left.finished);
    let (long, short) = if right_is_longer { (right, left) } else { (left, right) };
    if long.volumes != short.volumes || !long.packs.starts_with(&short.packs) {
        let what = format!("the manifest in {} contradicts another one's", dir.display());
        return Err(Error::damaged(what));
    }
    Ok(long)
}
