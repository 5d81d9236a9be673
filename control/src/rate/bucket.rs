//! A token bucket that may go into debt: what is asked for goes whole as soon as the
//! bucket is not below zero, and what it took too much is waited for afterwards. So a
//! piece larger than the bucket passes, and the rate holds over any longer time.

/// The bucket holds what the rate gives in this time, seconds: enough to make up for a
/// late wake-up, too little to be seen as a burst.
pub const BURST_S: f64 = 0.1;

#[derive(Clone, Debug)]
pub struct Bucket {
    per_s: Option<u64>,
    /// Tokens; below zero: debt.
    level: f64,
    at_ns: u64,
}

impl Bucket {
    /// Full. `per_s` of 0 counts as 1: a stream that stands still would count as dead.
    pub fn new(per_s: Option<u64>, now_ns: u64) -> Bucket {
        let mut bucket = Bucket { per_s: None, level: 0.0, at_ns: now_ns };
        bucket.set(per_s, now_ns);
        bucket.level = bucket.burst();
        bucket
    }

    pub fn per_s(&self) -> Option<u64> {
        self.per_s
    }

    /// Changes the rate from now on. Debt is forgotten where there was no limit, and
    /// what was saved does not exceed the new bucket.
    pub fn set(&mut self, per_s: Option<u64>, now_ns: u64) {
        self.refill(now_ns);
        self.per_s = per_s.map(|rate| rate.max(1));
        self.level = self.level.min(self.burst());
    }

    /// Nanoseconds until something may be taken; 0: now.
    pub fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.refill(now_ns);
        match self.per_s {
            Some(rate) if self.level < 0.0 => (-self.level / rate as f64 * 1e9).ceil() as u64,
            _ => 0,
        }
    }

    /// Takes, whatever the level is: whoever asks has waited.
    pub fn take(&mut self, amount: u64, now_ns: u64) {
        self.refill(now_ns);
        if self.per_s.is_some() {
            self.level -= amount as f64;
        }
    }

    fn burst(&self) -> f64 {
        self.per_s.map_or(0.0, |rate| rate as f64 * BURST_S)
    }

    /// A clock that goes back gives nothing.
    fn refill(&mut self, now_ns: u64) {
        let passed_s = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        self.at_ns = self.at_ns.max(now_ns);
        self.level = match self.per_s {
            Some(rate) => (self.level + passed_s * rate as f64).min(self.burst()),
            None => 0.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    /// Takes `pieces` one after the other, each as soon as it may; when each went.
    fn run(bucket: &mut Bucket, now_ns: &mut u64, pieces: &[u64]) -> Vec<u64> {
        let mut went = Vec::new();
        for piece in pieces {
            *now_ns += bucket.wait_ns(*now_ns);
            assert_eq!(bucket.wait_ns(*now_ns), 0, "waiting so long is enough");
            bucket.take(*piece, *now_ns);
            went.push(*now_ns);
        }
        went
    }

    #[test]
    fn a_piece_larger_than_the_bucket_goes_whole_and_is_waited_for_after() {
        let mut bucket = Bucket::new(Some(1000), 0);
        assert_eq!(bucket.wait_ns(0), 0);
        bucket.take(5100, 0);
        assert_eq!(bucket.wait_ns(0), 5 * S);
        assert_eq!(bucket.wait_ns(4 * S), S);
        assert_eq!(bucket.wait_ns(5 * S), 0);
    }

    #[test]
    fn a_rate_that_changes_counts_from_that_moment_on() {
        let mut bucket = Bucket::new(Some(100), 0);
        bucket.take(1010, 0);
        assert_eq!(bucket.wait_ns(0), 10 * S);
        bucket.set(Some(1000), 5 * S);
        assert_eq!(bucket.wait_ns(5 * S), S / 2, "the rest of the debt, ten times as fast");
        bucket.set(None, 5 * S);
        assert_eq!(bucket.wait_ns(5 * S), 0);
        bucket.take(1 << 40, 5 * S);
        assert_eq!(bucket.wait_ns(5 * S), 0, "nothing is counted without a limit");
        bucket.set(Some(100), 6 * S);
        assert_eq!(bucket.wait_ns(6 * S), 0, "and nothing is owed for it");
    }

    #[test]
    fn a_clock_that_goes_back_neither_gives_nor_takes() {
        let mut bucket = Bucket::new(Some(1000), 10 * S);
        bucket.take(1100, 10 * S);
        assert_eq!(bucket.wait_ns(9 * S), S);
        assert_eq!(bucket.wait_ns(11 * S), 0);
    }

    proptest! {
        /// Over any stretch no more than the rate gives, the bucket and one piece; and
        /// who always has something gets the whole rate.
        #[test]
        fn the_rate_is_kept_and_reached(
            rate in 1_000u64..1_000_000_000,
            pieces in prop::collection::vec(1u64..200_000, 2..200),
        ) {
            let (mut bucket, mut now) = (Bucket::new(Some(rate), 0), 0);
            let went = run(&mut bucket, &mut now, &pieces);
            let largest = *pieces.iter().max().unwrap() as f64;
            let slack = rate as f64 * BURST_S + largest + 1.0;
            for from in 0..pieces.len() {
                let mut sum = 0.0;
                for to in from..pieces.len() {
                    sum += pieces[to] as f64;
                    let seconds = (went[to] - went[from]) as f64 / 1e9;
                    prop_assert!(sum <= rate as f64 * seconds + slack + pieces[from] as f64);
                }
            }
            let before_last: u64 = pieces[..pieces.len() - 1].iter().sum();
            let at_most = before_last as f64 / rate as f64 + 1e-6 * pieces.len() as f64;
            prop_assert!(*went.last().unwrap() as f64 / 1e9 <= at_most);
        }
    }
}
