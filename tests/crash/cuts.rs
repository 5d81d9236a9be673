//! The connection of real processes, cut after some bytes of each new session, in either
//! direction, under a guest that writes. Every byte of a session of its receiver:
//! `shipper/tests/receiver/cuts.rs`.

use crate::{DISK_BYTES, number, plan};
use towline_tests::relay::Direction;
use towline_tests::rig::WINDOW_BYTES;
use towline_tests::{PATIENCE, Rig, Side};

/// Beyond the first batches of a session, its handshake included.
const SESSION_BYTES: u64 = 24 << 10;
const SESSION_BYTES_BACK: u64 = 6 << 10;

#[test]
fn sessions_that_are_cut_anywhere_lose_nothing_and_go_on_by_themselves() {
    let cuts = number("TOWLINE_CUTS", 8);
    let mut rig = Rig::new(1, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(23), prefilled);
    rig.wait_live();
    for (direction, bytes) in
        [(Direction::ToReceiver, SESSION_BYTES), (Direction::ToShipper, SESSION_BYTES_BACK)]
    {
        for turn in 0..cuts {
            // The middle of each of as many parts.
            let after = (2 * turn + 1) * bytes / (2 * cuts);
            let (cuts_before, resent) = (rig.relay.cuts(), rig.status().resent_bytes());
            rig.relay.set_cut(Some((direction, after)));
            rig.relay.reset_all();
            rig.wait_status("a session was cut", |_| rig.relay.cuts() > cuts_before);
            let resent = rig.status().resent_bytes() - resent;
            let sessions = rig.relay.cuts() - cuts_before + 1;
            assert!(resent <= sessions * WINDOW_BYTES, "{resent} bytes in {sessions} sessions");
        }
    }
    rig.relay.set_cut(None);
    assert!(guest.wait_for_acks(100, PATIENCE));
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}
