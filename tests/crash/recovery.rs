//! The receiver, killed at any instant after the first point and brought up alone,
//! holds one moment of the guest's history over both volumes.

use crate::{DISK_BYTES, number, plan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use towline_bench::stamp::Pattern;
use towline_tests::rig::Process;
use towline_tests::{PATIENCE, Rig, Side};

const ROUNDS_DEFAULT: u64 = 4;

#[test]
fn a_killed_receiver_recovers_to_a_prefix_over_two_volumes() {
    let rounds = number("TOWLINE_ROUNDS", ROUNDS_DEFAULT);
    let seed = number("TOWLINE_SEED", 5);
    println!("TOWLINE_ROUNDS={rounds} TOWLINE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    // Small writes all over: each block shows its last writer.
    let plan =
        towline_bench::stamp::Plan { pattern: Pattern::Uniform, large_share: 0.1, ..plan(seed) };
    let guest = rig.guest_knowing(&plan, prefilled);
    rig.wait_live();
    let mut positions = vec![0];
    for round in 0..rounds {
        assert!(guest.wait_for_acks(rng.random_range(30..300), PATIENCE));
        rig.kill(Process::Receive);
        // Nobody may feed it while it recovers.
        rig.relay.set_refusing(true);
        rig.recover_target();
        let history = guest.history();
        let prefix = rig.assert_prefix(&history, Side::Target);
        println!(
            "round {round}: position {}, {} acknowledged writes behind",
            prefix.position, prefix.missing_acked
        );
        assert!(positions.last() <= Some(&prefix.position), "the target went back: {positions:?}");
        positions.push(prefix.position);
        rig.relay.set_refusing(false);
        rig.start_receive();
        // From here on it goes forward again: the whole group is at a point.
        rig.wait_live();
    }
    assert!(positions.last() > positions.first(), "nothing ever arrived: {positions:?}");
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}
