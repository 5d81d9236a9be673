//! The cutover that works.

use crate::{DISK_BYTES, assert_promoted, assert_refuses_writes, cutover, plan};
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, Side};

#[test]
fn a_running_guest_goes_on_at_the_target_with_every_acknowledged_write() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(1), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE));
    let report = assert_promoted(&rig, cutover(&rig, "20s"));
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    println!("guest's pause {:?}, report {report}", guest.cutover_pause());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
}

#[test]
fn source_and_target_are_identical_at_the_cutover_point() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(2), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE));
    // At rest, so that the target does not go on before it was compared.
    guest.hold();
    assert_promoted(&rig, cutover(&rig, "20s"));
    rig.assert_identical();
    rig.assert_acknowledged(&guest.history(), Side::Target);
    guest.go_on();
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
}

#[test]
fn the_old_proxy_refuses_writes_and_says_why_even_after_a_restart() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(8192, &[7; 4096]).unwrap();
    assert_promoted(&rig, cutover(&rig, "20s"));
    assert_eq!(rig.status().state(), "promoted");
    assert_refuses_writes(&rig.source_uri("disk0"));
    let sealed = std::fs::read(rig.source("disk0")).unwrap();
    rig.kill(Process::Proxy);
    let mut proxy = towline_tests::Daemon::start(&rig.proxy_args());
    let ready = |line: &str| line.contains("ready");
    if proxy.line_within(PATIENCE, ready).is_some() {
        assert_refuses_writes(&rig.source_uri("disk0"));
    } else {
        // It may also refuse to start; then that is what must say why.
        assert!(!proxy.wait_for_end().success());
        crate::assert_says_why(&proxy.said());
    }
    assert!(std::fs::read(rig.source("disk0")).unwrap() == sealed, "the source is as it was cut");
}

#[test]
fn the_target_still_serves_after_its_receiver_was_killed() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(3));
    rig.wait_live();
    assert_promoted(&rig, cutover(&rig, "20s"));
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    rig.kill(Process::Receive);
    rig.start_receive();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
}

#[test]
fn the_target_is_not_served_before_the_promotion() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    let options = towline_bench::nbd_client::Options::default();
    let target = rig.target_uri("disk0");
    if let Ok(mut client) = towline_bench::nbd_client::Client::connect(&target, options) {
        let written = client.write(0, &[1; 4096]);
        panic!("the target is served before the cutover; a write gave {written:?}");
    }
}
