//! The activity map's rules (`journal/src/activity.rs`) with its numbers free: when a
//! write waits for the state disk, and what is hot. Time is the load's, not the clock's.

use std::collections::HashMap;

const SAMPLE_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub extent_bytes: u64,
    /// Extents heated at once, from the one that is written.
    pub ahead: u64,
    /// The cooler's round: cold is what two of them did not touch.
    pub round_us: u64,
    /// What a sync of the state disk takes.
    pub sync_us: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub writes: u64,
    /// Writes that waited for the state disk, and for how long together.
    pub waits: u64,
    pub waited_us: u64,
    pub syncs: u64,
    /// Hot bytes, once a second.
    pub hot_bytes: Vec<u64>,
}

impl Outcome {
    pub fn wait_ns_a_write(&self) -> f64 {
        self.waited_us as f64 * 1e3 / self.writes.max(1) as f64
    }

    /// Hot bytes that were exceeded in 5 % of the seconds, and at most.
    pub fn hot(&self) -> (u64, u64) {
        let mut sorted = self.hot_bytes.clone();
        sorted.sort_unstable();
        let at = |share: usize| sorted.get(sorted.len() * share / 100).copied();
        (at(95).unwrap_or(0), sorted.last().copied().unwrap_or(0))
    }
}

pub struct Map {
    policy: Policy,
    hot: Vec<bool>,
    touched: Vec<bool>,
    touched_before: Vec<bool>,
    /// Extents on their way to the disk, and when they are there.
    pending: HashMap<usize, u64>,
    /// When the sync that runs ends, and whether another one is wanted behind it.
    busy_until: u64,
    queued: bool,
    hot_count: u64,
    next_round: u64,
    next_sample: u64,
    pub outcome: Outcome,
}

impl Map {
    /// All cold: what a group is once the target has caught up.
    pub fn new(policy: Policy, disk_bytes: u64) -> Map {
        let extents = disk_bytes.div_ceil(policy.extent_bytes) as usize;
        let none = vec![false; extents];
        Map {
            policy,
            hot: none.clone(),
            touched: none.clone(),
            touched_before: none,
            pending: HashMap::new(),
            busy_until: 0,
            queued: false,
            hot_count: 0,
            next_round: policy.round_us,
            next_sample: SAMPLE_US,
            outcome: Outcome::default(),
        }
    }

    pub fn write(&mut self, at_us: u64, offset: u64, len: u64) {
        while self.next_sample <= at_us {
            self.outcome.hot_bytes.push(self.hot_count * self.policy.extent_bytes);
            self.next_sample += SAMPLE_US;
        }
        while self.next_round <= at_us {
            self.cool();
            self.next_round += self.policy.round_us;
        }
        let first = (offset / self.policy.extent_bytes) as usize;
        let last = ((offset + len.max(1) - 1) / self.policy.extent_bytes) as usize;
        let mut until = at_us;
        let mut cold = false;
        for extent in first..=last.min(self.hot.len() - 1) {
            self.touched[extent] = true;
            cold |= !self.hot[extent];
            until = until.max(self.pending.get(&extent).copied().unwrap_or(0));
        }
        if cold {
            until = self.heat(at_us, first, last);
        }
        self.outcome.writes += 1;
        self.outcome.waits += u64::from(until > at_us);
        self.outcome.waited_us += until - at_us;
    }

    /// Makes extents hot; when the disk has them.
    fn heat(&mut self, at_us: u64, first: usize, last: usize) -> u64 {
        let sync = self.policy.sync_us;
        if self.queued && self.busy_until <= at_us {
            self.queued = false;
            self.busy_until += sync;
        }
        let until = if self.busy_until <= at_us {
            self.outcome.syncs += 1;
            self.busy_until = at_us + sync;
            self.busy_until
        } else {
            self.outcome.syncs += u64::from(!self.queued);
            self.queued = true;
            self.busy_until + sync
        };
        self.pending.retain(|_, until| *until > at_us);
        let end = (last + self.policy.ahead.max(1) as usize).min(self.hot.len());
        for extent in first..end {
            if !self.hot[extent] {
                self.hot[extent] = true;
                self.hot_count += 1;
                self.pending.insert(extent, until);
            }
        }
        until
    }

    /// The target keeps up: cold is what two rounds did not touch.
    fn cool(&mut self) {
        for extent in 0..self.hot.len() {
            if self.hot[extent] && !self.touched[extent] && !self.touched_before[extent] {
                self.hot[extent] = false;
                self.hot_count -= 1;
            }
        }
        std::mem::swap(&mut self.touched, &mut self.touched_before);
        self.touched.fill(false);
    }
}
