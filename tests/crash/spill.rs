//! A ring smaller than what waits for the target: the rest is on disk, and comes back.

use crate::{DISK_BYTES, plan};
use towline_bench::stamp::{Guest, Pattern, Plan};
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, Side};

/// Several times half the ring.
const WRITTEN_BYTES_MIN: u64 = 48 << 20;

/// Faster than a shipper that is away, slower than any disk.
fn steady(seed: u64) -> Plan {
    Plan { rate_per_s: Some(2000.0), pattern: Pattern::Uniform, ..plan(seed) }
}

fn spilled(rig: &Rig) -> u64 {
    rig.status().0["spill_used_bytes"].as_u64().unwrap_or(0)
}

#[track_caller]
fn write_past_the_ring(rig: &Rig, guest: &Guest) {
    let from = guest.progress().acked_bytes;
    while guest.progress().acked_bytes - from < WRITTEN_BYTES_MIN {
        assert!(guest.wait_for_acks(50, PATIENCE), "writes stand still: {}", rig.status().0);
    }
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
}

#[test]
fn a_shipper_that_is_away_finds_everything_on_disk_after_a_kill_of_the_proxy() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_all();
    // No zeroes: one that is in flight at the kill is dirtied by rule R1, rightly.
    let guest = rig.guest(&Plan { zero_share: 0.0, ..steady(31) });
    guest.hold();
    rig.wait_live();
    rig.kill(Process::Ship);
    guest.go_on();
    write_past_the_ring(&rig, &guest);
    let status = rig.status();
    assert_eq!(status.state(), "spill", "{}", status.0);
    assert_eq!(status.map_set_bytes(), 0, "{}", status.0);
    assert!(spilled(&rig) > WRITTEN_BYTES_MIN / 3, "{}", status.0);
    rig.kill(Process::Proxy);
    rig.start_proxy();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let status = rig.status();
    assert_eq!(status.map_set_bytes(), 0, "{}", status.0);
    let history = guest.stop();
    rig.start_ship();
    rig.wait_drained();
    let ended = rig.wait_status("in memory again", |status| status.state() == "live");
    assert_eq!(ended.map_set_bytes(), 0);
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
    rig.assert_identical();
}

#[test]
fn durability_flush_serves_a_guest_through_kills() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.durability = "flush";
    rig.start_all();
    let guest = rig.guest(&plan(32));
    assert!(guest.wait_for_acks(100, PATIENCE));
    rig.wait_live();
    for which in [Process::Ship, Process::Proxy, Process::Proxy] {
        rig.kill(which);
        rig.start(which);
        assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    }
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

/// The shipper is away, everything that was written is flushed, then the power fails: ring
/// and processes are gone, the spill is not.
#[test]
fn what_was_flushed_reaches_the_target_from_the_spill_of_a_lost_ring() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.durability = "flush";
    rig.attach_trust = true;
    rig.start_all();
    let guest = rig.guest(&steady(33));
    guest.hold();
    rig.wait_live();
    rig.kill(Process::Ship);
    guest.go_on();
    assert!(guest.wait_for_acks(2000, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    let mut client = rig.client("disk0");
    client.flush().unwrap();
    drop(client);
    let ring = rig.ring_path();
    rig.kill(Process::Proxy);
    std::fs::remove_file(ring).unwrap();
    rig.start_proxy();
    let status = rig.status();
    assert!(status.0["history_bytes"].as_u64().unwrap_or(0) > 4 << 20, "{}", status.0);
    rig.start_ship();
    rig.wait_drained();
    assert_eq!(rig.status().0["history_bytes"], 0);
    let said = rig.said(Process::Ship);
    assert!(said.contains("first the records that the spill has of the lost ring"), "{said}");
    assert!(!said.contains("everything is"), "{said}");
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}
