//! Journeys on which nothing is lost.

use crate::lab::{Lab, PACK_BYTES, plan};
use towline_bench::stamp::{Pattern, Plan};
use towline_block::BLOCK_BYTES;
use towline_shipper::batch::BATCH_BYTES_MAX;
use towline_shipper::source::WINDOW_BYTES_MIN;
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, args};

#[test]
fn a_live_group_travels_sealed_and_signed_and_the_network_sends_only_what_changed() {
    let mut lab = Lab::protected(2);
    let prefilled = lab.rig.prefill();
    lab.rig.start_proxy();
    let guest = lab.rig.guest_knowing(&plan(1), prefilled);
    let report = lab.export();
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    assert_eq!(report["has_point"], true, "{report}");
    let devices = report["devices"].as_array().unwrap();
    assert!(devices.iter().all(|device| device["packs"].as_u64() > Some(5)), "{report}");
    let history = guest.stop();

    let verified = lab.verify(&lab.devices).exits(0).json();
    assert_eq!((&verified["ok"], &verified["lacking_bytes"]), (&true.into(), &0.into()));
    assert_eq!(verified["covered_bytes"], verified["volumes_bytes"], "{verified}");

    let imported = lab.import(&lab.devices, vec![]).exits(0).json();
    assert_eq!((&imported["ready"], &imported["has_point"]), (&true.into(), &true.into()));
    // What the guest wrote since the last pack is all that is left.
    let status = lab.rig.status();
    let spilled = status.0["spill_used_bytes"].as_u64().unwrap();
    lab.ship_only(status.ring_used_bytes() + spilled);
    lab.rig.assert_ends_equal(&history);
}

#[test]
fn a_ring_that_overflows_while_the_device_travels_costs_its_blocks() {
    let mut lab = Lab::new(1);
    (lab.rig.ring, lab.rig.spill) = ("4M", "0");
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let changed = lab.change(160, 1);
    let status = lab.rig.status();
    assert!(status.map_set_bytes() > 0, "the ring should have overflowed: {}", status.0);
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(changed);
    lab.assert_ends_identical();
}

#[test]
fn past_the_ring_a_small_write_costs_its_4_kib_and_not_its_block() {
    let mut lab = Lab::new(1);
    (lab.rig.ring, lab.rig.spill) = ("4M", "0");
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    // The ring takes what it can of the first blocks, the map the others of them.
    lab.write_first(72);
    let status = lab.rig.status();
    let (ring, whole) = (status.ring_used_bytes(), status.map_set_bytes());
    assert!(whole > 0, "the ring should have overflowed: {}", status.0);
    let changed = lab.write_each(4096, BLOCK_BYTES, 3);
    let map = lab.rig.status().map_set_bytes();
    assert!(map > 10 * changed, "all blocks should be in the map: {map}");
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(ring + whole + changed);
    lab.assert_ends_identical();
}

#[test]
fn a_host_that_restarts_while_the_device_travels_costs_nothing_more() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let changed = lab.change(40, 3);
    let ring = lab.rig.ring_path();
    lab.rig.terminate(Process::Proxy);
    // As a reboot does; an orderly stop has saved what it held.
    let _ = std::fs::remove_file(ring);
    lab.rig.start_proxy();
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(changed);
    lab.assert_ends_identical();
}

#[test]
fn a_device_that_is_pulled_out_and_plugged_in_again_costs_one_pack() {
    let mut lab = Lab::new(2);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let mut export = lab.start_export(args!["--rate", "8M"]);
    export.wait_for_line(|line| line.contains("a pack is closed"));
    let away: Vec<_> = lab.devices.iter().map(|dir| dir.with_extension("away")).collect();
    for (dir, away) in lab.devices.iter().zip(&away) {
        std::fs::rename(dir, away).unwrap();
    }
    export.wait_for_line(|line| line.contains("going on once a device is there"));
    for (dir, away) in lab.devices.iter().zip(&away) {
        assert!(!dir.join(&lab.rig.group).exists(), "nothing is written to an empty mount point");
        std::fs::rename(away, dir).unwrap();
    }
    assert!(export.wait_for_end().success(), "{export}");
    let on_devices: u64 = lab.manifest(0)["packs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["bytes"].as_u64().unwrap())
        .sum();
    let cut = lab.stored_bytes();
    // A pack ends with a whole batch; what was cut ahead of it is in the window.
    let lost = PACK_BYTES + BATCH_BYTES_MAX as u64 + WINDOW_BYTES_MIN;
    assert!(cut <= on_devices + lost, "{cut} bytes were cut for {on_devices} on the devices");
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(0);
    lab.assert_ends_identical();
}

#[test]
fn an_export_that_is_killed_or_stopped_goes_on_where_it_was() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let mut export = lab.start_export(args!["--rate", "8M"]);
    export.wait_for_line(|line| line.contains("a pack is closed"));
    export.kill();
    let packs = lab.manifest(0)["packs"].as_array().unwrap().len();
    assert!(packs > 0);
    let mut export = lab.start_export(args!["--rate", "8M"]);
    export.wait_for_line(|line| line.contains("a pack is closed"));
    let status = export.terminate();
    assert_eq!(status.code(), Some(1), "stopped before it was finished");
    // The proxy forgets nothing of it either.
    lab.rig.kill(Process::Proxy);
    lab.rig.start_proxy();
    let report = lab.export();
    assert!(report["packs"].as_u64() > Some(packs as u64 + 1), "{report}");
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(0);
    lab.assert_ends_identical();
}

#[test]
fn the_same_command_without_a_device_says_which_and_writes_nothing_in_its_place() {
    let mut lab = Lab::new(2);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let mut export = lab.start_export(args!["--rate", "8M"]);
    for _ in 0..2 {
        export.wait_for_line(|line| line.contains("a pack is closed"));
    }
    export.kill();
    let (mount, away) = (&lab.devices[1], lab.devices[1].with_extension("away"));
    std::fs::rename(mount, &away).unwrap();
    std::fs::create_dir(mount).unwrap();
    let finished = lab.rig.towline(lab.export_args(&lab.devices)).exits(1);
    assert!(finished.stderr.contains("was device 2 of this export"), "{finished}");
    let report = finished.json();
    assert_eq!(report["finished"], true, "{report}");
    assert_eq!(report["devices"][1]["device"], 2, "{report}");
    assert_eq!(report["devices"][1]["up_to_date"], false, "{report}");
    assert_eq!(std::fs::read_dir(mount).unwrap().count(), 0);
    std::fs::remove_dir(mount).unwrap();
    std::fs::rename(&away, mount).unwrap();
    lab.export();
    lab.verify(&lab.devices).exits(0);
}

#[test]
fn a_proxy_that_is_killed_while_a_pack_is_open_costs_that_pack() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let mut export = lab.start_export(args!["--rate", "8M"]);
    export.wait_for_line(|line| line.contains("a pack is closed"));
    lab.rig.kill(Process::Proxy);
    lab.rig.start_proxy();
    assert!(export.wait_for_end().success(), "{export}");
    lab.verify(&lab.devices).exits(0);
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(0);
    lab.assert_ends_identical();
}

#[test]
fn shipping_that_begins_too_early_waits_for_the_import() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let before = lab.rig.relay.forwarded_bytes();
    lab.rig.start_receive();
    lab.rig.start_ship();
    let ship = lab.rig.ship.as_mut().unwrap();
    ship.wait_for_line(|line| line.contains("import them there (towline device import)"));
    assert_eq!(lab.rig.status().0["device"]["state"], "travelling");
    lab.rig.terminate(Process::Receive);
    lab.import(&lab.devices, vec![]).exits(0);
    lab.rig.start_receive();
    let ship = lab.rig.ship.as_mut().unwrap();
    ship.wait_for_line(|line| line.contains("attached to the journal"));
    lab.rig.wait_drained();
    let sent = lab.rig.relay.forwarded_bytes() - before;
    assert!(sent < 256 << 10, "{sent} bytes crossed the network, nothing had to");
    assert_eq!(lab.rig.status().0["device"]["state"], "imported");
    lab.assert_ends_identical();
}

#[test]
fn guests_that_outrun_their_ring_end_no_export_for_ever() {
    let mut lab = Lab::new(1);
    (lab.rig.ring, lab.rig.spill) = ("4M", "0");
    let prefilled = lab.rig.prefill();
    lab.rig.start_proxy();
    let flood = Plan { rate_per_s: None, pattern: Pattern::Uniform, ..plan(5) };
    let guest = lab.rig.guest_knowing(&flood, prefilled);
    let report = lab.export();
    let history = guest.stop();
    println!("{report}");
    let rest = lab.rig.status();
    lab.import(&lab.devices, vec![]).exits(0);
    lab.ship_only(rest.map_set_bytes() + rest.ring_used_bytes());
    lab.rig.assert_ends_equal(&history);
}

#[test]
fn an_export_keeps_to_its_rate() {
    const RATE: u64 = 4 << 20;
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let all = [lab.export_args(&lab.devices), args!["--rate", RATE.to_string()]].concat();
    let report = lab.rig.towline(all).exits(0).json();
    let (bytes, took) = (report["bytes"].as_u64().unwrap(), report["elapsed_s"].as_f64().unwrap());
    // A bucket that is full at the start lets a second's worth pass.
    let least = bytes.saturating_sub(RATE) as f64 / RATE as f64;
    assert!(bytes > 3 * RATE && took >= least, "{bytes} bytes in {took} s: {report}");
}
