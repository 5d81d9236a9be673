//! Any process, at any moment, again and again.

use crate::{DISK_BYTES, number, plan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use towline_tests::rig::{Process, WINDOW_BYTES};
use towline_tests::{PATIENCE, Rig, Side};

/// Kills of a run in CI; `TOWLINE_KILLS=50` for the long one.
const KILLS_DEFAULT: u64 = 6;

/// What the source served lies in front of the target and what was acknowledged is
/// on both, whatever was killed when. `TOWLINE_SEED` repeats a run's choices.
#[test]
fn random_kills_lose_no_acknowledged_write_and_source_equals_target() {
    let kills = number("TOWLINE_KILLS", KILLS_DEFAULT);
    kill_at_random(Rig::new(2, DISK_BYTES), kills);
}

/// The same past the page cache, where many changes are in flight at once.
#[test]
fn random_kills_of_asynchronous_sources_lose_nothing_either() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.engine = "uring";
    kill_at_random(rig, number("TOWLINE_KILLS", 4));
}

fn kill_at_random(mut rig: Rig, kills: u64) {
    let seed = number("TOWLINE_SEED", 1);
    println!("TOWLINE_KILLS={kills} TOWLINE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(seed), prefilled);
    assert!(guest.wait_for_acks(50, PATIENCE), "{:?}", guest.progress());
    for round in 0..kills {
        // The first three are one of each; some fall into the baseline.
        let victims = [Process::Proxy, Process::Ship, Process::Receive];
        let choice = if round < 3 { round as usize } else { rng.random_range(0..3) };
        println!("round {round}: kill -9 of {:?}", victims[choice]);
        rig.kill(victims[choice]);
        if victims[choice] != Process::Proxy && rng.random() {
            // The guest does not notice that nobody ships.
            assert!(guest.wait_for_acks(rng.random_range(20..200), PATIENCE));
        }
        rig.start(victims[choice]);
        let acks = rng.random_range(50..300);
        assert!(guest.wait_for_acks(acks, PATIENCE), "{:?}", guest.progress());
        if rng.random() {
            rig.wait_live();
        }
    }
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    let status = rig.wait_drained();
    let bound = kills * WINDOW_BYTES;
    let resent = status.resent_bytes();
    assert!(resent <= bound, "{resent} bytes sent again in {kills} connections, {bound} allowed");
    rig.settle_target();
    rig.terminate(Process::Proxy);
    rig.assert_acknowledged(&history, Side::Source);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
    rig.assert_identical();
}

/// One connection lost means at most one window sent again.
#[test]
fn a_killed_shipper_sends_at_most_its_window_again() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(2));
    rig.wait_live();
    assert!(guest.wait_for_acks(300, PATIENCE));
    let before = rig.status().resent_bytes();
    rig.kill(Process::Ship);
    assert!(guest.wait_for_acks(100, PATIENCE));
    rig.start_ship();
    let history = guest.stop();
    let resent = rig.wait_drained().resent_bytes() - before;
    assert!(resent <= WINDOW_BYTES, "{resent} bytes sent again, the window is {WINDOW_BYTES}");
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}

/// All three at once: what a host's crash without power loss looks like.
#[test]
fn all_three_killed_together_come_back() {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_all();
    let guest = rig.guest(&plan(3));
    rig.wait_live();
    assert!(guest.wait_for_acks(300, PATIENCE));
    for which in [Process::Receive, Process::Proxy, Process::Ship] {
        rig.kill(which);
    }
    for which in [Process::Proxy, Process::Receive, Process::Ship] {
        rig.start(which);
    }
    assert!(guest.wait_for_acks(100, PATIENCE));
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Source);
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_identical();
}
