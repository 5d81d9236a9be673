//! What left the ring for the disk is shown like the rest, also when the ring is lost
//! with its host.

use super::{journal, ring_of};
use crate::DISK_BYTES;
use serde_json::Value;
use std::path::{Path, PathBuf};
use towline_tests::rig::Process;
use towline_tests::{Finished, PATIENCE, Rig, args, run, towline};

/// Together more than twice the ring of 16 MiB; one record each.
const WRITES: u64 = 160;
const WRITE_BYTES: u64 = 1 << 18;

fn dir(rig: &Rig) -> PathBuf {
    rig.state().join(&rig.group)
}

#[track_caller]
fn ask(rig: &Rig, command: &str, options: &[&str]) -> Finished {
    rig.towline(journal(&dir(rig), command, options))
}

/// A drained group without a shipper whose oldest records are on disk; the base is its
/// volume as the target has it.
fn overflowing() -> (Rig, PathBuf) {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    rig.kill(Process::Ship);
    let base = rig.path("base.img");
    std::fs::copy(rig.source("disk0"), &base).unwrap();
    let mut client = rig.client("disk0");
    for n in 0..WRITES {
        let at = n * WRITE_BYTES % (DISK_BYTES - WRITE_BYTES);
        client.write(at, &vec![n as u8 + 1; WRITE_BYTES as usize]).unwrap();
        // The persister needs its turn, or changes go to the map.
        if n % 8 > 0 {
            continue;
        }
        rig.wait_status("room in the ring", |status| {
            assert_eq!(status.map_set_bytes(), 0, "{}", status.0);
            status.0["ring_used_bytes"].as_u64() < Some(12 << 20)
        });
    }
    client.flush().unwrap();
    (rig, base)
}

fn writes(dump: &Value) -> Vec<&Value> {
    dump["records"].as_array().unwrap().iter().filter(|r| r["kind"] == "write").collect()
}

#[test]
fn records_on_disk_are_dumped_verified_counted_and_replayed_like_those_in_the_ring() {
    let (rig, base) = overflowing();
    let inspect = ask(&rig, "inspect", &["--json"]).exits(0).json();
    assert_eq!(inspect["ladder"]["rung"], "spill", "{inspect}");
    let dump = ask(&rig, "dump", &["--json", "--hexdump=1"]).exits(0).json();
    let (all, faults) = (writes(&dump), dump.to_string().matches("unreadable").count());
    assert_eq!((all.len() as u64, faults), (WRITES, 0), "{dump}");
    for (n, record) in all.iter().enumerate() {
        assert_eq!(record["payload_hex"], format!("{:02x}", n + 1), "{record}");
        assert_eq!(record["payload_ok"], true, "{record}");
    }
    let verify = ask(&rig, "verify", &["--json"]).exits(0).json();
    assert_eq!(verify["bytes"], WRITES * WRITE_BYTES, "{verify}");
    let stat = ask(&rig, "stat", &["--json"]).exits(0).json();
    assert_eq!(stat["volumes"][0]["written_bytes"], WRITES * WRITE_BYTES, "{stat}");
    // The first record is on disk, the last in the ring.
    let out = rig.path("rebuilt.img");
    let (to, base, image) = (
        inspect["head_seq"].to_string(),
        base.to_string_lossy().into_owned(),
        out.to_string_lossy().into_owned(),
    );
    let options = ["--to-seq", &to, "--volume", "disk0", "--base", &base, "--out", &image];
    ask(&rig, "extract", &options).exits(0);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(rig.source("disk0")).unwrap());
}

/// State directory and spill of a host that lost its memory.
fn of_a_dead_host(rig: &mut Rig) {
    rig.kill(Process::Proxy);
    std::fs::remove_file(ring_of(rig)).unwrap();
}

fn segment(rig: &Rig) -> PathBuf {
    dir(rig).join("spill/00000.seg")
}

#[test]
fn with_the_ring_lost_the_spill_is_shown_and_it_is_said_what_that_means() {
    let (mut rig, _) = overflowing();
    let before = ask(&rig, "dump", &["--json"]).json();
    of_a_dead_host(&mut rig);
    let dump = ask(&rig, "dump", &["--json"]).exits(0);
    assert!(dump.stderr.contains("is lost"), "{dump}");
    let after = dump.json();
    let left = after["records"].as_array().unwrap();
    assert!(left.len() >= 64 && left.len() as u64 <= WRITES + 1, "{after}");
    // What is there is what was there.
    for record in left {
        let same = |r: &&Value| r["seq"] == record["seq"];
        let was = before["records"].as_array().unwrap().iter().find(same).unwrap();
        for key in ["kind", "volume", "offset", "len", "time", "payload_ok"] {
            assert_eq!(was[key], record[key], "{key}");
        }
    }
    let verify = ask(&rig, "verify", &["--json"]).exits(0).json();
    assert_eq!(verify["records"], left.len() as u64, "{verify}");
    let inspect = ask(&rig, "inspect", &["--json"]).exits(0).json();
    assert_eq!(inspect["lone_spill"]["first_seq"], left[0]["seq"], "{inspect}");
    assert!(ask(&rig, "inspect", &[]).ok().contains("dump, verify and stat show them"));
    ask(&rig, "stat", &[]).exits(0);
    ask(&rig, "tail", &["-n", "3"]).exits(0);
    // A picture needs the change map, which the ring held.
    ask(&rig, "map", &[]).exits(69);
}

#[test]
fn damage_anywhere_in_a_segment_is_told_and_never_a_crash() {
    let (mut rig, _) = overflowing();
    of_a_dead_host(&mut rig);
    let whole = std::fs::read(segment(&rig)).unwrap();
    let total = ask(&rig, "verify", &["--json"]).exits(0).json()["records"].as_u64().unwrap();
    let look = |what: &str| -> u64 {
        let verify = run(towline(), args!["journal", "verify", dir(&rig), "--json"], PATIENCE);
        for command in ["inspect", "dump", "tail", "stat"] {
            let finished = ask(&rig, command, &["--json"]);
            assert!([0, 69].contains(&finished.code()), "{what}: {finished}");
            assert!(!finished.stderr.contains("panicked"), "{what}: {finished}");
        }
        match verify.code() {
            0 | 1 => verify.json()["records"].as_u64().unwrap(),
            code => {
                assert_eq!(code, 69, "{what}: {verify}");
                0
            }
        }
    };
    flipped(&segment(&rig), &whole, 4096 + 64 + 500);
    assert!((1..total).contains(&look("a payload")), "one is gone, the rest is there");
    flipped(&segment(&rig), &whole, 4096 + 20);
    assert!((1..total).contains(&look("a slot")));
    flipped(&segment(&rig), &whole, 60);
    assert!(look("a span's header") < total);
    for len in [0, 100, 4096, 5000, whole.len() / 3] {
        std::fs::write(segment(&rig), &whole[..len]).unwrap();
        assert!(look(&format!("cut at {len}")) < total);
    }
    std::fs::write(segment(&rig), vec![0xff; 1 << 20]).unwrap();
    assert!(look("noise") < total);
}

fn flipped(path: &Path, whole: &[u8], at: usize) {
    let mut bytes = whole.to_vec();
    bytes[at] ^= 0x41;
    std::fs::write(path, bytes).unwrap();
}
