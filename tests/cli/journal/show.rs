//! What is shown is what was written: filters, following, figures, the picture.

use super::{journal, ring_of, trim, with_records, zero};
use crate::DISK_BYTES;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use towline_tests::rig::Process;
use towline_tests::{Daemon, Rig, run};

/// A drained group of two volumes without a shipper.
fn quiet() -> Rig {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    rig.kill(Process::Ship);
    rig
}

fn dir(rig: &Rig) -> PathBuf {
    rig.state().join(&rig.group)
}

#[track_caller]
fn records(rig: &Rig, options: &[&str]) -> Vec<Value> {
    let mut all = options.to_vec();
    all.push("--json");
    let dump = rig.towline(journal(&dir(rig), "dump", &all)).exits(0).json();
    dump["records"].as_array().unwrap_or_else(|| panic!("{dump}")).clone()
}

#[test]
fn dump_shows_the_records_that_are_asked_for() {
    let rig = quiet();
    rig.client("disk0").write(4096, &[1; 4096]).unwrap();
    zero(&mut rig.client("disk0"), 65_536, 65_536);
    rig.client("disk1").write(0, b"towline!").unwrap();
    trim(&mut rig.client("disk1"), 8192, 4096);
    rig.client("disk1").flush().unwrap();
    let all = records(&rig, &[]);
    let kinds: Vec<&str> = all.iter().filter_map(|r| r["kind"].as_str()).collect();
    assert_eq!(kinds, ["write", "zero", "write", "trim", "barrier"]);
    for record in &all {
        assert_eq!(record["at_target"], false, "{record}");
        assert!(record["time"].is_string() && record["seq"].is_u64(), "{record}");
    }
    assert_eq!((&all[0]["offset"], &all[0]["len"]), (&4096.into(), &4096.into()));
    let count = |options: &[&str]| records(&rig, options).len();
    assert_eq!(count(&["--kind", "write"]), 2);
    assert_eq!(count(&["--kind", "zero,trim"]), 2);
    assert_eq!(count(&["--volume", "disk1", "--kind", "write,trim"]), 2);
    assert_eq!(count(&["--limit", "3"]), 3);
    assert_eq!(count(&["--since", "-10m"]), 5);
    assert_eq!(count(&["--until", "-10m"]), 0);
    assert_eq!(count(&["--since", all[2]["time"].as_str().unwrap_or_default()]), 3);
    let seq = all[1]["seq"].as_u64().unwrap();
    assert_eq!(count(&["--seq", &format!("{seq}..{}", seq + 1)]), 2);
    assert_eq!(count(&["--seq", &format!("{seq}")]), 1);
    // With what the target has: at least RESYNC and HEAL.
    assert_eq!(count(&["--all", "--kind", "resync,heal"]), 2);
    assert_eq!(count(&["--kind", "control"]), 0);
    let payload = records(&rig, &["--payload", "--volume", "disk1", "--kind", "write"]);
    assert_eq!(payload[0]["payload_hex"], "746f776c696e6521", "{payload:?}");
    let text = rig.towline(journal(&dir(&rig), "dump", &["--payload"])).ok();
    assert!(text.contains("|towline!|"), "{text}");
}

#[test]
fn what_cannot_be_asked_for_exits_with_64() {
    let rig = quiet();
    for wrong in [
        &["--seq", "9..3"][..],
        &["--since", "yesterday"],
        &["--volume", "disk9"],
        &["--kind", "poem"],
    ] {
        let finished = rig.towline(journal(&dir(&rig), "dump", wrong)).exits(64);
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{finished}");
    }
}

/// `tail -f`, line by line. It ends by itself if the test does not end it.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    #[track_caller]
    fn start(rig: &Rig, options: &[&str]) -> Follower {
        let mut child = Command::new(towline_tests::towline())
            .args(journal(&dir(rig), "tail", &["-f", "--for", "600"]))
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|l| to.send(l)));
        Follower { child, lines }
    }

    /// Waits for a line with the text; gives how many came, it included.
    #[track_caller]
    fn wait_for(&self, text: &str) -> usize {
        let mut count = 0;
        loop {
            let line = self.lines.recv_timeout(towline_tests::PATIENCE);
            count += 1;
            if line.unwrap_or_else(|e| panic!("{text:?} is not shown: {e}")).contains(text) {
                return count;
            }
        }
    }

    #[track_caller]
    fn end(mut self, signal: &str) {
        // The process is our child and not yet waited for: the id is its own.
        let asked = run("kill", [signal, &self.child.id().to_string()], towline_tests::PATIENCE);
        assert_eq!(asked.code(), 0, "{asked}");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn tail_follows_until_its_time_is_over_or_it_is_asked_to_end() {
    let rig = with_records();
    let last = rig.towline(journal(&dir(&rig), "tail", &["-n", "3", "--json"])).exits(0).json();
    assert_eq!(last["records"].as_array().map(Vec::len), Some(3), "{last}");
    assert_eq!(last["records"][2]["kind"], "barrier", "{last}");
    let follower = Follower::start(&rig, &["-n", "1", "--kind", "write"]);
    assert_eq!(follower.wait_for("+4096"), 1);
    rig.client("disk0").write(77_824, b"just now").unwrap();
    assert_eq!(follower.wait_for("77824 +8"), 1);
    // As ^C.
    follower.end("-INT");
    let timed = rig.towline(journal(&dir(&rig), "tail", &["-f", "--for", "0.3", "--json"]));
    assert_eq!(timed.exits(0).json()["lost"], 0);
}

#[test]
fn following_goes_on_in_the_groups_new_ring() {
    let mut rig = with_records();
    let follower = Follower::start(&rig, &[]);
    follower.wait_for("barrier");
    rig.kill(Process::Proxy);
    std::fs::remove_file(ring_of(&rig)).unwrap();
    rig.start_proxy();
    follower.wait_for("a new ring: incarnation 2");
    follower.wait_for("resync");
    follower.end("-TERM");
}

#[test]
fn stat_tells_the_figures_of_a_known_workload() {
    let rig = quiet();
    let mut client = rig.client("disk0");
    for round in 1..=10u8 {
        // Ten times the same two blocks, of one block of the change map.
        client.write(0, &[round; 4096]).unwrap();
        client.write(8192, &[round; 4096]).unwrap();
    }
    client.write(1 << 20, &[1; 65_536]).unwrap();
    client.write((2 << 20) + 512, &[1; 512]).unwrap();
    zero(&mut client, 3 << 20, 131_072);
    trim(&mut client, 4 << 20, 1 << 20);
    let stat = rig.towline(journal(&dir(&rig), "stat", &["--pending", "--json"])).exits(0).json();
    let volume = &stat["volumes"][0];
    let written: u32 = 20 * 4096 + 65_536 + 512 + 131_072;
    let unique: u32 = 2 * 4096 + 65_536 + 4096 + 131_072;
    assert_eq!(volume["writes"], 23, "{stat}");
    assert_eq!(volume["written_bytes"], written, "{stat}");
    assert_eq!(volume["unique_bytes"], unique, "{stat}");
    assert_eq!(volume["map_bytes"], 5 * 65_536, "{stat}");
    assert_eq!(volume["trimmed_bytes"], 1 << 20, "{stat}");
    let factor = volume["overwrite_factor"].as_f64().unwrap();
    assert!((factor - f64::from(written) / f64::from(unique)).abs() < 1e-9, "{stat}");
    assert_eq!(stat["volumes"][1]["written_bytes"], 0, "{stat}");
    let bucket = |key: &str, upto: u64| {
        let buckets = stat[key].as_array().unwrap().clone();
        let found = buckets.iter().find(|b| b["bytes_upto"] == upto).cloned();
        found.map_or(0, |b| b["records"].as_u64().unwrap())
    };
    assert_eq!((bucket("sizes", 512), bucket("sizes", 4096)), (1, 20), "{stat}");
    assert_eq!((bucket("sizes", 65_536), bucket("sizes", 131_072)), (1, 1), "{stat}");
    assert_eq!((bucket("alignments", 512), bucket("alignments", 4096)), (1, 20), "{stat}");
    let hot = &stat["hottest"][0];
    assert_eq!((&hot["offset"], &hot["writes"]), (&0.into(), &20.into()), "{stat}");
    assert_eq!(hot["volume"], "disk0", "{stat}");
    // The longest interval covers everything.
    let longest = stat["intervals"].as_array().and_then(|all| all.last()).cloned().unwrap();
    assert!(longest["unique_bytes"].as_u64() >= Some(u64::from(unique)), "{stat}");
    assert_eq!(longest["written_bytes"], written, "{stat}");
    let text = rig.towline(journal(&dir(&rig), "stat", &[])).ok();
    assert!(text.contains("hottest") && text.contains("overwriting"), "{text}");
}

#[test]
fn inspect_tells_fill_history_and_mix_beside_the_pinned_keys() {
    let rig = with_records();
    let inspect = rig.towline(journal(&dir(&rig), "inspect", &["--json"])).exits(0).json();
    assert!(inspect["fill"]["slots_used"].as_u64() >= Some(21), "{inspect}");
    assert!(inspect["fill"]["payload_used_bytes"].as_u64() >= Some(20 * 4096), "{inspect}");
    assert_eq!(inspect["fill"]["dirty_bytes"], 0, "{inspect}");
    let history = &inspect["history"];
    assert_eq!((&history["whole"], &history["breaks"]), (&true.into(), &0.into()), "{inspect}");
    assert_eq!(history["journaled_bytes"], 20 * 4096, "{inspect}");
    let controls = history["controls"].as_array().unwrap();
    let names: Vec<&str> = controls.iter().filter_map(|c| c["control"].as_str()).collect();
    assert_eq!(names, ["RESYNC", "HEAL"], "{inspect}");
    let kinds = inspect["mix"]["kinds"].as_array().unwrap();
    let writes = kinds.iter().find(|k| k["kind"] == "write").unwrap();
    assert_eq!((&writes["records"], &writes["bytes"]), (&20.into(), &81_920.into()), "{inspect}");
}

#[test]
fn the_map_shows_what_the_target_lacks_and_its_svg_is_well_formed() {
    let rig = quiet();
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    rig.client("disk0").write(DISK_BYTES / 2, &[1; 4096]).unwrap();
    let svg = rig.path("map.svg");
    let path = svg.to_string_lossy().into_owned();
    let map = rig.towline(journal(&dir(&rig), "map", &["--svg", &path, "--json"])).exits(0).json();
    let volume = &map["volumes"][0];
    assert_eq!(volume["pending_bytes"], 2 * 65_536, "{map}");
    assert_eq!(volume["journaled_bytes"], 2 * 65_536, "{map}");
    assert_eq!((&volume["dirty_bytes"], &volume["cell_bytes"]), (&0.into(), &65_536.into()));
    let picture: String =
        volume["picture"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let cells = (DISK_BYTES / 65_536) as usize;
    assert_eq!(picture.len(), cells, "{map}");
    let marked: Vec<usize> = picture.match_indices('J').map(|(at, _)| at).collect();
    assert_eq!(marked, [0, cells / 2], "{map}");
    let text = rig.towline(journal(&dir(&rig), "map", &["--volume", "disk1"])).ok();
    assert!(text.contains("disk1") && !text.contains("disk0"), "{text}");
    assert!(!text.contains('\x1b'), "colours without a terminal: {text}");
    assert_well_formed(&std::fs::read_to_string(&svg).unwrap());
    // An image is no picture, whatever its name.
    let source = rig.source("disk0").to_string_lossy().into_owned();
    rig.towline(journal(&dir(&rig), "map", &["--svg", &source])).exits(1);
    rig.client("disk0").write(0, b"the source is alive").unwrap();
}

/// Tags nest and close, attributes are quoted, one root.
#[track_caller]
fn assert_well_formed(document: &str) {
    assert_eq!(well_formed(document), Ok(()), "{document}");
}

fn well_formed(document: &str) -> Result<(), String> {
    let (mut open, mut roots) = (Vec::new(), 0);
    let mut rest = document.trim();
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        if text.contains('>') || open.is_empty() && !text.trim().is_empty() {
            return Err(format!("stray text {text:?}"));
        }
        let end = rest.find('>').ok_or("a tag is not closed")?;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("quotes of <{tag}>"));
        }
        let name = tag.trim_matches('/').split_whitespace().next().unwrap_or_default().to_owned();
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return Err(format!("<{tag}> closes something else"));
            }
        } else if !tag.ends_with('/') {
            roots += usize::from(open.is_empty());
            open.push(name);
        }
    }
    match (open.is_empty(), roots, rest.is_empty()) {
        (true, 1, true) => Ok(()),
        _ => Err("not one closed root".into()),
    }
}

#[test]
fn the_check_of_the_svg_finds_faults() {
    assert!(well_formed("<svg a=\"1\"><g><rect/></g>x</svg>").is_ok());
    for bad in ["<svg><g></svg></g>", "<svg>", "<svg a=\"></svg>", "<svg/></svg>", "<svg></svg>x"] {
        assert!(well_formed(bad).is_err(), "{bad}");
    }
}

#[test]
fn looking_on_does_not_disturb_a_group_that_drains() {
    let mut rig = with_records();
    let tail = journal(&dir(&rig), "tail", &["-f", "--for", "600"]);
    let mut follower = Daemon::start(&tail);
    rig.start_ship();
    for command in ["inspect", "dump", "verify", "stat", "map"] {
        rig.client("disk0").write(0, command.as_bytes()).unwrap();
        rig.towline(journal(&dir(&rig), command, &["--json"])).exits(0);
    }
    rig.wait_drained();
    assert!(follower.is_running());
    follower.terminate();
    rig.settle_target();
    rig.terminate(Process::Proxy);
    rig.assert_identical();
}
