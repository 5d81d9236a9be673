//! `towline throttle`: at once, kept, and told with its reason.

use crate::DISK_BYTES;
use towline_tests::rig::Process;
use towline_tests::{Rig, args};

#[track_caller]
fn throttle(rig: &Rig, more: Vec<std::ffi::OsString>) -> serde_json::Value {
    let mut all = args!["throttle", &rig.group, "--state", rig.state(), "--json"];
    all.extend(more);
    let finished = rig.towline(all);
    assert_eq!(finished.code(), 0, "{finished}");
    finished.json()
}

#[test]
fn a_limit_counts_at_once_stays_and_is_told_with_its_reason() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    let limited = throttle(&rig, args!["--rate", "2M", "--ops", "100"]);
    assert_eq!(limited["taken"], true, "{limited}");
    let rate = &rig.status().0["rate"];
    assert_eq!((&rate["bytes_per_s"], &rate["ops_per_s"]), (&(2 << 20).into(), &100.into()));
    assert!(rate["why"].as_str().unwrap().contains("towline throttle"), "{rate}");

    // A window holds, what it does not name is as before; over a restart, too.
    let window = "daily 00:00-24:00 3M";
    throttle(&rig, args!["--window", window]);
    rig.kill(Process::Ship);
    let stored = throttle(&rig, args!["--ops", "none"]);
    assert_eq!(stored["taken"], false, "nobody is there to take it: {stored}");
    rig.start_ship();
    let status = rig.wait_status("limited", |s| s.0["rate"]["bytes_per_s"] == 3 << 20);
    assert!(status.0["rate"]["why"].as_str().unwrap().contains(window), "{}", status.0);

    let link =
        rig.towline(args!["throttle", "--link", "--state", rig.state(), "--rate", "5M", "--json"]);
    assert_eq!(link.json()["taken"], true, "{link}");
    assert_eq!(rig.status().0["rate"]["link_bytes_per_s"], 5 << 20);

    assert_eq!(link.json()["rate"]["bytes_per_s"], serde_json::Value::Null, "of the link: {link}");
    let words = args!["throttle", "--link", "--state", rig.state()];
    let told = rig.towline([words.clone(), args!["--rate", "6M"]].concat());
    assert!(told.stdout.contains("6.00 MiB/s") && !told.stdout.contains("3.00 MiB"), "{told}");
    let told = rig.towline([words, args!["--reset"]].concat());
    assert!(told.stdout.contains("no limit"), "{told}");

    let reset = throttle(&rig, args!["--reset"]);
    assert_eq!(reset["rate"]["bytes_per_s"], serde_json::Value::Null, "{reset}");
    rig.client("disk0").write(0, &[7; 1 << 20]).unwrap();
    rig.wait_drained();
}

#[test]
fn what_is_no_limit_is_a_usage_error() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    for wrong in [
        args!["--rate", "fast"],
        args!["--ops", "0"],
        args!["--rate", "0"],
        args!["--rate", "1023"],
        args!["--window", "daily 00:00-24:00 1"],
        args!["--window", "mon 25:00-26:00 1M"],
        args!["--reset", "--rate", "1M"],
    ] {
        let mut all = args!["throttle", &rig.group, "--state", rig.state()];
        all.extend(wrong);
        assert_eq!(rig.towline(all).code(), 64);
    }
    let nobody = rig.towline(args!["throttle", "nobody", "--state", rig.state(), "--rate", "1M"]);
    assert_eq!(nobody.code(), 69, "{nobody}");
}
