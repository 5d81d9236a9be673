//! Small batches wait a moment for more records.

use super::cutter::{RECORDS_BATCH, RECORDS_BATCH_BYTES};
use std::time::{Duration, Instant};
use towline_journal::RingReader;
use towline_journal::format::Counter;

/// Records wait so long for others to fill their batch. Each batch is a sync at the target,
/// and where that shares a disk with the guests, their flushes wait for it.
const LINGER: Duration = Duration::from_millis(50);

/// Whether records wait for others.
#[derive(Default)]
pub(super) struct Linger {
    since: Option<Instant>,
    /// The ring's payload head when records were last cut.
    payload_head: u64,
}

impl Linger {
    /// Records wait.
    pub fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Whether `records` that wait go out now.
    pub fn is_over(&mut self, records: u64, is_urgent: bool, reader: &RingReader) -> bool {
        let (head, now) = (reader.get(Counter::PayloadHead), Instant::now());
        let is_full = records >= RECORDS_BATCH
            || head.saturating_sub(self.payload_head) >= RECORDS_BATCH_BYTES as u64;
        let since = *self.since.get_or_insert(now);
        if !is_urgent && !is_full && now.saturating_duration_since(since) < LINGER {
            return false;
        }
        (self.since, self.payload_head) = (None, head);
        true
    }
}
