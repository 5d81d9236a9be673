//! Cutovers that cannot be finished: the guest goes on at the source.

use crate::{DISK_BYTES, Running, assert_aborted, cutover, plan};
use towline_bench::stamp::Guest;
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, Side};

/// The guest goes on at the source, unharmed, and the next cutover can work.
#[track_caller]
fn assert_goes_on(rig: &mut Rig, guest: Guest) {
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    assert_eq!(guest.cutover_pause(), None, "nothing may be written at the target");
    let history = guest.stop();
    rig.assert_ends_equal(&history);
}

#[test]
fn a_receiver_that_cannot_be_reached_ends_in_an_abort_and_the_guest_goes_on() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(11));
    rig.wait_live();
    rig.relay.set_refusing(true);
    assert!(guest.wait_for_acks(50, PATIENCE));
    assert_aborted(&rig, cutover(&rig, "500ms"));
    rig.relay.set_refusing(false);
    assert_goes_on(&mut rig, guest);
}

#[test]
fn a_silent_network_past_the_longest_pause_ends_in_an_abort() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(12));
    rig.wait_live();
    // Connections stay up, nothing arrives: the drain cannot end.
    rig.relay.set_black_hole(true);
    assert!(guest.wait_for_acks(50, PATIENCE));
    assert_aborted(&rig, cutover(&rig, "500ms"));
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    rig.relay.set_black_hole(false);
    assert_goes_on(&mut rig, guest);
}

#[test]
fn a_proxy_killed_while_it_holds_the_guest_comes_back_unheld() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(13));
    rig.wait_live();
    let asked = Running::held_without_network(&rig, "5s");
    rig.kill(Process::Proxy);
    rig.start_proxy();
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    assert_eq!(asked.code(), 1);
    rig.relay.set_black_hole(false);
    assert_goes_on(&mut rig, guest);
}

#[test]
fn a_shipper_killed_while_the_guest_is_held_leaves_no_hold_behind() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(14));
    rig.wait_live();
    let asked = Running::held_without_network(&rig, "2s");
    rig.kill(Process::Ship);
    // The proxy lifts the hold by its own deadline, or when the link ends.
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    assert_ne!(asked.code(), 0);
    rig.relay.set_black_hole(false);
    rig.start_ship();
    assert_goes_on(&mut rig, guest);
}

/// Before anybody is held a new proxy changes nothing: the cutover goes on.
#[test]
fn a_proxy_killed_while_the_stream_catches_up_costs_nobody_anything() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(16));
    rig.wait_live();
    rig.relay.set_black_hole(true);
    let asked = Running::start(&rig, "60s");
    rig.wait_status("in the cutover", |status| status.state() == "cutover");
    rig.kill(Process::Proxy);
    rig.start_proxy();
    rig.relay.set_black_hole(false);
    let promoted = asked.code() == 0;
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    if !promoted {
        return assert_goes_on(&mut rig, guest);
    }
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
}

#[test]
fn a_cutover_before_the_first_point_is_refused() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    rig.relay.set_refusing(true);
    rig.start_receive();
    rig.start_ship();
    let guest = rig.guest(&plan(15));
    assert_aborted(&rig, cutover(&rig, "1s"));
    rig.relay.set_refusing(false);
    assert_goes_on(&mut rig, guest);
}
