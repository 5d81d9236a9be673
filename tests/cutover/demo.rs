//! `towline demo`: the whole job, faults included, with its own verdict.

use std::time::Duration;
use towline_tests::{args, run, towline};

/// The demo promises less than 90 seconds in release on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);

const NUMBERS: [&str; 11] = [
    "acked_writes",
    "lost_writes",
    "net_breaks",
    "baseline_s",
    "baseline_bytes_per_s",
    "written_bytes",
    "shipped_bytes",
    "cutover_pause_ms",
    "verified_bytes",
    "elapsed_s",
    "schema",
];

#[test]
fn the_demo_passes_its_own_checks_and_reports_what_is_pinned() {
    let demo = args!["demo", "--json", "--size", "64M", "--seconds", "10"];
    let finished = run(towline(), demo, PATIENCE).exits(0);
    let report = finished.json();
    assert_eq!(report["verdict"], "pass", "{finished}");
    for check in ["acked_on_target", "identical_at_cut", "fsck"] {
        assert!(report["checks"].get(check).is_some(), "{check}: {finished}");
    }
    for check in ["acked_on_target", "identical_at_cut"] {
        assert_eq!(report["checks"][check], true, "{finished}");
    }
    for key in NUMBERS {
        assert!(report[key].is_number(), "{key}: {finished}");
    }
    for key in ["lag_s", "added_write_us"] {
        assert!(report[key]["p50"].is_number() && report[key]["p99"].is_number(), "{finished}");
    }
    for process in ["proxy", "ship", "receive"] {
        assert!(report["kills"][process].as_u64() >= Some(1), "{finished}");
    }
    assert_eq!(report["lost_writes"], 0, "{finished}");
    assert!(report["acked_writes"].as_u64() >= Some(1), "{finished}");
    assert!(report["net_breaks"].as_u64() >= Some(2), "{finished}");
}
