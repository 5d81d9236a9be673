//! Other people's servers as the target: qcow2 behind qemu-nbd, nbdkit; also killed in between.

use crate::DISK_BYTES;
use crate::peer::Peer;
use std::ffi::OsString;
use std::path::PathBuf;
use towline_bench::nbd_client::{Client, Options};
use towline_bench::stamp::{History, Plan};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, Side, args, require, run};

/// A rig whose one volume goes to a server at `target.sock`.
fn rig() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.target_sockets = vec![rig.path("target.sock")];
    rig
}

/// No faster than the target: status would never say live.
fn paced() -> Plan {
    Plan { rate_per_s: Some(300.0), ..Plan::default() }
}

fn qcow2(rig: &Rig) -> PathBuf {
    let image = rig.path("target.qcow2");
    let size = DISK_BYTES.to_string();
    run("qemu-img", args!["create", "-q", "-f", "qcow2", &image, size], PATIENCE).ok();
    image
}

fn qemu_nbd(rig: &Rig) -> Peer {
    let (socket, image) = (rig.path("target.sock"), rig.path("target.qcow2"));
    // A receiver that is back before us would take the only seat.
    let all = args!["-t", "--shared=4", "-f", "qcow2", "-k", &socket, image];
    Peer::start(&socket, "qemu-nbd", all)
}

fn nbdkit(rig: &Rig, options: &[&str]) -> Peer {
    let socket = rig.path("target.sock");
    let mut all = args!["-f", "-U", &socket];
    all.extend(options.iter().map(OsString::from));
    all.extend(args!["file", format!("file={}", rig.target("disk0").display())]);
    Peer::start(&socket, "nbdkit", all)
}

/// What the qcow2 image holds takes the place of the raw target image.
fn convert(rig: &Rig) {
    let (from, to) = (rig.path("target.qcow2"), rig.target("disk0"));
    // 3: a killed server has leaked clusters, which is no damage.
    let checked = run("qemu-img", args!["check", "-q", &from], PATIENCE);
    assert!([0, 3].contains(&checked.code()), "{checked}");
    run("qemu-img", args!["convert", "-f", "qcow2", "-O", "raw", from, to], PATIENCE).ok();
}

/// What the qcow2 image holds, once `server` has it all, is what the source does.
fn assert_image_ends_equal<T>(rig: &mut Rig, server: T, history: &History) {
    rig.wait_drained();
    rig.settle_target();
    rig.terminate(Process::Proxy);
    drop(server);
    convert(rig);
    rig.assert_acknowledged(history, Side::Target);
    rig.assert_identical();
}

#[test]
fn a_killed_qemu_nbd_with_qcow2_costs_nothing_and_the_target_becomes_equal() {
    require!("qemu-nbd", "qemu-img");
    let mut rig = rig();
    let prefilled = rig.prefill();
    qcow2(&rig);
    let mut server = Some(qemu_nbd(&rig));
    rig.start_all();
    let guest = rig.guest_knowing(&paced(), prefilled);
    // In the baseline, and after it.
    for _ in 0..2 {
        assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
        drop(server.take());
        server = Some(qemu_nbd(&rig));
    }
    rig.wait_live();
    for _ in 0..3 {
        assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
        drop(server.take());
        server = Some(qemu_nbd(&rig));
    }
    drop(server.take());
    rig.kill(Process::Receive);
    server = Some(qemu_nbd(&rig));
    rig.start_receive();
    assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    assert_image_ends_equal(&mut rig, server, &history);
}

#[test]
fn a_device_is_imported_into_a_qcow2_image_and_the_network_brings_the_rest() {
    require!("qemu-nbd", "qemu-img");
    let mut rig = rig();
    let prefilled = rig.prefill();
    rig.start_proxy();
    let guest = rig.guest_knowing(&paced(), prefilled);
    let device = rig.path("device");
    std::fs::create_dir(&device).unwrap();
    let (state, group) = (rig.state(), rig.group.clone());
    let common =
        args!["--group", group, "--state", state, "--unsigned", "--unsealed", "--to", &device];
    let export = [args!["device", "export", "--json", "--pack-size", "1M"], common].concat();
    assert_eq!(rig.towline(export).exits(0).json()["finished"], true);
    qcow2(&rig);
    let import = |rig: &Rig| {
        let socket = rig.path("target.sock");
        let target = format!("disk0=nbd+unix:///?socket={}", socket.display());
        let state = rig.path("target-state");
        rig.towline(args![
            "device",
            "import",
            "--json",
            "--unsigned",
            "--state",
            state,
            "--target",
            target,
            &device
        ])
    };
    // Nobody serves it yet.
    let refused = import(&rig);
    assert_ne!(refused.code(), 0, "{refused}");
    let server = qemu_nbd(&rig);
    let imported = import(&rig).exits(0).json();
    assert_eq!((&imported["ready"], &imported["has_point"]), (&true.into(), &true.into()));
    rig.start_receive();
    rig.start_ship();
    rig.wait_live();
    assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    assert_image_ends_equal(&mut rig, server, &history);
}

#[test]
fn a_killed_nbdkit_costs_nothing_and_the_target_becomes_equal() {
    require!("nbdkit");
    let mut rig = rig();
    let prefilled = rig.prefill();
    let mut server = Some(nbdkit(&rig, &[]));
    rig.start_all();
    let guest = rig.guest_knowing(&paced(), prefilled);
    rig.wait_live();
    for _ in 0..3 {
        assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
        drop(server.take());
        server = Some(nbdkit(&rig, &[]));
    }
    let history = guest.stop();
    rig.assert_ends_equal(&history);
    drop(server);
}

#[test]
fn after_a_cutover_the_guest_goes_on_in_the_qcow2_image() {
    require!("qemu-nbd", "qemu-img");
    let mut rig = rig();
    rig.prefill();
    qcow2(&rig);
    // It takes one client at a time: the receiver hands its connection over.
    let server = qemu_nbd(&rig);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(8192, &[7; 4096]).unwrap();
    let base = args!["cutover", &rig.group, "--state", rig.state(), "--max-pause", "20s"];
    rig.towline(base).ok();
    let client = || Client::connect(&rig.target_uri("disk0"), Options::default()).unwrap();
    let mut guest = client();
    assert_eq!(guest.read(8192, 4096).unwrap(), [7; 4096]);
    guest.write(8192, &[8; 4096]).unwrap();
    guest.flush().unwrap();
    drop(guest);
    rig.terminate(Process::Receive);
    rig.start_receive();
    let mut guest = Client::connect(&rig.target_uri("disk0"), Options::default()).unwrap();
    assert_eq!(guest.read(8192, 4096).unwrap(), [8; 4096], "a receiver that was started again");
    drop(guest);
    rig.terminate(Process::Receive);
    drop(server);
    convert(&rig);
    assert_eq!(std::fs::read(rig.target("disk0")).unwrap()[8192..12288], [8; 4096]);
}

#[test]
fn a_receiver_that_starts_before_its_targets_server_waits_for_it() {
    require!("nbdkit");
    let mut rig = rig();
    std::fs::File::create(rig.target("disk0")).unwrap().set_len(DISK_BYTES).unwrap();
    let server = nbdkit(&rig, &[]);
    rig.start_all();
    rig.wait_live();
    rig.terminate(Process::Receive);
    drop(server);
    let mut receive = Daemon::start(&rig.receive_args());
    let state = rig.path("target-state");
    let args = args!["status", "--state", &state, "--json"];
    let said =
        |rig: &Rig| rig.towline(args.clone()).exits(0).json()["groups"][0]["last_error"].clone();
    rig.wait_status("told", |_| {
        said(&rig).as_str().is_some_and(|error| error.contains("target disk0"))
    });
    let server = nbdkit(&rig, &[]);
    receive.wait_ready();
    rig.receive = Some(receive);
    rig.client("disk0").write(0, &[7; 65536]).unwrap();
    rig.wait_drained();
    assert!(said(&rig).is_null(), "{}", said(&rig));
    drop(server);
}

#[test]
fn a_target_goes_back_to_a_mark_behind_a_server() {
    require!("nbdkit");
    let mut rig = rig();
    rig.prefill();
    let server = nbdkit(&rig, &[]);
    rig.start_all();
    rig.wait_live();
    let mut client = rig.client("disk0");
    client.write(0, &[1; 65536]).unwrap();
    let image = std::fs::read(rig.source("disk0")).unwrap();
    rig.mark("m");
    client.write(0, &[2; 65536]).unwrap();
    rig.wait_drained();
    rig.settle_target();
    assert!(std::fs::read(rig.target("disk0")).unwrap() != image);
    let back = args!["target", "rewind", "--state", rig.path("target-state"), "--to", "m"];
    rig.towline(back).ok();
    assert!(std::fs::read(rig.target("disk0")).unwrap() == image);
    drop(server);
}

#[test]
fn servers_that_cannot_be_targets_are_refused_at_the_start_with_what_to_do() {
    require!("nbdkit");
    for (plugin, said) in [
        (vec!["-r", "memory", "size=64M"], "start its server so that it may be written"),
        (vec!["eval", "get_size=echo 64M", "pread=exit 1", "pwrite=exit 1"], "it cannot flush"),
    ] {
        let rig = rig();
        let socket = rig.path("target.sock");
        let mut all = args!["-f", "-U", &socket];
        all.extend(plugin.iter().map(OsString::from));
        let server = Peer::start(&socket, "nbdkit", all);
        let refused = rig.towline(rig.receive_args()).exits(64);
        assert!(refused.stderr.contains(said), "{refused}");
        drop(server);
    }
    let mut rig = rig();
    let socket = rig.path("target.sock");
    let all = args!["-f", "-U", &socket, "memory", "size=32M"];
    let server = Peer::start(&socket, "nbdkit", all);
    rig.start_proxy();
    rig.start_receive();
    let mut ship = Daemon::start(&rig.ship_args());
    let line = ship.line_within(PATIENCE, |line| line.contains("are needed: make the image"));
    assert!(line.is_some(), "nothing about sizes from {ship}");
    drop(server);
}

#[test]
fn a_target_that_cannot_apply_is_seen_at_the_source_and_no_cutover_holds_the_guest_for_it() {
    require!("nbdkit");
    let mut rig = rig();
    let fails = rig.path("fails");
    let socket = rig.path("target.sock");
    let mut all = args!["-f", "-U", &socket, "--filter=error", "file"];
    all.push(format!("file={}", rig.target("disk0").display()).into());
    all.extend(args!["error-pwrite=EIO", "error-pwrite-rate=100%"]);
    all.push(format!("error-pwrite-file={}", fails.display()).into());
    let _server = Peer::start(&socket, "nbdkit", all);
    rig.start_all();
    rig.wait_live();
    rig.wait_status("has a point", |s| s.0["point_seq"].is_u64());
    std::fs::write(&fails, b"").unwrap();
    let mut client = rig.client("disk0");
    client.write(0, &[7; 65536]).unwrap();
    let said = |s: &towline_tests::Status| {
        s.0["last_error"].as_str().is_some_and(|error| error.contains("applies nothing"))
    };
    rig.wait_status("told", said);
    let cutover = || {
        let base = args!["cutover", &rig.group, "--state", rig.state(), "--max-pause", "20s"];
        rig.towline([base, args!["--json"]].concat())
    };
    let report = cutover().exits(1).json();
    assert_eq!((&report["pause_ms"], &report["outcome"]), (&0.into(), &"aborted".into()));
    assert!(report["reason"].as_str().unwrap().contains("applies nothing"), "{report}");
    std::fs::remove_file(&fails).unwrap();
    rig.wait_status("well again", |s| s.0["last_error"].is_null());
    assert_eq!(cutover().exits(0).json()["outcome"], "promoted");
}
