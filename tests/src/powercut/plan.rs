//! What is cut when: all from one seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;
use towline_journal::activity::COOL_EVERY;

/// Cuts of one group before the next one begins: each life has one baseline.
const CUTS_OF_A_LIFE: usize = 5;

/// A round that passes several times while one cut is made.
const COOL_SOON: Duration = Duration::from_secs(2);

/// As `towline proxy --durability` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Process,
    Flush,
    Write,
}

impl Durability {
    pub const ALL: [Durability; 3] = [Durability::Process, Durability::Flush, Durability::Write];

    pub fn name(self) -> &'static str {
        match self {
            Durability::Process => "process",
            Durability::Flush => "flush",
            Durability::Write => "write",
        }
    }
}

/// What goes on when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first copy; there is no point yet.
    Baseline,
    /// The journal holds every change and the shipper keeps up.
    Steady,
    /// As steady, and untouched extents have gone cold: not everything is compared.
    Cool,
    /// Nobody ships, and the ring's continuation is on disk.
    Spill,
    /// The ring was full and changes went to the change map.
    Map,
    /// What the cut before left is still being compared, under a guest that writes.
    Recovery,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Baseline => "baseline",
            Phase::Steady => "steady",
            Phase::Cool => "cool",
            Phase::Spill => "spill",
            Phase::Map => "map",
            Phase::Recovery => "recovery",
        }
    }

    pub const ALL: [Phase; 6] =
        [Phase::Baseline, Phase::Steady, Phase::Cool, Phase::Spill, Phase::Map, Phase::Recovery];

    /// Whether the group has its point, and everything at the target, before the client starts.
    pub fn begins_whole(self) -> bool {
        !matches!(self, Phase::Baseline | Phase::Recovery)
    }
}

/// One cut.
#[derive(Clone, Debug)]
pub struct Cut {
    pub phase: Phase,
    pub durability: Durability,
    /// Of the client's choices and the disk's die.
    pub seed: u64,
    /// Writes acknowledged in the phase before the cut, and time after them.
    pub acks: u64,
    pub delay: Duration,
    /// Round of the activity map: one that a cut outlasts, or one that it does not.
    pub cool_every: Duration,
    /// Writes between the client's flushes.
    pub flush_every: u32,
    /// Share of what the disk's cache held that survives.
    pub survival: f64,
    /// After an overflow: somebody ships again when the power fails.
    pub ships_again: bool,
    /// The receiver is killed too, instead of ended in order, before its disks are judged.
    pub kills_receiver: bool,
}

impl Cut {
    fn draw(rng: &mut StdRng, phase: Phase, durability: Durability) -> Cut {
        let acks = match phase {
            // What is left to compare is soon compared.
            Phase::Recovery => rng.random_range(0..40),
            _ => rng.random_range(20..200),
        };
        Cut {
            phase,
            durability,
            seed: rng.random(),
            acks,
            delay: Duration::from_millis(rng.random_range(0..400)),
            cool_every: match phase {
                Phase::Cool => COOL_SOON,
                _ => [COOL_SOON, COOL_EVERY][rng.random_range(0..2)],
            },
            flush_every: rng.random_range(8..96),
            survival: [0.0, 0.3, 0.7, 0.95][rng.random_range(0..4)],
            ships_again: rng.random(),
            kills_receiver: rng.random(),
        }
    }
}

/// `cuts` cuts, in lives. `only` fixes the durability; else each cut draws its own.
pub fn lives(seed: u64, cuts: usize, only: Option<Durability>) -> Vec<Vec<Cut>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lives = Vec::new();
    let mut left = cuts;
    while left > 0 {
        let of_this = left.min(CUTS_OF_A_LIFE);
        left -= of_this;
        let mut phases =
            vec![Phase::Steady, Phase::Cool, Phase::Spill, Phase::Map, Phase::Recovery];
        let mut life = Vec::new();
        for number in 0..of_this {
            let phase = match number {
                0 => Phase::Baseline,
                _ => phases.remove(rng.random_range(0..phases.len())),
            };
            let durability = only.unwrap_or(Durability::ALL[rng.random_range(0..3)]);
            life.push(Cut::draw(&mut rng, phase, durability));
        }
        lives.push(life);
    }
    lives
}

/// The cuts of every test run: the first copy, steady with cold extents, and an overflow that
/// nobody ships, whose durable spill the target lacks.
pub fn short(seed: u64) -> Vec<Cut> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cuts = [
        (Phase::Baseline, Durability::Write),
        (Phase::Cool, Durability::Process),
        (Phase::Spill, Durability::Flush),
    ]
    .map(|(phase, durability)| Cut::draw(&mut rng, phase, durability))
    .to_vec();
    if let Some(overflow) = cuts.last_mut() {
        overflow.ships_again = false;
    }
    cuts
}

/// One cut in each of these phases, for a look at them.
pub fn of_phases(seed: u64, phases: &[Phase], only: Option<Durability>) -> Vec<Cut> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cuts = Vec::new();
    for phase in phases {
        let durability = only.unwrap_or(Durability::ALL[rng.random_range(0..3)]);
        cuts.push(Cut::draw(&mut rng, *phase, durability));
    }
    cuts
}

/// A cut of a group whose client flushes, for a disk that swallows flushes: all it held
/// in its cache is lost.
pub fn control(seed: u64) -> Cut {
    let mut rng = StdRng::seed_from_u64(seed);
    let cut = Cut::draw(&mut rng, Phase::Steady, Durability::Process);
    Cut { acks: cut.acks.max(100), survival: 0.0, ..cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_fifty_cuts_hold_every_phase_and_durability() {
        let plan = lives(1, 50, None);
        assert_eq!(format!("{plan:?}"), format!("{:?}", lives(1, 50, None)));
        assert_ne!(format!("{plan:?}"), format!("{:?}", lives(2, 50, None)));
        let cuts: Vec<&Cut> = plan.iter().flatten().collect();
        assert_eq!(cuts.len(), 50);
        for phase in
            [Phase::Baseline, Phase::Steady, Phase::Cool, Phase::Spill, Phase::Map, Phase::Recovery]
        {
            assert!(cuts.iter().filter(|cut| cut.phase == phase).count() >= 5, "{phase:?}");
        }
        for durability in Durability::ALL {
            assert!(cuts.iter().filter(|cut| cut.durability == durability).count() >= 8);
        }
        let mut fixed = lives(1, 12, Some(Durability::Flush)).into_iter().flatten();
        assert!(fixed.all(|cut| cut.durability == Durability::Flush));
    }
}
