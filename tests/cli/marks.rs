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
