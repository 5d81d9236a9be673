//! `towline ship --to URL`, `towline receive --from URL`: a store between the two.

use crate::DISK_BYTES;
use std::ffi::OsString;
use towline_tests::rig::Process;
use towline_tests::{Daemon, Rig, args};

const VOLUME: &str = "disk0";

fn url(rig: &Rig) -> String {
    format!("file://{}", rig.path("store").display())
}

fn ship_args(rig: &Rig) -> Vec<OsString> {
    args!["ship", "--group", &rig.group, "--state", rig.state(), "--to", url(rig)]
}

fn ship_to_store(rig: &mut Rig) {
    rig.ship = Some(Daemon::ready(&ship_args(rig)));
}

/// A receiver that follows the store; `and` adds to its command line.
fn receive_from_store(rig: &mut Rig, and: Vec<OsString>) {
    let mut all = args!["receive", "--from", url(rig), "--group", &rig.group];
    all.extend(args!["--state", rig.path("target-state")]);
    all.extend(args!["--nbd", format!("unix:{}", rig.path("receive.nbd").display())]);
    for volume in &rig.volumes {
        all.extend(args!["--target", format!("{volume}={}", rig.target(volume).display())]);
    }
    all.extend(and);
    rig.receive = Some(Daemon::ready(&all));
}

fn wait_same(rig: &Rig) {
    let same = || {
        rig.volumes.iter().all(|volume| {
            std::fs::read(rig.source(volume)).unwrap() == std::fs::read(rig.target(volume)).unwrap()
        })
    };
    rig.wait_status("the same at the target", |_| same());
}

fn write(rig: &Rig, volume: &str, offset: u64, byte: u8) {
    let mut client = rig.client(volume);
    client.write(offset, &[byte; 65536]).unwrap();
    client.flush().unwrap();
}

#[test]
fn a_target_hydrates_from_a_store_follows_it_and_goes_on_over_the_network() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.prefill();
    rig.start_proxy();
    ship_to_store(&mut rig);
    rig.wait_drained();
    write(&rig, "disk0", 4096, 1);
    rig.wait_drained();

    // From what lies there, without any shipper.
    rig.terminate(Process::Ship);
    receive_from_store(&mut rig, vec![]);
    wait_same(&rig);

    // A shipper that was killed goes on behind its last object.
    ship_to_store(&mut rig);
    write(&rig, "disk1", 1 << 20, 2);
    rig.wait_drained();
    rig.kill(Process::Ship);
    write(&rig, "disk0", 1 << 20, 3);
    ship_to_store(&mut rig);
    rig.wait_drained();
    wait_same(&rig);
    rig.terminate(Process::Ship);
    rig.terminate(Process::Receive);

    // The network goes on at the next batch: nothing is sent again.
    let listen = rig.receiver_address.to_string();
    receive_from_store(&mut rig, args!["--listen", listen, "--insecure-loopback"]);
    write(&rig, "disk0", 2 << 20, 4);
    rig.start_ship();
    let status = rig.wait_drained();
    wait_same(&rig);
    let shipped = status.0["shipped_bytes"].as_u64();
    assert_eq!(status.resent_bytes(), 0, "{}", status.0);
    assert!(rig.said(Process::Ship).contains("attached to the journal"));
    assert!(!rig.said(Process::Ship).contains("everything is sent again"), "{shipped:?}");
}

#[test]
fn a_cutover_needs_a_receiver_not_a_store() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    ship_to_store(&mut rig);
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
    for to in ["gs://bucket", "file://relative", "s3://b/../x"] {
        let mut all = args!["ship", "--group", &rig.group, "--state", rig.state()];
        all.extend(args!["--to", to]);
        let finished = rig.towline(all);
        assert_eq!(finished.code(), 64, "{finished}");
        assert!(finished.stderr.contains("s3://BUCKET/PREFIX"), "{finished}");
    }
    let finished = rig.towline([ship_args(&rig), args!["--insecure-loopback"]].concat());
    assert_eq!(finished.code(), 64, "{finished}");
}
