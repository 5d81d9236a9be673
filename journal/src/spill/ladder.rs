//! The rule of the ladder: ring -> spill -> change map -> back. Pure; a simulation
//! in the test shows that it does not flap.
//!
//! ```text
//!            ring more than half full                        BREAK
//!    Ring ─────────────────────────────> Spill ─────────────────────────> Map
//!      ^   spill empty and ring less than  │ ^   HEAL, spill not empty      │
//!      └────────── a quarter full ─────────┘ └──────────────────────────────┤
//!      └────────────────────────── HEAL ────────────────────────────────────┘
//! ```

/// Percent of the ring, slots or payload, at which spilling begins.
pub const SPILL_START_PERCENT: u64 = 50;
/// And below which it ends. The distance is the hysteresis.
pub const SPILL_STOP_PERCENT: u64 = 25;

const _: () = assert!(SPILL_STOP_PERCENT * 2 <= SPILL_START_PERCENT);

/// Where the group's changes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Rung {
    #[default]
    Ring = 0,
    Spill = 1,
    Map = 2,
}

impl Rung {
    pub fn from_code(code: u64) -> Rung {
        match code {
            1 => Rung::Spill,
            2 => Rung::Map,
            _ => Rung::Ring,
        }
    }
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Fill of the ring, 0 to 100.
    pub fill_percent: u64,
    /// Records that the target lacks are in the spill.
    pub backlog: bool,
    /// The stream holds every change (no BREAK without a HEAL).
    pub whole: bool,
    /// The spill has room and its disk works.
    pub able: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Ladder {
    rung: Rung,
    spilling: bool,
}

impl Ladder {
    pub fn new(rung: Rung) -> Ladder {
        Ladder { rung, spilling: false }
    }

    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether the oldest records of the ring are to be written now. While changes
    /// bypass the journal anyway, the spill only empties: what is overwritten in the
    /// map meanwhile need not be shipped at all.
    pub fn is_spilling(&self) -> bool {
        self.spilling
    }

    /// Takes a step if one is due: (from, to).
    pub fn observe(&mut self, seen: &Observed) -> Option<(Rung, Rung)> {
        self.spilling = seen.whole
            && seen.able
            && match seen.fill_percent {
                fill if fill > SPILL_START_PERCENT => true,
                fill if fill < SPILL_STOP_PERCENT => false,
                _ => self.spilling,
            };
        let stays = self.rung == Rung::Spill && seen.fill_percent >= SPILL_STOP_PERCENT;
        let to = if !seen.whole {
            Rung::Map
        } else if self.spilling || seen.backlog || stays {
            Rung::Spill
        } else {
            Rung::Ring
        };
        let from = std::mem::replace(&mut self.rung, to);
        (from != to).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring of 100 units and a spill of 1000 between a writer and a link; every tick
    /// moves at most one unit of each, so rates are probabilities. Returns steps.
    fn simulate(seed: u64, ticks: u64, link_permille: impl Fn(u64) -> u64) -> u64 {
        let (mut ring, mut spill, mut dirty, mut whole) = (0u64, 0u64, 0u64, true);
        let mut ladder = Ladder::default();
        let mut steps = 0;
        let mut state = seed;
        let mut random = move |of: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % of
        };
        for tick in 0..ticks {
            if random(1000) < 500 {
                match ring < 100 {
                    true => ring += 1,
                    false => (whole, dirty) = (false, (dirty + 1).min(400)),
                }
            }
            if random(1000) < link_permille(tick) {
                match (spill, ring, dirty) {
                    (1.., ..) => spill -= 1,
                    (0, 1.., _) => ring -= 1,
                    _ => dirty = dirty.saturating_sub(1),
                }
            }
            // As the walker does: blocks are sent between records.
            dirty = dirty.saturating_sub(u64::from(!whole && random(1000) < link_permille(tick)));
            if !whole && dirty == 0 && spill < 500 {
                whole = true;
            }
            let fill_percent = ring;
            let able = spill < 1000;
            let seen = Observed { fill_percent, backlog: spill > 0, whole, able };
            steps += u64::from(ladder.observe(&seen).is_some());
            if ladder.is_spilling() && ring > 0 {
                (ring, spill) = (ring - 1, spill + 1);
            }
        }
        steps
    }

    #[test]
    fn a_link_at_the_write_rate_does_not_make_it_flap() {
        for seed in 0..20 {
            let ticks = 400_000;
            let steps = simulate(seed, ticks, |_| 500);
            // A balanced random walk crosses a quarter of the ring and back once in
            // about 2 x 25^2 ticks at the very best.
            assert!(steps <= ticks / 1250, "seed {seed}: {steps} steps");
            // A link that changes every 200 ticks between 2 % less and 2 % more.
            let steps = simulate(seed, ticks, |tick| 490 + tick / 200 % 2 * 20);
            assert!(steps <= ticks / 1250, "seed {seed}: {steps} steps, wobbling");
        }
    }

    #[test]
    fn without_hysteresis_the_same_simulation_flaps() {
        // The check is worth something: one threshold for both ways steps far more.
        let mut ladder_fill = 50i64;
        let (mut steps, mut above, mut state) = (0u64, false, 7u64);
        for _ in 0..400_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ladder_fill = (ladder_fill + if state >> 63 == 1 { 1 } else { -1 }).clamp(0, 100);
            let now = ladder_fill > 50;
            steps += u64::from(now != above);
            above = now;
        }
        assert!(steps > 400_000 / 1250, "{steps}");
    }

    #[test]
    fn a_slow_link_goes_down_the_ladder_and_comes_back_once() {
        let steps = simulate(3, 60_000, |tick| if tick < 10_000 { 0 } else { 900 });
        assert!((3..=5).contains(&steps), "ring, spill, map, back: {steps}");
    }

    #[test]
    fn every_step_has_its_reason() {
        let mut ladder = Ladder::default();
        let seen = Observed { fill_percent: 51, backlog: false, whole: true, able: true };
        let idle = Observed { fill_percent: 10, ..seen };
        assert_eq!(ladder.observe(&idle), None);
        assert_eq!(ladder.observe(&seen), Some((Rung::Ring, Rung::Spill)));
        assert!(ladder.is_spilling());
        let half = Observed { fill_percent: 30, ..seen };
        assert_eq!((ladder.observe(&half), ladder.is_spilling()), (None, true));
        let backlog = Observed { backlog: true, ..idle };
        assert_eq!((ladder.observe(&backlog), ladder.is_spilling()), (None, false));
        assert_eq!(ladder.observe(&half), None, "empty, but the ring is not: no step yet");
        let broken = Observed { whole: false, ..seen };
        assert_eq!(ladder.observe(&broken), Some((Rung::Spill, Rung::Map)));
        assert!(!ladder.is_spilling());
        assert_eq!(ladder.observe(&idle), Some((Rung::Map, Rung::Ring)));
        let unable = Observed { able: false, ..seen };
        assert_eq!((ladder.observe(&unable), ladder.is_spilling()), (None, false));
    }
}
