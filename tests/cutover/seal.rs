//! The dangerous moment: the source is sealed and the receiver's decision is on its
//! way, or not.

use crate::{DISK_BYTES, Running, plan};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use towline_tests::relay::{FRAME_DECISION, FRAME_PROMOTE, free_port};
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Relay, Rig, Side};

/// A rig whose network swallows frames of one kind while the switch is on.
fn swallowing(kind: u16) -> (Rig, Arc<AtomicBool>) {
    let receiver = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let on = Arc::new(AtomicBool::new(true));
    let switch = on.clone();
    let relay = Relay::tampering(receiver, move |_, of, frame| {
        if of == kind && switch.load(Ordering::SeqCst) { Vec::new() } else { vec![frame] }
    });
    (Rig::with_relay(1, DISK_BYTES, receiver, relay), on)
}

#[test]
fn a_shipper_killed_after_the_seal_and_before_the_promotion_gives_the_source_back() {
    let (mut rig, swallow) = swallowing(FRAME_PROMOTE);
    rig.start_all();
    let guest = rig.guest(&plan(21));
    rig.wait_live();
    assert!(guest.wait_for_acks(50, PATIENCE));
    let asked = Running::start(&rig, "60s");
    rig.wait_status("sealed", |status| status.state() == "sealed");
    rig.kill(Process::Ship);
    assert_ne!(asked.code(), 0);
    // Only the receiver's durable abort may lift the seal: alone, the proxy keeps it.
    assert_eq!(rig.status().state(), "sealed");
    swallow.store(false, Ordering::SeqCst);
    rig.start_ship();
    rig.wait_live();
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    assert_eq!(guest.cutover_pause(), None, "the guest is at the source");
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Source);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

#[test]
fn a_shipper_killed_after_the_promotion_learns_of_it_and_the_guest_is_at_the_target() {
    let (mut rig, swallow) = swallowing(FRAME_DECISION);
    rig.start_all();
    let guest = rig.guest(&plan(22));
    rig.wait_live();
    assert!(guest.wait_for_acks(50, PATIENCE));
    let asked = Running::start(&rig, "60s");
    // The receiver has decided; nobody at the source hears of it.
    if let Some(receive) = rig.receive.as_mut() {
        receive.wait_for_line(|line| line.contains("promoted"));
    }
    rig.kill(Process::Ship);
    assert_ne!(asked.code(), 0);
    swallow.store(false, Ordering::SeqCst);
    // What started again need not stay: its work is done once the proxy knows.
    rig.ship = Some(towline_tests::Daemon::start(&rig.ship_args()));
    rig.wait_status("promoted", |status| status.state() == "promoted");
    crate::assert_refuses_writes(&rig.source_uri("disk0"));
    assert!(guest.wait_for_target(PATIENCE), "{:?}", guest.progress());
    assert!(guest.wait_for_acks(100, PATIENCE), "{:?}", guest.progress());
    let history = guest.stop();
    rig.terminate(Process::Receive);
    rig.assert_acknowledged(&history, Side::Target);
}

#[test]
fn a_proxy_killed_after_the_seal_stays_sealed() {
    let (mut rig, swallow) = swallowing(FRAME_PROMOTE);
    rig.start_all();
    rig.wait_live();
    rig.client("disk0").write(0, &[3; 4096]).unwrap();
    let asked = Running::start(&rig, "60s");
    rig.wait_status("sealed", |status| status.state() == "sealed");
    rig.kill(Process::Ship);
    rig.kill(Process::Proxy);
    rig.start_proxy();
    assert_eq!(rig.status().state(), "sealed");
    crate::assert_refuses_writes(&rig.source_uri("disk0"));
    assert_ne!(asked.code(), 0);
    // With the network back the receiver decides, and the source is free again.
    swallow.store(false, Ordering::SeqCst);
    rig.start_ship();
    rig.wait_live();
    rig.client("disk0").write(0, &[4; 4096]).unwrap();
}
