//! What is found at start, row by row, on real files.

use crate::harness::{End, Lab, SIZE};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::inspect::GroupView;
use towline_journal::{AttachPolicy, ErrorKind};

fn patch(path: &std::path::Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_killed_proxy_goes_on_and_scans_no_source() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    assert!(lab.open().created);
    lab.drain();
    for i in 0..50u64 {
        let _ = lab.write(0, i * 1000, &[7; 900], End::Done);
    }
    let head = lab.journal().get(Counter::Head);
    let report = lab.open();
    assert_eq!((report.created, report.restarted, report.source_bytes_read), (false, false, 0));
    assert_eq!(report.records, 50);
    assert_eq!(lab.journal().get(Counter::Head), head);
    assert_eq!(lab.journal().get(Counter::Whole), 1, "still whole: nothing went past the journal");
}

#[test]
fn a_write_without_outcome_takes_what_the_source_holds() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(1, 4096, &[9; 4096], End::KilledAfter);
    let report = lab.open();
    assert_eq!((report.rewritten, report.source_bytes_read, report.dirtied), (1, 4096, 0));
    assert_eq!(lab.journal().get(Counter::Whole), 1);
    lab.drain();
    lab.assert_identical();
    assert_eq!(&lab.target.images[1][4096..6144], &[9; 2048]);
}

#[test]
fn a_failed_write_is_a_tombstone_with_dirty_blocks() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(0, 0, &[5; 8192], End::Failed);
    let journal = lab.journal();
    assert_eq!((journal.get(Counter::DirtyBlocks), journal.get(Counter::Whole)), (1, 0));
    lab.drain();
    lab.assert_identical();
}

#[test]
fn an_orderly_stop_survives_the_loss_of_the_ring() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(0, 100_000, &[3; 100], End::Done);
    lab.journal().stop().unwrap();
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert!(!report.restarted, "{report:?}");
    assert_eq!(lab.journal().get(Counter::DirtyBlocks), 1, "the undrained record's block only");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_lost_ring_sends_everything_again_and_says_so() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert!(report.restarted && report.summary.contains("power loss"), "{report:?}");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_source_changed_behind_our_back_is_noticed_after_an_orderly_stop() {
    for (policy, restarted) in [(AttachPolicy::Auto, true), (AttachPolicy::Trust, false)] {
        let mut lab = Lab::new(RING_BYTES_MIN);
        lab.open();
        lab.drain();
        lab.journal().stop().unwrap();
        lab.journal = None;
        patch(&lab.source_path(0), SIZE - 10, b"intruder");
        lab.attach = policy;
        let report = lab.open();
        assert_eq!(report.restarted, restarted, "{report:?}");
    }
}

#[test]
fn a_ring_of_a_newer_version_is_refused_untouched() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.journal = None;
    patch(&lab.ring_path(), 8, &99u32.to_le_bytes());
    let before = std::fs::read(lab.ring_path()).unwrap();
    let error = lab.try_open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Newer);
    assert!(std::fs::read(lab.ring_path()).unwrap() == before, "not a byte was touched");
}

#[test]
fn a_newer_or_damaged_state_is_refused_untouched() {
    for (text, kind) in [
        ("{\"version\": 99, \"whatever\": 1}", ErrorKind::Newer),
        ("{\"version\": 1", ErrorKind::Damaged),
        ("", ErrorKind::Damaged),
    ] {
        let mut lab = Lab::new(RING_BYTES_MIN);
        lab.open();
        lab.journal = None;
        let path = lab.group_dir().state_path();
        std::fs::write(&path, text).unwrap();
        assert_eq!(lab.try_open().unwrap_err().kind(), kind);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn damage_in_the_ring_restarts_and_never_stops_the_guest() {
    let slots = 4096 + 8192 + 4096;
    for (offset, what) in [(40, "superblock"), (slots + 64 * 3 + 20, "slot header")] {
        let mut lab = Lab::new(RING_BYTES_MIN);
        lab.open();
        let _ = lab.write(0, 0, &[1; 100], End::Done);
        lab.drain();
        for i in 0..5u64 {
            let _ = lab.write(0, i * 100, &[2; 100], End::Done);
        }
        // All slots not yet acked, whatever their numbers: flip the same byte in each.
        lab.journal = None;
        if what == "superblock" {
            patch(&lab.ring_path(), offset, &[0xff; 4]);
        } else {
            for slot in 0..64 {
                patch(&lab.ring_path(), slots + 64 * slot + 20, &[0xff]);
            }
        }
        let report = lab.open();
        assert!(report.restarted, "{what}: {report:?}");
        lab.drain();
        lab.assert_identical();
    }
}

#[test]
fn an_impossible_acknowledgement_in_the_ring_restarts() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    lab.journal = None;
    patch(&lab.ring_path(), Counter::Acked.offset(), &[0xff; 8]);
    assert!(lab.open().restarted);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_damaged_payload_goes_to_the_map() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(0, 70_000, &[0xab; 4096], End::Done);
    let ring = std::fs::read(lab.ring_path()).unwrap();
    let at = ring.windows(4096).position(|w| w == [0xab; 4096]).unwrap();
    lab.journal = None;
    patch(&lab.ring_path(), at as u64 + 5, &[0]);
    let view = GroupView::open(&lab.group_dir()).unwrap();
    let kinds: Vec<_> = view.verify().errors.iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["payload_checksum"]);
    let report = lab.open();
    assert_eq!((report.restarted, report.dirtied), (false, 1));
    lab.drain();
    lab.assert_identical();
}

#[test]
fn one_proxy_a_group() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    let held = lab.journal.clone();
    let options_error = {
        // The disks are owned too; the group's lock is what is tested here.
        let dir = lab.group_dir();
        dir.lock("lock", "proxy").unwrap_err()
    };
    assert_eq!(options_error.kind(), ErrorKind::Busy);
    drop(held);
}

#[test]
fn a_seal_survives_and_only_its_own_attempt_lifts_it() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let seal = lab.journal().seal(7).unwrap();
    assert_eq!(lab.journal().seal(7).unwrap(), seal, "answers may be lost: asked again");
    assert_eq!(lab.journal().seal(8).unwrap_err().kind(), ErrorKind::Refused);
    let report = lab.open();
    assert_eq!(report.seal.as_ref(), Some(&seal));
    assert_eq!(lab.journal().unseal(8).unwrap_err().kind(), ErrorKind::Refused);
    lab.journal().unseal(7).unwrap();
    lab.journal().unseal(7).unwrap();
    assert_eq!(lab.open().seal, None);
}

#[test]
fn a_group_keeps_its_volumes() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.journal = None;
    OpenOptions::new().write(true).open(lab.source_path(0)).unwrap().set_len(SIZE + 512).unwrap();
    let error = lab.try_open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("v0"), "{error}");
}
