//! How long to wait before the next attempt to connect.

use rand::RngExt;
use std::time::Duration;

/// A server that was restarted is back within this.
const FIRST: Duration = Duration::from_millis(50);
/// Often enough to be back soon after a longer outage.
const LONGEST: Duration = Duration::from_secs(2);

/// Doubles with every failure; each wait is a random part of it, at least half, so that
/// the volumes of a host do not return all at once.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(FIRST)
    }
}

impl Backoff {
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.0.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_never_fall_below_half() {
        let mut backoff = Backoff::default();
        let mut full = FIRST;
        for _ in 0..20 {
            let wait = backoff.next_wait();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
    }
}
