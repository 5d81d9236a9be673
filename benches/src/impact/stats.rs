//! Medians and bootstrap intervals. Pure; the seed makes them repeatable.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Resamples: the interval's ends move by less than 1 % between seeds.
const RESAMPLES: usize = 4000;

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// The middle, or the mean of the two in the middle; `None` for nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Median of `ours` over median of `theirs`, with the 95 % percentile-bootstrap
/// interval over rounds: pairs are drawn together, for what disturbs a round disturbs
/// both of its cells. `None` without pairs or with a median of theirs that is not
/// positive.
///
/// One round has no spread: its interval is the value itself, and says nothing.
pub fn ratio_interval(pairs: &[(f64, f64)], seed: u64) -> Option<Interval> {
    let value = ratio(pairs)?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut drawn = vec![(0.0, 0.0); pairs.len()];
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            drawn.iter_mut().for_each(|pair| *pair = pairs[random.random_range(0..pairs.len())]);
            ratio(&drawn)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
    Some(Interval { value, low: at(0.025), high: at(0.975) })
}

fn ratio(pairs: &[(f64, f64)]) -> Option<f64> {
    let ours: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    let theirs: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let below = median(&theirs).filter(|&theirs| theirs > 0.0)?;
    median(&ours).map(|ours| ours / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn equal_rounds_have_an_interval_of_no_width() {
        let found = ratio_interval(&[(3.0, 2.0); 5], 1).unwrap();
        assert_eq!((found.value, found.low, found.high), (1.5, 1.5, 1.5));
    }

    #[test]
    fn the_interval_holds_the_value_and_is_the_same_for_the_same_seed() {
        let pairs = [(10.0, 20.0), (12.0, 21.0), (9.0, 25.0), (15.0, 19.0), (11.0, 20.0)];
        let found = ratio_interval(&pairs, 7).unwrap();
        assert!(found.low < found.value && found.value < found.high, "{found:?}");
        assert_eq!(Some(found), ratio_interval(&pairs, 7));
        // One wild round moves an end, not the value.
        let wild = [(10.0, 20.0), (12.0, 21.0), (9.0, 25.0), (15.0, 19.0), (1100.0, 20.0)];
        let wilder = ratio_interval(&wild, 7).unwrap();
        assert!(wilder.value < 0.7 && wilder.high > found.high, "{wilder:?}");
    }

    /// Over many experiments on known distributions, about 95 of a hundred intervals
    /// hold the true ratio (percentile bootstraps of few rounds cover a little less).
    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        let mut random = StdRng::seed_from_u64(3);
        let mut noisy = |centre: f64| centre * (0.8 + 0.4 * random.random::<f64>());
        let covered = (0..60u64)
            .filter(|&seed| {
                let pairs: Vec<_> = (0..9).map(|_| (noisy(50.0), noisy(100.0))).collect();
                let found = ratio_interval(&pairs, seed).unwrap();
                (found.low..=found.high).contains(&0.5)
            })
            .count();
        assert!((50..=60).contains(&covered), "{covered} of 60");
    }

    #[test]
    fn nothing_to_divide_by_gives_no_ratio() {
        assert_eq!(ratio_interval(&[], 1), None);
        assert_eq!(ratio_interval(&[(1.0, 0.0)], 1), None);
    }
}
