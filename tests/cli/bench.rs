//! `towline bench impact`: what it reports, what it refuses, and that nothing of it stays.

use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use towline_tests::{Daemon, PATIENCE, args, require, run, towline};

/// Cells of five servers at one workload, as short as can be.
const ONLY: &str =
    "^(towline|towline-off|towline-upstream|nbdkit|nbdkit-hop)/write-4k-qd1/unpinned/batching$";
const ROUNDS: usize = 2;

/// Debug builds beside other tests: the fill, a baseline and six windows.
const RUN_PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn a_short_run_reports_ratios_and_a_page_and_leaves_nothing() {
    require!("nbdkit");
    let dir = tempfile::tempdir().unwrap();
    let (disk, json, html) =
        (dir.path().join("new.raw"), dir.path().join("r.json"), dir.path().join("r.html"));
    let words = args![
        "bench",
        "impact",
        "--source",
        &disk,
        "--quick",
        "--only",
        ONLY,
        "--against",
        "nbdkit,nbdkit-hop",
        "--size",
        "64M",
        "--rounds",
        ROUNDS.to_string(),
        "--seconds",
        "0.05",
        "--seed",
        "7",
        "--json",
        &json,
        "--html",
        &html,
    ];
    let table = run(towline(), &words, RUN_PATIENCE).ok();
    assert!(table.contains("against nbdkit") && table.contains("towline-off"), "{table}");

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((report["schema"].as_u64(), report["kind"].as_str()), (Some(1), Some("impact")));
    assert_eq!(report["seed"], 7);
    assert_eq!(report["skipped"], Value::Array(Vec::new()), "{report:#}");
    let cells = report["cells"].as_array().unwrap();
    let mut servers: Vec<_> = cells.iter().map(|cell| cell["server"].as_str().unwrap()).collect();
    servers.sort_unstable();
    assert_eq!(servers, ["nbdkit", "nbdkit-hop", "towline", "towline-off", "towline-upstream"]);
    cells.iter().for_each(assert_measured);
    let gates = report["gates"].as_array().unwrap();
    assert!(!gates.is_empty());
    for gate in gates {
        let [low, value, high] = ["low", "value", "high"].map(|end| number(&gate["ratio"][end]));
        assert!(0.0 < low && low <= value && value <= high, "{gate:#}");
        assert_eq!(gate["verdict"], "too-few-rounds", "{gate:#}");
    }

    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"), "{page}");
    assert_eq!(names(dir.path()), ["r.html", "r.json"], "the disk and its folder are removed");
    assert_no_process_of(dir.path());
}

fn assert_measured(cell: &Value) {
    let rounds = cell["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), ROUNDS, "{cell:#}");
    for round in rounds {
        let [p50, p99, p999] = ["p50_us", "p99_us", "p999_us"].map(|key| number(&round[key]));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999, "{round:#}");
        for key in ["iops", "mb_per_s", "cpu_us_per_op", "cpu_s_per_gib", "requests"] {
            assert!(number(&round[key]) > 0.0, "{key}: {round:#}");
        }
    }
    assert!(!cell["cdf"].as_array().unwrap().is_empty());
}

#[test]
fn a_disk_that_exists_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("guest.raw");
    std::fs::write(&disk, b"precious").unwrap();
    let words = args!["bench", "impact", "--source", &disk, "--quick"];
    let finished = run(towline(), &words, PATIENCE).exits(64);
    assert!(finished.stderr.contains("--overwrite"), "{finished}");
    assert_eq!(std::fs::read(&disk).unwrap(), b"precious");
    assert_eq!(names(dir.path()), ["guest.raw"]);
}

#[test]
fn cells_are_listed_without_touching_anything() {
    let words = args!["bench", "impact", "--list", "--full", "--against", "qsd-mirror"];
    let listed = run(towline(), &words, PATIENCE).ok();
    for cell in ["towline/write-4k-qd1/awake/batching", "qsd-blocking/write-4k-qd32/unpinned/fio"] {
        assert!(listed.lines().any(|line| line == cell), "{cell} is not in {listed}");
    }
    assert!(!listed.contains("nbdkit/"), "{listed}");
}

#[test]
fn a_run_that_is_told_to_stop_ends_its_servers_and_removes_what_it_made() {
    require!("nbdkit");
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("new.raw");
    let daemon = Daemon::start(&endless_run(&disk));
    let began = Instant::now();
    while processes_of(dir.path()).iter().all(|command| !command.contains("nbdkit")) {
        assert!(began.elapsed() < PATIENCE, "no server was started: {daemon}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = daemon.terminate();
    assert!(!status.success(), "an unfinished run is no success");
    assert_eq!(names(dir.path()), [""; 0]);
    assert_no_process_of(dir.path());
}

fn endless_run(disk: &Path) -> Vec<std::ffi::OsString> {
    let only = "^nbdkit/write-4k-qd1/unpinned/batching$";
    args![
        "bench",
        "impact",
        "--source",
        disk,
        "--quick",
        "--only",
        only,
        "--size",
        "64M",
        "--seconds",
        "3600"
    ]
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Commands of all processes that have something in `dir`, except this test's own child.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .map(|words| String::from_utf8_lossy(&words).replace('\0', " "))
        .filter(|command| command.contains(dir) && !command.contains("bench impact"))
        .collect()
}

#[track_caller]
fn assert_no_process_of(dir: &Path) {
    assert_eq!(processes_of(dir), [""; 0]);
}
