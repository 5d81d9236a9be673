//! Configuration files and flags that cannot be used: refused with the place.

use crate::{DISK_BYTES, assert_names};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, args, run, towline};

fn with_config(rig: &Rig, command: &str, text: &str) -> towline_tests::Finished {
    let path = rig.path("towline.toml");
    std::fs::write(&path, text).unwrap();
    run(towline(), args![command, "--config", &path], PATIENCE)
}

#[test]
fn a_wrong_key_is_refused_with_its_line() {
    let rig = Rig::new(1, DISK_BYTES);
    let text = format!(
        "group = \"{}\"\nstate = \"{}\"\nnbd = [\"unix:{}\"]\nrign = \"16M\"\n",
        rig.group,
        rig.state().display(),
        rig.path("s").display()
    );
    let finished = with_config(&rig, "proxy", &text).exits(64);
    assert_names(&finished.stderr, &["towline.toml", "rign", "4"]);
    assert!(!rig.state().join(&rig.group).exists(), "nothing was begun");
}

#[test]
fn a_wrong_value_is_refused_with_its_line() {
    let rig = Rig::new(1, DISK_BYTES);
    let finished = with_config(&rig, "proxy", "\n\ngroup = 7\n").exits(64);
    assert_names(&finished.stderr, &["towline.toml", "3"]);
}

#[test]
fn a_missing_file_is_named() {
    let finished = run(towline(), args!["proxy", "--config", "/nowhere/t.toml"], PATIENCE);
    assert_ne!(finished.code(), 0);
    assert_names(&finished.stderr, &["/nowhere/t.toml"]);
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let rig = Rig::new(1, DISK_BYTES);
    std::fs::remove_file(rig.source("disk0")).unwrap();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &[&rig.source("disk0").display().to_string()]);
}

#[test]
fn a_second_proxy_on_the_same_source_is_refused() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let mut args = rig.proxy_args();
    for (flag, value) in [
        ("--group", "second".into()),
        ("--state", rig.path("state2").into_os_string()),
        ("--nbd", format!("unix:{}", rig.path("second.nbd").display()).into()),
    ] {
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args[at + 1] = value;
    }
    let finished = run(towline(), args, PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &[&rig.source("disk0").display().to_string()]);
    crate::assert_serves(&mut rig);
}

#[test]
fn a_second_proxy_of_the_same_group_is_refused() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    crate::assert_serves(&mut rig);
}

#[test]
fn one_disk_under_two_names_is_refused_for_sources_and_targets() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let (a, b) = (rig.source("disk0"), rig.source("disk1"));
    std::fs::remove_file(&b).unwrap();
    std::fs::hard_link(&a, &b).unwrap();
    let finished = rig.towline(rig.proxy_args()).exits(64);
    assert_names(&finished.stderr, &["disk0", "disk1", "one and the same"]);
    let (a, b) = (rig.target("disk0"), rig.target("disk1"));
    std::fs::remove_file(&b).unwrap();
    std::os::unix::fs::symlink(&a, &b).unwrap();
    let finished = rig.towline(rig.receive_args()).exits(64);
    assert_names(&finished.stderr, &["disk0", "disk1", "one and the same"]);
    rig.volumes.pop();
    rig.start_receive();
}

#[test]
fn a_target_that_cannot_be_is_told_when_the_receiver_starts() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let target = |path: &std::path::Path| {
        let mut args = rig.receive_args();
        let at = args.iter().position(|arg| arg == "--target").unwrap();
        args[at + 1] = format!("disk0={}", path.display()).into();
        args
    };
    let finished = rig.towline(target(&rig.path("no/such/folder/disk.raw"))).exits(64);
    assert_names(&finished.stderr, &["no/such/folder/disk.raw", "make it first"]);
    let of_the_guest = target(&rig.source("disk0"));
    rig.start_proxy();
    let finished = rig.towline(of_the_guest).exits(1);
    assert_names(&finished.stderr, &["source-disk0.img", "owned"]);
    crate::assert_serves(&mut rig);
}

#[test]
fn an_empty_source_is_refused() {
    let rig = Rig::new(1, 0);
    let finished = rig.towline(rig.proxy_args()).exits(64);
    assert_names(&finished.stderr, &["disk0", "empty"]);
}

#[test]
fn a_receivers_address_that_is_none_is_a_usage_error() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    for wrong in ["127.0.0.1:99999", "127.0.0.1", ":4790", "host:0", "::1:4790", "a b:4790"] {
        let mut args = rig.ship_args();
        let at = args.iter().position(|arg| arg == "--to").unwrap();
        args[at + 1] = wrong.into();
        let finished = rig.towline(args).exits(64);
        assert_names(&finished.stderr, &[wrong, "HOST:PORT"]);
    }
}

#[test]
fn a_group_that_never_was_is_waited_for_by_a_shipper_and_missed_by_an_export() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_receive();
    let mut ship = Daemon::start(&rig.ship_args());
    assert!(ship.line_within(PATIENCE, |line| line.contains("waiting for it")).is_some(), "{ship}");
    let mut export = args!["device", "export", "--group", "nobody", "--state", rig.state()];
    export.extend(args!["--to", rig.path("device"), "--unsealed", "--unsigned"]);
    assert_names(&rig.towline(export).exits(69).stderr, &["nobody"]);
    let forget = args!["device", "forget", "--group", "nobody", "--state", rig.state()];
    assert_names(&rig.towline(forget).exits(69).stderr, &["nobody"]);
    rig.start_proxy();
    rig.wait_drained();
}

#[test]
fn what_fails_is_told_as_json_where_that_was_asked_for() {
    let rig = Rig::new(1, DISK_BYTES);
    let cutover = args!["cutover", "nobody", "--state", rig.state(), "--json"];
    let told = rig.towline(cutover).exits(69).json();
    assert_eq!(told["exit"], 69, "{told}");
    assert_names(told["error"].as_str().unwrap(), &["nobody"]);
    let told = rig.towline(args!["status", "--json"]).exits(64).json();
    assert_eq!(told["exit"], 64, "{told}");
}

#[test]
fn a_state_file_that_cannot_be_replaced_keeps_no_guest_from_its_disk_after_a_kill() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    rig.kill(Process::Proxy);
    // As on a full disk: nothing can be written beside it.
    let folder = rig.state().join(&rig.group);
    std::fs::create_dir(folder.join("state.tmp")).unwrap();
    let mut args = rig.proxy_args();
    args.extend(args!["--nbd", format!("unix:{}", rig.path("second.nbd").display())]);
    rig.proxy = Some(Daemon::ready(&args));
    assert_names(&rig.said(Process::Proxy), &["state.json", "does not show"]);
    crate::assert_serves(&mut rig);
}
