//! A target that does not fit its source.

use crate::{DISK_BYTES, assert_names};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig};

#[test]
fn a_target_of_another_size_is_refused_with_both_sizes_and_nothing_is_written() {
    for size in [DISK_BYTES / 2, DISK_BYTES + 4096] {
        let mut rig = Rig::new(1, DISK_BYTES);
        rig.prefill();
        let target = std::fs::OpenOptions::new().write(true).open(rig.target("disk0")).unwrap();
        target.set_len(size).unwrap();
        rig.start_proxy();
        rig.start_receive();
        let mut ship = Daemon::start(&rig.ship_args());
        let line = ship.line_within(PATIENCE, |line| line.to_lowercase().contains("size"));
        assert!(line.is_some(), "nothing about sizes from {ship}");
        assert_names(&ship.said(), &["disk0"]);
        drop(ship);
        let bytes = std::fs::read(rig.target("disk0")).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert!(bytes.iter().all(|byte| *byte == 0), "the target was written");
        crate::assert_serves(&mut rig);
    }
}

/// A receiver without a target for the second volume, and the shipper that it has refused.
fn refused() -> (Rig, Daemon) {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_proxy();
    let all = rig.volumes.clone();
    rig.volumes.pop();
    rig.start_receive();
    rig.volumes = all;
    let mut ship = Daemon::start(&rig.ship_args());
    let line = ship.line_within(PATIENCE, |line| line.contains("disk1"));
    assert!(line.is_some(), "nothing about disk1 from {ship}");
    (rig, ship)
}

#[test]
fn a_volume_without_a_target_is_refused_by_name() {
    let (mut rig, ship) = refused();
    drop(ship);
    crate::assert_serves(&mut rig);
}

#[test]
fn a_shipper_that_was_refused_goes_on_by_itself_when_the_receiver_was_put_right() {
    let (mut rig, mut ship) = refused();
    rig.terminate(Process::Receive);
    rig.start_receive();
    assert!(ship.line_within(PATIENCE, |line| line.contains("connected")).is_some(), "{ship}");
    rig.wait_drained();
}
