//! Staging and undo log under damage and full disks.

use super::crash::{Lab, run};
use super::history::{History, check};
use crate::error::ErrorKind;
use crate::receiver::staging::{list, segment_path};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

fn damage(path: &std::path::Path, at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xee; 16], at).unwrap();
}

#[test]
fn a_damaged_acknowledged_batch_loses_the_point_and_asks_for_everything_again() {
    let history = History::scenario(11);
    let lab = Lab::new();
    let mut store = lab.create();
    for sealed in &history.batches {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
        store.staging.sync().unwrap();
    }
    drop(store);
    let firsts = list(&lab.layout.stage).unwrap();
    assert!(firsts.len() > 1, "more than one segment: {firsts:?}");
    damage(&segment_path(&lab.layout.stage, firsts[0]), 300);
    let store = lab.reopen().unwrap();
    assert_eq!((store.durable.number, store.durable.point), (0, None));
    assert_eq!(store.durable.position, Default::default());
    let said = store.books.get().last_error.unwrap();
    assert!(said.contains("lost"), "{said}");
    drop(store);
    let again = lab.reopen().unwrap();
    assert_eq!(again.durable.number, 0, "a second recovery says the same");
}

#[test]
fn after_a_failed_write_to_staging_the_next_batches_are_kept_whole() {
    for errno in [libc::ENOSPC, libc::EIO] {
        let history = History::scenario(12);
        let lab = Lab::new();
        let mut store = lab.create();
        let (first, second) = (&history.batches[0], &history.batches[1]);
        store.staging.append(1, &first.bytes).unwrap();
        store.staging.sync().unwrap();
        *lab.recorder.fail.lock().unwrap() = Some((lab.layout.stage.clone(), errno));
        let error = store.staging.append(2, &second.bytes).unwrap_err();
        let full = errno == libc::ENOSPC;
        assert_eq!(error.kind(), if full { ErrorKind::NoSpace } else { ErrorKind::Storage });
        store.staging.give_up();
        *lab.recorder.fail.lock().unwrap() = None;
        store.staging.append(2, &second.bytes).unwrap();
        store.staging.sync().unwrap();
        store.redo().unwrap();
        assert_eq!(store.apply.applied().number, 2);
        check(&history, &lab.volumes(), 2).unwrap();
        drop(store);
        assert_eq!(lab.reopen().unwrap().durable.number, 2);
    }
}

#[test]
fn after_a_failed_flush_of_a_target_the_group_is_written_again() {
    let history = History::scenario(13);
    let lab = Lab::new();
    let mut store = lab.create();
    for sealed in &history.batches[..4] {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
    }
    store.staging.sync().unwrap();
    *lab.recorder.fail.lock().unwrap() = Some((lab.target(1), libc::EIO));
    assert!(store.apply.step().is_err());
    assert_eq!(store.books.get().applied.number, 0);
    *lab.recorder.fail.lock().unwrap() = None;
    store.redo().unwrap();
    check(&history, &lab.volumes(), 4).unwrap();
}

#[test]
fn a_full_undo_log_keeps_the_point_and_goes_on_when_there_is_room() {
    let history = History::scenario(14);
    let mut lab = Lab::new();
    lab.limits.marks.bytes_max = 70 << 10;
    let mut store = lab.create();
    for sealed in &history.batches {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
    }
    store.staging.sync().unwrap();
    let error = store.redo().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let point = store.apply.applied().point.unwrap();
    assert_eq!(store.apply.marks.newest(), Some(point));
    store.apply.marks.roll_back(point.number, &store.apply.targets).unwrap();
    check(&history, &lab.volumes(), point.number).unwrap();
    drop(store);

    lab.limits.marks.bytes_max = u64::MAX;
    let mut store = lab.reopen().unwrap();
    store.redo().unwrap();
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
}

#[test]
fn a_damaged_undo_log_loses_the_point_loudly_and_nothing_else() {
    let history = History::scenario(15);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 15);
    let point = store.apply.marks.newest().unwrap();
    drop(store);
    damage(&lab.layout.marks.join(format!("{:020}.mark", point.number)), 8);
    let mut store = lab.reopen().unwrap();
    assert_eq!(store.apply.applied().point, None);
    assert!(store.books.get().last_error.unwrap().contains("undo log"));
    store.redo().unwrap();
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
}
