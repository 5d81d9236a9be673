//! Other people's servers as the source: nbdkit with its faults, qemu-nbd; also killed.

use crate::peer::Peer;
use crate::{DISK_BYTES, noise};
use std::ffi::OsString;
use towline_bench::stamp::Plan;
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, args, require};

/// nbdkit over the rig's first source image.
fn nbdkit(rig: &Rig, filters: &[&str], settings: &[&str]) -> Peer {
    let file = format!("file={}", rig.source("disk0").display());
    let mut all = args!["-f", "-U", rig.path("up.sock")];
    all.extend(filters.iter().flat_map(|filter| args![format!("--filter={filter}")]));
    all.extend(args!["file", file]);
    all.extend(settings.iter().map(OsString::from));
    Peer::start(&rig.path("up.sock"), "nbdkit", all)
}

/// A rig whose one volume is behind a server at `up.sock`.
fn rig() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.upstream = true;
    rig
}

#[test]
fn a_killed_nbdkit_loses_no_acknowledged_write_and_the_target_becomes_equal() {
    require!("nbdkit");
    let mut rig = rig();
    let prefilled = rig.prefill();
    let mut server = Some(nbdkit(&rig, &[], &[]));
    rig.start_all();
    let guest = rig.guest_knowing(&Plan::default(), prefilled);
    rig.wait_live();
    for _ in 0..3 {
        assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
        drop(server.take());
        server = Some(nbdkit(&rig, &[], &[]));
    }
    rig.kill(Process::Proxy);
    rig.start_proxy();
    assert!(guest.wait_for_acks(200, PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    rig.assert_ends_equal(&history);
    drop(server);
}

#[test]
fn a_slow_nbdkit_is_asked_many_things_at_once_and_killed_with_them_in_flight() {
    require!("nbdkit");
    let mut rig = rig();
    let prefilled = rig.prefill();
    let mut server = nbdkit(&rig, &["delay"], &["wdelay=20ms", "rdelay=5ms"]);
    rig.start_all();
    let guest = rig.guest_knowing(&Plan::default(), prefilled);
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    drop(server);
    server = nbdkit(&rig, &[], &[]);
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    rig.assert_ends_equal(&history);
    drop(server);
}

#[test]
fn errors_of_nbdkit_are_the_guests_and_nothing_else_changes() {
    require!("nbdkit");
    let mut rig = rig();
    let trigger = rig.path("broken");
    let file = format!("error-file={}", trigger.display());
    let settings = ["error=EIO", "error-pwrite-rate=1", &file];
    let server = nbdkit(&rig, &["error"], &settings);
    rig.start_all();
    rig.wait_live();
    let mut client = rig.client("disk0");
    let data = noise(64 << 10, 1);
    client.write(0, &data).unwrap();
    std::fs::write(&trigger, "").unwrap();
    assert!(client.write(0, &noise(4096, 2)).is_err());
    std::fs::remove_file(&trigger).unwrap();
    client.write(4096, &noise(4096, 3)).unwrap();
    client.flush().unwrap();
    rig.wait_drained();
    rig.settle_target();
    rig.terminate(Process::Proxy);
    rig.assert_identical();
    drop(server);
}

#[test]
fn qemu_nbd_is_a_source_too() {
    require!("qemu-nbd");
    let mut rig = rig();
    let prefilled = rig.prefill();
    let args = args!["-t", "-e", "4", "-f", "raw", "-k", rig.path("up.sock"), rig.source("disk0")];
    let server = Peer::start(&rig.path("up.sock"), "qemu-nbd", args);
    rig.start_all();
    let guest = rig.guest_knowing(&Plan::default(), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(500, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.assert_ends_equal(&history);
    drop(server);
}
