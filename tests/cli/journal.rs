//! `towline journal`: on a live group and on its files.

mod extract;
mod files;
mod keys;
mod manual;
mod show;
mod spilled;
mod terminal;

use crate::DISK_BYTES;
use std::ffi::OsString;
use std::path::PathBuf;
use towline_bench::nbd_client::{Client, Request};
use towline_tests::rig::Process;
use towline_tests::{Rig, args};

/// A group in step with its target, then some records that nobody drains.
fn with_records() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    rig.kill(Process::Ship);
    let mut client = rig.client("disk0");
    // From one: zeroes would be journaled without a payload.
    for n in 1..=20u8 {
        client.write(u64::from(n) * 8192, &[n; 4096]).unwrap();
    }
    client.flush().unwrap();
    rig
}

/// Where the group's ring lies.
#[track_caller]
fn ring_of(rig: &Rig) -> PathBuf {
    let prefix = format!("towline-{}-", rig.group);
    let is_ring = |name: OsString| name.to_string_lossy().starts_with(&prefix);
    let mut entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
    entries.find(|entry| is_ring(entry.file_name())).unwrap().path()
}

fn zero(client: &mut Client, offset: u64, len: u32) {
    client.roundtrip(Request::WriteZeroes { offset, len, fua: false, no_hole: false }).unwrap();
}

fn trim(client: &mut Client, offset: u64, len: u32) {
    client.roundtrip(Request::Trim { offset, len, fua: false }).unwrap();
}

/// `towline journal WORD...` on a group's state directory.
fn journal(dir: &std::path::Path, command: &str, options: &[&str]) -> Vec<OsString> {
    let mut all = args!["journal", command, dir];
    all.extend(options.iter().map(OsString::from));
    all
}

/// A copy of the ring of [`with_records`] with a flipped bit in the seventh write's payload.
#[track_caller]
fn damaged_ring(rig: &Rig) -> String {
    let mut bytes = std::fs::read(ring_of(rig)).unwrap();
    // It is the only place with a run of sevens.
    let at = bytes.windows(4096).position(|window| window.iter().all(|byte| *byte == 7)).unwrap();
    bytes[at + 100] ^= 1;
    let copy = rig.path("damaged.ring");
    std::fs::write(&copy, &bytes).unwrap();
    copy.to_string_lossy().into_owned()
}

#[track_caller]
fn assert_journal(rig: &Rig) {
    for dir in [rig.state().join(&rig.group), rig.state()] {
        let finished = rig.towline(args!["journal", "inspect", &dir, "--json"]).exits(0);
        let inspect = finished.json();
        assert_eq!(inspect["group"], rig.group.as_str(), "{inspect}");
        for key in ["epoch", "incarnation", "head_seq", "done_seq", "durable_seq", "acked_seq"] {
            assert!(inspect[key].is_u64(), "{key}: {inspect}");
        }
        assert!(inspect["records"].as_u64() >= Some(20), "{inspect}");
        assert!(inspect["state"].is_string() && inspect["volumes"].is_array(), "{inspect}");
        assert!(inspect.get("oldest_age_s").is_some(), "{inspect}");

        let finished = rig.towline(args!["journal", "verify", &dir, "--json"]).exits(0);
        let verify = finished.json();
        assert_eq!(verify["ok"], true, "{verify}");
        assert_eq!(verify["errors"].as_array().map(Vec::len), Some(0), "{verify}");
        for key in ["records", "bytes", "first_seq", "last_seq"] {
            assert!(verify[key].is_u64(), "{key}: {verify}");
        }
        assert!(verify["bytes"].as_u64() >= Some(20 * 4096), "{verify}");
        let human = rig.towline(args!["journal", "inspect", &dir]).ok();
        assert!(human.contains(&rig.group), "{human}");
        let dump = rig.towline(args!["journal", "dump", &dir]).ok();
        assert!(dump.lines().count() >= 20, "{dump}");
    }
}

#[test]
fn a_live_journal_is_shown_and_verified() {
    let rig = with_records();
    assert_journal(&rig);
    // Read only: the proxy goes on.
    rig.client("disk0").write(0, b"on").unwrap();
}

#[test]
fn the_files_of_a_dead_group_are_shown_and_verified() {
    let mut rig = with_records();
    rig.kill(Process::Proxy);
    assert_journal(&rig);
}

#[test]
fn a_flipped_byte_in_a_payload_is_found_with_its_record() {
    let mut rig = with_records();
    rig.kill(Process::Proxy);
    let ring = ring_of(&rig);
    let mut bytes = std::fs::read(&ring).unwrap();
    // The payload of the seventh write is the only place with a run of sevens.
    let at = bytes.windows(4096).position(|window| window.iter().all(|byte| *byte == 7)).unwrap();
    bytes[at + 100] ^= 1;
    std::fs::write(&ring, &bytes).unwrap();
    let dir = rig.state().join(&rig.group);
    let finished = rig.towline(args!["journal", "verify", &dir, "--json"]).exits(1);
    let verify = finished.json();
    assert_eq!(verify["ok"], false, "{verify}");
    let error = &verify["errors"][0];
    assert!(error["kind"].is_string() && error["seq"].is_u64(), "{verify}");
    assert!(error.get("offset").is_some(), "{verify}");
}
