//! A network that damages, repeats and reorders batches (without TLS, which would
//! notice first): none is applied, and the group converges.

use crate::DISK_BYTES;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use towline_bench::stamp::Plan;
use towline_tests::relay::{FRAME_BATCH, free_port};
use towline_tests::{Direction, PATIENCE, Relay, Rig, Side};

/// Batches that pass before the next one is tampered with.
const EVERY: u64 = 7;
/// Faults made before the network behaves.
const FAULTS: u64 = 5;

/// Runs a guest over a network that does `harm` to every 7th batch, five times; then
/// everything acknowledged must be at the target, and nothing else.
fn converges_in_spite_of(mut harm: impl FnMut(Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) {
    let receiver = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let made = Arc::new(AtomicU64::new(0));
    let counted = made.clone();
    let mut passed = 0;
    let relay = Relay::tampering(receiver, move |direction, kind, frame| {
        let is_batch = direction == Direction::ToReceiver && kind == FRAME_BATCH;
        if !is_batch || counted.load(Ordering::SeqCst) >= FAULTS {
            return vec![frame];
        }
        passed += 1;
        if passed % EVERY != 0 {
            return vec![frame];
        }
        counted.fetch_add(1, Ordering::SeqCst);
        harm(frame)
    });
    let mut rig = Rig::with_relay(1, DISK_BYTES, receiver, relay);
    let prefilled = rig.prefill();
    rig.start_all();
    let plan = Plan { rate_per_s: Some(400.0), ..Plan::default() };
    let guest = rig.guest_knowing(&plan, prefilled);
    while made.load(Ordering::SeqCst) < FAULTS {
        assert!(guest.wait_for_acks(10, PATIENCE), "{:?}", guest.progress());
        assert!(rig.receive.as_mut().is_some_and(towline_tests::Daemon::is_running));
    }
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
    rig.assert_identical();
}

#[test]
fn a_batch_with_a_flipped_byte_is_never_applied() {
    let mut at = 0x9e37usize;
    converges_in_spite_of(move |mut frame| {
        // Somewhere in the batch: header, table or data, another place each time.
        at = at.wrapping_mul(31).wrapping_add(17);
        let index = 16 + at % (frame.len() - 16);
        frame[index] ^= 0x40;
        vec![frame]
    });
}

#[test]
fn a_batch_with_a_damaged_header_is_never_applied() {
    let mut at = 0;
    converges_in_spite_of(move |mut frame| {
        at += 29;
        let index = 16 + at % 256.min(frame.len() - 16);
        frame[index] ^= 1;
        vec![frame]
    });
}

#[test]
fn a_damaged_frame_header_is_never_believed() {
    converges_in_spite_of(|mut frame| {
        // The length: 4 GiB.
        frame[8..12].fill(0xff);
        vec![frame]
    });
}

#[test]
fn a_replayed_batch_is_not_applied_twice() {
    converges_in_spite_of(|frame| vec![frame.clone(), frame]);
}

#[test]
fn a_batch_of_long_ago_is_not_applied_again() {
    let mut first: Option<Vec<u8>> = None;
    converges_in_spite_of(move |frame| {
        let old = first.get_or_insert_with(|| frame.clone()).clone();
        vec![frame, old]
    });
}

#[test]
fn a_missing_batch_is_noticed() {
    converges_in_spite_of(|_| Vec::new());
}

#[test]
fn reordered_batches_are_noticed() {
    let mut kept: Option<Vec<u8>> = None;
    converges_in_spite_of(move |frame| match kept.take() {
        // The one before comes after this one.
        Some(before) => vec![frame, before],
        None => {
            kept = Some(frame);
            Vec::new()
        }
    });
}
