//! Devices in the hands of somebody else.

use crate::lab::Lab;
use std::path::PathBuf;
use towline_tests::args;

fn manifest_path(lab: &Lab) -> PathBuf {
    lab.devices[0].join(&lab.rig.group).join("manifest")
}

/// Replaces text in the manifest's first line.
fn rewrite(lab: &Lab, change: impl FnOnce(&mut serde_json::Value)) {
    let path = manifest_path(lab);
    let text = std::fs::read_to_string(&path).unwrap();
    let (line, rest) = text.split_once('\n').unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(line).unwrap();
    change(&mut manifest);
    std::fs::write(&path, format!("{manifest}\n{rest}")).unwrap();
}

#[test]
fn a_manifest_that_was_changed_or_signed_by_another_group_is_refused_before_anything_is_written() {
    let mut lab = Lab::protected(1);
    lab.rig.start_proxy();
    lab.export();
    let genuine = std::fs::read(manifest_path(&lab)).unwrap();
    let refused = |lab: &Lab, says: &str| {
        let finished = lab.import(&lab.devices, vec![]).exits(1);
        assert!(finished.stderr.contains(says), "{finished}");
        assert!(!lab.rig.path("target-state/receive/device.json").exists());
    };
    rewrite(&lab, |manifest| manifest["finished"] = false.into());
    refused(&lab, "the signature does not fit");
    std::fs::write(manifest_path(&lab), &genuine[..genuine.len() / 2]).unwrap();
    refused(&lab, "manifest");
    let text = String::from_utf8(genuine.clone()).unwrap();
    let line = text.lines().next().unwrap();
    std::fs::write(manifest_path(&lab), format!("{line}\nnull\n")).unwrap();
    refused(&lab, "is not signed");

    // Another group of the same CA signs what is this group's.
    let pki = lab.rig.pki.clone().unwrap();
    lab.rig.towline(args!["pki", "issue", &pki, "--group", "other"]).ok();
    std::fs::write(manifest_path(&lab), &genuine).unwrap();
    let group = lab.rig.group.clone();
    for kind in ["pem", "key"] {
        let own = pki.join(format!("group-{group}.{kind}"));
        std::fs::rename(&own, own.with_extension(format!("{kind}.own"))).unwrap();
        std::fs::copy(pki.join(format!("group-other.{kind}")), &own).unwrap();
    }
    lab.rig.towline(args!["device", "forget", "--group", &group, "--state", lab.rig.state()]).ok();
    std::fs::remove_dir_all(&lab.devices[0]).unwrap();
    std::fs::create_dir(&lab.devices[0]).unwrap();
    lab.export();
    refused(&lab, "is not signed by who may write the group");
}

#[test]
fn a_device_of_another_export_group_or_epoch_is_refused() {
    let mut lab = Lab::new(1);
    lab.rig.start_proxy();
    lab.export();
    // What is finished is not begun again elsewhere; a device that was away is brought up to
    // date.
    let new = lab.rig.path("new");
    std::fs::create_dir(&new).unwrap();
    let finished = lab.rig.towline(lab.export_args(&[new])).exits(1);
    assert!(finished.stderr.contains("is finished"), "{finished}");
    std::fs::remove_file(manifest_path(&lab)).unwrap();
    lab.export();
    assert_eq!(lab.manifest(0)["finished"], true);
    let import = |lab: &Lab| lab.import(&lab.devices, args!["--without-missing"]);

    // A receiver of another epoch, and of another group.
    import(&lab).exits(0);
    let state = lab.rig.path("target-state/receive/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    for (key, value, says) in [
        ("epoch", serde_json::json!(7), "is in epoch 7"),
        ("group_uuid", serde_json::json!("00112233445566778899aabbccddeeff"), "is of group"),
    ] {
        let mut changed: serde_json::Value = serde_json::from_str(&text).unwrap();
        changed[key] = value;
        std::fs::write(&state, changed.to_string()).unwrap();
        let finished = import(&lab).exits(1);
        assert!(finished.stderr.contains(says), "{finished}");
    }
    // One that has it already, and one that has a stream of its own.
    std::fs::write(&state, &text).unwrap();
    let again = import(&lab).exits(0).json();
    assert!(again["already"] == true && again["ready"] == true, "{again}");
    let mut changed: serde_json::Value = serde_json::from_str(&text).unwrap();
    changed["applied"]["hash"] = "00".repeat(32).into();
    std::fs::write(&state, changed.to_string()).unwrap();
    let finished = import(&lab).exits(1);
    assert!(finished.stderr.contains("batches already"), "{finished}");
}

#[test]
fn links_pipes_and_wrong_sizes_in_place_of_packs_are_damage() {
    let mut lab = Lab::new(1);
    lab.rig.prefill();
    lab.rig.start_proxy();
    lab.export();
    let secret = lab.rig.path("secret");
    std::fs::write(&secret, b"secret").unwrap();
    let (first, second) = (lab.pack(1), lab.pack(2));
    std::fs::remove_file(&first).unwrap();
    std::os::unix::fs::symlink(&secret, &first).unwrap();
    std::fs::OpenOptions::new().append(true).open(&second).unwrap().set_len(7).unwrap();
    // Maps that were changed are not believed either.
    let map = lab.devices[0].join(&lab.rig.group).join("maps/00000003.map");
    let mut bytes = std::fs::read(&map).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&map, bytes).unwrap();
    let verified = lab.verify(&lab.devices).exits(1).json();
    let damaged: Vec<u64> = verified["damaged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pack| pack["pack"].as_u64().unwrap())
        .collect();
    assert_eq!(damaged, [1, 2, 3], "{verified}");
    assert!(verified["lacking_bytes"].is_null(), "the map of a lost pack is lost: {verified}");
    let imported = lab.import(&lab.devices, args!["--without-missing"]).exits(0).json();
    assert!(imported["lacking_bytes"].is_null() && imported["ready"] == true, "{imported}");
    lab.start_shipping();
    lab.assert_ends_identical();
}

#[test]
fn an_export_that_cannot_fit_or_is_not_protected_is_refused_before_it_begins() {
    let mut lab = Lab::new(1);
    lab.rig.start_proxy();
    let all = lab.export_args(&lab.devices);
    let finished = lab.rig.towline([all.clone(), args!["--expect", "900T"]].concat()).exits(1);
    assert!(finished.stderr.contains("there is room for"), "{finished}");
    assert!(!lab.devices[0].join(&lab.rig.group).exists());
    // What would be written elsewhere is not written.
    let elsewhere = lab.rig.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::create_dir(lab.devices[0].join(&lab.rig.group)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, lab.devices[0].join(&lab.rig.group).join("packs"))
        .unwrap();
    let finished = lab.rig.towline(all.clone()).exits(1);
    assert!(finished.stderr.contains("is a link"), "{finished}");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    for (without, says) in [("--unsealed", "--key FILE"), ("--unsigned", "--pki DIR")] {
        let rest: Vec<_> = all.iter().filter(|arg| *arg != without).cloned().collect();
        let finished = lab.rig.towline(rest).exits(64);
        assert!(finished.stderr.contains(says), "{finished}");
    }
}
