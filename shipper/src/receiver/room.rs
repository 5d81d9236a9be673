//! Whether the disks have room for the images, for staging and for marks, told before it starts.
//!
//! An image is sparse: how much of it fills nobody knows before. So too little room for all of it
//! is a warning with figures; too little for what is staged before anything is written is a refusal.

use super::medium::Target;
use super::target::TargetDisk;
use super::{Layout, Limits};
use crate::error::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use towline_block::DiskKind;
use towline_block::size::format_size;
use towline_block::sys::free_bytes;

/// A file system, and what may come to lie there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    /// One path on it.
    path: PathBuf,
    free_bytes: u64,
    /// What the images lack to their full sizes.
    image_bytes: u64,
    /// What staging and marks may take.
    log_bytes: u64,
}

/// Refuses to begin where staging has no room; warns where the images may outgrow theirs.
///
/// # Errors
/// [`ErrorKind::NoSpace`], with figures.
pub fn check(layout: &Layout, targets: &[Target], limits: &Limits) -> Result<()> {
    let total: u64 = targets.iter().map(|target| target.disk.size_bytes()).sum();
    let needed = limits.staging_bytes_max.min(total);
    let free = free_bytes(&layout.dir).unwrap_or(u64::MAX);
    if free < needed {
        let what = format!(
            "{} has {} free, and what is staged there needs {}: free room, or give --state a disk that \
             has it",
            layout.dir.display(),
            format_size(free),
            format_size(needed)
        );
        return Err(Error::new(ErrorKind::NoSpace, what));
    }
    warn(layout, targets, limits);
    Ok(())
}

/// Warns where images, staging and marks may outgrow their file system.
pub fn warn(layout: &Layout, targets: &[Target], limits: &Limits) {
    for place in places(layout, targets, limits) {
        if let Some(what) = shortage(&place) {
            tracing::warn!("{what}");
        }
    }
}

fn places(layout: &Layout, targets: &[Target], limits: &Limits) -> Vec<Place> {
    let marks = match limits.marks.bytes_max {
        u64::MAX => 0,
        bytes => bytes,
    };
    let mut places = Vec::new();
    add(&mut places, &layout.dir, 0, limits.staging_bytes_max.saturating_add(marks));
    for target in targets {
        let TargetDisk::File(disk) = &target.disk else { continue };
        if disk.kind() == DiskKind::File {
            let allocated = std::fs::metadata(disk.path()).map_or(0, |meta| meta.blocks() * 512);
            add(&mut places, disk.path(), disk.size_bytes().saturating_sub(allocated), 0);
        }
    }
    places
}

/// What cannot be asked about has room.
fn add(places: &mut Vec<Place>, path: &Path, image_bytes: u64, log_bytes: u64) {
    let (Ok(meta), Ok(free_bytes)) = (std::fs::metadata(path), free_bytes(path)) else { return };
    let device = meta.dev();
    match places.iter_mut().find(|place| place.device == device) {
        Some(place) => {
            place.image_bytes = place.image_bytes.saturating_add(image_bytes);
            place.log_bytes = place.log_bytes.saturating_add(log_bytes);
        }
        None => {
            let path = path.to_owned();
            places.push(Place { device, path, free_bytes, image_bytes, log_bytes });
        }
    }
}

fn shortage(place: &Place) -> Option<String> {
    let needed = place.image_bytes.saturating_add(place.log_bytes);
    (place.free_bytes < needed).then(|| {
        format!(
            "the file system of {} has {} free; images there may grow by {}, staging and marks may take \
             {}: it is enough only while the images stay sparse, make {} more room in time",
            place.path.display(),
            format_size(place.free_bytes),
            format_size(place.image_bytes),
            format_size(place.log_bytes),
            format_size(needed - place.free_bytes)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::medium::Medium;
    use towline_block::{Access, FileDisk};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_shortage_is_told_with_its_figures() {
        let place = |free_gib: u64| Place {
            device: 1,
            path: "/images".into(),
            free_bytes: free_gib * GIB,
            image_bytes: 8 * GIB,
            log_bytes: 3 * GIB,
        };
        assert_eq!(shortage(&place(11)), None);
        let said = shortage(&place(6)).unwrap();
        for figure in ["/images", "6.00 GiB", "8.00 GiB", "3.00 GiB", "5.00 GiB"] {
            assert!(said.contains(figure), "{figure}: {said}");
        }
    }

    #[test]
    fn what_lies_on_one_file_system_is_added_up_and_allocated_blocks_need_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path());
        std::fs::create_dir_all(&layout.dir).unwrap();
        let mut targets = Vec::new();
        for name in ["a", "b"] {
            let access = Access::Own { wait: std::time::Duration::ZERO };
            let disk = FileDisk::open_or_create(&dir.path().join(name), 8 << 20, access).unwrap();
            targets.push(Target::new(name.parse().unwrap(), disk, Medium::default()));
        }
        targets[0].write(0, &[1; 1 << 20]).unwrap();
        targets[0].sync().unwrap();
        let mut limits = Limits { staging_bytes_max: 1 << 20, ..Limits::default() };
        limits.marks.bytes_max = 2 << 20;
        let found = places(&layout, &targets, &limits);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].log_bytes, 3 << 20);
        assert!(found[0].image_bytes <= 15 << 20 && found[0].image_bytes > 14 << 20, "{found:?}");
        check(&layout, &targets, &limits).unwrap();
    }

    #[test]
    fn without_room_for_staging_nothing_begins() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path());
        std::fs::create_dir_all(&layout.dir).unwrap();
        let access = Access::Own { wait: std::time::Duration::ZERO };
        // Larger than any disk of a machine that runs this.
        let disk = FileDisk::open_or_create(&dir.path().join("a"), 1 << 43, access).unwrap();
        let targets = [Target::new("a".parse().unwrap(), disk, Medium::default())];
        let limits = Limits { staging_bytes_max: u64::MAX, ..Limits::default() };
        let error = check(&layout, &targets, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("8.00 TiB"), "{error}");
    }
}
