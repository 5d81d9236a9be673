//! Whoever asks for a cutover: gets an answer in seconds from processes that are stopped, and
//! takes the request back by leaving, until the seal.

use crate::{DISK_BYTES, Running, cutover, plan};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use towline_tests::program::Finished;
use towline_tests::relay::{FRAME_DECISION, free_port};
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Relay, Rig, args};

/// Well below the 20 s that a shipper waits for its proxy otherwise.
const SECONDS: Duration = Duration::from_secs(15);

fn live() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_live();
    rig
}

#[track_caller]
fn assert_unanswered(began: Instant, finished: Finished, who: &str) {
    let took = began.elapsed();
    let finished = finished.exits(69);
    assert!(finished.stderr.contains(who), "{finished}");
    assert!(finished.stderr.contains("does not answer"), "{finished}");
    assert!(took < SECONDS, "{took:?}: {finished}");
}

/// The guest is served at the source, now and after the shipper had time to do more.
#[track_caller]
fn assert_at_source(rig: &Rig) {
    for stamp in 1..=2 {
        let written = rig.client("disk0").write(0, &[stamp; 4096]);
        assert!(written.is_ok(), "{written:?}: {}", rig.said(Process::Ship));
        rig.wait_drained();
    }
    assert_eq!(rig.status().state(), "live");
    assert!(!rig.said(Process::Receive).contains("promoted"));
}

#[track_caller]
fn wait_said(daemon: &mut Option<Daemon>, what: &str) {
    daemon.as_mut().expect("it runs").wait_for_line(|line| line.contains(what));
}

#[test]
fn a_stopped_shipper_does_not_answer_and_drops_the_request_later() {
    let mut rig = live();
    rig.freeze(Process::Ship);
    let began = Instant::now();
    assert_unanswered(began, cutover(&rig, "1s"), "the shipper of group");
    rig.resume(Process::Ship);
    assert_at_source(&rig);
    // Nothing of the first stands in the way of the next.
    crate::assert_promoted(&rig, cutover(&rig, "20s"));
}

#[test]
fn a_stopped_proxy_does_not_answer_to_cutover_and_mark() {
    let mut rig = live();
    rig.freeze(Process::Proxy);
    let began = Instant::now();
    assert_unanswered(began, cutover(&rig, "1s"), "the proxy of group");
    let mark = args!["mark", &rig.group, "--state", rig.state(), "--name", "m", "--json"];
    let began = Instant::now();
    assert_unanswered(began, rig.towline(mark), "the proxy of group");
    rig.resume(Process::Proxy);
    assert_at_source(&rig);
    crate::assert_promoted(&rig, cutover(&rig, "20s"));
}

/// The drain waits for the proxy on the feed's link, and does not even see the request.
#[test]
fn a_stopped_proxy_is_told_while_the_shipper_waits_for_it() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(31));
    rig.wait_live();
    assert!(guest.wait_for_acks(50, PATIENCE));
    rig.freeze(Process::Proxy);
    let began = Instant::now();
    assert_unanswered(began, cutover(&rig, "1s"), "the proxy of group");
    rig.resume(Process::Proxy);
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    assert_eq!(guest.cutover_pause(), None, "the guest is at the source");
    rig.assert_ends_equal(&guest.stop());
}

#[test]
fn a_caller_killed_while_the_proxy_is_stopped_moves_nobody() {
    let mut rig = live();
    rig.freeze(Process::Proxy);
    let mut asked = Running::start(&rig, "1s");
    asked.wait_step("asked");
    asked.kill();
    rig.resume(Process::Proxy);
    wait_said(&mut rig.ship, "whoever asked for it has hung up");
    assert_at_source(&rig);
}

#[test]
fn a_caller_killed_while_the_guest_is_held_gives_the_guest_back() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(32));
    rig.wait_live();
    let asked = Running::held_without_network(&rig, "10m");
    asked.kill();
    // Long before the longest pause.
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    wait_said(&mut rig.ship, "aborted by the operator");
    rig.relay.set_black_hole(false);
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    assert_eq!(guest.cutover_pause(), None, "the guest is at the source");
    rig.assert_ends_equal(&guest.stop());
}

#[test]
fn a_caller_killed_after_the_seal_changes_nothing() {
    let receiver = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let swallow = Arc::new(AtomicBool::new(true));
    let switch = swallow.clone();
    let relay = Relay::tampering(receiver, move |_, of, frame| {
        let lost = of == FRAME_DECISION && switch.load(Ordering::SeqCst);
        if lost { Vec::new() } else { vec![frame] }
    });
    let mut rig = Rig::with_relay(1, DISK_BYTES, receiver, relay);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(0, &[5; 4096]).unwrap();
    let asked = Running::start(&rig, "60s");
    wait_said(&mut rig.receive, "promoted");
    asked.kill();
    swallow.store(false, Ordering::SeqCst);
    rig.relay.reset_all();
    rig.wait_status("promoted", |status| status.state() == "promoted");
    crate::assert_refuses_writes(&rig.source_uri("disk0"));
}
