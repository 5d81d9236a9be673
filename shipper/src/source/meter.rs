//! Progress of the baseline, lag, and the rates they are forecast by.

use std::time::Instant;
use towline_block::BLOCK_BYTES;
use towline_journal::format::Counter;
use towline_journal::progress::{Figure, Progress};
use towline_journal::{RingReader, unix_now_ns};

/// Rates, measured where the figures are published.
#[derive(Default)]
pub(crate) struct Meter {
    last: Option<(Instant, u64, u64)>,
    /// Baseline bytes a second and stream bytes made durable a second, smoothed.
    baseline_rate: f64,
    pub durable_rate: f64,
}

impl Meter {
    /// No journal is drained: the time till the next one is no measurement.
    pub fn pause(&mut self) {
        self.last = None;
    }

    pub fn publish(
        &mut self,
        now: Instant,
        reader: &RingReader,
        durable_bytes: u64,
        claims_count: bool,
        progress: &Progress,
    ) {
        let pending = reader.get(Counter::DirtyBlocks) + reader.get(Counter::ClaimedBlocks);
        let total: u64 = (0..reader.volume_count()).map(|i| reader.volume_size_bytes(i)).sum();
        // A new target of a group that had another one gets everything, too.
        let has_point = claims_count || progress.get(Figure::HasPoint) == 1;
        let healed = reader.get(Counter::HealedSeq) > 0 && has_point;
        // A pack completes many claims at once: what was read for it counts as done.
        let open = if claims_count { reader.get(Counter::DirtyBlocks) } else { pending };
        let rest = if healed { 0 } else { (open * BLOCK_BYTES).min(total) };
        let done = total - rest;
        if let Some((at, done_then, durable_then)) = self.last {
            let seconds = now.duration_since(at).as_secs_f64().max(1e-3);
            let blend = |old: f64, new: f64| if old == 0.0 { new } else { old * 0.8 + new * 0.2 };
            let covered = done.saturating_sub(done_then) as f64 / seconds;
            let durable = durable_bytes.saturating_sub(durable_then) as f64 / seconds;
            self.baseline_rate = blend(self.baseline_rate, covered);
            if durable > 0.0 {
                self.durable_rate = blend(self.durable_rate, durable);
            }
        }
        self.last = Some((now, done, durable_bytes));
        let eta_s = match (rest, self.baseline_rate) {
            (0, _) => 0,
            (_, rate) if rate < 1.0 => u64::MAX,
            (rest, rate) => (rest as f64 / rate).ceil() as u64,
        };
        progress.set(Figure::BaselineTotalBytes, total);
        progress.set(Figure::BaselineDoneBytes, done);
        progress.set(Figure::BaselineBytesPerS, if healed { 0 } else { self.baseline_rate as u64 });
        progress.set(Figure::BaselineEtaS, eta_s);
        if healed && progress.get(Figure::BaselineMs) == 0 {
            let since = unix_now_ns().saturating_sub(reader.created_unix_ns());
            progress.set(Figure::BaselineMs, (since / 1_000_000).max(1));
        }
        let in_ring =
            reader.get(Counter::PayloadHead).saturating_sub(reader.get(Counter::PayloadTail));
        let in_spill = reader.get(Counter::SpillUsedBytes) + reader.get(Counter::HistoryBytes);
        progress.set(Figure::LagBytes, in_ring + in_spill + pending * BLOCK_BYTES);
        let acked = reader.get(Counter::Acked);
        let oldest =
            (acked < reader.get(Counter::Head)).then(|| reader.record(acked + 1)).flatten();
        let oldest_ns = match reader.get(Counter::SpillOldestNs) {
            0 => oldest.map_or(0, |record| record.unix_ns),
            spilled => spilled,
        };
        let lag_ms = match oldest_ns {
            0 => 0,
            oldest_ns => unix_now_ns().saturating_sub(oldest_ns) / 1_000_000,
        };
        progress.set(Figure::LagMs, lag_ms);
    }
}
