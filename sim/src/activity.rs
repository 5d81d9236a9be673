//! The activity map (R7): its file on the state disk, what the proxy keeps of it in memory,
//! and its thread, which heats extents when asked and lets them go cold.
//!
//! An extent is a volume, and each has a sector of its own in the file: of sectors that were
//! written and not synced a power loss keeps any.

use crate::disk::{BLOCKS, BlockSet, VOLUMES, volume_of_block};
use crate::proxy::Life;
use crate::ring::{Base, Pos};
use crate::rng::Rng;
use crate::world::World;

pub const EXTENTS: usize = VOLUMES;
/// Longest wait of a guest's write for the state disk, in steps.
pub const ACTIVATE_WAIT_MAX: u64 = 40;

/// One flag an extent.
pub type ExtentSet = [bool; EXTENTS];

pub fn blocks_of(extents: &ExtentSet) -> BlockSet {
    std::array::from_fn(|block| extents[volume_of_block(block)])
}

/// Extents with a block of the set.
pub fn extents_of(blocks: &BlockSet) -> ExtentSet {
    let mut set = [false; EXTENTS];
    for block in (0..BLOCKS).filter(|b| blocks[*b]) {
        set[volume_of_block(block)] = true;
    }
    set
}

/// What the file says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Image {
    pub base: Base,
    pub hot: ExtentSet,
}

/// `activity.map`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapFile {
    /// The incarnation it belongs to.
    pub inc: u32,
    pub damaged: bool,
    pub now: Image,
    synced: Image,
}

impl MapFile {
    /// A whole new file, durable in one step.
    pub fn new(inc: u32, image: Image) -> MapFile {
        MapFile { inc, damaged: false, now: image, synced: image }
    }

    pub fn sync(&mut self) {
        self.synced = self.now;
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        if rng.chance(50) {
            self.now.base = self.synced.base;
        }
        for extent in 0..EXTENTS {
            if rng.chance(50) {
                self.now.hot[extent] = self.synced.hot[extent];
            }
        }
        self.damaged |= rng.chance(10);
        self.synced = self.now;
    }
}

/// What the proxy has in memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// As written; a guest's write also waits until it is synced.
    hot: ExtentSet,
    durable: ExtentSet,
    touched: ExtentSet,
    wanted: ExtentSet,
    /// A write went on without its extent being hot durably.
    pub invalid: bool,
    step: Step,
    /// Head when the last round began.
    last: Option<u64>,
    /// A source sync has failed: nothing goes cold any more.
    failed: bool,
    /// Failures that the map's own descriptors have been told of.
    failures_seen: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// Sectors of wanted extents are written.
    SyncHot(ExtentSet),
    SyncSource(ExtentSet, Base),
    StoreBase(ExtentSet, Base),
    Clear(ExtentSet),
    SyncCold,
}

impl Activity {
    /// Goes on with the map that a killed proxy left.
    pub fn resumed(file: &MapFile, failures_seen: u64) -> Activity {
        let (hot, durable) = (file.now.hot, file.now.hot);
        Activity { hot, durable, failures_seen, ..Activity::default() }
    }
}

impl World {
    /// A change has its number or its dirty blocks: true when the source may be written.
    pub fn touch(&mut self, blocks: &BlockSet, waited: u64) -> bool {
        let rules = self.rules;
        let extents = extents_of(blocks);
        let activity = &mut self.proxy.activity;
        let mut ready = true;
        for extent in (0..EXTENTS).filter(|e| extents[*e]) {
            activity.touched[extent] = true;
            if !activity.hot[extent] || !activity.durable[extent] {
                activity.wanted[extent] = true;
                ready = false;
            }
        }
        if ready || !rules.hot_before_first_write {
            return true;
        }
        if waited > ACTIVATE_WAIT_MAX && rules.activation_wait_bounded {
            activity.invalid = true;
            self.ring_mut().map_invalid = true;
            return true;
        }
        if waited > 2 * ACTIVATE_WAIT_MAX {
            self.violate("(g) a guest's write waits for the state disk".into());
        }
        false
    }

    /// Everything, or what is dirty, becomes hot, durably; other threads than the map's.
    pub fn heat_now(&mut self, extents: &ExtentSet) {
        let (rules, activity) = (self.rules, &mut self.proxy.activity);
        let mut cold = activity.invalid;
        for extent in (0..EXTENTS).filter(|e| extents[*e]) {
            activity.touched[extent] |= rules.heating_touches;
            cold |= !activity.hot[extent];
            (activity.hot[extent], activity.durable[extent]) = (true, true);
            self.map_file.now.hot[extent] = true;
        }
        if cold {
            self.map_file.sync();
        }
    }

    pub fn activity_is_ready(&self) -> bool {
        let serving = self.proxy.life == Life::Serving;
        let activity = &self.proxy.activity;
        let busy = activity.step != Step::Idle || activity.wanted.contains(&true);
        serving && (busy || (self.faulty && activity.hot.contains(&true)))
    }

    /// One step of the map's thread.
    pub fn step_activity(&mut self) {
        let step = self.proxy.activity.step;
        self.note(|| format!("activity: {step:?}"));
        let next = match step {
            Step::Idle if self.proxy.activity.wanted.contains(&true) => self.write_hot(),
            Step::Idle => self.begin_round(),
            Step::SyncHot(extents) => {
                self.map_file.sync();
                let activity = &mut self.proxy.activity;
                for extent in (0..EXTENTS).filter(|e| extents[*e]) {
                    activity.durable[extent] = true;
                }
                if activity.invalid {
                    // Writes went past the map: what they touched is in memory, hot.
                    for extent in 0..EXTENTS {
                        activity.hot[extent] |= activity.wanted[extent];
                        self.map_file.now.hot[extent] |= activity.hot[extent];
                    }
                    activity.invalid = false;
                    activity.durable = activity.hot;
                    self.map_file.sync();
                }
                Step::Idle
            }
            Step::SyncSource(..) if self.cooler_is_told_of_a_failure() => Step::Idle,
            Step::SyncSource(idle, base) => {
                if self.rules.cold_after_source_sync {
                    self.source.flush();
                }
                Step::StoreBase(idle, base)
            }
            Step::StoreBase(idle, base) => {
                self.map_file.now.base = base;
                if self.rules.base_before_cold {
                    self.map_file.sync();
                }
                Step::Clear(idle)
            }
            Step::Clear(idle) => {
                let activity = &mut self.proxy.activity;
                for extent in (0..EXTENTS).filter(|e| idle[*e]) {
                    // A writer that came between has left its touch before it looked.
                    if activity.touched[extent] && self.rules.cold_looks_at_touches_last {
                        continue;
                    }
                    (activity.hot[extent], activity.durable[extent]) = (false, false);
                    self.map_file.now.hot[extent] = false;
                }
                Step::SyncCold
            }
            Step::SyncCold => {
                self.map_file.sync();
                Step::Idle
            }
        };
        self.proxy.activity.step = next;
    }

    fn cooler_is_told_of_a_failure(&mut self) -> bool {
        let activity = &mut self.proxy.activity;
        let failures = self.source.failures;
        let is_new = std::mem::replace(&mut activity.failures_seen, failures) < failures;
        activity.failed |= is_new && self.rules.cold_needs_good_sync;
        activity.failed
    }

    fn write_hot(&mut self) -> Step {
        let activity = &mut self.proxy.activity;
        let wanted = std::mem::take(&mut activity.wanted);
        for extent in (0..EXTENTS).filter(|e| wanted[*e]) {
            activity.hot[extent] = true;
            self.map_file.now.hot[extent] = true;
        }
        Step::SyncHot(wanted)
    }

    /// A round of the cooler: what was not touched since the last one, whose records the
    /// target has and of which nothing is dirty, may go cold.
    fn begin_round(&mut self) -> Step {
        let rules = self.rules;
        let activity = &mut self.proxy.activity;
        if activity.invalid || activity.failed {
            activity.last = None;
            return Step::Idle;
        }
        let ring = self.ring.as_ref().expect("a serving proxy has a ring");
        // First the touches, then the head: a touch follows its number.
        let touched = std::mem::take(&mut activity.touched);
        let Some(last) = activity.last.replace(ring.head) else { return Step::Idle };
        let in_spill =
            if rules.cold_needs_synced_spill { ring.spill_durable } else { ring.spilled };
        let safe = if self.config.spill.is_some() { ring.acked.max(in_spill) } else { ring.acked };
        let reached = ring.acked > 0 || !rules.cold_needs_first_ack;
        if (safe < last && rules.cold_needs_ack) || !reached {
            return Step::Idle;
        }
        let pending: BlockSet = std::array::from_fn(|b| ring.dirty[b] || ring.claimed[b]);
        let pending = extents_of(&pending);
        let is_idle = |extent: usize| {
            activity.hot[extent]
                && (!touched[extent] || !rules.cold_needs_untouched)
                && (!pending[extent] || !rules.cold_needs_clean_map)
        };
        let idle: ExtentSet = std::array::from_fn(is_idle);
        if !idle.contains(&true) {
            return Step::Idle;
        }
        let pos = Pos { inc: ring.inc, seq: safe };
        Step::SyncSource(idle, Base { pos, claims: ring.acked_claims })
    }
}
