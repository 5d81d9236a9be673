//! A ring smaller than the workload, no spill, and nobody who ships.

use crate::{DISK_BYTES, plan};
use towline_bench::stamp::{Pattern, Plan};
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, Side};

const RING: &str = "4M";
/// Several times the ring, in distinct blocks.
const WRITTEN_BYTES_MIN: u64 = 16 << 20;

/// As fast as the disk takes them, all over the volume.
fn flood(seed: u64) -> Plan {
    Plan { rate_per_s: None, pattern: Pattern::Uniform, ..plan(seed) }
}

fn small_ring() -> Rig {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.ring = RING;
    rig.spill = "0";
    rig
}

/// Writes until the ring has gone over several times. Nothing drains it, so each of
/// these acknowledgements was given without waiting for a shipper.
#[track_caller]
fn write_past_the_ring(rig: &Rig, guest: &towline_bench::stamp::Guest) {
    let from = guest.progress().acked_bytes;
    while guest.progress().acked_bytes - from < WRITTEN_BYTES_MIN {
        assert!(guest.wait_for_acks(50, PATIENCE), "writes stand still: {}", rig.status().0);
    }
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
}

#[test]
fn a_workload_larger_than_the_ring_without_a_shipper_converges_once_it_starts() {
    let mut rig = small_ring();
    let prefilled = rig.prefill();
    rig.start_proxy();
    rig.start_receive();
    let guest = rig.guest_knowing(&flood(7), prefilled);
    write_past_the_ring(&rig, &guest);
    assert_eq!(rig.status().state(), "baseline");
    let history = guest.stop();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

#[test]
fn a_shipper_that_is_away_for_long_finds_the_map_and_reaches_a_point_again() {
    let mut rig = small_ring();
    rig.start_all();
    let guest = rig.guest(&flood(8));
    assert!(guest.wait_for_acks(100, PATIENCE));
    guest.hold();
    rig.wait_live();
    rig.terminate(Process::Ship);
    guest.go_on();
    write_past_the_ring(&rig, &guest);
    let status = rig.status();
    assert!(status.map_set_bytes() > 0, "the ring should have overflowed: {}", status.0);
    assert_ne!(status.state(), "live", "{}", status.0);
    // The guest goes on, gently, while the shipper catches up.
    let history = guest.stop();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
    rig.assert_identical();
}

#[test]
fn a_proxy_killed_while_the_map_is_in_use_forgets_no_block() {
    let mut rig = small_ring();
    rig.start_all();
    let guest = rig.guest(&flood(9));
    guest.hold();
    rig.wait_live();
    rig.kill(Process::Ship);
    guest.go_on();
    write_past_the_ring(&rig, &guest);
    rig.kill(Process::Proxy);
    rig.start_proxy();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Source);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

/// An orderly stop saves what was not drained; the ring's loss then costs nothing.
#[test]
fn an_orderly_stop_and_a_lost_ring_need_no_second_baseline() {
    let mut rig = small_ring();
    rig.start_all();
    let guest = rig.guest(&plan(10));
    assert!(guest.wait_for_acks(100, PATIENCE));
    guest.hold();
    rig.wait_drained();
    rig.kill(Process::Ship);
    guest.go_on();
    assert!(guest.wait_for_acks(100, PATIENCE));
    let history = guest.stop();
    rig.terminate(Process::Proxy);
    remove_ring(&rig);
    rig.start_proxy();
    let map = rig.status().map_set_bytes();
    let disks = 2 * DISK_BYTES;
    assert!(map < disks / 2, "{map} of {disks} bytes are to be sent again");
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

/// A ring lost without an orderly stop (as by power) is noticed, never trusted.
#[test]
fn a_ring_lost_without_an_orderly_stop_still_converges() {
    let mut rig = small_ring();
    rig.start_all();
    let guest = rig.guest(&plan(11));
    assert!(guest.wait_for_acks(100, PATIENCE));
    rig.wait_live();
    assert!(guest.wait_for_acks(100, PATIENCE));
    rig.kill(Process::Proxy);
    rig.kill(Process::Ship);
    remove_ring(&rig);
    rig.start_proxy();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Source);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

fn remove_ring(rig: &Rig) {
    let prefix = format!("towline-{}-", rig.group);
    for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}
