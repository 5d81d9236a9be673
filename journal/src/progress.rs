//! The shipper's figures, in a mapped page that `kill -9` does not lose and that
//! `towline status` reads without asking anyone. One 64-bit word a figure.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::sync::Ordering;
use crate::sys::{Mapping, Use};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const PAGE_BYTES: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"TWLPROG1");
/// Why the rate in force is what it is: a length and a text.
const RATE_OFFSET: u64 = 1024;
/// Longest text that is kept there.
pub const RATE_BYTES_MAX: usize = 512;
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
    /// Limits in force, a second, 0 where there is none: bytes and operations of the
    /// group, then of the link that its shipper's groups share.
    RateBytesPerS = 28,
    RateOpsPerS = 29,
    LinkBytesPerS = 30,
    LinkOpsPerS = 31,
    /// Which `throttle.json` of the group and of the link the shipper has taken; 0: none.
    ThrottleGeneration = 32,
    LinkThrottleGeneration = 33,
    /// Incarnation and record up to which the target has applied the stream, as far as is known.
    AppliedIncarnation = 34,
    AppliedSeq = 35,
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
        let map = Mapping::new(&file, PAGE_BYTES, Use::Write)?;
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
        let map = Mapping::new(&file, PAGE_BYTES, Use::Look)?;
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
        self.set_text(ERROR_OFFSET, ERROR_BYTES_MAX, text);
    }

    pub fn error(&self) -> Option<String> {
        self.text(ERROR_OFFSET, ERROR_BYTES_MAX)
    }

    /// Why the rate in force is what it is.
    pub fn set_rate_reason(&self, text: &str) {
        self.set_text(RATE_OFFSET, RATE_BYTES_MAX, text);
    }

    pub fn rate_reason(&self) -> Option<String> {
        self.text(RATE_OFFSET, RATE_BYTES_MAX)
    }

    fn set_text(&self, offset: u64, bytes_max: usize, text: &str) {
        let mut end = text.len().min(bytes_max);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.map.write(offset + 8, &text.as_bytes()[..end]);
        self.map.word(offset).store(end as u64, Ordering::Release);
    }

    fn text(&self, offset: u64, bytes_max: usize) -> Option<String> {
        let len = self.map.word(offset).load(Ordering::Acquire) as usize;
        if len == 0 || len > bytes_max {
            return None;
        }
        let mut bytes = vec![0; len];
        self.map.read(offset + 8, &mut bytes);
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
        page.set_rate_reason("a window");
        drop(page);
        let view = Progress::view(&path).unwrap().unwrap();
        assert_eq!(view.get(Figure::SentStreamBytes), 9);
        assert_eq!(view.error().as_deref(), Some("no route: retry"));
        assert_eq!(view.rate_reason().as_deref(), Some("a window"));
        Progress::open(&path).unwrap().set_error("");
        assert_eq!(view.error(), None);
    }
}
