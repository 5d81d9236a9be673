//! Sealed batches and a key that is not there.

use crate::{DISK_BYTES, assert_names};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, args, run, towline};

#[test]
fn a_receiver_without_the_key_says_so_and_goes_on_once_it_has_it() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.prefill();
    let file = rig.path("group.key");
    run(towline(), args!["pki", "key", &file], PATIENCE).ok();
    rig.key = Some(file.clone());
    rig.start_all();
    rig.wait_drained();
    rig.terminate(Process::Receive);

    // Of staged batches it says so at its start and ends; with none it refuses the shipper.
    let mut without = rig.receive_args();
    without.truncate(without.len() - 2);
    let mut receiver = Daemon::start(&without);
    let refusal = receiver.wait_for_line(|line| line.contains("sealed with key"));
    assert_names(&refusal, &["--key"]);
    receiver.kill();
    let beside = rig.path("target-state").join("group.key");
    std::fs::copy(&file, &beside).unwrap();
    let mut args = without.clone();
    args.extend(args!["--key", &beside]);
    let mut receiver = Daemon::start(&args);
    assert!(!receiver.wait_for_end().success());
    assert_names(&receiver.said(), &["beside what it seals"]);

    // The shipper has waited, and goes on by itself, also with a key that is newer.
    run(towline(), args!["pki", "key", &file, "--rotate"], PATIENCE).ok();
    rig.start_receive();
    rig.client("disk0").write(4096, b"after the pause").unwrap();
    rig.wait_drained();
    rig.terminate(Process::Ship);
    rig.start_ship();
    rig.client("disk0").write(8192, b"by the new key").unwrap();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_identical();
}
