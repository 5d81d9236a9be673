//! `towline ship --to URL`, `towline receive --from URL`: a store between the two.

mod servers;

use crate::DISK_BYTES;
use servers::Server;
use std::ffi::OsString;
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, Status, args, require};

const VOLUME: &str = "disk0";

/// A store, and what of it is in the environment.
#[derive(Clone)]
struct Store {
    url: String,
    environment: Vec<(&'static str, String)>,
}

fn folder(rig: &Rig) -> Store {
    Store { url: format!("file://{}", rig.path("store").display()), environment: vec![] }
}

fn ship_args(rig: &Rig, store: &Store) -> Vec<OsString> {
    args!["ship", "--group", &rig.group, "--state", rig.state(), "--to", &store.url]
}

fn started(args: &[OsString], store: &Store) -> Option<Daemon> {
    let mut daemon = Daemon::start_in(args, &store.environment);
    daemon.wait_ready();
    Some(daemon)
}

fn ship_to(rig: &mut Rig, store: &Store) {
    rig.ship = started(&ship_args(rig, store), store);
}

/// A receiver that follows the store; `and` adds to its command line.
fn receive_from(rig: &mut Rig, store: &Store, and: Vec<OsString>) {
    rig.receive = started(&receive_args(rig, store, and), store);
}

fn receive_args(rig: &Rig, store: &Store, and: Vec<OsString>) -> Vec<OsString> {
    let mut all = args!["receive", "--from", &store.url, "--group", &rig.group];
    all.extend(args!["--state", rig.path("target-state")]);
    all.extend(args!["--nbd", format!("unix:{}", rig.path("receive.nbd").display())]);
    for volume in &rig.volumes {
        all.extend(args!["--target", format!("{volume}={}", rig.target(volume).display())]);
    }
    all.extend(and);
    all
}

fn wait_same(rig: &Rig) {
    let same = || {
        rig.volumes.iter().all(|volume| {
            std::fs::read(rig.source(volume)).unwrap() == std::fs::read(rig.target(volume)).unwrap()
        })
    };
    rig.wait_status("the same at the target", |_| same());
}

/// Until the shipper says that something is wrong, in these words among others.
fn wait_told(rig: &Rig, word: &str) -> Status {
    rig.wait_status("told", |status| {
        status.0["last_error"].as_str().is_some_and(|error| error.contains(word))
    })
}

/// Until nothing is wrong any more, and all is shipped.
fn wait_well(rig: &Rig) {
    rig.wait_drained();
    rig.wait_status("well again", |status| status.0["last_error"].is_null());
}

fn write(rig: &Rig, volume: &str, offset: u64, byte: u8) {
    let mut client = rig.client(volume);
    client.write(offset, &[byte; 65536]).unwrap();
    client.flush().unwrap();
}

/// Baseline, changes, a receiver that starts from what lies there, and a shipper that is
/// killed and goes on.
fn hydrate_and_follow(rig: &mut Rig, store: &Store) {
    rig.prefill();
    rig.start_proxy();
    ship_to(rig, store);
    rig.wait_drained();
    write(rig, "disk0", 4096, 1);
    rig.wait_drained();
    rig.terminate(Process::Ship);
    receive_from(rig, store, vec![]);
    wait_same(rig);

    ship_to(rig, store);
    write(rig, "disk1", 1 << 20, 2);
    rig.wait_drained();
    rig.kill(Process::Ship);
    write(rig, "disk0", 1 << 20, 3);
    ship_to(rig, store);
    rig.wait_drained();
    wait_same(rig);
}

#[test]
fn a_target_hydrates_from_a_folder_follows_it_and_goes_on_over_the_network() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let store = folder(&rig);
    hydrate_and_follow(&mut rig, &store);
    rig.terminate(Process::Ship);
    rig.terminate(Process::Receive);

    let listen = rig.receiver_address.to_string();
    receive_from(&mut rig, &store, args!["--listen", listen, "--insecure-loopback"]);
    write(&rig, "disk0", 2 << 20, 4);
    let before = rig.relay.forwarded_bytes();
    rig.start_ship();
    rig.wait_drained();
    wait_same(&rig);
    let sent = rig.relay.forwarded_bytes() - before;
    assert!(sent < DISK_BYTES / 16, "{sent} bytes for a change of 64 KiB: it began anew");
}

#[test]
fn a_target_hydrates_from_a_bucket_of_s3_and_follows_it() {
    require!("moto_server");
    a_bucket_serves(&Server::s3());
}

#[test]
fn a_target_hydrates_from_a_container_of_azure_and_follows_it() {
    require!("azurite-blob");
    a_bucket_serves(&Server::azure());
}

#[test]
fn a_target_hydrates_from_a_bucket_of_google_and_follows_it() {
    a_bucket_serves(&Server::google());
}

fn a_bucket_serves(server: &Server) {
    let (mut rig, store) = (Rig::new(2, DISK_BYTES), server.store());
    hydrate_and_follow(&mut rig, &store);
    rig.terminate(Process::Receive);

    // The second one removes the parts of the first one's base.
    for generation in 1..=2 {
        let report = compact(&rig, &store, vec![]);
        assert_eq!(report["base"], generation, "{report}");
        assert!(report["folded_objects"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["removed_parts"].as_u64().unwrap() > 0, generation == 2, "{report}");
        write(&rig, "disk1", generation << 20, 20);
        rig.wait_drained();
    }
    for volume in rig.volumes.clone() {
        std::fs::write(rig.target(&volume), vec![0x55; DISK_BYTES as usize]).unwrap();
    }
    std::fs::remove_dir_all(rig.path("target-state")).unwrap();
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn a_sealed_store_shows_nothing_and_opens_only_with_its_key() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let (store, key) = (folder(&rig), rig.path("erp.key"));
    assert_eq!(rig.towline(args!["pki", "key", &key]).code(), 0);
    rig.start_proxy();
    let args = [ship_args(&rig, &store), args!["--key", &key]].concat();
    rig.ship = started(&args, &store);
    write(&rig, VOLUME, 4096, b'#');
    rig.wait_drained();
    rig.terminate(Process::Ship);
    let marker = [b'#'; 64];
    for file in walk(&rig.path("store")) {
        let bytes = std::fs::read(&file).unwrap();
        let shows = bytes.windows(64).any(|window| window == marker);
        assert!(!shows, "{} shows what the guest wrote", file.display());
    }

    receive_from(&mut rig, &store, vec![]);
    let receive = rig.receive.as_mut().unwrap();
    receive.wait_for_line(|line| line.contains("which is not here: give the key file"));
    rig.terminate(Process::Receive);
    receive_from(&mut rig, &store, args!["--key", &key]);
    wait_same(&rig);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn compact(rig: &Rig, store: &Store, and: Vec<OsString>) -> serde_json::Value {
    let done = compaction(rig, store, and).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn compaction(rig: &Rig, store: &Store, and: Vec<OsString>) -> std::process::Command {
    let now = args!["--keep-history", "0s", "--grace", "0s", "--json"];
    let all = [args!["store", "compact", &store.url, "--group", &rig.group], now, and].concat();
    let mut command = std::process::Command::new(towline_tests::towline());
    command.args(all).envs(store.environment.iter().cloned());
    command
}

fn bytes_in(rig: &Rig) -> u64 {
    walk(&rig.path("store")).iter().map(|file| file.metadata().unwrap().len()).sum()
}

/// The volume overwritten a few times, so that most of what lies in the store is of no use.
fn overwrite(rig: &Rig, byte: u8) {
    for round in 0..8 {
        for at in 0..16 {
            let mut client = rig.client(VOLUME);
            let noise: Vec<u8> = (0..65536_u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ round ^ byte)
                .collect();
            client.write(at * 65536, &noise).unwrap();
        }
        rig.wait_drained();
    }
}

#[test]
fn a_compacted_store_is_smaller_and_hydrates_goes_on_and_has_its_marks() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let (store, key) = (folder(&rig), rig.path("erp.key"));
    assert_eq!(rig.towline(args!["pki", "key", &key]).code(), 0);
    rig.start_proxy();
    let ship = [ship_args(&rig, &store), args!["--key", &key]].concat();
    rig.ship = started(&ship, &store);
    rig.wait_drained();
    overwrite(&rig, 1);

    let before = bytes_in(&rig);
    let report = compact(&rig, &store, args!["--key", &key]);
    assert_eq!(report["base"], 1, "{report}");
    assert!(report["freed_bytes"].as_u64().unwrap() > before / 2, "{report}");
    let after = bytes_in(&rig);
    assert!(after < before / 2, "{before} -> {after} bytes in the store: {report}");

    write(&rig, VOLUME, 3 << 20, 7);
    rig.wait_drained();
    let at_mark = std::fs::read(rig.source(VOLUME)).unwrap();
    let mark = args!["mark", &rig.group, "--state", rig.state(), "--name", "kept"];
    assert_eq!(rig.towline([mark, args!["--wait", "30s"]].concat()).code(), 0);
    overwrite(&rig, 2);
    let report = compact(&rig, &store, args!["--key", &key]);
    assert_eq!(report["held_by"], "kept", "{report}");
    rig.kill(Process::Ship);
    rig.ship = started(&ship, &store);
    write(&rig, VOLUME, 1 << 20, 9);
    rig.wait_drained();

    receive_from(&mut rig, &store, args!["--key", &key]);
    wait_same(&rig);
    write(&rig, VOLUME, 2 << 20, 10);
    rig.wait_drained();
    wait_same(&rig);
    rig.terminate(Process::Receive);
    let back = args!["target", "rewind", "--state", rig.path("target-state"), "--to", "kept"];
    let finished = rig.towline([back, args!["--key", &key]].concat());
    assert_eq!(finished.code(), 0, "{finished}");
    assert!(std::fs::read(rig.target(VOLUME)).unwrap() == at_mark, "the target is not at the mark");
}

#[test]
fn a_target_that_lags_behind_the_kept_history_says_so_and_a_new_one_begins_with_the_base() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    ship_to(&mut rig, &store);
    write(&rig, VOLUME, 4096, 1);
    rig.wait_drained();
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
    rig.terminate(Process::Receive);
    overwrite(&rig, 3);
    assert_eq!(compact(&rig, &store, vec![])["base"], 1);
    receive_from(&mut rig, &store, vec![]);
    let receive = rig.receive.as_mut().unwrap();
    receive.wait_for_line(|line| line.contains("begin anew"));
    rig.terminate(Process::Receive);
    std::fs::remove_dir_all(rig.path("target-state")).unwrap();
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn a_receiver_that_is_killed_while_it_hydrates_from_a_store_that_is_compacted_begins_again() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.prefill();
    rig.start_proxy();
    ship_to(&mut rig, &store);
    overwrite(&rig, 1);
    compact(&rig, &store, vec![]);
    let state = rig.path("target-state");
    let mut cut_short = 0;
    for round in 0..16 {
        write(&rig, VOLUME, u64::from(round) << 17, round);
        let mut compacting = compaction(&rig, &store, vec![]);
        let mut compacting = compacting.stdout(std::process::Stdio::null()).spawn().unwrap();
        let written = || rig.target(VOLUME).metadata().and_then(|meta| meta.modified()).ok();
        let before = written();
        let receive = Daemon::start_in(&receive_args(&rig, &store, vec![]), &store.environment);
        let began = std::time::Instant::now();
        while written() == before && began.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        receive.kill();
        // What the store no longer has the history of begins anew, as it is told to.
        match state.join("receive/state.json").exists() {
            true => std::fs::remove_dir_all(&state).unwrap(),
            false => cut_short += 1,
        }
        assert!(compacting.wait().unwrap().success());
    }
    println!("{cut_short} of 16 kills came while it hydrated");
    assert!(cut_short > 0, "no kill came while it hydrated");
    receive_from(&mut rig, &store, vec![]);
    rig.wait_drained();
    wait_same(&rig);
}

#[test]
fn a_cutover_needs_a_receiver_not_a_store() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let store = folder(&rig);
    ship_to(&mut rig, &store);
    rig.wait_live();
    let finished = rig.towline(args!["cutover", &rig.group, "--state", rig.state(), "--json"]);
    assert_eq!(finished.code(), 1, "{finished}");
    let reason = finished.json()["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("a store, which cannot take over"), "{reason}");
    write(&rig, VOLUME, 0, 1);
    rig.wait_drained();
}

#[test]
fn what_cannot_be_a_store_is_refused_before_anything_is_begun() {
    let rig = Rig::new(1, DISK_BYTES);
    for to in ["ftp://bucket", "file://relative", "s3://b/../x"] {
        let mut all = args!["ship", "--group", &rig.group, "--state", rig.state()];
        all.extend(args!["--to", to]);
        let finished = rig.towline(all);
        assert_eq!(finished.code(), 64, "{finished}");
        assert!(finished.stderr.contains("s3://BUCKET/PREFIX"), "{finished}");
    }
    let finished =
        rig.towline([ship_args(&rig, &folder(&rig)), args!["--insecure-loopback"]].concat());
    assert_eq!(finished.code(), 64, "{finished}");
}

#[test]
fn a_damaged_object_is_named_in_the_status_and_nothing_of_it_is_used() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let store = folder(&rig);
    rig.prefill();
    rig.start_proxy();
    ship_to(&mut rig, &store);
    rig.wait_drained();
    rig.terminate(Process::Ship);
    let objects = walk(&rig.path("store"));
    let largest = objects.iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let sound = std::fs::read(largest).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(largest, damaged).unwrap();

    receive_from(&mut rig, &store, vec![]);
    let state = rig.path("target-state");
    let status = || {
        let args = args!["status", "--state", &state, "--json"];
        rig.towline(args).exits(0).json()["groups"][0].clone()
    };
    let name = largest.file_name().unwrap().to_str().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !status()["last_error"].as_str().is_some_and(|error| error.contains(name)) {
        assert!(std::time::Instant::now() < deadline, "{name} is not in {}", status());
    }
    std::fs::write(largest, sound).unwrap();
    wait_same(&rig);
    rig.wait_status("well again", |_| status()["last_error"].is_null());
}

#[test]
fn a_store_whose_folder_goes_away_gets_nothing_and_acknowledges_nothing_until_it_is_back() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    ship_to(&mut rig, &store);
    rig.wait_drained();
    let (here, away) = (rig.path("store").join(&rig.group), rig.path("away"));
    for root in [rig.path("store"), here.clone()] {
        std::fs::rename(&root, &away).unwrap();
        write(&rig, VOLUME, 1 << 20, 5);
        let status = wait_told(&rig, "unmounted");
        assert!(status.0["acked_seq"].as_u64() < status.0["head_seq"].as_u64(), "{}", status.0);
        assert!(!here.exists() || walk(&here).is_empty(), "something was made: {:?}", walk(&here));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::rename(&away, &root).unwrap();
        wait_well(&rig);
    }
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn another_store_in_the_place_of_the_one_that_is_written_gets_nothing() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    let other = Store { url: format!("file://{}", rig.path("other").display()), ..store.clone() };
    ship_to(&mut rig, &other);
    rig.wait_drained();
    rig.terminate(Process::Ship);
    ship_to(&mut rig, &store);
    rig.wait_drained();
    let (here, away) = (rig.path("store"), rig.path("away"));
    // What the former shipper drained says nothing of this store.
    let first = here.join(&rig.group).join("00000001/0000000001.batches");
    rig.wait_status("begun", |_| first.exists());
    rig.wait_drained();
    // As it is now, and later no more.
    copy(&here, &rig.path("copy"));
    write(&rig, VOLUME, 0, 1);
    rig.wait_drained();
    for stranger in ["other", "copy"].map(|name| rig.path(name)) {
        let had = walk(&stranger).len();
        std::fs::rename(&here, &away).unwrap();
        std::fs::rename(&stranger, &here).unwrap();
        write(&rig, VOLUME, 1 << 20, 5);
        let status = wait_told(&rig, "another store");
        assert!(status.0["acked_seq"].as_u64() < status.0["head_seq"].as_u64(), "{}", status.0);
        assert_eq!(walk(&here).len(), had, "{:?}", walk(&here));
        std::fs::rename(&here, &stranger).unwrap();
        std::fs::rename(&away, &here).unwrap();
        wait_well(&rig);
    }
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn a_store_that_is_not_mounted_when_its_shipper_starts_is_waited_for_and_no_other_is_begun() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    ship_to(&mut rig, &store);
    write(&rig, VOLUME, 0, 1);
    rig.wait_drained();
    let (here, away) = (rig.path("store"), rig.path("away"));
    // No folder; an empty one, as a mount point is.
    for is_empty in [false, true] {
        rig.terminate(Process::Ship);
        std::fs::rename(&here, &away).unwrap();
        if is_empty {
            std::fs::create_dir(&here).unwrap();
        }
        ship_to(&mut rig, &store);
        write(&rig, VOLUME, 1 << 20, 5);
        wait_told(&rig, "mount it");
        assert!(!here.exists() || walk(&here).is_empty(), "{:?}", walk(&here));
        let _ = std::fs::remove_dir(&here);
        std::fs::rename(&away, &here).unwrap();
        wait_well(&rig);
    }
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn a_state_directory_that_takes_nothing_costs_the_store_one_place_and_no_more() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    ship_to(&mut rig, &store);
    write(&rig, VOLUME, 0, 1);
    rig.wait_drained();
    rig.terminate(Process::Ship);
    let (here, state) = (rig.path("store"), rig.state().join(&rig.group));
    std::fs::remove_file(state.join("store.json")).unwrap();
    std::fs::create_dir(state.join("store.tmp")).unwrap();
    let had = walk(&here).len();
    ship_to(&mut rig, &store);
    wait_told(&rig, "store.json");
    let told = std::time::Instant::now();
    rig.wait_status("tried again", |_| told.elapsed() > std::time::Duration::from_secs(2));
    assert_eq!(walk(&here).len(), had + 1, "{:?}", walk(&here));
    std::fs::remove_dir(state.join("store.tmp")).unwrap();
    write(&rig, VOLUME, 65536, 2);
    rig.wait_drained();
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
}

#[test]
fn a_receiver_says_that_the_store_it_follows_is_gone_and_goes_on_when_it_is_back() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    ship_to(&mut rig, &store);
    write(&rig, VOLUME, 0, 1);
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
    rig.terminate(Process::Ship);
    let state = rig.path("target-state");
    let said = || {
        let args = args!["status", "--state", &state, "--json"];
        rig.towline(args).exits(0).json()["groups"][0]["last_error"].clone()
    };
    let (here, away) = (rig.path("store"), rig.path("away"));
    std::fs::rename(&here, &away).unwrap();
    rig.wait_status("told", |_| said().as_str().is_some_and(|error| error.contains("store")));
    std::fs::rename(&away, &here).unwrap();
    rig.wait_status("well again", |_| said().is_null());
}

#[test]
fn sessions_of_a_store_are_read_without_a_pause_between() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let store = folder(&rig);
    rig.start_proxy();
    for round in 0..6 {
        ship_to(&mut rig, &store);
        write(&rig, VOLUME, 65536 * round, 1 + round as u8);
        rig.wait_drained();
        rig.terminate(Process::Ship);
    }
    receive_from(&mut rig, &store, vec![]);
    wait_same(&rig);
    let said = rig.receive.as_ref().unwrap().said();
    assert!(!said.contains("trying again"), "{said}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}
