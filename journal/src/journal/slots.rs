//! The slots behind the target's ack, closed at start (R1): what was open gets its
//! outcome, and the cursor is rebuilt from what the slots say.

use super::*;

/// Scans the slots behind the target's ack, closes every record without outcome
/// (R1) and rebuilds the cursor from what the slots say.
pub(crate) fn close_open_records(
    ring: &Ring,
    options: &Options,
    report: &mut OpenReport,
) -> Result<Cursor> {
    // What is spilled no longer needs its slot.
    let acked = ring.get(Counter::Acked);
    let kept = acked.max(ring.get(Counter::Spilled));
    let slots = ring.slots();
    let spilled_too_far = kept > acked && kept > ring.get(Counter::Done);
    if kept > SEQ_MAX - slots || spilled_too_far {
        let what = format!("the ring of group {} counts {kept} records", options.group);
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    let head = (kept + 1..=kept + slots)
        .rev()
        .find(|seq| commit_parts(ring.commit(*seq).load(Ordering::Acquire)).0 == *seq)
        .unwrap_or(kept);
    let mut cursor = Cursor {
        next_seq: head + 1,
        payload_head: 0,
        payload_tail: u64::MAX,
        freed_seq: kept,
        whole: ring.get(Counter::Whole) == 1,
        wake_payload: u64::MAX,
        wake_seq: u64::MAX,
    };
    report.records = head - acked;
    for seq in kept + 1..=head {
        let record = match ring.record(seq) {
            Ok(record) => record,
            Err(SlotFault::OtherRecord { .. }) => {
                void_record(ring, seq, options);
                continue;
            }
            Err(fault) => {
                // Its commit word is right, its content is not: memory was overwritten,
                // and with it the knowledge of which blocks it touched.
                let what = format!("record {seq} of group {}: {fault:?}", options.group);
                return Err(Error::new(ErrorKind::Damaged, what));
            }
        };
        match record.control {
            Some(Control::Break | Control::Resync) => cursor.whole = false,
            Some(Control::Heal) => {
                cursor.whole = true;
                ring.counter(Counter::HealedSeq).fetch_max(seq, Ordering::SeqCst);
            }
            _ => {}
        }
        if let Some(position) = record.payload_position {
            let end = position + record.extent.len.next_multiple_of(PAYLOAD_ALIGN);
            cursor.payload_head = cursor.payload_head.max(end);
            cursor.payload_tail = cursor.payload_tail.min(position);
        }
        if record.state == SlotState::Intent {
            close_record(ring, &record, options, report);
        }
    }
    if cursor.payload_tail == u64::MAX {
        let head = ring.get(Counter::PayloadHead);
        (cursor.payload_head, cursor.payload_tail) = (head, head);
    }
    ring.set(Counter::Head, head);
    ring.set(Counter::Whole, u64::from(cursor.whole));
    Ok(cursor)
}

/// A slot that was given out but never completed. Nothing happened at the source:
/// the record becomes visible before the source is written.
pub(crate) fn void_record(ring: &Ring, seq: u64, options: &Options) {
    let mut slot = Slot::new(Kind::Void, VolumeId(0), Extent::new(0, 0), (options.clock)());
    ring.publish(seq, &mut slot, SlotState::Failed);
}

/// R1: a record without outcome was never acknowledged. A write takes the content
/// the source has now, whatever part of it arrived; a barrier has no effect; the
/// rest becomes a tombstone whose blocks are dirtied before exports open.
pub(crate) fn close_record(
    ring: &Ring,
    record: &Record,
    options: &Options,
    report: &mut OpenReport,
) {
    let seq = record.seq;
    let state = match (record.kind, record.payload_position) {
        (Kind::Barrier, _) => SlotState::Done,
        (Kind::Write, Some(position)) => {
            let mut now = vec![0; record.extent.len as usize];
            let disk = &options.sources[record.volume.index()].disk;
            if let Err(e) = disk.read_at(&mut now, record.extent.offset) {
                tracing::error!(seq, "{e}: its blocks go to the change map");
                SlotState::Failed
            } else {
                report.source_bytes_read += now.len() as u64;
                report.rewritten += 1;
                ring.write_payload(position, &now);
                let mut slot = Slot::new(Kind::Write, record.volume, record.extent, record.unix_ns);
                slot.payload_position = position.into();
                slot.payload_crc = crc32c(&now).into();
                ring.publish(seq, &mut slot, SlotState::Done);
                return;
            }
        }
        _ => SlotState::Failed,
    };
    ring.commit(seq).store(commit_word(seq, state), Ordering::SeqCst);
}
