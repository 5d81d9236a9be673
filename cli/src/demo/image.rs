//! The demo's disks: an ext4 file system with real files in it, or a copy of the
//! user's image, and sparse copies of either.

use super::tools;
use anyhow::{Context, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Folders with real files of many sizes, present on any Debian machine.
const REAL_FILES: [&str; 4] =
    ["/usr/share/doc", "/usr/share/perl", "/usr/share/zoneinfo", "/usr/lib/x86_64-linux-gnu"];

/// Share of the disk that is filled with real files, in percent: enough to ship,
/// with room for the workload.
const FILL_PERCENT: u64 = 40;

/// Larger files would leave room for few others.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Inodes that mke2fs makes for small disks run out beyond this.
const FILES_MAX: u64 = 3000;

/// Where ext2, 3 and 4 keep their magic number.
const EXT_MAGIC_OFFSET: u64 = 1024 + 56;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];

/// Every disk's size is a multiple of this.
const SECTOR_BYTES: u64 = 4096;

/// What the disk was filled with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filled {
    pub files: u64,
    pub bytes: u64,
}

/// Makes an ext4 file system of `size_bytes` in a new file at `image`, filled with
/// files of this machine.
pub fn build_ext4(image: &Path, size_bytes: u64, scratch: &Path) -> anyhow::Result<Filled> {
    let tree = scratch.join("files");
    std::fs::create_dir_all(tree.join("copied"))?;
    let filled = gather(&tree.join("copied"), size_bytes / 100 * FILL_PERCENT)?;
    File::create_new(image)
        .and_then(|file| file.set_len(size_bytes))
        .with_context(|| format!("cannot create {}", image.display()))?;
    let tree_arg = tree.to_string_lossy();
    let image_arg = image.to_string_lossy();
    tools::run(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", &tree_arg, &image_arg],
    )?;
    std::fs::remove_dir_all(&tree).context("cannot remove the gathered files")?;
    Ok(filled)
}

/// Copies real files into `to`, flat, until `budget` bytes are reached.
fn gather(to: &Path, budget: u64) -> anyhow::Result<Filled> {
    let mut filled = Filled::default();
    let mut folders: Vec<PathBuf> = REAL_FILES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            }
            let size = entry.metadata().map_or(0, |meta| meta.len());
            if !kind.is_file() || size > FILE_BYTES_MAX || filled.bytes + size > budget {
                continue;
            }
            let name = format!("{:04}-{}", filled.files, entry.file_name().to_string_lossy());
            if std::fs::copy(entry.path(), to.join(name)).is_ok() {
                filled.files += 1;
                filled.bytes += size;
            }
            if filled.files >= FILES_MAX || filled.bytes + SECTOR_BYTES > budget {
                return Ok(filled);
            }
        }
    }
    Ok(filled)
}

/// Copies a disk image without filling its holes, sharing blocks where the file
/// system can.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from_arg, to_arg) = (from.to_string_lossy(), to.to_string_lossy());
    tools::run("cp", &["--reflink=auto", "--sparse=always", "--", &from_arg, &to_arg])
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies the user's raw image to `to`, which is then the demo's disk.
pub fn adopt(user: &Path, to: &Path) -> anyhow::Result<u64> {
    let meta = std::fs::metadata(user)
        .map_err(|e| crate::exit::usage(format!("cannot use --image {}: {e}", user.display())))?;
    if !meta.is_file() || meta.len() == 0 || !meta.len().is_multiple_of(512) {
        return Err(crate::exit::usage(format!(
            "--image {} is not a raw disk image: give a regular file whose size is a multiple of \
             512 (convert others by `qemu-img convert -O raw`)",
            user.display()
        )));
    }
    copy(user, to)?;
    Ok(meta.len())
}

/// Whether an ext2, 3 or 4 file system begins at the disk's first byte.
pub fn has_ext(disk: &Path) -> bool {
    let mut magic = [0; 2];
    File::open(disk).and_then(|file| file.read_exact_at(&mut magic, EXT_MAGIC_OFFSET)).is_ok()
        && magic == EXT_MAGIC
}

/// Replays the file system's journal in this *copy*, then checks it strictly.
pub fn fsck(copy: &Path) -> anyhow::Result<()> {
    let path = copy.to_string_lossy();
    // `-y`: without a terminal it would not start. It ends with 1 where it replayed.
    let replayed = tools::output("e2fsck", &["-y", "-E", "journal_only", &path])?;
    if !matches!(replayed.status.code(), Some(0 | 1)) {
        bail!("e2fsck could not replay the journal: {}", last_words(&replayed));
    }
    let checked = tools::output("e2fsck", &["-f", "-n", &path])?;
    if !checked.status.success() {
        bail!("e2fsck -fn found damage: {}", last_words(&checked));
    }
    Ok(())
}

fn last_words(output: &std::process::Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_disk_is_a_clean_ext4_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("fs.img");
        if tools::find("mke2fs").is_none() {
            eprintln!("skipped: mke2fs is not installed");
            return;
        }
        let filled = build_ext4(&image, 32 << 20, dir.path()).unwrap();
        assert!(filled.files > 0 && has_ext(&image));
        let copied = dir.path().join("copy.img");
        copy(&image, &copied).unwrap();
        fsck(&copied).unwrap();
        // The inode table of group 0 lies in the first MiB of so small a disk.
        let file = File::options().write(true).open(&copied).unwrap();
        file.write_all_at(&[0xaa; 64 << 10], 300 << 10).unwrap();
        assert!(fsck(&copied).is_err());
    }

    #[test]
    fn what_is_no_raw_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("odd");
        std::fs::write(&odd, "not a disk").unwrap();
        assert!(adopt(&odd, &dir.path().join("x")).unwrap_err().to_string().contains("raw"));
        assert!(adopt(&dir.path().join("none"), &dir.path().join("x")).is_err());
    }
}
