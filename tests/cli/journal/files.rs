//! Copies of a dead host's files, and damaged ones: reported, never a crash or hang.

use super::{journal, ring_of, with_records};
use serde_json::Value;
use std::path::{Path, PathBuf};
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, args, run, towline};

const READERS: [&str; 6] = ["inspect", "dump", "tail", "verify", "stat", "map"];

/// State directory and ring of a dead group, copied to another place.
struct Copy {
    /// Keeps the original until the end; its processes are dead.
    rig: Rig,
    state: PathBuf,
    ring: PathBuf,
}

impl Copy {
    /// The ring lies beside `state.json`.
    fn new() -> Copy {
        let mut rig = with_records();
        rig.kill(Process::Proxy);
        let state = rig.path("copy");
        std::fs::create_dir(&state).unwrap();
        let from = rig.state().join(&rig.group).join("state.json");
        std::fs::copy(from, state.join("state.json")).unwrap();
        let original = ring_of(&rig);
        let ring = state.join(original.file_name().unwrap());
        std::fs::copy(&original, &ring).unwrap();
        std::fs::remove_file(original).unwrap();
        Copy { rig, state, ring }
    }

    /// Every reading command ends by itself with one of `codes`, says something, and
    /// with 1 or 69 a sentence on standard error.
    #[track_caller]
    fn assert_readers_end(&self, what: &str, codes: &[i32]) {
        for command in READERS {
            for form in [&[][..], &["--json"]] {
                let finished = self.rig.towline(journal(&self.state, command, form));
                let code = finished.code();
                assert!(codes.contains(&code), "{what}: {finished}");
                assert!(!finished.stderr.contains("panicked"), "{what}: {finished}");
                let told = finished.stderr.starts_with("towline: ") || !finished.stdout.is_empty();
                assert!(code == 0 || told, "{what}: {finished}");
                if !form.is_empty() && !finished.stdout.is_empty() {
                    finished.json();
                }
            }
        }
    }
}

#[test]
fn copied_files_are_read_with_the_ring_beside_them_or_named() {
    let copy = Copy::new();
    copy.assert_readers_end("beside", &[0]);
    let elsewhere = copy.rig.path("elsewhere.ring");
    std::fs::rename(&copy.ring, &elsewhere).unwrap();
    copy.assert_readers_end("no ring", &[0, 69]);
    let said = copy.rig.towline(args!["journal", "dump", &copy.state]).exits(69).stderr;
    assert!(said.contains("cannot be read") && said.contains("--ring"), "{said}");
    for command in READERS {
        let named = args!["journal", command, &copy.state, "--ring", &elsewhere, "--json"];
        let finished = copy.rig.towline(named).exits(0);
        assert!(finished.json().get("ring_error").is_none_or(Value::is_null), "{finished}");
    }
    // The files are as they were.
    let verify = copy.rig.towline(args!["journal", "verify", &copy.state, "--ring", &elsewhere]);
    assert!(verify.ok().contains("all whole"));
}

#[test]
fn a_truncated_or_empty_ring_is_reported() {
    let copy = Copy::new();
    let whole = std::fs::read(&copy.ring).unwrap();
    for len in [0, 100, 4096, 16_384, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&copy.ring, &whole[..len]).unwrap();
        // Inspect tells what state.json knows, and why there is no more.
        copy.assert_readers_end(&format!("cut at {len}"), &[0, 1]);
        let verify = copy.rig.towline(journal(&copy.state, "verify", &["--json"])).exits(1);
        assert_eq!(verify.json()["errors"][0]["kind"], "ring", "{verify}");
        let inspect = copy.rig.towline(journal(&copy.state, "inspect", &["--json"])).exits(0);
        assert!(inspect.json()["ring_error"].is_string(), "{inspect}");
        copy.rig.towline(journal(&copy.state, "dump", &[])).exits(1);
    }
}

#[test]
fn flipped_bytes_anywhere_are_survived_and_those_in_records_found() {
    let copy = Copy::new();
    let whole = std::fs::read(&copy.ring).unwrap();
    let marks = copy.rig.towline(journal(&copy.state, "inspect", &["--json"])).json();
    let acked = marks["acked_seq"].as_u64().unwrap() as usize;
    let slot = 16_384 + (acked + 3) * 64;
    for (what, at, found) in [
        ("magic", 0, Some("ring")),
        ("version", 8, Some("ring")),
        ("slots", 72, Some("ring")),
        ("volume", 4096 + 40, Some("ring")),
        ("head", 12_288 + 6, Some("counters")),
        ("acked", 12_288 + 2 * 64 + 5, Some("counters")),
        ("commit word", slot + 1, Some("missing")),
        ("payload position", slot + 12, Some("header_checksum")),
        ("header checksum", slot + 36, Some("header_checksum")),
        ("change map", whole.len() - 1, None),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&copy.ring, &bytes).unwrap();
        copy.assert_readers_end(what, &[0, 1]);
        let finished = copy.rig.towline(journal(&copy.state, "verify", &["--json"]));
        let verify = finished.json();
        assert_eq!(verify["errors"][0]["kind"].as_str(), found, "{what}: {verify}");
        assert_eq!(finished.code(), i32::from(found.is_some()), "{what}: {finished}");
    }
}

#[test]
fn a_ring_without_a_write_is_shown_as_such() {
    let mut rig = Rig::new(1, crate::DISK_BYTES);
    rig.start_proxy();
    let dir = rig.state().join(&rig.group);
    for command in READERS {
        let finished = rig.towline(journal(&dir, command, &["--json"])).exits(0);
        finished.json();
        rig.towline(journal(&dir, command, &[])).exits(0);
    }
    let dump = rig.towline(journal(&dir, "dump", &["--json"])).json();
    assert_eq!(dump["records"].as_array().map(Vec::len), Some(1), "{dump}");
    assert_eq!(dump["records"][0]["kind"], "resync", "{dump}");
    // Nothing was sent yet: the whole volume is dirty.
    let map = rig.towline(journal(&dir, "map", &["--json"])).json();
    assert_eq!(map["volumes"][0]["dirty_bytes"], crate::DISK_BYTES, "{map}");
    let stat = rig.towline(journal(&dir, "stat", &["--json"])).json();
    assert_eq!(stat["volumes"][0]["written_bytes"], 0, "{stat}");
    assert!(stat["volumes"][0]["overwrite_factor"].is_null(), "{stat}");
}

#[test]
fn a_ring_that_outlived_its_proxies_has_no_fault() {
    let mut rig = with_records();
    for round in 1..=3u8 {
        rig.kill(Process::Proxy);
        rig.start_proxy();
        rig.client("disk0").write(u64::from(round) * 65_536, &[round; 9000]).unwrap();
        let dir = rig.state().join(&rig.group);
        let verify = rig.towline(journal(&dir, "verify", &["--all", "--json"])).exits(0).json();
        assert_eq!(verify["ok"], true, "{verify}");
        let inspect = rig.towline(journal(&dir, "inspect", &["--json"])).exits(0).json();
        assert_eq!(inspect["counters_sound"], true, "{inspect}");
    }
}

#[test]
fn another_groups_ring_and_what_is_no_file_are_refused() {
    let copy = Copy::new();
    let mut other = Rig::new(1, crate::DISK_BYTES);
    other.start_proxy();
    let refused = |ring: &Path| {
        let args = args!["journal", "dump", &copy.state, "--ring", ring];
        run(towline(), args, PATIENCE).exits(1).stderr
    };
    let said = refused(&ring_of(&other));
    assert!(said.contains(&other.group), "{said}");
    assert!(refused(&copy.state).contains("not a regular file"));
}
