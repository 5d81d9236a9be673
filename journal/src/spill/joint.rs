//! Whether one device flush serves a source and the spill.
//!
//! A flush of the source is a flush of the spill, too, if all of this holds:
//! - Both are files of one ext4 (`st_dev`). Its fdatasync asks the device to flush even
//!   when the file has nothing to write; Btrfs, for one, asks for nothing then. What an
//!   XFS file shares with a reflinked copy is remapped by a write, which only that file's
//!   own fdatasync commits.
//! - The spill's writes are complete before the flush is issued, past the page cache. With
//!   `data=journal`, encryption and the like ext4 takes O_DIRECT and buffers all the same:
//!   statx tells.
//! - They change no metadata: this process has filled the segment with zeroes and synced it
//!   and its name. A segment from before may have extents that were reserved only.
//!
//! Where one is missing, source and spill are flushed in parallel.

use super::store::OpenedSegment;
use crate::sys::{is_ext4, takes_direct};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use towline_block::{Disk, DiskKind};

/// The file system of the spill, if its flush can be a source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    device: u64,
}

impl Medium {
    /// Of the folder the segments lie in, or will.
    pub fn of_folder(path: &Path) -> Option<Medium> {
        let folder = path.ancestors().find(|path| path.exists())?;
        let folder = File::open(folder).ok()?;
        let is_ext4 = is_ext4(&folder).ok()?;
        is_ext4.then_some(Medium { device: folder.metadata().ok()?.dev() })
    }

    pub fn holds(&self, source: &dyn Disk) -> bool {
        source
            .identity()
            .is_ok_and(|identity| identity.kind == DiskKind::File && identity.device == self.device)
    }

    /// The segment, whose zeroes are durable, is written in place and past the page cache.
    pub fn takes(&self, segment: &OpenedSegment) -> bool {
        segment.direct
            && segment.file.metadata().is_ok_and(|meta| meta.dev() == self.device)
            && takes_direct(&segment.file).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::Store;
    use towline_block::{Access, FileDisk};

    #[test]
    fn a_source_on_another_file_system_is_flushed_beside_the_spill() {
        let (disk, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm"));
        let Ok(memory) = memory else { return println!("skipped: no /dev/shm here") };
        let source =
            |dir: &Path| FileDisk::open_or_create(&dir.join("v"), 1 << 20, Access::Read).unwrap();
        assert_eq!(
            Medium::of_folder(&memory.path().join("not/there")),
            None,
            "tmpfs flushes nothing"
        );
        let Some(medium) = Medium::of_folder(&disk.path().join("not/there")) else {
            return println!("skipped: temporary files are not on ext4 here");
        };
        assert!(medium.holds(&source(disk.path())));
        assert!(!medium.holds(&source(memory.path())));
        let segment = |dir: &Path| Store::folder(dir.into()).open_for_writing(0).unwrap();
        assert!(medium.takes(&segment(disk.path())));
        assert!(!medium.takes(&segment(memory.path())));
    }
}
