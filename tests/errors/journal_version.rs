//! State and ring of a newer version: refused, and not touched.

use crate::{DISK_BYTES, assert_names};
use std::path::PathBuf;
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, args, run, towline};

/// A group with some records, its proxy killed: state and ring lie there.
fn left_behind() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    rig.client("disk0").write(0, &[1; 65536]).unwrap();
    rig.kill(Process::Proxy);
    rig
}

fn ring(rig: &Rig) -> PathBuf {
    let prefix = format!("towline-{}-", rig.group);
    std::fs::read_dir("/dev/shm")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .unwrap_or_else(|| panic!("no ring of {} in /dev/shm", rig.group))
}

#[test]
fn a_state_of_a_newer_version_is_refused_untouched() {
    let rig = left_behind();
    let path = rig.state().join(&rig.group).join("state.json");
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["version"] = 999.into();
    let newer = serde_json::to_vec(&state).unwrap();
    std::fs::write(&path, &newer).unwrap();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &["999", "newer"]);
    assert!(std::fs::read(&path).unwrap() == newer, "the state was changed");
}

#[test]
fn a_ring_of_a_newer_version_is_refused_untouched() {
    let rig = left_behind();
    let path = ring(&rig);
    let mut bytes = std::fs::read(&path).unwrap();
    // The superblock: 8 bytes of magic, then the version (docs/formats/journal.md).
    bytes[8..12].copy_from_slice(&999u32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &["newer"]);
    assert!(std::fs::read(&path).unwrap() == bytes, "the ring was changed");
    let verify = args!["journal", "verify", rig.state().join(&rig.group)];
    let finished = run(towline(), verify, PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
}

#[test]
fn a_damaged_ring_is_not_trusted_and_the_guest_is_served() {
    let mut rig = left_behind();
    let path = ring(&rig);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4096].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    rig.start_proxy();
    assert_eq!(rig.client("disk0").read(0, 65536).unwrap(), vec![1; 65536]);
    crate::assert_serves(&mut rig);
    rig.start_receive();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_identical();
}

#[test]
fn a_truncated_ring_crashes_nobody() {
    let mut rig = left_behind();
    let file = std::fs::OpenOptions::new().write(true).open(ring(&rig)).unwrap();
    file.set_len(10_000).unwrap();
    // Looking at it must not crash, whatever it says.
    let inspect = args!["journal", "inspect", rig.state().join(&rig.group), "--json"];
    let finished = run(towline(), inspect, PATIENCE);
    assert!(finished.status.code().is_some(), "ended by a signal: {finished}");
    rig.start_proxy();
    assert_eq!(rig.client("disk0").read(0, 65536).unwrap(), vec![1; 65536]);
}
