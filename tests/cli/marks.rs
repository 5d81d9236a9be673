//! `towline target`: marks are listed and gone back to, and shipping goes on from there.

use crate::DISK_BYTES;
use serde_json::Value;
use towline_tests::rig::Process;
use towline_tests::{Rig, args};

const VOLUME: &str = "disk0";

fn list(rig: &Rig) -> Vec<Value> {
    let state = rig.path("target-state");
    let finished = rig.towline(args!["target", "list-marks", "--state", state, "--json"]);
    assert_eq!(finished.code(), 0, "{finished}");
    finished.json()["marks"].as_array().cloned().unwrap_or_default()
}

fn rewind(rig: &Rig, to: &str) -> towline_tests::program::Finished {
    let state = rig.path("target-state");
    rig.towline(args!["target", "rewind", "--state", state, "--to", to, "--json"])
}

/// Writes and waits until the target has applied it and made a mark of it; the mark.
fn write_and_mark(rig: &Rig, offset: u64, byte: u8) -> Value {
    let mut client = rig.client(VOLUME);
    client.write(offset, &[byte; 65536]).unwrap();
    client.flush().unwrap();
    let head = rig.wait_drained().head_seq();
    let found = || list(rig).into_iter().find(|mark| mark["seq"].as_u64() == Some(head));
    rig.wait_status("a mark at its head", |_| found().is_some());
    found().unwrap_or_default()
}

fn mark(rig: &Rig, name: &str) -> towline_tests::program::Finished {
    let base = args!["mark", &rig.group, "--state", rig.state(), "--name", name];
    rig.towline([base, args!["--wait", "30s", "--json"]].concat())
}

#[test]
fn a_mark_named_at_the_source_is_where_the_target_can_go_back_to() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_proxy();
    let early = mark(&rig, "too-early");
    assert_eq!(early.code(), 1, "before the baseline there is no point to name: {early}");
    rig.start_receive();
    rig.start_ship();
    rig.wait_live();
    for volume in ["disk0", "disk1"] {
        rig.client(volume).write(65536, &[1; 4096]).unwrap();
    }
    let images = ["disk0", "disk1"].map(|volume| std::fs::read(rig.source(volume)).unwrap());
    let marked = mark(&rig, "before-patch");
    assert_eq!(marked.code(), 0, "{marked}");
    assert_eq!(marked.json()["at_target"], true, "{marked}");
    assert_eq!(list(&rig).len(), 1, "who waited for it finds it");
    rig.client("disk1").write(65536, &[2; 4096]).unwrap();
    rig.wait_drained();
    rig.settle_target();

    let marks = list(&rig);
    assert_eq!(marks.len(), 1, "{marks:?}");
    assert_eq!((&marks[0]["mark"], &marks[0]["kind"]), (&"before-patch".into(), &"named".into()));
    assert_eq!(marks[0]["seq"], marked.json()["seq"]);
    let done = rewind(&rig, "before-patch");
    assert_eq!(done.code(), 0, "{done}");
    let targets = ["disk0", "disk1"].map(|volume| std::fs::read(rig.target(volume)).unwrap());
    assert!(targets == images, "both volumes are as they were at the mark");
}

#[test]
fn a_target_goes_back_to_a_mark_and_shipping_brings_it_forward_again() {
    let mut rig = Rig::new(1, DISK_BYTES);
    // As often as there is something to mark.
    rig.mark_every = Some("0.001ms");
    rig.start_all();
    rig.wait_live();
    let early = write_and_mark(&rig, 0, 1);
    let image = std::fs::read(rig.source(VOLUME)).unwrap();
    write_and_mark(&rig, 0, 2);
    write_and_mark(&rig, 1 << 20, 3);

    let mark = early["mark"].as_str().unwrap_or_default().to_owned();
    let refused = rewind(&rig, &mark);
    assert_eq!(refused.code(), 1, "its receiver runs: {refused}");
    rig.terminate(Process::Receive);
    let unknown = rewind(&rig, "no-such-mark");
    assert_eq!(unknown.code(), 64, "{unknown}");

    let done = rewind(&rig, &mark);
    assert_eq!(done.code(), 0, "{done}");
    assert_eq!(done.json()["seq"], early["seq"], "{done}");
    assert!(std::fs::read(rig.target(VOLUME)).unwrap() == image, "the target is as it was then");
    assert_eq!(list(&rig).last().unwrap()["mark"].as_str(), Some(mark.as_str()));

    // What the journal has no more is compared: that begins with a record of its own.
    let head = rig.status().head_seq();
    rig.start_receive();
    rig.wait_status("forward again", |s| s.is_drained() && s.head_seq() > head);
    rig.settle_target();
    let (source, target) = (rig.source(VOLUME), rig.target(VOLUME));
    assert!(std::fs::read(source).unwrap() == std::fs::read(target).unwrap(), "forward again");
}
