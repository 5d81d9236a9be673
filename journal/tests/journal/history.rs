//! What a durable spill is worth when its ring is lost: its records come first, and what
//! they cover is not compared.

use crate::harness::{End, Lab, SIZE};
use crate::spill::flip;
use std::time::Duration;
use towline_journal::activity::EXTENT_BYTES;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{AttachPolicy, Durability, OpenReport, SpillOptions};

const LIMIT: Duration = Duration::from_secs(20);

fn lab_of(size: u64) -> Lab {
    let mut lab = Lab::with_size(RING_BYTES_MIN, size);
    lab.spill = SpillOptions {
        bytes: Some(4 * SEGMENT_BYTES),
        durability: Durability::Flush,
        ..SpillOptions::OFF
    };
    lab.attach = AttachPolicy::Trust;
    lab.open();
    lab.drain();
    lab.cool();
    lab
}

fn lab() -> Lab {
    lab_of(SIZE)
}

/// A guest that writes all over both volumes and then flushes.
fn write_and_flush(lab: &mut Lab, writes: u64) {
    for round in 0..writes {
        let offset = round * 37_000 % (SIZE - 9_000);
        let _ = lab.write((round % 2) as usize, offset, &[round as u8 | 1; 9_000], End::Done);
        if lab.size == SIZE {
            lab.remember();
        }
    }
    flush(lab);
}

fn flush(lab: &Lab) {
    let journal = lab.journal();
    let done = journal.get(Counter::Done);
    journal.persist(done);
    assert!(journal.wait_durable(done, LIMIT));
}

/// The whole rest: the target is brought to the source and the history is over.
fn converge(lab: &mut Lab) {
    lab.drain();
    lab.assert_identical();
    assert_eq!(lab.journal().get(Counter::HistoryBytes), 0, "its segments are free");
}

fn pending_blocks(lab: &Lab) -> u64 {
    lab.journal().get(Counter::DirtyBlocks)
}

#[test]
fn after_a_power_cut_the_target_first_gets_what_was_flushed() {
    let mut lab = lab();
    write_and_flush(&mut lab, 40);
    let report = lab.cut_power(1);
    assert_eq!((report.restarted, report.history_records >= 40), (true, true), "{report:?}");
    assert!(report.summary.contains("records that the spill has of the lost ring"), "{report:?}");
    assert!(lab.journal().get(Counter::HistoryBytes) > 0);
    assert_eq!(lab.journal().heal(), None, "no point before the history is over");
    // Ends at a point (the harness compares) that is newer than what the sources kept.
    converge(&mut lab);
    assert_eq!(lab.from_history, 40);
}

#[test]
fn what_a_flush_made_durable_need_not_be_compared_after_a_power_cut() {
    let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
    let _ = lab.write(1, 2 * EXTENT_BYTES + 5, &[9; 100], End::Done);
    flush(&lab);
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0, "durable in the spill is as good as at the target");
    let report = lab.cut_power(1);
    // One is the HEAL before, if it was written before the target had it.
    assert!((1..=2).contains(&report.history_records), "{report:?}");
    assert_eq!(pending_blocks(&lab), 0, "{report:?}");
    assert!(lab.journal().hot_bytes() > 0, "hot again until the target has it");
    converge(&mut lab);
    assert_eq!(lab.from_history, 1);
    assert_eq!(&lab.target.images[1][2 * EXTENT_BYTES as usize + 5..][..100], &[9; 100]);
}

#[test]
fn without_the_spill_that_cold_extents_rely_on_everything_is_compared() {
    let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
    let _ = lab.write(1, 2 * EXTENT_BYTES + 5, &[9; 100], End::Done);
    flush(&lab);
    lab.cool();
    std::fs::remove_dir_all(lab.group_dir().spill_path()).unwrap();
    let report = lab.cut_power(1);
    assert_eq!(report.history_records, 0);
    assert_eq!(pending_blocks(&lab), 0, "nothing is hot");
    let attached = lab.journal().attach(lab.target.durable).unwrap();
    assert!(attached.resync.is_some(), "{attached:?}");
    converge(&mut lab);
}

#[test]
fn a_history_that_cannot_be_read_on_is_left_there_and_its_rest_is_compared() {
    for at in [5_000, 150_000] {
        let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
        write_and_flush(&mut lab, 40);
        lab.cool();
        // Wherever the spans lie: no padding is so long.
        (0..10).for_each(|sector| flip(&lab, 0, at + sector * 512));
        lab.cut_power(1);
        assert_eq!(pending_blocks(&lab), 0);
        lab.ship(1);
        assert!(lab.from_history < 40);
        let touched = pending_blocks(&lab);
        assert!((1..=12).contains(&touched), "the blocks of 40 writes: {touched}");
        converge(&mut lab);
        assert_eq!(lab.journal().get(Counter::ResyncSeq), 0);
    }
}

#[test]
fn a_torn_tail_ends_the_history() {
    let mut lab = lab();
    write_and_flush(&mut lab, 10);
    let durable = lab.journal().get(Counter::Spilled);
    write_and_flush(&mut lab, 30);
    // The disk lost all but the first spans: as if the second flush never came.
    let path = lab.group_dir().spill_path().join("00000.seg");
    let bytes = lab.journal().get(Counter::SpillUsedBytes);
    lab.journal = None;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let zeroes = vec![0; 64 << 10];
    std::os::unix::fs::FileExt::write_all_at(&file, &zeroes, bytes / 4 / 4096 * 4096 + 65_536)
        .unwrap();
    let report = lab.cut_power(3);
    assert!(report.history_records > 0 && durable > 0, "{report:?}");
    converge(&mut lab);
    assert!(lab.from_history < 40);
}

#[test]
fn a_second_power_cut_before_the_history_was_shipped_compares_its_extents() {
    for shipped in [None, Some(5)] {
        let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
        write_and_flush(&mut lab, 40);
        lab.cool();
        lab.cut_power(1);
        assert_eq!(pending_blocks(&lab), 0);
        lab.history_stops_at = shipped.map(|count| lab.target.durable.seq + count);
        if shipped.is_some() {
            lab.ship(1);
        }
        lab.history_stops_at = None;
        lab.cool();
        let _ = lab.write(0, 2 * EXTENT_BYTES, &[3; 100], End::Done);
        flush(&lab);
        lab.cool();
        let report = lab.cut_power(2);
        let hot = pending_blocks(&lab);
        assert!(hot > 0, "{report:?}");
        let attached = lab.journal().attach(lab.target.durable).unwrap();
        assert_eq!((attached.resync, attached.history), (None, None), "hot extents suffice");
        converge(&mut lab);
    }
}

#[test]
fn after_the_history_the_next_incarnation_has_one_of_its_own() {
    let mut lab = lab();
    write_and_flush(&mut lab, 20);
    lab.cut_power(1);
    converge(&mut lab);
    write_and_flush(&mut lab, 30);
    lab.cut_power(5);
    converge(&mut lab);
    assert_eq!(lab.from_history, 50);
}

#[test]
fn a_kill_amid_the_history_goes_on_with_it() {
    let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
    write_and_flush(&mut lab, 40);
    lab.cool();
    lab.cut_power(1);
    for step in 1..=3 {
        lab.history_stops_at = Some(lab.target.durable.seq + 10 * step);
        lab.ship(1);
        let report: OpenReport = lab.open();
        assert!(!report.restarted);
        assert!(report.history_records >= 40, "{report:?}");
        if step == 2 {
            break;
        }
    }
    lab.history_stops_at = None;
    assert_eq!(pending_blocks(&lab), 0);
    converge(&mut lab);
    assert_eq!(lab.from_history, 40);
    let report = lab.open();
    assert_eq!(report.history_records, 0, "it is over: {report:?}");
}

#[test]
fn a_broken_group_converges_after_a_power_cut() {
    let mut lab = lab();
    write_and_flush(&mut lab, 5);
    let _ = lab.write(0, 0, &[5; 8192], End::Failed);
    write_and_flush(&mut lab, 20);
    assert_eq!(lab.journal().get(Counter::Whole), 0);
    lab.cut_power(7);
    lab.ship(1);
    assert!(!lab.target.whole);
    converge(&mut lab);
}

#[test]
fn an_orderly_stop_needs_no_history() {
    let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
    write_and_flush(&mut lab, 40);
    lab.cool();
    lab.journal().stop().unwrap();
    lab.journal = None;
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert_eq!((report.restarted, report.history_records), (false, 0), "{report:?}");
    assert!(pending_blocks(&lab) > 0);
    assert!(lab.journal().hot_bytes() > 0, "what is dirty is hot");
    // A power cut right behind it.
    lab.cut_power(3);
    converge(&mut lab);
}

#[test]
fn a_target_that_stands_elsewhere_is_compared() {
    let mut lab = lab_of(3 * EXTENT_BYTES + 4096);
    write_and_flush(&mut lab, 40);
    lab.cool();
    lab.cut_power(1);
    lab.target.durable.incarnation = 0;
    lab.target.durable.seq = 0;
    let attached = lab.journal().attach(lab.target.durable).unwrap();
    assert!(attached.resync.is_some() && attached.history.is_none());
    assert_eq!(lab.journal().get(Counter::HistoryBytes), 0, "nobody needs it any more");
    converge(&mut lab);
}
