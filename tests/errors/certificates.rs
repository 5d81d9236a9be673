//! Who may not write: another authority's certificate, and the right authority's
//! for another group.

use crate::DISK_BYTES;
use std::path::{Path, PathBuf};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, args, run, towline};

/// An authority with a receiver's certificate and one for each group.
fn pki(dir: &Path, groups: &[&str]) {
    let pki = |args: Vec<std::ffi::OsString>| run(towline(), args, PATIENCE).ok();
    pki(args!["pki", "init", dir]);
    pki(args!["pki", "issue", dir, "--receiver"]);
    for group in groups {
        pki(args!["pki", "issue", dir, "--group", *group]);
    }
}

fn ship_args_with(rig: &Rig, pki: PathBuf) -> Vec<std::ffi::OsString> {
    let mut args = rig.ship_args();
    let place = args.iter().position(|arg| arg == "--pki").map(|at| at + 1);
    if let Some(place) = place {
        args[place] = pki.into();
    }
    args
}

/// A shipper that must not get through: says one of `words`, moves nothing.
#[track_caller]
fn assert_shut_out(rig: &mut Rig, args: &[std::ffi::OsString], words: &[&str]) {
    let mut ship = Daemon::start(args);
    let said = ship.line_within(PATIENCE, |line| {
        let line = line.to_lowercase();
        words.iter().any(|word| line.contains(word))
    });
    assert!(said.is_some(), "none of {words:?} was said by {ship}");
    drop(ship);
    let status = rig.status();
    assert_eq!(status.0["acked_seq"], 0, "{}", status.0);
    assert!(rig.receive.as_mut().is_some_and(Daemon::is_running), "the receiver is gone");
    assert!(std::fs::read(rig.target("disk0")).unwrap().iter().all(|byte| *byte == 0));
}

/// Proxy and receiver with certificates; the disk has contents to be kept from.
fn secured() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.prefill();
    let dir = rig.path("pki");
    pki(&dir, &[&rig.group]);
    rig.pki = Some(dir);
    rig.start_proxy();
    rig.start_receive();
    rig
}

#[test]
fn the_right_certificate_ships() {
    let mut rig = secured();
    rig.start_ship();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_identical();
}

#[test]
fn a_certificate_of_another_authority_is_shut_out_and_the_right_one_still_ships() {
    let mut rig = secured();
    let foreign = rig.path("foreign");
    pki(&foreign, &[&rig.group]);
    let args = ship_args_with(&rig, foreign);
    assert_shut_out(&mut rig, &args, &["certificate", "not trusted", "tls"]);
    rig.start_ship();
    rig.wait_drained();
    rig.terminate(Process::Ship);
}

#[test]
fn a_certificate_for_another_group_is_shut_out() {
    let mut rig = secured();
    let dir = rig.path("pki");
    run(towline(), args!["pki", "issue", &dir, "--group", "other"], PATIENCE).ok();
    // As somebody would who holds the other group's key: it takes this group's place.
    let stolen = rig.path("stolen");
    std::fs::create_dir(&stolen).unwrap();
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !name.contains(&rig.group) {
            std::fs::copy(entry.path(), stolen.join(name.replace("other", &rig.group))).unwrap();
        }
    }
    let args = ship_args_with(&rig, stolen);
    assert_shut_out(&mut rig, &args, &["not_authorised", "authoris", "does not name", "may not"]);
}

#[test]
fn a_group_without_a_certificate_is_told_how_to_get_one() {
    let mut rig = secured();
    let empty = rig.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut ship = Daemon::start(&ship_args_with(&rig, empty));
    let said = ship.line_within(PATIENCE, |line| line.contains("pki issue"));
    assert!(said.is_some(), "no way out is told by {ship}");
    rig.terminate(Process::Receive);
}

#[test]
fn insecure_is_refused_beyond_loopback() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    for mut args in [rig.receive_args(), rig.ship_args()] {
        for flag in ["--listen", "--to"] {
            if let Some(at) = args.iter().position(|arg| arg == flag) {
                // An address kept for documentation: nobody is there.
                args[at + 1] = "192.0.2.1:4790".into();
            }
        }
        let mut daemon = Daemon::start(&args);
        let refusal = |line: &str| line.contains("192.0.2.1") && line.contains("loopback");
        assert!(daemon.line_within(PATIENCE, refusal).is_some(), "not refused by {daemon}");
    }
}
