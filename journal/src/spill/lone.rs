//! A flush that writes the spill itself.
//!
//! With durability "flush" and one flush for source and spill (`joint.rs`) a record has to
//! be on disk before the flush is issued. Where one client writes a little and waits for its
//! flush, the persister would be woken for the record, and wake the client's thread when it
//! is written: two wake-ups that cost more than the write. So that thread takes the pen,
//! writes, and flushes; meanwhile the persister is lazy:
//!
//! ```text
//!           such a flush
//!         +---------------------------------------+
//!         |                                       v
//!       eager: records as they come             lazy: what is asked for
//!         ^                                       |
//!         +---------------------------------------+
//!           more than LAZY_* unspilled, or no such flush for LAZY_FOR
//! ```
//! Nothing rests on it but time: a flush whose records are not on disk asks the persister.

use super::layout::{SPAN_BYTES_MAX, SPANS_END};
use super::persister::{Current, Pen, Persister, now, segment_file};
use crate::append::Cursor;
use crate::durable::{self, Event};
use crate::error::{Error, Result};
use crate::format::Counter;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A flush writes at most so many records, and payload, itself.
const LAZY_RECORDS: u64 = 64;
const LAZY_BYTES: u64 = 128 << 10;
/// The persister is lazy for so long after such a flush.
pub(super) const LAZY_FOR: Duration = Duration::from_secs(1);

const _: () = assert!(LAZY_BYTES < SPAN_BYTES_MAX);

impl Cursor {
    /// The persister is woken before a flush would have too much to write.
    pub(super) fn arm_lazy(&mut self) {
        self.wake_seq = self.wake_seq.min(self.freed_seq + LAZY_RECORDS);
        self.wake_payload = self.wake_payload.min(self.payload_tail + LAZY_BYTES);
    }

    fn is_little(&self) -> bool {
        self.next_seq < self.freed_seq + LAZY_RECORDS
            && self.payload_head < self.payload_tail + LAZY_BYTES
    }
}

impl Current {
    pub(super) fn has_room(&self) -> bool {
        self.offset + SPAN_BYTES_MAX <= SPANS_END
    }
}

impl Persister {
    /// Writes all records up to `seq` on this thread; a flush of the device is what they
    /// then need. False when that is for the persister, who was not asked.
    pub fn write_now(&self, seq: u64) -> bool {
        self.spill.lazy.store(true, Ordering::SeqCst);
        let Ok(mut pen) = self.pen.try_lock() else { return false };
        pen.write_now(seq).unwrap_or_else(|error| {
            pen.fault(&error);
            false
        })
    }
}

impl Pen {
    fn write_now(&mut self, seq: u64) -> Result<bool> {
        self.be_lazy();
        let from = self.kept() + 1;
        if seq < from {
            return Ok(true);
        }
        let is_able = self.retry_at.is_none()
            && !self.full
            && self.unsynced.iter().all(|segment| segment.plain)
            && self.current.as_ref().is_some_and(|c| c.plain && c.has_room());
        let is_final = seq <= self.owner.ring.get(Counter::Done);
        if !is_able || !is_final || !self.owner.cursor.lock().is_little() {
            return Ok(false);
        }
        let mut spans = self.build(from, seq, 1);
        if spans.last().is_none_or(|span| span.last_seq < seq) {
            self.memory.extend(spans.into_iter().map(|span| span.storage));
            return Ok(false);
        }
        for span in &mut spans {
            self.write_here(&span.storage[span.start..span.start + span.bytes])?;
            self.memory.push(std::mem::take(&mut span.storage));
        }
        self.written(&spans);
        Ok(true)
    }

    fn be_lazy(&mut self) {
        self.owner.cursor.lock().arm_lazy();
        if self.lazy_until.replace(now() + LAZY_FOR).is_none() {
            // To look at its clock from now on.
            self.spill.wake();
        }
    }

    fn write_here(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let at = current.base + current.offset;
        let file = segment_file(&self.spill, current.file);
        durable::about(Event::WriteAt { file: &file, at, bytes });
        current.direct.write_all_at(bytes, at).map_err(|e| {
            let path = self.spill.store.path().display();
            Error::io(format!("cannot write the spill in {path}"), e)
        })?;
        current.offset += bytes.len() as u64;
        Ok(())
    }

    /// Whether records are left to flushes.
    pub(super) fn look_at_laziness(&mut self) {
        if !self.spill.lazy.load(Ordering::SeqCst) {
            return;
        }
        let until = *self.lazy_until.get_or_insert_with(|| now() + LAZY_FOR);
        if now() >= until || !self.owner.cursor.lock().is_little() {
            self.lazy_until = None;
            self.spill.lazy.store(false, Ordering::SeqCst);
        }
    }
}
