//! What start leaves for later, so that guests are served first: the ring's pages mapped
//! and locked, and the payloads of what an earlier process journaled checked.
//!
//! Both take tens of milliseconds for a ring of 256 MiB. A kill damages no payload (its
//! record becomes visible behind it); what stray stores and bad memory did is found by
//! the check, or before it by whoever reads the payload, since every reader checks.

use super::*;
use std::ops::RangeInclusive;
use std::sync::Weak;

/// Starts the thread that settles the ring in which `records` were found.
pub(crate) fn start(journal: &Arc<Journal>, records: RangeInclusive<u64>) -> Result<()> {
    let (ring, weak) = (Arc::clone(&journal.ring), Arc::downgrade(journal));
    let thread = std::thread::Builder::new()
        .name("ring-settle".into())
        .spawn(move || {
            ring.settle();
            check(&ring, &weak, records);
        })
        .map_err(|e| Error::io("cannot start the thread that checks the ring", e))?;
    *journal.settling.lock().expect("no holder panics") = Some(thread);
    Ok(())
}

/// Checks payloads until the journal is closed. Records are freed and their room is used
/// again meanwhile: what looks damaged is looked at again where that cannot happen.
fn check(ring: &Ring, journal: &Weak<Journal>, records: RangeInclusive<u64>) {
    let mut payload = Vec::new();
    for seq in records {
        if is_sound(ring, seq, &mut payload) {
            continue;
        }
        let Some(journal) = journal.upgrade() else { return };
        let mut cursor = journal.lock_cursor();
        // Both move under this lock, before anything is freed. A record above them keeps
        // its extents hot (R7).
        let kept = ring.get(Counter::Acked).max(ring.get(Counter::Spilled));
        if seq <= kept || is_sound(ring, seq, &mut payload) {
            continue;
        }
        let Ok(record) = ring.record(seq) else { continue };
        tracing::error!(seq, "payload fails its checksum: its blocks go to the change map");
        journal.make_dirty(&mut cursor, record.volume, BlockRange::touching(record.extent));
        ring.commit(seq).store(commit_word(seq, SlotState::Failed), Ordering::SeqCst);
    }
}

/// Whether the record has no payload that somebody needs, or a whole one.
fn is_sound(ring: &Ring, seq: u64, payload: &mut Vec<u8>) -> bool {
    payload.clear();
    match ring.record(seq) {
        Ok(record) if record.state == SlotState::Done => ring.read_payload(&record, payload),
        _ => true,
    }
}

impl Journal {
    /// Waits until the ring in which this process found records is checked. For tests and
    /// tools; guests are served before that.
    pub fn wait_settled(&self) {
        let thread = self.settling.lock().expect("no holder panics").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that checks the ring panicked");
        }
    }
}
