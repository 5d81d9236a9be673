//! Every change the receiver makes to a file, in one place.
//!
//! An observer sees each change *before* it is made. Tests record them and
//! rebuild every state a crash could leave; production has none.

use super::target::TargetDisk;
use crate::batch::DIGEST_BYTES;
use crate::error::{Error, Result};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use towline_block::buffer::DIRECT_ALIGN;
use towline_block::{AlignedBuf, BLOCK_BYTES, Extent, VolumeName, copy};

/// Written at once past the page cache.
const PIECE_BYTES: usize = 1 << 20;

/// Where in such a file the next thing begins, behind one that ends at `end`.
pub fn aligned(end: u64) -> u64 {
    end.next_multiple_of(DIRECT_ALIGN as u64)
}

/// Read at once to compare: few round trips to a server, and little memory.
const COMPARE_BYTES: u64 = 4 * BLOCK_BYTES;

/// One change, about to be made.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Create { file: &'a Path },
    Write { file: &'a Path, offset: u64, bytes: &'a [u8] },
    Zero { file: &'a Path, extent: Extent },
    Truncate { file: &'a Path, len: u64 },
    Sync { file: &'a Path },
    Rename { from: &'a Path, to: &'a Path },
    Remove { file: &'a Path },
    SyncDir { dir: &'a Path },
}

pub trait Observe: Send + Sync {
    /// An error is what the medium answers instead of doing it.
    fn event(&self, event: Event<'_>) -> std::io::Result<()>;
}

/// The way to the disk.
#[derive(Clone, Default)]
pub struct Medium {
    observer: Option<Arc<dyn Observe>>,
}

impl Medium {
    pub fn observed(observer: Arc<dyn Observe>) -> Medium {
        Medium { observer: Some(observer) }
    }

    fn about(&self, verb: &str, path: &Path, event: Event<'_>) -> Result<()> {
        let Some(observer) = &self.observer else { return Ok(()) };
        observer.event(event).map_err(|e| failed(verb, path, e))
    }

    pub fn create(&self, path: &Path) -> Result<LogFile> {
        self.about("create", path, Event::Create { file: path })?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|e| failed("create", path, e))?;
        Ok(LogFile {
            file,
            path: path.to_owned(),
            len: 0,
            medium: self.clone(),
            passing: None,
            buffered: None,
        })
    }

    /// As [`Medium::create`], on somebody else's disk: what is there goes, and no link is
    /// followed.
    pub fn create_plain(&self, path: &Path) -> Result<LogFile> {
        if path.symlink_metadata().is_ok() {
            self.remove(path)?;
        }
        self.about("create", path, Event::Create { file: path })?;
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|e| failed("create", path, e))?;
        let (path, medium) = (path.to_owned(), self.clone());
        Ok(LogFile { file, path, len: 0, medium, passing: None, buffered: None })
    }

    /// As [`Medium::create`], of a file in which everything appended begins at a multiple of
    /// [`DIRECT_ALIGN`], the gaps zero; written past the page cache where the file system takes that.
    pub fn create_passing(&self, path: &Path) -> Result<LogFile> {
        let mut log = self.create(path)?;
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
        match direct {
            Ok(file) => log.buffered = Some(std::mem::replace(&mut log.file, file)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) => return Err(failed("open", path, e)),
        }
        log.passing = Some(AlignedBuf::default());
        Ok(log)
    }

    pub fn open(&self, path: &Path) -> Result<LogFile> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(|e| failed("open", path, e))?;
        let len = file.metadata().map_err(|e| failed("stat", path, e))?.len();
        Ok(LogFile {
            file,
            path: path.to_owned(),
            len,
            medium: self.clone(),
            passing: None,
            buffered: None,
        })
    }

    /// Opens what another process writes, to read only.
    pub fn view(path: &Path) -> Result<LogFile> {
        let file = File::open(path).map_err(|e| failed("open", path, e))?;
        let len = file.metadata().map_err(|e| failed("stat", path, e))?.len();
        let medium = Medium::default();
        Ok(LogFile { file, path: path.to_owned(), len, medium, passing: None, buffered: None })
    }

    /// Gone afterwards, also when it was not there. Not durable before
    /// [`Medium::sync_dir`].
    pub fn remove(&self, path: &Path) -> Result<()> {
        self.about("remove", path, Event::Remove { file: path })?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, e)),
            _ => Ok(()),
        }
    }

    pub fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.about("sync", dir, Event::SyncDir { dir })?;
        let sync = || File::open(dir)?.sync_all();
        sync().map_err(|e| failed("sync", dir, e))
    }

    /// Replaces a whole file, atomically and durably.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let beside = path.with_extension("tmp");
        let mut file = self.create(&beside)?;
        file.append(bytes)?;
        file.sync()?;
        self.rename(&beside, path)
    }

    /// As [`Medium::replace`], on somebody else's disk.
    pub fn replace_plain(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let beside = path.with_extension("tmp");
        let mut file = self.create_plain(&beside)?;
        file.append(bytes)?;
        file.sync()?;
        self.rename(&beside, path)
    }

    /// Within a folder; durable.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.about("rename", to, Event::Rename { from, to })?;
        fs::rename(from, to).map_err(|e| failed("replace", to, e))?;
        self.sync_dir(to.parent().unwrap_or(Path::new(".")))
    }
}

fn failed(verb: &str, path: &Path, error: std::io::Error) -> Error {
    Error::storage(format!("cannot {verb} {}", path.display()), error)
}

/// A file that grows at its end.
pub struct LogFile {
    file: File,
    path: PathBuf,
    len: u64,
    medium: Medium,
    /// What is written goes through here, a piece at a time.
    passing: Option<AlignedBuf>,
    /// Instead of `file`, when that takes no write past the page cache after all.
    buffered: Option<File>,
}

impl LogFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn end(&self) -> u64 {
        self.len
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match self.passing.take() {
            None => self.put(bytes),
            Some(mut piece) => {
                let appended = self.append_aligned(bytes, &mut piece);
                self.passing = Some(piece);
                appended
            }
        }
    }

    fn append_aligned(&mut self, bytes: &[u8], piece: &mut AlignedBuf) -> Result<()> {
        let needed = bytes.len().min(PIECE_BYTES).next_multiple_of(DIRECT_ALIGN);
        if piece.len() < needed {
            *piece = AlignedBuf::new(needed);
        }
        for part in bytes.chunks(PIECE_BYTES) {
            let whole = part.len().next_multiple_of(DIRECT_ALIGN);
            let room = piece.as_mut_slice().split_at_mut(whole).0;
            let (data, gap) = room.split_at_mut(part.len());
            copy(data, part);
            gap.fill(0);
            self.put(piece.as_slice().split_at(whole).0)?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let event = Event::Write { file: &self.path, offset: self.len, bytes };
        self.medium.about("write", &self.path, event)?;
        let mut written = self.file.write_all_at(bytes, self.len);
        if let Err(error) = &written
            && error.raw_os_error() == Some(libc::EINVAL)
            && let Some(buffered) = self.buffered.take()
        {
            self.file = buffered;
            written = self.file.write_all_at(bytes, self.len);
        }
        written.map_err(|e| failed("write", &self.path, e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Gives the page cache back what lies behind `from`, where the file system takes that advice.
    pub fn forget_cached(&self, from: u64) {
        let _ = fadvise(&self.file, from, None, Advice::DontNeed);
    }

    /// fdatasync.
    pub fn sync(&self) -> Result<()> {
        self.medium.about("sync", &self.path, Event::Sync { file: &self.path })?;
        self.file.sync_data().map_err(|e| failed("sync", &self.path, e))
    }

    pub fn truncate(&mut self, len: u64) -> Result<()> {
        self.medium.about("cut", &self.path, Event::Truncate { file: &self.path, len })?;
        self.file.set_len(len).map_err(|e| failed("cut", &self.path, e))?;
        self.len = len;
        Ok(())
    }

    /// Goes on writing at `len`, whatever lies behind it.
    pub fn rewind(&mut self, len: u64) {
        self.len = len;
    }

    /// How long the file is now, by whomever.
    pub fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| failed("stat", &self.path, e))?.len())
    }

    /// As much of `buf` as the file has from `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        read_at(&self.file, &self.path, buf, offset)
    }
}

/// As much of `buf` as `file` has from `offset`.
pub fn read_at(file: &File, path: &Path, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while let Some(free) = buf.get_mut(filled..)
        && !free.is_empty()
    {
        match file.read_at(free, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed("read", path, e)),
        }
    }
    Ok(filled)
}

/// One of the group's target disks.
#[derive(Clone)]
pub struct Target {
    pub name: VolumeName,
    pub disk: TargetDisk,
    medium: Medium,
}

impl Target {
    pub fn new(name: VolumeName, disk: impl Into<TargetDisk>, medium: Medium) -> Target {
        Target { name, disk: disk.into(), medium }
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_run(offset, &[bytes])
    }

    /// Writes `parts` one behind the other, beginning at `offset`.
    pub fn write_run(&self, offset: u64, parts: &[&[u8]]) -> Result<()> {
        let mut at = offset;
        for bytes in parts {
            self.announce(at, bytes)?;
            at += bytes.len() as u64;
        }
        self.disk.write_run(parts, offset)
    }

    /// Says that `bytes` will be written at `offset`, to whoever watches; the write itself is the
    /// caller's.
    pub fn announce(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.disk.path();
        self.medium.about("write", file, Event::Write { file, offset, bytes })
    }

    pub fn zero(&self, extent: Extent, keep_allocated: bool) -> Result<()> {
        let file = self.disk.path();
        self.medium.about("zero", file, Event::Zero { file, extent })?;
        self.disk.zero(extent, keep_allocated)
    }

    /// Whether the range reads as content of this BLAKE3 digest.
    pub fn has_digest(&self, extent: Extent, digest: &[u8; DIGEST_BYTES]) -> Result<bool> {
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; extent.len.min(COMPARE_BYTES) as usize];
        for piece in extent.pieces(COMPARE_BYTES) {
            let Some(bytes) = buf.get_mut(..piece.len as usize) else { return Ok(false) };
            self.disk.read_at(bytes, piece.offset)?;
            hasher.update(bytes);
        }
        Ok(hasher.finalize().as_bytes() == digest)
    }

    pub fn sync(&self) -> Result<()> {
        let file = self.disk.path();
        self.medium.about("sync", file, Event::Sync { file })?;
        self.disk.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_past_the_page_cache_is_aligned_and_a_refusal_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Medium::default().create_passing(&path).unwrap();
        log.append(&[1; 10]).unwrap();
        log.append(&vec![2; PIECE_BYTES + 1]).unwrap();
        // An offset that O_DIRECT refuses (where there is O_DIRECT).
        let odd = 100;
        log.rewind(log.end() + odd);
        log.append(&[3; 4096]).unwrap();
        log.sync().unwrap();
        let mut expected = vec![0; aligned(10) as usize];
        expected[..10].fill(1);
        expected.resize(expected.len() + PIECE_BYTES + DIRECT_ALIGN, 0);
        expected[4096..][..PIECE_BYTES + 1].fill(2);
        expected.resize(expected.len() + odd as usize, 0);
        expected.extend([3; 4096]);
        assert!(std::fs::read(&path).unwrap() == expected);
        assert_eq!(log.end(), expected.len() as u64);
    }
}
