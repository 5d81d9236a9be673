//! Good states pass, and every kind of injected fault fails. States come from a
//! simulated server: it applies writes of two volumes, some in flight together, and
//! can be looked at after each.

use super::*;
use crate::stamp::{
    History, Kind, Op, Order, Outcome, STAMP_BYTES, Seen, Stamp, VolumeHistory, read,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCKS: u64 = 24;
const VOLUMES: usize = 2;

/// Contents by volume and block: the op shown there, if any.
type State = Vec<Vec<Option<Op>>>;

struct World {
    history: History,
    /// The state after each applied write, the first before any.
    states: Vec<State>,
}

impl World {
    /// Writes of one to four blocks; up to three in flight; some never answered,
    /// and of those some never done; some refused.
    fn simulate(seed: u64, writes: usize) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let order = Order::default();
        let mut history = History::default();
        for volume in 0..VOLUMES {
            let size = BLOCKS * STAMP_BYTES as u64;
            history.volumes.push(VolumeHistory::new(volume as u32, &format!("disk{volume}"), size));
        }
        let mut states = vec![vec![vec![None; BLOCKS as usize]; VOLUMES]];
        let mut flying: Vec<(usize, usize)> = Vec::new();
        for _ in 0..writes {
            if let Some(issued) = issue(&mut rng, &order, &mut history, &flying) {
                flying.push(issued);
            }
            if flying.len() >= 3 {
                let (volume, index) = flying.swap_remove(rng.random_range(0..flying.len()));
                let fate = rng.random_range(0..10);
                let op = &mut history.volumes[volume].ops[index];
                if fate < 8 {
                    op.outcome = Outcome::Acked(order.tick());
                } else if fate == 8 {
                    op.outcome = Outcome::Refused;
                }
                if fate < 8 || fate == 9 && rng.random() {
                    let op = *op;
                    let mut next = states.last().unwrap().clone();
                    for block in op.blocks() {
                        next[volume][block as usize] = Some(op);
                    }
                    states.push(next);
                }
            }
        }
        World { history, states }
    }

    fn last(&self) -> State {
        self.states.last().unwrap().clone()
    }
}

fn issue(
    rng: &mut StdRng,
    order: &Order,
    history: &mut History,
    flying: &[(usize, usize)],
) -> Option<(usize, usize)> {
    let volume = rng.random_range(0..VOLUMES);
    let first_block = rng.random_range(0..BLOCKS);
    let block_count = rng.random_range(1..=4).min(BLOCKS - first_block) as u32;
    let kind = if rng.random_range(0..8) == 0 { Kind::Zero } else { Kind::Write };
    let id = order.tick();
    let fua = false;
    let op = Op { id, kind, first_block, block_count, fua, outcome: Outcome::Unknown };
    let busy = flying.iter().any(|(v, index)| {
        let other = history.volumes[*v].ops[*index].blocks();
        *v == volume && other.start < op.blocks().end && op.blocks().start < other.end
    });
    if busy {
        return None;
    }
    history.volumes[volume].ops.push(op);
    Some((volume, history.volumes[volume].ops.len() - 1))
}

struct Images {
    _dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Images {
    fn of(state: &State) -> Images {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (volume, blocks) in state.iter().enumerate() {
            let path = dir.path().join(format!("{volume}.img"));
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(blocks.len() as u64 * STAMP_BYTES as u64).unwrap();
            paths.push(path);
            for (block, op) in blocks.iter().enumerate() {
                if let Some(Op { id, kind: Kind::Write, .. }) = op {
                    put(&paths[volume], block as u64, &stamped(*id, volume as u32, block as u64));
                }
            }
        }
        Images { _dir: dir, paths }
    }

    fn prefix(&self, history: &History) -> Prefix {
        let paths: Vec<&Path> = self.paths.iter().map(PathBuf::as_path).collect();
        prefix(history, &paths).unwrap()
    }

    fn acknowledged(&self, history: &History) -> Report {
        let mut sum = Report::default();
        for (volume, path) in history.volumes.iter().zip(&self.paths) {
            sum.add(acknowledged(volume, path).unwrap());
        }
        sum
    }
}

fn stamped(id: u64, volume: u32, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; STAMP_BYTES];
    Stamp { id, volume, block }.fill(&mut bytes);
    bytes
}

fn put(path: &Path, block: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, block * STAMP_BYTES as u64).unwrap();
}

/// A block whose last write is acknowledged and shown, under which an older
/// acknowledged write is known: (volume, block, shown, older).
fn overwritten(world: &World) -> (usize, u64, Op, Op) {
    let state = world.last();
    for (volume, history) in world.history.volumes.iter().enumerate() {
        for block in 0..BLOCKS {
            let Some(shown) = state[volume][block as usize] else { continue };
            let under = history.ops.iter().rev().find(|op| {
                op.kind == Kind::Write
                    && op.acked_at().is_some()
                    && op.blocks().contains(&block)
                    && op.id < shown.id
            });
            if let (Some(under), Kind::Write, Some(_)) = (under, shown.kind, shown.acked_at()) {
                return (volume, block, shown, *under);
            }
        }
    }
    unreachable!("hundreds of writes over {BLOCKS} blocks overwrite each other");
}

#[test]
fn a_stamp_is_read_back_and_any_changed_byte_tears_it() {
    let good = stamped(77, 3, 12);
    assert_eq!(read(&good), Seen::Stamp(Stamp { id: 77, volume: 3, block: 12 }));
    assert_eq!(read(&[0; STAMP_BYTES]), Seen::Zero);
    for at in (0..STAMP_BYTES).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(read(&bad), Seen::Torn, "byte {at}");
    }
    let mut half = stamped(78, 3, 12);
    half[2048..].copy_from_slice(&good[2048..]);
    assert_eq!(read(&half), Seen::Torn);
}

#[test]
fn the_final_state_holds_all_that_was_acknowledged() {
    for seed in 0..30 {
        let world = World::simulate(seed, 300);
        let report = Images::of(&world.last()).acknowledged(&world.history);
        assert!(report.is_good(), "seed {seed}: {report}");
        assert_eq!(report.checked_blocks, BLOCKS * VOLUMES as u64);
        assert!(report.acked_writes > 100 && report.stamped_blocks > 10, "{report}");
    }
}

#[test]
fn a_lost_write_is_found() {
    let world = World::simulate(1, 300);
    let (volume, block, ..) = overwritten(&world);
    let mut state = world.last();
    state[volume][block as usize] = None;
    let images = Images::of(&state);
    assert!(images.acknowledged(&world.history).has(Fault::Lost));
}

#[test]
fn a_stale_write_is_found() {
    let world = World::simulate(2, 300);
    let (volume, block, _, under) = overwritten(&world);
    let mut state = world.last();
    state[volume][block as usize] = Some(under);
    let images = Images::of(&state);
    assert!(images.acknowledged(&world.history).has(Fault::Stale));
}

#[test]
fn a_torn_block_is_found_by_both() {
    let world = World::simulate(3, 300);
    let (volume, block, shown, under) = overwritten(&world);
    let images = Images::of(&world.last());
    let mut torn = stamped(shown.id, volume as u32, block);
    torn[512..1024].copy_from_slice(&stamped(under.id, volume as u32, block)[512..1024]);
    put(&images.paths[volume], block, &torn);
    assert!(images.acknowledged(&world.history).has(Fault::Torn));
    assert!(images.prefix(&world.history).report.has(Fault::Torn));
}

#[test]
fn a_misplaced_or_never_issued_write_is_found_by_both() {
    let world = World::simulate(4, 300);
    let (volume, block, shown, _) = overwritten(&world);
    let elsewhere = (block + 1) % BLOCKS;
    for wrong in [
        stamped(shown.id, volume as u32, elsewhere),
        stamped(shown.id, volume as u32 + 1, block),
        stamped(u64::MAX, volume as u32, block),
    ] {
        let images = Images::of(&world.last());
        put(&images.paths[volume], block, &wrong);
        assert!(images.acknowledged(&world.history).has(Fault::Foreign));
        assert!(images.prefix(&world.history).report.has(Fault::Foreign));
    }
}

#[test]
fn a_refused_write_that_is_there_is_found_by_both() {
    let mut world = World::simulate(5, 300);
    let (volume, _, shown, _) = overwritten(&world);
    let ops = &mut world.history.volumes[volume].ops;
    let op = ops.iter_mut().find(|op| op.id == shown.id).unwrap();
    op.outcome = Outcome::Refused;
    let images = Images::of(&world.last());
    assert!(images.acknowledged(&world.history).has(Fault::Refused));
    assert!(images.prefix(&world.history).report.has(Fault::Refused));
}

#[test]
fn every_state_passed_through_is_a_prefix() {
    for seed in 0..6 {
        let world = World::simulate(seed, 150);
        let mut positions = Vec::new();
        for state in &world.states {
            let prefix = Images::of(state).prefix(&world.history);
            assert!(prefix.report.is_good(), "seed {seed}: {}", prefix.report);
            positions.push(prefix.position);
        }
        assert!(positions.is_sorted_by(|a, b| a <= b), "{positions:?}");
        assert_eq!(Images::of(&world.last()).prefix(&world.history).missing_acked, 0);
    }
}

/// One volume is behind the other: what a broken group consistency would give.
#[test]
fn volumes_of_different_moments_are_reordered() {
    let world = World::simulate(6, 300);
    let mut mixed = world.states[world.states.len() / 2].clone();
    mixed[1] = world.last()[1].clone();
    let prefix = Images::of(&mixed).prefix(&world.history);
    assert!(prefix.report.has(Fault::Reordered), "{}", prefix.report);
}

#[test]
fn a_multi_block_write_that_is_half_there_is_partial() {
    let history = |outcome| History {
        volumes: vec![VolumeHistory {
            ops: vec![Op {
                id: 1,
                kind: Kind::Write,
                first_block: 0,
                block_count: 2,
                fua: false,
                outcome,
            }],
            ..VolumeHistory::new(0, "disk0", BLOCKS * STAMP_BYTES as u64)
        }],
    };
    let acked = history(Outcome::Acked(2));
    let mut state: State = vec![vec![None; BLOCKS as usize]];
    assert!(Images::of(&state).prefix(&acked).report.is_good(), "not yet there");
    state[0][0] = Some(acked.volumes[0].ops[0]);
    assert!(Images::of(&state).prefix(&acked).report.has(Fault::Partial));
    let unknown = Images::of(&state).prefix(&history(Outcome::Unknown));
    assert!(unknown.report.is_good(), "what was never acknowledged may be half there");
    state[0][1] = state[0][0];
    assert!(Images::of(&state).prefix(&acked).report.is_good());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Take any state passed through and undo one acknowledged write that something
    /// issued after its acknowledgement proves to be there.
    #[test]
    fn any_write_undone_behind_a_later_one_is_found(seed in 0u64..1000, cut in 20usize..100) {
        let world = World::simulate(seed, 200);
        let mut state = world.states[cut.min(world.states.len() - 1)].clone();
        let shown: Vec<(usize, usize, Op)> = (0..VOLUMES)
            .flat_map(|v| (0..BLOCKS as usize).map(move |b| (v, b)))
            .filter_map(|(v, b)| Some((v, b, state[v][b]?)))
            .collect();
        // The zeroing of a zero block cannot be missed in the image.
        let victim = shown.iter().find(|(_, _, op)| {
            op.kind == Kind::Write
                && op.acked_at().is_some_and(|at| {
                    shown.iter().any(|(_, _, later)| later.kind == Kind::Write && later.id > at)
                })
        });
        if let Some((volume, _, op)) = victim {
            for block in op.blocks() {
                let at = &mut state[*volume][block as usize];
                if *at == Some(*op) {
                    *at = None;
                }
            }
            // A zero block may be the work of a later zeroing; only without one is
            // the loss certain.
            let zeroed_since = world.history.volumes[*volume].ops.iter().any(|other| {
                other.kind == Kind::Zero && other.id > op.id && other.outcome != Outcome::Refused
                    && other.blocks().start < op.blocks().end
                    && op.blocks().start < other.blocks().end
            });
            let prefix = Images::of(&state).prefix(&world.history);
            prop_assert!(zeroed_since || !prefix.report.is_good());
        }
    }
}

#[test]
fn images_are_compared_to_the_byte_and_holes_equal_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    let size = 9 << 20;
    let make = |name: &str, data: &[(u64, &[u8])]| {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        path
    };
    let one = make("one", &[(5 << 20, b"data"), (0, &[0; 1 << 20])]);
    let same = make("same", &[(5 << 20, b"data"), (7 << 20, &[0; 123_456])]);
    let good = identical(&one, &same).unwrap();
    assert!(good.is_good() && good.size_bytes == size, "{good}");
    for at in [0, 4096, (5 << 20) + 3, size - 1] {
        let other = make("other", &[(5 << 20, b"data"), (at, b"!")]);
        let found = identical(&one, &other).unwrap();
        assert_eq!(found.first_difference, Some(at), "{found}");
        assert_eq!(identical(&other, &one).unwrap().first_difference, Some(at));
    }
    let longer = make("longer", &[(5 << 20, b"data"), (size, b"x")]);
    assert!(!identical(&one, &longer).unwrap().is_good());
}

#[test]
fn an_image_that_is_too_short_is_an_error_not_a_verdict() {
    let world = World::simulate(1, 50);
    let images = Images::of(&world.last());
    std::fs::OpenOptions::new().write(true).open(&images.paths[0]).unwrap().set_len(8192).unwrap();
    let error = acknowledged(&world.history.volumes[0], &images.paths[0]).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{error}");
}

/// One block; writes 1 (durable by `how`), 2 and 3 (acknowledged, not flushed), 4 (in flight).
fn one_block(fua: bool, flush: Option<u64>) -> VolumeHistory {
    let op = |id, fua, outcome| Op {
        id,
        kind: Kind::Write,
        first_block: 0,
        block_count: 1,
        fua,
        outcome,
    };
    let mut history = VolumeHistory::new(0, "disk0", STAMP_BYTES as u64);
    history.ops = vec![
        op(1, false, Outcome::Acked(2)),
        op(3, fua, Outcome::Acked(4)),
        op(7, false, Outcome::Acked(8)),
        op(9, false, Outcome::Unknown),
    ];
    let point = |issued_at| crate::stamp::FlushPoint { issued_at, acked_at: issued_at + 1 };
    history.flushes.extend(flush.map(point));
    history
}

#[test]
fn after_a_power_cut_what_was_flushed_or_fua_must_be_there_and_later_writes_may() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let verdict = |history: &VolumeHistory, shown: Option<u64>| {
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(STAMP_BYTES as u64).unwrap();
        if let Some(id) = shown {
            put(&image, 0, &stamped(id, 0, 0));
        }
        let report = flushed(history, &image).unwrap();
        report.violations.first().map(|violation| violation.fault)
    };
    for (durable, history) in
        [("by a flush", one_block(false, Some(5))), ("by FUA", one_block(true, None))]
    {
        for shown in [3, 7, 9] {
            assert_eq!(verdict(&history, Some(shown)), None, "{durable}: {shown}");
        }
        assert_eq!(verdict(&history, None), Some(Fault::Lost), "{durable}");
        assert_eq!(verdict(&history, Some(1)), Some(Fault::Stale), "{durable}");
        assert_eq!(verdict(&history, Some(5)), Some(Fault::Foreign), "{durable}");
    }
    // A flush covers what was acknowledged before it was issued, no more.
    let early = one_block(false, Some(2 + 1));
    assert_eq!(verdict(&early, Some(1)), None);
    assert_eq!(verdict(&early, None), Some(Fault::Lost));
    let never = one_block(false, None);
    assert_eq!(verdict(&never, None), None);
}

#[test]
fn a_history_settled_on_an_image_asks_for_exactly_that_image() {
    let world = World::simulate(5, 60);
    let middle = &world.states[world.states.len() / 2];
    let images = Images::of(middle);
    let order = Order::default();
    while order.tick() < 1000 {}
    let mut settled = History::default();
    for (volume, path) in world.history.volumes.iter().zip(&images.paths) {
        settled.volumes.push(volume.settled(path, &order).unwrap());
    }
    assert!(settled.volumes.iter().any(|volume| !volume.ops.is_empty()));
    assert!(images.acknowledged(&settled).is_good());
    assert!(images.prefix(&settled).report.is_good());
    let later = Images::of(&world.last());
    assert!(!later.acknowledged(&settled).is_good(), "writes it does not know of");
    let before = Images::of(&world.states[0]);
    assert!(before.acknowledged(&settled).has(Fault::Lost));
}
