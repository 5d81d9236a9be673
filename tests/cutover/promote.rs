//! The cutover that works.

use crate::{DISK_BYTES, assert_aborted, assert_promoted, assert_refuses_writes, cutover, plan};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use towline_bench::nbd_client::{Client, Options};
use towline_tests::relay::free_port;
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, Side};

#[test]
fn a_running_guest_goes_on_at_the_target_with_every_acknowledged_write() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(1), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE));
    let report = assert_promoted(&rig, cutover(&rig, "20s"));
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    println!("guest's pause {:?}, report {report}", guest.cutover_pause());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
}

#[test]
fn source_and_target_are_identical_at_the_cutover_point() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(2), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE));
    // At rest, so that the target does not go on before it was compared.
    guest.hold();
    assert_promoted(&rig, cutover(&rig, "20s"));
    rig.assert_identical();
    rig.assert_acknowledged(&guest.history(), Side::Target);
    guest.go_on();
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
}

#[test]
fn the_old_proxy_refuses_writes_and_says_why_even_after_a_restart() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(8192, &[7; 4096]).unwrap();
    assert_promoted(&rig, cutover(&rig, "20s"));
    assert_eq!(rig.status().state(), "promoted");
    assert_refuses_writes(&rig.source_uri("disk0"));
    let sealed = std::fs::read(rig.source("disk0")).unwrap();
    rig.kill(Process::Proxy);
    let mut proxy = towline_tests::Daemon::start(&rig.proxy_args());
    let ready = |line: &str| line.contains("ready");
    if proxy.line_within(PATIENCE, ready).is_some() {
        assert_refuses_writes(&rig.source_uri("disk0"));
    } else {
        // It may also refuse to start; then that is what must say why.
        assert!(!proxy.wait_for_end().success());
        crate::assert_says_why(&proxy.said());
    }
    assert!(std::fs::read(rig.source("disk0")).unwrap() == sealed, "the source is as it was cut");
}

#[test]
fn the_target_still_serves_after_its_receiver_was_killed() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(3));
    rig.wait_live();
    assert_promoted(&rig, cutover(&rig, "20s"));
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    rig.kill(Process::Receive);
    rig.start_receive();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
}

#[test]
fn the_target_is_not_served_before_the_promotion() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    let target = rig.target_uri("disk0");
    if let Ok(mut client) = Client::connect(&target, Options::default()) {
        let written = client.write(0, &[1; 4096]);
        panic!("the target is served before the cutover; a write gave {written:?}");
    }
}

fn with_nbd(rig: &Rig, address: &str) -> Vec<std::ffi::OsString> {
    let mut args = rig.receive_args();
    let at = args.iter().position(|arg| arg == "--nbd").unwrap();
    args[at + 1] = address.into();
    args
}

#[test]
fn the_address_of_the_takeover_is_taken_when_the_receiver_starts() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let address = format!("127.0.0.1:{}", free_port());
    let other = TcpListener::bind(&address).unwrap();
    let finished = rig.towline(with_nbd(&rig, &address)).exits(64);
    assert!(finished.stderr.contains(&address), "{finished}");
    drop(other);
    rig.receive = Some(Daemon::ready(&with_nbd(&rig, &address)));
    assert_eq!(TcpListener::bind(&address).unwrap_err().kind(), ErrorKind::AddrInUse);
    rig.start_proxy();
    rig.start_ship();
    rig.wait_live();
    let report = assert_promoted(&rig, cutover(&rig, "20s"));
    let uri = report["exports"][0].as_str().unwrap().parse().unwrap();
    Client::connect(&uri, Options::default()).unwrap().write(0, &[1; 4096]).unwrap();
}

#[test]
fn a_target_that_cannot_serve_is_no_success_and_serves_by_itself_later() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    // Somebody with the right to do so takes the socket's place.
    let path = rig.path("receive.nbd");
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let report = cutover(&rig, "20s").exits(1).json();
    assert_eq!(report["outcome"], "promoted", "{report}");
    assert!(report["reason"].as_str().unwrap().contains("receive.nbd"), "{report}");
    let state = rig.path("target-state");
    let at_target = || {
        let args = towline_tests::args!["status", "--state", &state, "--json"];
        rig.towline(args).exits(0).json()["groups"][0].clone()
    };
    assert!(at_target()["last_error"].as_str().unwrap().contains("receive.nbd"));

    drop(other);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !at_target()["last_error"].is_null() {
        assert!(std::time::Instant::now() < deadline, "{}", at_target());
    }
    let mut client = Client::connect(&rig.target_uri("disk0"), Options::default()).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    // The source hears of it from the target, a moment later.
    let again = || cutover(&rig, "20s").exits(0).json();
    while again()["exports"][0] != rig.target_uri("disk0").to_string() {
        assert!(std::time::Instant::now() < deadline, "{}", again());
    }
}

#[test]
fn a_second_cutover_says_that_it_was_done_and_where_with_and_without_a_shipper() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    let first = assert_promoted(&rig, cutover(&rig, "20s"));
    assert_eq!(first["already_promoted"], false, "{first}");
    for _ in 0..2 {
        let again = cutover(&rig, "20s").exits(0).json();
        assert_eq!(
            (&again["outcome"], &again["already_promoted"]),
            (&"promoted".into(), &true.into())
        );
        assert_eq!((&again["exports"], &again["epoch"]), (&first["exports"], &first["epoch"]));
        if rig.ship.is_some() {
            rig.terminate(Process::Ship);
        }
    }
}

#[test]
fn a_pause_that_no_cutover_can_keep_is_refused_before_anybody_is_held() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    rig.wait_drained();
    let report = assert_aborted(&rig, cutover(&rig, "1ms"));
    assert_eq!((&report["pause_ms"], &report["cut_seq"]), (&0.into(), &serde_json::Value::Null));
    assert!(report["reason"].as_str().unwrap().contains("--max-pause"), "{report}");
    assert_promoted(&rig, cutover(&rig, "20s"));
}
