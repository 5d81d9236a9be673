//! `towline status`: keys, types, living and dead.

use crate::DISK_BYTES;
use serde_json::Value;
use towline_tests::rig::Process;
use towline_tests::{Rig, Status, args};

const STATES: [&str; 8] =
    ["baseline", "live", "spill", "map", "resync", "cutover", "sealed", "promoted"];

const NUMBERS: [&str; 14] = [
    "epoch",
    "incarnation",
    "head_seq",
    "done_seq",
    "durable_seq",
    "acked_seq",
    "lag_bytes",
    "lag_s",
    "ring_bytes",
    "ring_used_bytes",
    "spill_used_bytes",
    "map_set_bytes",
    "resent_bytes",
    "point_seq",
];

/// Every key that `INTERFACES` pins, with its type; some are null until known.
#[track_caller]
fn assert_keys(group: &Value) {
    for key in NUMBERS {
        let value = group.get(key).unwrap_or_else(|| panic!("no {key} in {group}"));
        let may_be_null = key == "point_seq" || key == "lag_s";
        assert!(value.is_number() || may_be_null && value.is_null(), "{key}: {group}");
    }
    let state = group["state"].as_str().unwrap_or_default();
    assert!(STATES.contains(&state), "{group}");
    for key in ["done_bytes", "total_bytes"] {
        assert!(group["baseline"][key].is_u64(), "baseline.{key}: {group}");
    }
    for key in ["rate_bytes_per_s", "eta_s"] {
        let value = group["baseline"].get(key);
        assert!(value.is_some_and(|v| v.is_number() || v.is_null()), "baseline.{key}: {group}");
    }
    for added in ["added_write_us", "added_read_us", "added_flush_us"] {
        for key in ["p50", "p99"] {
            let value = group[added].get(key);
            assert!(value.is_some_and(|v| v.is_number() || v.is_null()), "{key}: {group}");
        }
    }
    let error = group.get("last_error").unwrap_or_else(|| panic!("no last_error in {group}"));
    assert!(error.is_null() || error.is_string() || error.is_object(), "{group}");
    for volume in group["volumes"].as_array().unwrap_or_else(|| panic!("no volumes: {group}")) {
        assert!(volume["name"].is_string(), "{group}");
        assert_eq!(volume["size_bytes"], DISK_BYTES, "{group}");
        assert!(volume["exports"].is_array(), "{group}");
    }
}

#[test]
fn the_keys_are_those_pinned_in_every_state_of_life() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_proxy();
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    let status = rig.status();
    assert_keys(&status.0);
    assert_eq!(status.state(), "baseline");
    assert_eq!(status.0["volumes"].as_array().map(Vec::len), Some(2));
    rig.start_receive();
    rig.start_ship();
    let status = rig.wait_drained();
    assert_keys(&status.0);
    assert!(status.0["point_seq"].is_u64(), "{}", status.0);
    // The shipper's own counters follow within its interval.
    let status = rig.wait_status("told to be done", |status| {
        status.0["baseline"]["done_bytes"] == status.0["baseline"]["total_bytes"]
            && status.0["ladder"].as_array().is_some_and(|steps| !steps.is_empty())
    });
    // The shipper keeps up: no payload went to disk, and what did is told apart.
    let written = &status.0["disk_written"];
    for none in ["payload_bytes", "spill_header_bytes", "spill_fill_bytes", "change_map_bytes"] {
        assert_eq!(written[none], 0, "{none}: {}", status.0);
    }
    for some in ["activity_map_bytes", "state_bytes"] {
        assert!(written[some].as_u64().is_some_and(|bytes| bytes > 0), "{some}: {}", status.0);
    }
    // The baseline's HEAL was the ladder's last step.
    let step = status.0["ladder"].as_array().and_then(|steps| steps.last()).unwrap();
    assert_eq!((&step["from"], &step["to"]), (&"map".into(), &"ring".into()), "{}", status.0);
    assert!(step["reason"].as_str().is_some_and(|why| why.starts_with("healed")), "{step}");
    // It reads files: the dead are told of like the living, and nobody is disturbed.
    rig.kill(Process::Ship);
    assert_keys(&rig.status().0);
    rig.kill(Process::Proxy);
    let dead = rig.status();
    assert_keys(&dead.0);
    assert_eq!(dead.head_seq(), status.head_seq(), "{}", dead.0);
}

#[test]
fn without_a_name_all_groups_are_told_and_the_text_names_them() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let finished = rig.towline(args!["status", "--state", rig.state(), "--json"]).exits(0);
    let groups = finished.json()["groups"].as_array().cloned().unwrap_or_default();
    assert_eq!(groups.len(), 1, "{finished}");
    let text = rig.towline(args!["status", "--state", rig.state()]).ok();
    assert!(text.contains(&rig.group) && text.contains("disk0"), "{text}");
}

#[test]
fn a_receiver_that_has_no_group_yet_is_shown() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_receive();
    let status = args!["status", "--state", rig.path("target-state")];
    let shown = rig.towline(status.clone()).exits(0);
    assert!(shown.stdout.contains("no group yet (target)"), "{shown}");
    let shown = rig.towline([status, args!["--json"]].concat()).json()["groups"][0].clone();
    let process = &shown["processes"][0];
    assert_eq!((&process["process"], &process["alive"]), (&"receive".into(), &true.into()));
    // It may be the one of any group that is asked for.
    let named = args!["status", "erp", "--state", rig.path("target-state"), "--json"];
    assert_eq!(rig.towline(named).exits(0).json()["groups"][0]["group"], "erp");
}

#[test]
fn a_new_target_of_an_old_group_is_at_its_baseline() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.prefill();
    rig.start_all();
    rig.wait_live();
    rig.kill(Process::Receive);
    let state = rig.path("target-state");
    std::fs::rename(&state, rig.path("old-state")).unwrap();
    std::fs::remove_file(rig.target("disk0")).unwrap();
    let slow = args!["throttle", &rig.group, "--state", rig.state(), "--rate", "1M"];
    rig.towline(slow).exits(0);
    rig.start_receive();
    let status = rig.wait_status("at the baseline", |s| s.0["state"] == "baseline");
    assert!(status.0["point_seq"].is_null(), "{}", status.0);
    rig.towline(args!["throttle", &rig.group, "--state", rig.state(), "--reset"]).exits(0);
    rig.wait_live();
}

#[test]
fn with_the_ring_lost_what_it_alone_told_is_not_known() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    rig.kill(Process::Ship);
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    let ring = rig.ring_path();
    rig.kill(Process::Proxy);
    std::fs::remove_file(ring).unwrap();
    let status = rig.status().0;
    let of_ring = ["head_seq", "done_seq", "durable_seq", "acked_seq", "lag_bytes", "lag_s"];
    for key in of_ring.into_iter().chain(["ring_used_bytes", "spill_used_bytes", "map_set_bytes"]) {
        assert!(status.get(key).is_some_and(Value::is_null), "{key}: {status}");
    }
    assert!(status["last_error"].as_str().is_some_and(|e| e.contains("towline proxy")), "{status}");
    let text = rig.towline(args!["status", "--state", rig.state()]).ok();
    assert!(text.contains("seq not known"), "{text}");
    let row = |label: &str| text.lines().find(|line| line.trim_start().starts_with(label));
    for label in ["lag ", "ring ", "spill ", "to copy "] {
        assert!(row(label).is_some_and(|line| line.contains("not known")), "{label}: {text}");
    }
    let inspect = args!["journal", "inspect", rig.state()];
    let text = rig.towline(inspect.clone()).ok();
    for row in ["not known (last number given)", "not known (durable", "not known waiting"] {
        assert!(text.contains(row), "{row}: {text}");
    }
    let inspect = rig.towline([inspect, args!["--json"]].concat()).json();
    for key in &of_ring[..4] {
        assert!(inspect.get(*key).is_some_and(Value::is_null), "{key}: {inspect}");
    }
    rig.start_proxy();
    assert_keys(&rig.status().0);
    assert!(rig.status().head_seq() > 0);
}

#[test]
fn what_is_wrong_with_the_spill_is_the_last_error_beside_what_the_shipper_says() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    let error = |status: &Status| status.0["last_error"].as_str().unwrap_or_default().to_owned();
    let spill = rig.state().join(&rig.group).join("spill");
    std::fs::write(&spill, "in the way").unwrap();
    rig.kill(Process::Receive);
    let mut client = rig.client("disk0");
    // More than the ring holds.
    for n in 0..80 {
        client.write((n % 60) << 18, &vec![n as u8 + 1; 1 << 18]).unwrap();
    }
    let status = rig.wait_status("told of spill and network", |status| {
        let error = error(status);
        error.contains("cannot be written") && error.contains("; also: the spill in ")
    });
    assert!(error(&status).contains("make room on that disk (it takes 64.0 MiB"), "{}", status.0);
    let text = rig.towline(args!["status", "--state", rig.state()]).ok();
    assert!(text.contains("the proxy tries again every second"), "{text}");
    let reason = |status: &Status| {
        let step = status.0["ladder"].as_array().and_then(|steps| steps.last().cloned());
        step.unwrap_or_default()["reason"].as_str().unwrap_or_default().to_owned()
    };
    rig.wait_status("on the map for the right reason", |status| {
        reason(status).ends_with("the spill cannot be written")
    });
    std::fs::remove_file(&spill).unwrap();
    rig.wait_status("told of the network alone", |status| {
        let error = error(status);
        !error.is_empty() && !error.contains("spill")
    });
    rig.start_receive();
    let status = rig.wait_drained();
    assert!(!error(&status).contains("spill"), "{}", status.0);
}
