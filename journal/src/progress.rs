//! The shipper's figures, in a mapped page that `kill -9` does not lose and that
//! `towline status` reads without asking anyone. One 64-bit word a figure.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::Mapping;
use crate::sys::sync::Ordering;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const PAGE_BYTES: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"TWLPROG1");
const ERROR_OFFSET: u64 = 2048;
/// Longest last error that is kept.
pub const ERROR_BYTES_MAX: usize = 1024;

/// Which figure. The number is its word in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Figure {
    /// Process id of the shipper.
    Pid = 1,
    /// Unix time of the last update, nanoseconds.
    HeartbeatNs = 2,
    /// 1 while a session with the target stands.
    Connected = 3,
    /// Stream bytes handed to the network, since the target's first batch.
    SentStreamBytes = 4,
    /// Stream bytes the target durably has.
    DurableStreamBytes = 5,
    /// Stream bytes sent more than once.
    ResentBytes = 6,
    /// Number of the last durable batch.
    DurableNumber = 7,
    /// Incarnation and record of the last durable batch.
    DurableIncarnation = 8,
    DurableSeq = 9,
    /// 1 while the target has a point.
    HasPoint = 10,
    /// Record of the newest point.
    PointSeq = 11,
    /// Bytes of volumes that the baseline covers, and how many are done.
    BaselineTotalBytes = 12,
    BaselineDoneBytes = 13,
    BaselineBytesPerS = 14,
    /// Seconds left; `u64::MAX`: unknown.
    BaselineEtaS = 15,
    /// Age of the oldest change the target lacks, milliseconds.
    LagMs = 16,
    /// Bytes of changes the target lacks.
    LagBytes = 17,
    /// Network sessions opened.
    Sessions = 18,
    /// Most bytes allowed to be sent and not yet durable.
    WindowBytes = 19,
    /// Data bytes shipped of blocks and of records (before framing).
    BlockBytes = 20,
    RecordBytes = 21,
    /// 1 while a cutover is on its way.
    CutoverRunning = 22,
    /// When the baseline was complete, milliseconds after it began; 0: not yet.
    BaselineMs = 23,
    /// Payload bytes put into batches, those that a later operation of the same batch
    /// overwrote, and what the rest was stored as (compressed).
    CutBytes = 24,
    CoalescedBytes = 25,
    StoredBytes = 26,
    /// Time spent on encoding batches: coalescing, compressing, hashing.
    EncodeNs = 27,
}

pub struct Progress {
    map: Mapping,
}

impl Progress {
    /// Opens the shipper's page for writing; figures of an earlier run stay.
    pub fn open(path: &Path) -> Result<Progress> {
        let what = |e| Error::io(format!("cannot open {}", path.display()), e);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(what)?;
        file.set_len(PAGE_BYTES).map_err(what)?;
        let map = Mapping::new(&file, PAGE_BYTES, true)?;
        map.word(0).store(MAGIC, Ordering::Release);
        Ok(Progress { map })
    }

    /// Read-only view; `None` when no shipper ever ran.
    pub fn view(path: &Path) -> Result<Option<Progress>> {
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("cannot open {}", path.display()), e)),
        };
        let map = Mapping::new(&file, PAGE_BYTES, false)?;
        if map.word(0).load(Ordering::Acquire) != MAGIC {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{} is not a shipper's page of this version", path.display()),
            ));
        }
        Ok(Some(Progress { map }))
    }

    pub fn get(&self, figure: Figure) -> u64 {
        self.map.word(figure as u64 * 8).load(Ordering::Acquire)
    }

    pub fn set(&self, figure: Figure, value: u64) {
        self.map.word(figure as u64 * 8).store(value, Ordering::Release);
    }

    pub fn add(&self, figure: Figure, value: u64) {
        self.map.word(figure as u64 * 8).fetch_add(value, Ordering::AcqRel);
    }

    /// The last error, for `status`; an empty text means that all is well.
    pub fn set_error(&self, text: &str) {
        let mut end = text.len().min(ERROR_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.map.write(ERROR_OFFSET + 8, &text.as_bytes()[..end]);
        self.map.word(ERROR_OFFSET).store(end as u64, Ordering::Release);
    }

    pub fn error(&self) -> Option<String> {
        let len = self.map.word(ERROR_OFFSET).load(Ordering::Acquire) as usize;
        if len == 0 || len > ERROR_BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; len];
        self.map.read(ERROR_OFFSET + 8, &mut bytes);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_outlive_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        assert!(Progress::view(&path).unwrap().is_none());
        let page = Progress::open(&path).unwrap();
        page.set(Figure::SentStreamBytes, 7);
        page.add(Figure::SentStreamBytes, 2);
        page.set_error("no route: retry");
        drop(page);
        let view = Progress::view(&path).unwrap().unwrap();
        assert_eq!(view.get(Figure::SentStreamBytes), 9);
        assert_eq!(view.error().as_deref(), Some("no route: retry"));
        Progress::open(&path).unwrap().set_error("");
        assert_eq!(view.error(), None);
    }
}
