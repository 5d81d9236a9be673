//! Streams of batches over a network that does what it likes: a cutter, two shippers that may
//! both be alive, a receiver that stages, acknowledges and applies, and its disks.
//!
//! The batches are real: built, encoded, opened and admitted by `towline-shipper`
//! ([`BatchBuilder`], [`Batch::open`], [`Stream::follow`]), corrupted as bytes. Modelled are
//! window, sessions, staging and disks. A seed is a run, for ever.

mod receiver;
mod shipper;
mod source;
mod world;

use towline_shipper::GroupUuid;
use world::World;

const GROUP: GroupUuid = GroupUuid([7; 16]);
const CELL_BYTES: usize = 512;
const CELLS: usize = 16;
const RECORDS_A_BATCH_MAX: u64 = 4;
/// Further connections of a session that has some.
const LANES: usize = 2;
/// More than the largest batch.
const BATCH_BYTES_MAX: usize = 4096;
const WINDOW_BYTES: usize = 8 << 10;
const STAGING_BYTES: usize = 12 << 10;
/// Records of a run, and steps in which all must come to rest once nothing fails.
const RECORDS: u64 = 40;
const REST_STEPS_MAX: usize = 20_000;

/// What the receiver and the shippers obey; each is switched off once.
#[derive(Clone, Copy, Debug)]
struct Rules {
    sync_before_ack: bool,
    flush_before_record: bool,
    session_fence: bool,
    follow_chain: bool,
    release_by_durable_ack: bool,
    window_bounded: bool,
    staging_bounded: bool,
    redo_from_applied: bool,
}

const ALL: Rules = Rules {
    sync_before_ack: true,
    flush_before_record: true,
    session_fence: true,
    follow_chain: true,
    release_by_durable_ack: true,
    window_bounded: true,
    staging_bounded: true,
    redo_from_applied: true,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A run: the broken promise, if there is one.
fn run(rules: Rules, seed: u64) -> Result<World, String> {
    let mut world = World::new(rules, seed);
    let faulty = 200 + world.random.below(800);
    for _ in 0..faulty {
        world.step();
        world.check();
    }
    (world.faulty, world.partitioned, world.receiver.full) = (false, false, false);
    world.shippers[1].alive = false;
    if let Some(id) = world.shippers[1].conn {
        world.close(id);
    }
    world.shippers[0].alive = true;
    for _ in 0..REST_STEPS_MAX {
        if world.violation.is_some() || world.is_at_rest() {
            break;
        }
        world.step();
        world.check();
    }
    if !world.is_at_rest() {
        world.violate(format!("no rest after {REST_STEPS_MAX} steps"));
    }
    match world.violation.take() {
        Some(what) => Err(format!("seed {seed}: {what}")),
        None => Ok(world),
    }
}

#[test]
fn whatever_the_network_does_the_target_is_a_prefix_and_nothing_acknowledged_is_lost() {
    let seeds = std::env::var("TOWLINE_SIM_SEEDS").ok().and_then(|s| s.parse().ok());
    let mut most_early = 0;
    for seed in 0..seeds.unwrap_or(120_u64) {
        let world = run(ALL, seed).unwrap_or_else(|what| panic!("{what}"));
        most_early = most_early.max(world.most_early);
    }
    assert!(most_early > BATCH_BYTES_MAX / 8, "nothing had to wait for its turn");
}

#[test]
fn without_any_one_rule_a_promise_is_broken() {
    let without: [(&str, Rules); 8] = [
        ("sync_before_ack", Rules { sync_before_ack: false, ..ALL }),
        ("flush_before_record", Rules { flush_before_record: false, ..ALL }),
        ("session_fence", Rules { session_fence: false, ..ALL }),
        ("follow_chain", Rules { follow_chain: false, ..ALL }),
        ("release_by_durable_ack", Rules { release_by_durable_ack: false, ..ALL }),
        ("window_bounded", Rules { window_bounded: false, ..ALL }),
        ("staging_bounded", Rules { staging_bounded: false, ..ALL }),
        ("redo_from_applied", Rules { redo_from_applied: false, ..ALL }),
    ];
    for (name, rules) in without {
        let found = (0..400).find_map(|seed| run(rules, seed).err());
        println!("{name}: {found:?}");
        assert!(found.is_some(), "no seed misses {name}");
    }
}
