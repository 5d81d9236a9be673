//! The file or device that is written to death: only what is meant for that.

use super::machine::free_bytes;
use anyhow::{Context, bail};
use rand::RngExt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file with this ending says itself that it may be overwritten.
pub const SCRATCH_ENDING: &str = "towline-scratch";

/// Writes of this size leave folios of one page in the page cache. Large ones, which
/// readahead makes, cost a later 4 KiB write ten times as much (33 instead of 2.5 us on
/// ext4), and whoever came first would decide for all.
const FILL_BYTES: usize = 4096;

/// Smallest disk: workloads need room to scatter.
pub const SIZE_BYTES_MIN: u64 = 64 << 20;

/// The disk under test, and the folder for all else.
#[derive(Debug)]
pub struct Scratch {
    pub disk: PathBuf,
    pub size_bytes: u64,
    pub is_device: bool,
    created: bool,
    /// State folders, sockets, targets, logs; on the same file system as the disk.
    dir: tempfile::TempDir,
    /// Rings, in shared memory.
    rings: tempfile::TempDir,
}

/// Why the path is not used. What to do is in the text.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Scratch {
    /// Looks whether `path` may be used, without touching it: returns its size, `None`
    /// for a new file.
    ///
    /// # Errors
    /// [`Refused`] for a file or device that exists, without `overwrite`; for one in
    /// use, always.
    pub fn check(path: &Path, overwrite: bool) -> anyhow::Result<Option<u64>> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
        };
        let device = meta.file_type().is_block_device();
        if !device && !meta.is_file() {
            return Err(refused(path, "is neither a file nor a block device"));
        }
        let named = path.extension().is_some_and(|ending| ending == SCRATCH_ENDING);
        if !(overwrite || named && !device) {
            let why = format!(
                "exists, and this writes all over it: give the name of a new file, or \
                 --overwrite if nothing on it is needed (files that end in .{SCRATCH_ENDING} \
                 need no --overwrite)"
            );
            return Err(refused(path, &why));
        }
        let mut open = OpenOptions::new();
        open.read(true).write(true);
        if device {
            // The kernel refuses this for a device that is mounted or part of another.
            open.custom_flags(libc::O_EXCL);
        }
        let file = open.open(path).map_err(|e| refused(path, &format!("cannot be used: {e}")))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused(path, "is in use: another process holds its lock"));
            }
            Err(TryLockError::Error(e)) => return Err(e).context("cannot lock the disk"),
        }
        Ok(Some((&file).seek(SeekFrom::End(0))?))
    }

    /// Takes the disk into use. A new file gets `size_bytes`; of one that exists at
    /// most that is used.
    pub fn make(path: &Path, size_bytes: u64, overwrite: bool) -> anyhow::Result<Scratch> {
        let found = Scratch::check(path, overwrite)?;
        let size_bytes = found.unwrap_or(size_bytes).min(size_bytes) >> 20 << 20;
        if size_bytes < SIZE_BYTES_MIN {
            let why =
                format!("is too small: {size_bytes} bytes, at least {SIZE_BYTES_MIN} are needed");
            return Err(refused(path, &why));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let is_device =
            std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        let temp = std::env::temp_dir();
        let beside = if is_device { temp.as_path() } else { parent };
        // The disk, a replica with its staging, and spill.
        let needed = 3 * size_bytes + if found.is_none() { size_bytes } else { 0 };
        if let Some(free) = free_bytes(beside).filter(|&free| free < needed) {
            bail!(
                "{} has {free} bytes free, {needed} are needed: give a smaller --size or another \
                 place",
                beside.display()
            );
        }
        let folder = |at: &Path| {
            let made = tempfile::Builder::new().prefix("towline-bench-").tempdir_in(at);
            made.with_context(|| format!("cannot make a folder in {}", at.display()))
        };
        let (dir, rings) = (folder(beside)?, folder(Path::new("/dev/shm"))?);
        let disk = std::path::absolute(path)?;
        if found.is_none() {
            File::create_new(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
        }
        let scratch = Scratch { disk, size_bytes, is_device, created: found.is_none(), dir, rings };
        scratch.fill()?;
        Ok(scratch)
    }

    pub fn dir(&self) -> PathBuf {
        std::path::absolute(self.dir.path()).unwrap_or_else(|_| self.dir.path().into())
    }

    pub fn rings(&self) -> &Path {
        self.rings.path()
    }

    /// A path in the folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Everything written, on disk, and in the page cache in small folios: the state
    /// in which every server finds it.
    pub fn fill(&self) -> anyhow::Result<()> {
        let at = || format!("cannot fill {}", self.disk.display());
        let file = OpenOptions::new().write(true).open(&self.disk).with_context(at)?;
        file.sync_all().with_context(at)?;
        drop_cache(&self.disk);
        let mut block = [0; FILL_BYTES];
        rand::rng().fill(&mut block[..]);
        for offset in (0..self.size_bytes).step_by(FILL_BYTES) {
            // No two blocks are equal, so nothing can be saved on them.
            block[..8].copy_from_slice(&offset.to_le_bytes());
            file.write_all_at(&block, offset).with_context(at)?;
        }
        file.sync_all().with_context(at)
    }

    /// Has everything written so far on disk, so that a cell does not pay for the one
    /// before.
    pub fn settle(&self) {
        // Best effort: servers write through their own descriptors in any case.
        if let Ok(file) = File::open(&self.disk) {
            let _ = file.sync_data();
        }
        let _ = Command::new("sync").arg("-f").arg(self.dir.path()).status();
    }

    /// Removes what a server left in the folder; the disk stays.
    pub fn clear(&self) -> anyhow::Result<()> {
        for dir in [self.dir(), self.rings.path().into()] {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                removed.with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.created {
            // A file that somebody removed before is gone as well.
            let _ = std::fs::remove_file(&self.disk);
        }
    }
}

/// Empties the file's page cache, by coreutils' `dd`, which may ask the kernel for it.
fn drop_cache(path: &Path) {
    let mut of = std::ffi::OsString::from("of=");
    of.push(path);
    let _ = Command::new("dd")
        .arg(of)
        .args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

fn refused(path: &Path, why: &str) -> anyhow::Error {
    Refused(format!("{} {why}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious.raw");
        std::fs::write(&path, b"a guest's disk").unwrap();
        let error = Scratch::make(&path, SIZE_BYTES_MIN, false).unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().contains("--overwrite"), "{error:#}");
        assert_eq!(std::fs::read(&path).unwrap(), b"a guest's disk");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made");
    }

    #[test]
    fn a_file_in_use_is_refused_even_when_it_may_be_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(SIZE_BYTES_MIN).unwrap();
        file.lock().unwrap();
        let error = Scratch::make(&path, SIZE_BYTES_MIN, true).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error:#}");
    }

    #[test]
    fn a_new_file_is_made_filled_and_removed_with_all_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new.raw");
        let scratch = Scratch::make(&path, SIZE_BYTES_MIN, false).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len() as u64, SIZE_BYTES_MIN);
        assert!(content.chunks(4096).all(|block| block[8..].iter().any(|&byte| byte != 0)));
        std::fs::write(scratch.at("left"), b"x").unwrap();
        let rings = scratch.rings().to_path_buf();
        drop(scratch);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!rings.exists());
    }

    #[test]
    fn a_file_named_as_scratch_is_used_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("x.{SCRATCH_ENDING}"));
        File::create(&path).unwrap().set_len(SIZE_BYTES_MIN + 5).unwrap();
        let scratch = Scratch::make(&path, 1 << 40, false).unwrap();
        assert_eq!(scratch.size_bytes, SIZE_BYTES_MIN);
        drop(scratch);
        assert!(path.exists());
    }
}
