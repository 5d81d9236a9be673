//! A device as the spill: a file of a fixed size where it makes no difference, and a loop
//! device.

use crate::harness::Lab;
use crate::spill::{lab as folder_lab, write_mib};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::spill::device::{DEVICE_SEGMENTS_OFFSET, Device};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{AttachPolicy, Durability, ErrorKind, SpillOptions};

fn blank(lab: &Lab, segments: u64) -> PathBuf {
    let path = lab.dir.path().join("device");
    let file = File::create(&path).unwrap();
    file.set_len(DEVICE_SEGMENTS_OFFSET + segments * SEGMENT_BYTES).unwrap();
    path
}

fn on(device: &Path, durability: Durability) -> SpillOptions {
    SpillOptions { device: Some(device.to_owned()), bytes: None, durability, ..SpillOptions::OFF }
}

fn device_lab(segments: u64, durability: Durability) -> Lab {
    let mut lab = Lab::new(RING_BYTES_MIN);
    let device = blank(&lab, segments);
    lab.spill = on(&device, durability);
    lab.attach = AttachPolicy::Trust;
    lab.open();
    lab.drain();
    lab
}

fn is_named(lab: &Lab) -> bool {
    lab.group_dir().load().unwrap().unwrap().spill.is_some()
}

#[test]
fn what_the_ring_cannot_hold_goes_through_the_device_and_survives_a_kill() {
    let mut lab = device_lab(3, Durability::Process);
    let breaks = lab.journal().get(Counter::Breaks);
    assert_eq!(lab.journal().get(Counter::SpillBytes), 3 * SEGMENT_BYTES);
    write_mib(&lab, 20);
    let report = lab.open();
    assert!(!report.restarted && !report.spill_lost, "{report:?}");
    write_mib(&lab, 10);
    assert!(!lab.group_dir().spill_path().exists());
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 300);
    assert_eq!(lab.journal().get(Counter::Breaks), breaks);
}

#[test]
fn a_full_device_goes_to_the_map_and_is_used_again() {
    let mut lab = device_lab(1, Durability::Process);
    let breaks = lab.journal().get(Counter::Breaks);
    let mut round = 0u64;
    while lab.journal().get(Counter::MappedBytes) == 0 {
        let data = vec![round as u8 | 1; 1 << 18];
        let _ = lab.write((round % 2) as usize, 0, &data, crate::harness::End::Done);
        let journal = lab.journal();
        journal.persist(journal.get(Counter::Done));
        journal.wait_spilled(journal.get(Counter::Done), Duration::from_millis(100));
        round += 1;
        assert!(round < 400);
    }
    assert_eq!(lab.journal().get(Counter::Breaks), breaks + 1);
    assert!(lab.journal().get(Counter::SpillUsedBytes) <= SEGMENT_BYTES);
    lab.drain();
    lab.assert_identical();
    write_mib(&lab, 8);
    lab.drain();
    lab.assert_identical();
    assert_eq!(lab.journal().get(Counter::Breaks), breaks + 1);
}

#[test]
fn a_durable_device_outlives_its_ring() {
    let mut lab = device_lab(3, Durability::Flush);
    for round in 0..30u64 {
        let _ = lab.write(0, round * 8192, &[round as u8 | 1; 5000], crate::harness::End::Done);
        lab.remember();
    }
    let journal = lab.journal().clone();
    journal.persist(journal.get(Counter::Done));
    assert!(journal.wait_durable(journal.get(Counter::Done), Duration::from_secs(20)));
    drop(journal);
    let report = lab.cut_power(3);
    assert!(report.history_records >= 30, "{report:?}");
    lab.drain();
    lab.assert_identical();
    assert_eq!(lab.from_history, 30);
}

#[test]
fn the_spill_moves_when_nothing_is_needed_where_it_was() {
    let mut lab = folder_lab(4);
    write_mib(&lab, 10);
    let in_folder = lab.spill.clone();
    let device = blank(&lab, 3);
    lab.spill = on(&device, Durability::Process);
    for _ in 0..2 {
        let report = lab.open();
        assert!(!report.spill_lost && !is_named(&lab), "it stays: {report:?}");
    }
    lab.drain();
    lab.assert_identical();
    lab.open();
    assert!(is_named(&lab) && !lab.group_dir().spill_path().exists());
    write_mib(&lab, 10);
    // And back.
    lab.spill = in_folder;
    let report = lab.open();
    assert!(!report.spill_lost && is_named(&lab), "it stays: {report:?}");
    lab.drain();
    lab.assert_identical();
    lab.open();
    assert!(!is_named(&lab));
    write_mib(&lab, 10);
    lab.drain();
    lab.assert_identical();
    assert_eq!(lab.journal().get(Counter::ResyncSeq), 0, "nothing was lost on the way");
}

#[test]
fn a_device_under_another_name_is_the_same() {
    let mut lab = device_lab(3, Durability::Process);
    write_mib(&lab, 10);
    lab.journal = None;
    let other = lab.dir.path().join("other-name");
    std::fs::rename(lab.dir.path().join("device"), &other).unwrap();
    lab.spill = on(&other, Durability::Process);
    let report = lab.open();
    assert!(!report.spill_lost, "{report:?}");
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 100);
}

#[test]
fn a_device_that_holds_something_else_is_refused_and_no_group_is_made() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    let device = blank(&lab, 2);
    let file = OpenOptions::new().write(true).open(&device).unwrap();
    file.write_all_at(&[0x53, 0xef], 1024 + 56).unwrap();
    lab.spill = on(&device, Durability::Process);
    assert_eq!(lab.try_open().unwrap_err().kind(), ErrorKind::Refused);
    assert!(!lab.group_dir().state_path().exists());
    let mut magic = [0; 2];
    File::open(&device).unwrap().read_exact_at(&mut magic, 1024 + 56).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
    lab.spill.overwrite = true;
    lab.open();
    lab.drain();
    lab.assert_identical();
    // What was told once need not be told again.
    lab.spill.overwrite = false;
    lab.open();
    // Another group, or this one without its state directory.
    lab.journal = None;
    std::fs::remove_dir_all(lab.group_dir().path()).unwrap();
    let error = lab.try_open().unwrap_err();
    assert!(error.to_string().contains("group lab"), "{error}");
}

#[test]
fn a_device_that_is_gone_is_missed_loudly_and_holds_no_guest() {
    let mut lab = device_lab(3, Durability::Process);
    write_mib(&lab, 10);
    lab.journal = None;
    let device = lab.dir.path().join("device");
    let elsewhere = lab.dir.path().join("elsewhere");
    std::fs::rename(&device, &elsewhere).unwrap();
    let report = lab.open();
    assert!(report.spill_lost, "{report:?}");
    assert_eq!(lab.journal().get(Counter::SpillFault), 1);
    lab.drain();
    lab.assert_identical();
    // Found again.
    std::fs::rename(&elsewhere, &device).unwrap();
    lab.open();
    assert_eq!(lab.journal().get(Counter::SpillFault), 0);
    write_mib(&lab, 10);
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 100);
    // Whoever is strict wants no guest served without.
    lab.journal = None;
    std::fs::rename(&device, &elsewhere).unwrap();
    lab.spill.strict = true;
    assert_eq!(lab.try_open().unwrap_err().kind(), ErrorKind::Io);
}

/// Detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Option<Loop> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        made.status.success().then(|| Loop(path.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_the_spill_and_has_one_user() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    let file = blank(&lab, 2);
    let Some(device) = Loop::attach(&file) else {
        return println!("skipped: no loop devices here");
    };
    lab.spill = on(&device.0, Durability::Flush);
    lab.open();
    lab.drain();
    assert_eq!(lab.journal().get(Counter::SpillBytes), 2 * SEGMENT_BYTES);
    write_mib(&lab, 10);
    let journal = lab.journal().clone();
    assert!(journal.wait_durable(journal.get(Counter::Done), Duration::from_secs(20)));
    assert_eq!(journal.get(Counter::SpillFilledBytes), 0, "it is written in place");
    drop(journal);
    assert_eq!(Device::own(&device.0).unwrap_err().kind(), ErrorKind::Busy);
    lab.open();
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 100);
    lab.journal = None;
    drop(device);
}
