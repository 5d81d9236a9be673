//! The map's thread: makes extents hot when asked, and cold when nothing of them is
//! open any more.
//!
//! An extent goes cold when it was not touched for a whole round, every record up to
//! the start of that round is durable at the target, no block of it is dirty or
//! claimed, and a source sync that began after all that has succeeded (R7).

use super::{Activity, Base, Bits, EXTENT_BYTES};
use crate::format::Counter;
use crate::map::VolumeMap;
use crate::ring::Ring;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use towline_block::{BlockRange, ErrorKind, Extent, Syncer, VolumeId};

/// What the cooler looks at, besides the map.
pub(crate) struct CoolerContext {
    /// Flushes each source on the map's own account.
    pub sources: Vec<Syncer>,
    /// Length of a round.
    pub round: Duration,
}

/// What was true when the last round began.
struct Round {
    touched: Vec<Vec<u64>>,
    head: u64,
}

impl Activity {
    /// The thread's body; ends with [`Activity::stop`].
    pub fn serve(&self, ring: &Ring, context: &mut CoolerContext) {
        let mut last: Option<Round> = None;
        let mut failed = false;
        loop {
            self.count_written(ring);
            let wanted = {
                let desk = self.desk();
                let (mut desk, timeout) = self
                    .changed
                    .wait_timeout_while(desk, context.round, |desk| {
                        desk.wanted.is_empty() && !desk.cool && !desk.stop
                    })
                    .expect("no holder of the desk panics");
                if desk.stop {
                    drop(desk);
                    self.count_written(ring);
                    return;
                }
                let cool = desk.cool || timeout.timed_out();
                if desk.wanted.is_empty() && cool {
                    drop(desk);
                    last = self.round(ring, context, last, &mut failed);
                    let mut desk = self.desk();
                    if desk.cool {
                        desk.cool = false;
                        desk.rounds += 1;
                        self.changed.notify_all();
                    }
                    continue;
                }
                (std::mem::take(&mut desk.wanted), desk.asked)
            };
            self.make_hot(wanted);
        }
    }

    fn count_written(&self, ring: &Ring) {
        let written = ring.counter(Counter::ActivityWrittenBytes);
        written.fetch_add(self.take_written_bytes(), SeqCst);
    }

    pub(super) fn make_hot(&self, (wanted, asked): (Vec<(usize, u64)>, u64)) {
        let mut file = self.file.lock().expect("no holder of the map file panics");
        match file.mark(&wanted, true) {
            Ok(()) => {
                if self.invalid.swap(false, SeqCst) {
                    // Writes went past the map: the file's words have what they touched.
                    match file.store_all() {
                        Ok(()) => tracing::info!("the state disk answers again"),
                        Err(e) => self.lost(&e),
                    }
                }
            }
            Err(e) => self.lost(&e),
        }
        // Only now: others that write these extents go on when they see the bits.
        for (volume, extent) in &wanted {
            let (word, bit) = self.hot.word(*volume, *extent);
            word.fetch_or(bit, SeqCst);
        }
        drop(file);
        // A failing state disk stops no guest either.
        let mut desk = self.desk();
        desk.served = desk.served.max(asked);
        self.changed.notify_all();
    }

    fn lost(&self, error: &crate::Error) {
        if !self.invalid.swap(true, SeqCst) {
            tracing::error!(
                "{error}: the guest goes on; until the disk answers, a power loss may need a \
                 comparison of everything (--attach resync)"
            );
        }
    }

    /// One round; what the next one compares with.
    fn round(
        &self,
        ring: &Ring,
        context: &mut CoolerContext,
        last: Option<Round>,
        failed: &mut bool,
    ) -> Option<Round> {
        if *failed || self.invalid.load(SeqCst) {
            return None;
        }
        // First the touches, then the head: a touch follows its number.
        let touched = take(&self.touched);
        let now = Round { touched, head: ring.get(Counter::Head) };
        let Some(last) = last else { return Some(now) };
        // Nothing of an incarnation goes cold before a target has reached it: until then
        // a second power loss gives up what the spill has of the one before. After it,
        // the spill is as good as the target (docs/design/0004, history).
        let acked = ring.get(Counter::Acked);
        let safe = acked.max(ring.get(Counter::SpillDurable));
        if acked == 0 || safe < last.head {
            return Some(now);
        }
        let base = Base {
            incarnation: ring.incarnation(),
            seq: safe,
            claims: ring.get(Counter::AckedClaims),
        };
        let idle = self.idle(ring, &last, &now);
        if idle.is_empty() {
            return Some(now);
        }
        let mut synced = context.sources.iter_mut().map(|sync| sync());
        if let Some(error) = synced.find_map(std::result::Result::err) {
            if error.kind() == ErrorKind::Unreachable {
                tracing::debug!(%error, "no extent goes cold in this round");
                return Some(now);
            }
            *failed = true;
            tracing::error!(
                "a source could not be flushed ({error}): no extent goes cold any more"
            );
            return None;
        }
        self.make_cold(idle, base);
        Some(now)
    }

    /// Hot extents that nothing holds open, as far as can be told without stopping
    /// anyone.
    fn idle(&self, ring: &Ring, last: &Round, now: &Round) -> Vec<(usize, u64)> {
        let mut idle = Vec::new();
        for (volume, count) in self.extents.iter().enumerate() {
            let size = ring.volumes[volume].size_bytes.get();
            let map = VolumeMap::new(ring, VolumeId(volume as u16));
            for extent in 0..*count {
                let (word, bit) = self.hot.word(volume, extent);
                let at = (extent / 64) as usize;
                let was_touched = (last.touched[volume][at] | now.touched[volume][at]) & bit != 0;
                if was_touched || word.load(SeqCst) & bit == 0 {
                    continue;
                }
                let offset = extent * EXTENT_BYTES;
                let range = Extent::new(offset, EXTENT_BYTES.min(size - offset));
                if !map.is_pending(BlockRange::touching(range)) {
                    idle.push((volume, extent));
                }
            }
        }
        idle
    }

    pub(super) fn make_cold(&self, idle: Vec<(usize, u64)>, base: Base) {
        let mut file = self.file.lock().expect("no holder of the map file panics");
        if let Err(e) = file.set_base(base) {
            return self.lost(&e);
        }
        let mut cooled = Vec::new();
        for (volume, extent) in idle {
            let (word, bit) = self.hot.word(volume, extent);
            word.fetch_and(!bit, SeqCst);
            // A writer that came between has left its touch before it looked.
            if self.touched.word(volume, extent).0.load(SeqCst) & bit != 0 {
                word.fetch_or(bit, SeqCst);
            } else {
                cooled.push((volume, extent));
            }
        }
        tracing::debug!(extents = cooled.len(), "extents go cold");
        if let Err(e) = file.mark(&cooled, false) {
            self.lost(&e);
        }
    }
}

fn take(bits: &Bits) -> Vec<Vec<u64>> {
    bits.volumes
        .iter()
        .map(|words| words.iter().map(|word| word.swap(0, SeqCst)).collect())
        .collect()
}
