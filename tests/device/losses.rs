//! Journeys on which packs and devices are lost.

use crate::DISK_BYTES;
use crate::lab::Lab;
use std::os::unix::fs::FileExt;
use std::path::Path;
use towline_tests::{Daemon, args};

/// Changes one byte in the middle of a file.
fn damage(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_damaged_pack_and_a_lost_device_cost_their_blocks_and_no_more() {
    let mut lab = Lab::protected(3);
    (lab.rig.ring, lab.rig.spill) = ("4M", "0");
    lab.rig.prefill();
    lab.rig.start_proxy();
    let report = lab.export();
    let packs = report["packs"].as_u64().unwrap();
    let changed = lab.change(160, 2);

    damage(&lab.pack(1));
    let lost = lab.devices.pop().unwrap();
    std::fs::remove_dir_all(lost).unwrap();
    let verified = lab.verify(&lab.devices).exits(1).json();
    assert_eq!(verified["damaged"][0]["pack"], 1, "{verified}");
    let missing = verified["missing"].as_array().unwrap().len() as u64;
    assert_eq!(missing, report["devices"][2]["packs"].as_u64().unwrap(), "{verified}");

    let first = lab.import(&lab.devices, vec![]).exits(1).json();
    assert_eq!(first["ready"], false, "{first}");
    assert_eq!(first["imported"].as_u64(), Some(packs - missing - 1), "{first}");
    let last = lab.import(&lab.devices, args!["--without-missing"]).exits(0).json();
    let lacking = last["lacking_bytes"].as_u64().unwrap();
    assert!(lacking > 0 && lacking == verified["lacking_bytes"].as_u64().unwrap(), "{last}");
    assert!(lacking < DISK_BYTES, "less than half of both volumes: {last}");
    assert_eq!(lab.lacking_bytes(), lacking);
    lab.ship_only(changed + lacking);
    assert_eq!(lab.lacking_bytes(), 0);
    lab.assert_ends_identical();
}

#[test]
fn devices_that_arrive_in_any_order_make_the_same_target() {
    let mut lab = Lab::new(3);
    lab.rig.prefill();
    lab.rig.start_proxy();
    let guest = lab.rig.guest(&crate::lab::plan(3));
    lab.export();
    guest.stop();
    let mut lacking = 0;
    for device in [2, 0, 1] {
        let one = &lab.devices[device..=device];
        let imported = lab.import(one, vec![]).json();
        assert_eq!(imported["ready"], device == 1, "{imported}");
        lacking = imported["lacking_bytes"].as_u64().unwrap_or(0);
    }
    let since = lab.rig.status().ring_used_bytes();
    lab.ship_only(since + lacking);
    lab.assert_ends_identical();
}

#[test]
fn an_import_that_waits_for_a_pack_goes_on_and_nobody_else_begins_meanwhile() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let third = lab.pack(3);
    let aside = third.with_extension("aside");
    std::fs::rename(&third, &aside).unwrap();
    let part = lab.import(&lab.devices, vec![]).exits(1).json();
    assert_eq!(part["missing"], serde_json::json!([3]), "{part}");
    let refused = lab.rig.towline(lab.rig.receive_args()).exits(1);
    assert!(refused.stderr.contains("an import of transport devices is under way"), "{refused}");
    std::fs::rename(&aside, &third).unwrap();
    let whole = lab.import(&lab.devices, vec![]).exits(0).json();
    assert_eq!(whole["ready"], true, "{whole}");
    let lacking = whole["lacking_bytes"].as_u64().unwrap();
    lab.ship_only(lacking);
    lab.assert_ends_identical();
}

#[test]
fn an_import_that_is_killed_again_and_again_ends_as_an_undisturbed_one() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let ledger = lab.rig.path("target-state/receive/device.json");
    let state = lab.rig.path("target-state/receive/state.json");
    let done = || {
        let text = std::fs::read_to_string(&ledger).unwrap_or_default();
        text.matches("\"done\":true").count()
    };
    for _ in 0..4 {
        let seen = done();
        let import = Daemon::start(&lab.import_args(&lab.devices));
        lab.rig.wait_status("further", |_| done() > seen || state.exists());
        import.kill();
    }
    if ledger.exists() || !state.exists() {
        lab.import(&lab.devices, vec![]).exits(0);
    }
    lab.ship_only(0);
    lab.assert_ends_identical();
}
