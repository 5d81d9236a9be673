//! A flush that writes the spill itself (`journal/src/spill/lone.rs`), each way into and out
//! of the persister's laziness.

use crate::harness::{End, Lab};
use crate::spill::{lab, until};
use towline_block::VolumeId;
use towline_journal::format::Counter;
use towline_journal::{Begun, Change, Durability, Journal, Outcome};

/// Where one flush serves source and spill; `None` elsewhere.
fn flushed_lab() -> Option<Lab> {
    let mut lab = lab(4);
    lab.spill.durability = Durability::Flush;
    lab.open();
    lab.drain();
    if !lab.journal().is_flushed_with(VolumeId(0)) {
        println!("skipped: temporary files are not on ext4 here");
        return None;
    }
    // The persister opens the segment; the flush only writes.
    write(&lab, 1);
    let journal = lab.journal();
    until("the first record is spilled", || spilled(journal) == journal.get(Counter::Done));
    Some(lab)
}

fn write(lab: &Lab, records: u64) {
    for round in 0..records {
        let _ = lab.write(0, round * 4096, &[round as u8 | 1; 512], End::Done);
    }
}

fn spilled(journal: &Journal) -> u64 {
    journal.get(Counter::Spilled)
}

/// As a flush of a lone client makes it. The persister may be in the way once.
fn flush(journal: &Journal) {
    let head = journal.get(Counter::Head);
    until("the pen is free", || journal.persist_here(head));
    let covered = journal.flushable();
    assert!(covered >= head);
    journal.flushed(covered, true);
    assert!(journal.durable_seq() >= head);
}

/// Lazy: the last flushes have found their record unspilled. The first may have met the
/// persister, which was eager till then.
fn lazy_lab() -> Option<Lab> {
    let lab = flushed_lab()?;
    let mut in_a_row = 0;
    until("flushes write by themselves", || {
        write(&lab, 1);
        let journal = lab.journal();
        let was_left = spilled(journal) < journal.get(Counter::Head);
        flush(journal);
        in_a_row = if was_left { in_a_row + 1 } else { 0 };
        in_a_row == 3
    });
    Some(lab)
}

#[test]
fn flushes_that_have_little_to_write_write_it_in_one_span_each() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    let (syncs, mut bytes) =
        (journal.get(Counter::SpillSyncs), journal.get(Counter::SpillWrittenBytes));
    for _ in 0..20 {
        write(&lab, 10);
        flush(journal);
        let now = journal.get(Counter::SpillWrittenBytes);
        assert!(now - bytes <= 12 << 10, "{} bytes for ten records of 512", now - bytes);
        bytes = now;
    }
    assert_eq!(journal.get(Counter::SpillSyncs), syncs);
}

#[test]
fn what_such_flushes_wrote_is_shipped_from_the_disk() {
    let Some(mut lab) = lazy_lab() else { return };
    let before = lab.from_spill;
    for _ in 0..5 {
        write(&lab, 10);
        flush(lab.journal());
    }
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill >= before + 50);
}

#[test]
fn a_flush_with_much_to_write_leaves_it_to_the_persister() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    write(&lab, 65);
    let head = journal.get(Counter::Head);
    // Whether or not the persister, woken by the last of them, has written some meanwhile.
    until("the persister writes them", || spilled(journal) >= head);
    // Little again: by itself.
    write(&lab, 1);
    flush(journal);
}

#[test]
fn much_payload_wakes_the_persister_as_many_records_do() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    for round in 0..5 {
        let _ = lab.write(0, round * 40_000, &[7; 32 << 10], End::Done);
    }
    let head = journal.get(Counter::Head);
    until("the persister writes them", || spilled(journal) >= head);
}

#[test]
fn without_such_flushes_the_persister_writes_what_is_left() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    write(&lab, 3);
    let head = journal.get(Counter::Head);
    until("laziness is over", || spilled(journal) >= head);
}

#[test]
fn a_flush_that_asks_is_served_by_a_lazy_persister() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    write(&lab, 3);
    let head = journal.get(Counter::Head);
    journal.persist(head);
    until("it is durable", || journal.durable_seq() >= head);
}

#[test]
fn a_record_under_way_is_not_written() {
    let Some(lab) = lazy_lab() else { return };
    let journal = lab.journal();
    let change = Change::Write { offset: 0, data: &[7; 512] };
    let Begun::Record(ticket) = journal.begin(VolumeId(0), &change) else {
        panic!("there is room");
    };
    let before = spilled(journal);
    assert!(!journal.persist_here(ticket.first_seq()));
    assert_eq!(spilled(journal), before);
    journal.finish(ticket, Outcome::Done);
    flush(journal);
}

/// Its segments are not known to be written in place (`joint.rs`).
#[test]
fn without_durability_flush_nothing_is_written_here() {
    let lab = lab(4);
    write(&lab, 1);
    let journal = lab.journal();
    assert!(!journal.persist_here(journal.get(Counter::Head)));
    assert_eq!(journal.get(Counter::SpillWrittenBytes), 0);
}
