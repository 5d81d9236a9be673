//! Counts of durations in buckets 1.6 % wide, written by one thread while any reads.
//!
//! The layout is that of HdrHistogram with 64 steps an octave: a duration below 64 ns
//! has a bucket of its own, each octave above has 64.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STEPS_LOG2: u32 = 6;
const STEPS: u64 = 1 << STEPS_LOG2;
/// Longest duration told apart, 2^34 ns or 17 s; longer counts as that.
const OCTAVES: u64 = 34 - STEPS_LOG2 as u64;
const BUCKETS: usize = (STEPS + OCTAVES * STEPS) as usize;

pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Histogram { buckets, sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Only on the one writing thread: an atomic addition would cost more than the
    /// rest.
    pub fn record(&self, ns: u64) {
        let add = |to: &AtomicU64, n| to.store(to.load(Relaxed).wrapping_add(n), Relaxed);
        add(&self.buckets[bucket_of(ns)], 1);
        add(&self.sum_ns, ns);
    }

    /// What was recorded so far. A record made meanwhile is in it or not.
    pub fn counts(&self) -> Counts {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Counts { buckets, sum_ns: self.sum_ns.load(Relaxed) }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let octave = u64::from(ns.ilog2() - STEPS_LOG2);
    let step = (ns >> octave) - STEPS;
    ((STEPS + octave * STEPS + step) as usize).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn ns_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    let low = (STEPS + bucket % STEPS) << octave;
    low + (1 << octave) / 2
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    buckets: Vec<u64>,
    pub sum_ns: u64,
}

impl Counts {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What came since `earlier`, an older state of the same histograms.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let mut counts = self.clone();
        for (bucket, before) in counts.buckets.iter_mut().zip(&earlier.buckets) {
            *bucket -= before;
        }
        counts.sum_ns = self.sum_ns.wrapping_sub(earlier.sum_ns);
        counts
    }

    pub fn add(&mut self, other: &Counts) {
        self.buckets.resize(BUCKETS, 0);
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// The duration that this share of all does not exceed; 0 of none.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return ns_of(bucket);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_comes_back_within_one_percent(ns in 0u64..1 << 34) {
            let back = ns_of(bucket_of(ns));
            prop_assert!(back.abs_diff(ns) * 100 <= ns, "{ns} came back as {back}");
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_durations(
            mut all in prop::collection::vec(0u64..1 << 30, 1..200),
            quantile in 0.01f64..1.0,
        ) {
            let histogram = Histogram::default();
            all.iter().for_each(|ns| histogram.record(*ns));
            all.sort_unstable();
            let rank = ((all.len() as f64 * quantile).ceil() as usize).max(1);
            let exact = ns_of(bucket_of(all[rank - 1]));
            prop_assert_eq!(histogram.counts().quantile_ns(quantile), exact);
        }
    }

    #[test]
    fn the_longest_durations_share_the_last_bucket() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of((1 << 34) - 1), BUCKETS - 1);
        assert_eq!(bucket_of((1 << 34) - (1 << 27)), BUCKETS - 1);
        assert_eq!(bucket_of((1 << 34) - (1 << 27) - 1), BUCKETS - 2);
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counts().quantile_ns(0.5), 0);
        histogram.record(50);
        let before = histogram.counts();
        histogram.record(20);
        let since = histogram.counts().since(&before);
        assert_eq!((since.count(), since.sum_ns, since.quantile_ns(1.0)), (1, 20, 20));
        let mut both = before;
        both.add(&since);
        assert_eq!(both, histogram.counts());
    }
}
