//! What is found at start, row by row, on real files.

use crate::harness::{End, Lab, SIZE};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};
use towline_block::BLOCK_BYTES;
use towline_journal::activity::EXTENT_BYTES;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::inspect::GroupView;
use towline_journal::{AttachPolicy, Durable, ErrorKind, unix_now_ns};

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
fn a_lost_ring_compares_everything_and_says_so() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert!(
        report.restarted && report.summary.contains("everything will be compared"),
        "{report:?}"
    );
    lab.drain();
    lab.assert_identical();
}

/// Two volumes of several extents, drained and cooled down.
fn cold_lab() -> Lab {
    let mut lab = Lab::with_size(RING_BYTES_MIN, 5 * EXTENT_BYTES + 4096);
    lab.attach = AttachPolicy::Trust;
    lab.open();
    lab.drain();
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0, "nothing is open: nothing is hot");
    lab
}

#[test]
fn after_the_loss_of_the_ring_exactly_the_hot_extents_are_compared() {
    let mut lab = cold_lab();
    let _ = lab.write(1, 2 * EXTENT_BYTES + 5, &[9; 100], End::Done);
    let hot = lab.journal().hot_bytes();
    assert!((EXTENT_BYTES..=4 * EXTENT_BYTES).contains(&hot), "{hot}");
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert!(report.summary.contains("what was active"), "{report:?}");
    let suspect = lab.journal().get(Counter::SuspectBlocks) * BLOCK_BYTES;
    assert_eq!(suspect, lab.journal().get(Counter::DirtyBlocks) * BLOCK_BYTES);
    assert!(suspect <= hot && suspect >= EXTENT_BYTES, "{suspect} of {hot}");
    lab.drain();
    lab.assert_identical();
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0);
}

#[test]
fn a_cold_map_and_a_lost_ring_compare_nothing() {
    let mut lab = cold_lab();
    std::fs::remove_file(lab.ring_path()).unwrap();
    lab.open();
    assert_eq!(lab.journal().get(Counter::DirtyBlocks), 0);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn an_extent_stays_hot_until_the_target_has_its_records() {
    let mut lab = cold_lab();
    let _ = lab.write(0, 0, &[1; 10], End::Done);
    lab.cool();
    assert!(lab.journal().hot_bytes() > 0, "the record is not shipped");
    lab.drain();
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0);
}

#[test]
fn a_target_that_fell_behind_the_cold_extents_is_compared_whole() {
    let mut lab = cold_lab();
    let _ = lab.write(0, 0, &[1; 10], End::Done);
    lab.drain();
    let early = Durable { seq: 1, ..lab.target.durable };
    lab.cool();
    std::fs::remove_file(lab.ring_path()).unwrap();
    lab.open();
    let attached = lab.journal().attach(early).unwrap();
    assert!(attached.resync.is_some(), "{attached:?}");
}

#[test]
fn a_damaged_or_missing_activity_map_compares_everything() {
    for damage in [true, false] {
        let mut lab = cold_lab();
        let path = lab.group_dir().path().join("activity.map");
        lab.journal = None;
        match damage {
            true => patch(&path, 600, b"x"),
            false => std::fs::remove_file(&path).unwrap(),
        }
        std::fs::remove_file(lab.ring_path()).unwrap();
        let report = lab.open();
        assert!(report.summary.contains("everything will be compared"), "{report:?}");
        lab.drain();
        lab.assert_identical();
    }
}

#[test]
fn a_ring_that_came_through_a_boot_is_not_believed() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    lab.journal = None;
    let path = lab.ring_path();
    let mut page = std::fs::read(&path).unwrap()[..4096].to_vec();
    page[56..72].fill(7);
    let crc = towline_block::crc32c(&page[..4092]).to_le_bytes();
    page[4092..].copy_from_slice(&crc);
    patch(&path, 0, &page);
    assert!(lab.open().restarted);
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
fn an_orderly_stop_goes_on_with_its_ring() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(0, 100_000, &[3; 100], End::Done);
    lab.journal().stop().unwrap();
    let head = lab.journal().get(Counter::Head);
    let report = lab.open();
    assert!(!report.restarted && report.summary.contains("the journal goes on"), "{report:?}");
    assert_eq!(lab.journal().get(Counter::Head), head);
    assert_eq!(lab.journal().get(Counter::DirtyBlocks), 0, "its record is still in the ring");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_source_changed_after_a_kill_is_noticed() {
    for (policy, restarted) in [(AttachPolicy::Auto, true), (AttachPolicy::Trust, false)] {
        let mut lab = Lab::new(RING_BYTES_MIN);
        lab.open();
        lab.drain();
        lab.journal = None;
        // Later than the journal's last change by more than what a slow write explains.
        let source = OpenOptions::new().write(true).open(lab.source_path(0)).unwrap();
        source.write_all_at(b"intruder", SIZE - 10).unwrap();
        let now = UNIX_EPOCH + Duration::from_nanos(unix_now_ns());
        source.set_modified(now + Duration::from_secs(60)).unwrap();
        lab.attach = policy;
        let report = lab.open();
        assert_eq!(report.restarted, restarted, "{report:?}");
    }
}

#[test]
fn nothing_tells_of_a_ring_that_is_lost_within_its_boot() {
    for (policy, all) in [(AttachPolicy::Auto, true), (AttachPolicy::Trust, false)] {
        let mut lab = cold_lab();
        lab.attach = policy;
        std::fs::remove_file(lab.ring_path()).unwrap();
        let report = lab.open();
        assert_eq!(report.summary.contains("nothing tells"), all, "{report:?}");
        lab.drain();
        lab.assert_identical();
    }
}

#[test]
fn resync_compares_everything_whatever_is_there() {
    let mut lab = cold_lab();
    lab.attach = AttachPolicy::Resync;
    let report = lab.open();
    assert!(report.summary.contains("the operator asked for it"), "{report:?}");
    let suspect = lab.journal().get(Counter::SuspectBlocks) * BLOCK_BYTES;
    assert!(suspect >= 2 * lab.size, "both volumes: {suspect}");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_lost_state_directory_is_a_new_group_and_its_old_ring_is_left() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let (ring, before) = (lab.ring_path(), lab.group_dir().load().unwrap().unwrap());
    lab.journal = None;
    std::fs::remove_dir_all(lab.group_dir().path()).unwrap();
    let report = lab.open();
    assert!(report.created && report.summary.contains("new group"), "{report:?}");
    let after = lab.group_dir().load().unwrap().unwrap();
    assert_ne!(before.group_uuid, after.group_uuid, "a receiver tells them apart");
    assert!(ring.exists(), "it may be another state directory's");
}

#[test]
fn what_is_no_ring_is_left_alone() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    lab.journal = None;
    let path = lab.ring_path();
    // A file of its own: the old one may still be mapped.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"somebody's notes").unwrap();
    assert!(lab.open().restarted);
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's notes");
    lab.drain();
    lab.assert_identical();
}

/// Every file of the folder and the ring, by path.
fn content(lab: &Lab) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![lab.dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(files.insert(entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    files
}

#[test]
fn a_newer_file_of_any_kind_is_refused_and_nothing_is_touched() {
    for (name, with_state) in [
        ("saved.map", true),
        ("saved.map", false),
        ("activity.map", true),
        ("activity.map", false),
        ("spill/00000.seg", true),
        ("spill/00000.seg", false),
    ] {
        let mut lab = crate::spill::lab(2);
        let _ = lab.write(0, 0, &[1; 4096], End::Done);
        let done = lab.journal().get(Counter::Done);
        lab.journal().persist(done);
        assert!(lab.journal().wait_spilled(done, Duration::from_secs(20)));
        lab.journal().stop().unwrap();
        lab.journal = None;
        patch(&lab.group_dir().path().join(name), 8, &99u32.to_le_bytes());
        if !with_state {
            std::fs::remove_file(lab.group_dir().state_path()).unwrap();
        }
        let before = content(&lab);
        let error = lab.try_open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Newer, "{name}: {error}");
        assert!(error.to_string().contains("left untouched"), "{error}");
        let mut after = content(&lab);
        // The lock is taken to look.
        after.retain(|path, _| !path.ends_with("lock"));
        assert!(
            before
                .iter()
                .all(|(path, bytes)| { path.ends_with("lock") || after.get(path) == Some(bytes) })
        );
        assert!(after.len() <= before.len(), "{name}: no new file");
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
    assert!(!report.restarted);
    let journal = lab.journal.clone().unwrap();
    journal.wait_settled();
    assert_eq!((journal.get(Counter::DirtyBlocks), journal.get(Counter::Whole)), (1, 0));
    drop(journal);
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
