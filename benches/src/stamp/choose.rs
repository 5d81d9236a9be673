//! Which blocks a guest touches next: seeded, uniform or skewed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Where writes land.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    Uniform,
    /// Zipf's law with this exponent, between 0 and 1 exclusive (0.99 is a hot
    /// database). Hot blocks are spread over the volume.
    Zipf(f64),
}

/// Rejection-free Zipf sampling (Gray et al., "Quickly generating billion-record
/// synthetic databases"): one uniform number, constants computed once.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    theta: f64,
    alpha: f64,
    eta: f64,
    zeta: f64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Zipf {
        assert!(theta > 0.0 && theta < 1.0, "the exponent {theta} is not between 0 and 1");
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-theta)).sum();
        let zeta_two = 1.0 + 0.5f64.powf(theta);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta_two / zeta);
        Zipf { theta, alpha: 1.0 / (1.0 - theta), eta, zeta }
    }

    fn rank(&self, uniform: f64, count: u64) -> u64 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let base = (self.eta * uniform - self.eta + 1.0).max(0.0);
        (count as f64 * base.powf(self.alpha)) as u64
    }
}

/// The random choices of one volume's guest; equal seeds choose equally.
#[derive(Debug)]
pub(super) struct Chooser {
    rng: StdRng,
    block_count: u64,
    zipf: Option<Zipf>,
    /// Odd stride without a common factor with the count, to spread hot ranks.
    stride: u64,
}

impl Chooser {
    pub(super) fn new(seed: u64, block_count: u64, pattern: Pattern) -> Chooser {
        assert!(block_count > 0, "a volume without a whole block");
        let zipf = match pattern {
            Pattern::Zipf(theta) if block_count > 2 => Some(Zipf::new(block_count, theta)),
            _ => None,
        };
        let mut stride = (block_count as f64 * 0.618) as u64 | 1;
        while gcd(stride, block_count) != 1 {
            stride += 2;
        }
        Chooser { rng: StdRng::seed_from_u64(seed), block_count, zipf, stride }
    }

    pub(super) fn block(&mut self) -> u64 {
        match self.zipf {
            None => self.rng.random_range(0..self.block_count),
            Some(zipf) => {
                let rank = zipf.rank(self.rng.random(), self.block_count);
                let spread = u128::from(rank) * u128::from(self.stride);
                (spread % u128::from(self.block_count)) as u64
            }
        }
    }

    /// Between 2 and `max` blocks.
    pub(super) fn many(&mut self, max: u32) -> u32 {
        self.rng.random_range(2..=max.max(2))
    }

    pub(super) fn with_share(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random::<f64>() < share
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pattern: Pattern, blocks: u64) -> Vec<u32> {
        let mut chooser = Chooser::new(1, blocks, pattern);
        let mut counts = vec![0; blocks as usize];
        for _ in 0..20_000 {
            counts[chooser.block() as usize] += 1;
        }
        counts
    }

    #[test]
    fn zipf_is_skewed_and_uniform_is_not() {
        let mut zipf = counts(Pattern::Zipf(0.99), 1000);
        let mut uniform = counts(Pattern::Uniform, 1000);
        zipf.sort_unstable();
        uniform.sort_unstable();
        let hottest_tenth = |counts: &[u32]| counts[900..].iter().sum::<u32>();
        assert!(hottest_tenth(&zipf) > 10_000, "{}", hottest_tenth(&zipf));
        assert!(hottest_tenth(&uniform) < 4_000, "{}", hottest_tenth(&uniform));
    }

    #[test]
    fn equal_seeds_choose_equally_and_inside_the_volume() {
        for blocks in [1, 2, 3, 6, 1000, 65_536] {
            for pattern in [Pattern::Uniform, Pattern::Zipf(0.8)] {
                let mut one = Chooser::new(7, blocks, pattern);
                let mut two = Chooser::new(7, blocks, pattern);
                for _ in 0..500 {
                    let block = one.block();
                    assert!(block < blocks);
                    assert_eq!(block, two.block());
                }
            }
        }
    }
}
