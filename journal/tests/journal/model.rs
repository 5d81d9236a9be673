//! The journal against the promise it is for: whatever is killed between any two
//! steps, the target ends up identical, and what was acknowledged is never lost.

use crate::harness::{BLOCKS, End, Lab, SIZE, VOLUMES};
use crate::spill::flip;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use towline_block::{BLOCK_BYTES, Extent};
use towline_journal::AttachPolicy;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{Durability, SpillOptions};

/// More than a case writes into a segment.
const WRITTEN_BYTES_MAX: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
enum Step {
    Write {
        volume: usize,
        offset: u64,
        len: u64,
        fill: u8,
        end: End,
    },
    Zero {
        volume: usize,
        offset: u64,
        len: u64,
        end: End,
    },
    Ship {
        steps: usize,
    },
    /// The ring has no slot left.
    Fill,
    Kill,
    Stop,
    LoseRing,
    /// The ring is gone, and any part of what the sources did not sync; so are, sector by
    /// sector, spans of a spill that syncs nothing.
    CutPower {
        seed: u64,
    },
    /// Extents that nothing holds open go cold.
    Cool,
    /// Orderly stop, then the ring is gone: a reboot.
    Reboot,
    /// The spill's thread writes all it can.
    Spill,
    /// A byte of the spill changes behind everybody's back; then perhaps a kill.
    DamageSpill {
        offset: u64,
        kill: bool,
    },
    /// The spill's folder is gone, and the proxy is killed.
    LoseSpill,
    /// The target loses what it acknowledged, and says so.
    ForgetTarget,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        8 => Just(End::Done),
        1 => Just(End::Failed),
        1 => Just(End::KilledBefore),
        1 => Just(End::KilledAfter),
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SIZE, prop_oneof![1..9000u64, 1..3 * BLOCK_BYTES])
        .prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..VOLUMES, range(), 1..250u8, end()).prop_map(|(volume, (offset, len), fill, end)| {
            Step::Write { volume, offset, len, fill, end }
        }),
        3 => (0..VOLUMES, range(), end())
            .prop_map(|(volume, (offset, len), end)| Step::Zero { volume, offset, len, end }),
        6 => (1..12usize).prop_map(|steps| Step::Ship { steps }),
        3 => Just(Step::Fill),
        2 => Just(Step::Kill),
        1 => Just(Step::Stop),
        2 => Just(Step::LoseRing),
        2 => any::<u64>().prop_map(|seed| Step::CutPower { seed }),
        2 => Just(Step::Cool),
        1 => Just(Step::Reboot),
        1 => Just(Step::ForgetTarget),
        4 => Just(Step::Spill),
        1 => (0..400_000u64, any::<bool>())
            .prop_map(|(offset, kill)| Step::DamageSpill { offset, kill }),
        1 => Just(Step::LoseSpill),
    ]
}

fn run(steps: &[Step], spill: SpillOptions) {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.spill = spill;
    // The sources are nobody else's: the activity map decides.
    lab.attach = AttachPolicy::Trust;
    lab.open();
    for step in steps {
        match step.clone() {
            Step::Write { volume, offset, len, fill, end } => {
                let _ = lab.write(volume, offset, &vec![fill; len as usize], end);
                if matches!(end, End::KilledBefore | End::KilledAfter) {
                    lab.open();
                }
            }
            Step::Zero { volume, offset, len, end } => {
                let _ = lab.zero(volume, Extent::new(offset, len), end);
                if matches!(end, End::KilledBefore | End::KilledAfter) {
                    lab.open();
                }
            }
            Step::Ship { steps } => lab.ship(steps),
            Step::Fill => lab.fill(),
            Step::Kill => {
                let report = lab.open();
                assert!(!report.restarted && report.source_bytes_read == 0, "{report:?}");
            }
            Step::Stop => {
                lab.journal().stop().unwrap();
                assert!(!lab.open().restarted);
            }
            Step::Cool => lab.cool(),
            Step::LoseRing => {
                std::fs::remove_file(lab.ring_path()).unwrap();
                assert!(lab.open().restarted);
            }
            Step::CutPower { seed } => {
                lab.journal = None;
                tear_spill(&lab, seed);
                assert!(lab.cut_power(seed).restarted);
            }
            Step::Reboot => {
                lab.synced = Vec::from_iter((0..VOLUMES).map(|v| read(&lab, v)));
                lab.journal().stop().unwrap();
                std::fs::remove_file(lab.ring_path()).unwrap();
                let report = lab.open();
                assert!(!report.restarted, "{report:?}");
            }
            Step::Spill => {
                let journal = lab.journal();
                let done = journal.get(Counter::Done);
                journal.persist(done);
                let flushes = lab.spill.durability == Durability::Flush;
                let is_on = lab.spill.bytes != Some(0);
                // A full spill or one in the way of damage may not get there.
                assert!(!is_on || spills(&lab, done));
                if flushes && !is_full(&lab) {
                    assert!(journal.wait_durable(done, LIMIT));
                }
                lab.forget_spilled();
            }
            Step::DamageSpill { offset, kill } => {
                if lab.group_dir().spill_path().join("00000.seg").exists() {
                    flip(&lab, 0, offset);
                }
                if kill {
                    assert!(!lab.open().restarted);
                }
            }
            Step::LoseSpill => {
                let _ = std::fs::remove_dir_all(lab.group_dir().spill_path());
                assert!(!lab.open().restarted);
            }
            Step::ForgetTarget => {
                lab.target.durable = Default::default();
                lab.target.images = vec![vec![0x77; SIZE as usize]; VOLUMES];
                lab.target.whole = false;
            }
        }
        lab.remember();
        if lab.target.whole && lab.journal().get(Counter::Whole) == 1 {
            let journal = lab.journal();
            if journal.get(Counter::Acked) == journal.get(Counter::Head) {
                lab.assert_identical();
            }
        }
    }
    lab.drain();
    lab.assert_identical();
    assert!(lab.journal().get(Counter::Head) >= 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_target_converges_whatever_is_killed(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps, SpillOptions::OFF);
    }

    #[test]
    fn the_target_converges_with_a_spill_whatever_is_killed_or_lost(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let bytes = Some(2 * SEGMENT_BYTES);
        run(&steps, SpillOptions { bytes, durability: Durability::Process, ..SpillOptions::OFF });
    }
}

proptest! {
    // Fewer: each case zero-fills segments.
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_target_converges_with_a_durable_spill_whatever_is_lost(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let bytes = Some(4 * SEGMENT_BYTES);
        run(&steps, SpillOptions { bytes, durability: Durability::Flush, ..SpillOptions::OFF });
    }
}

/// With durability "process" no span is ever synced: a power cut keeps any of their sectors.
fn tear_spill(lab: &Lab, seed: u64) {
    const SECTOR_BYTES: u64 = 512;
    if lab.spill.durability != Durability::Process {
        return;
    }
    // Nothing, little, much or all of it is lost.
    let lost_of_64 = [0, 1, 16, 64][(seed >> 8 & 3) as usize];
    for path in (0..2).map(|file| lab.group_dir().spill_path().join(format!("{file:05}.seg"))) {
        let Ok(segment) = std::fs::OpenOptions::new().write(true).open(path) else { continue };
        for sector in 0..WRITTEN_BYTES_MAX / SECTOR_BYTES {
            let random = (sector + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if random >> 58 < lost_of_64 {
                segment.write_all_at(&[0; SECTOR_BYTES as usize], sector * SECTOR_BYTES).unwrap();
            }
        }
    }
}

/// True once the records are spilled, or no more can be.
fn spills(lab: &Lab, upto: u64) -> bool {
    let settles = |_| lab.journal().wait_spilled(upto, LOOK_EVERY) || is_full(lab);
    (0..LIMIT.div_duration_f64(LOOK_EVERY) as u32).any(settles)
}

fn is_full(lab: &Lab) -> bool {
    lab.journal().get(Counter::SpillFault) != 0
}

fn read(lab: &Lab, volume: usize) -> Vec<u8> {
    std::fs::read(lab.source_path(volume)).unwrap()
}

#[test]
fn a_ring_smaller_than_the_workload_never_refuses_a_write() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let (records, breaks) = (lab.journal().get(Counter::Head), lab.journal().get(Counter::Breaks));
    for round in 0..400u64 {
        let offset = round * 37_000 % (SIZE - 50_000);
        let _ = lab.write((round % 2) as usize, offset, &vec![round as u8; 50_000], End::Done);
    }
    let journal = lab.journal();
    assert!(journal.get(Counter::Head) > records, "some were journaled");
    assert!(journal.get(Counter::MappedBytes) > 0, "some went to the map");
    assert_eq!(journal.get(Counter::Breaks), breaks + 1, "one BREAK until the next HEAL");
    assert!(journal.get(Counter::DirtyBlocks) <= VOLUMES as u64 * BLOCKS);
    lab.drain();
    lab.assert_identical();
    assert_eq!(lab.journal().get(Counter::Whole), 1);
}

#[test]
fn slots_and_payload_space_are_reused_over_many_laps() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let breaks = lab.journal().get(Counter::Breaks);
    for round in 0..300u64 {
        for piece in 0..10u64 {
            let offset = (round * 10 + piece) * 4096 % (SIZE - 8192);
            let _ = lab.write(0, offset, &[round as u8 | 1; 6000], End::Done);
        }
        lab.ship(1);
    }
    assert_eq!(lab.journal().get(Counter::Breaks), breaks, "the shipper kept up");
    assert!(lab.journal().get(Counter::PayloadHead) > 4 * RING_BYTES_MIN);
    lab.drain();
    lab.assert_identical();
}
