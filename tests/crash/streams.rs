//! Batches over four connections at a time, all of which are reset again and again.

use crate::{DISK_BYTES, number, plan};
use towline_bench::stamp::{Pattern, Plan};
use towline_tests::rig::{Process, WINDOW_BYTES};
use towline_tests::{PATIENCE, Rig, Side};

const STREAMS: u8 = 4;

#[test]
fn connections_that_are_reset_again_and_again_lose_nothing() {
    let rounds = number("TOWLINE_ROUNDS", 4);
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.streams = STREAMS;
    let prefilled = rig.prefill();
    rig.start_all();
    let plan = Plan { pattern: Pattern::Uniform, large_share: 0.3, ..plan(11) };
    let guest = rig.guest_knowing(&plan, prefilled);
    rig.wait_live();
    assert!(rig.relay.accepted() >= u64::from(STREAMS), "{} connections", rig.relay.accepted());
    for round in 0..rounds {
        let (before, sessions) = (rig.relay.accepted(), rig.status().resent_bytes());
        assert!(guest.wait_for_acks(200, PATIENCE));
        match round % 2 {
            0 => rig.relay.reset_all(),
            _ => {
                rig.kill(Process::Ship);
                rig.start_ship();
            }
        }
        assert!(guest.wait_for_acks(50, PATIENCE));
        let status = rig.wait_status("all connections are back", |_| {
            rig.relay.accepted() >= before + u64::from(STREAMS)
        });
        let resent = status.resent_bytes().saturating_sub(sessions);
        assert!(resent <= WINDOW_BYTES, "{resent} bytes were sent again");
    }
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}
