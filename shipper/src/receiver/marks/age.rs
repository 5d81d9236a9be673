//! Which time it is for the age of marks, whatever is done to the clock.

use std::time::{Duration, Instant};

/// How far the clock may run ahead of the time that has passed: it is adjusted by at most
/// 500 ppm (adjtimex(2)), and by steps of seconds.
const SLACK: Duration = Duration::from_secs(60);
const SLEW_PER_MILLION: u32 = 1000;

/// The clock, without jumps forward since this was made: a mark that is too old is gone for
/// good, and a clock that was put right, or wrong, makes none old.
///
/// A clock that was put back is believed: marks stay longer.
#[derive(Debug)]
pub struct Ages {
    begun: Instant,
    begun_unix_ns: u64,
}

impl Ages {
    pub fn new(now: Instant, unix_ns: u64) -> Ages {
        Ages { begun: now, begun_unix_ns: unix_ns }
    }

    /// `unix_ns`, or the latest that it can be.
    pub fn unix_ns(&self, now: Instant, unix_ns: u64) -> u64 {
        let passed = now.saturating_duration_since(self.begun);
        let passed = passed + passed / 1_000_000 * SLEW_PER_MILLION + SLACK;
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        unix_ns.min(self.begun_unix_ns.saturating_add(passed_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * S;

    #[test]
    fn a_clock_that_runs_is_believed_and_one_that_jumps_ahead_is_not() {
        let begun = Instant::now();
        let ages = Ages::new(begun, 100 * DAY);
        for (passed, unix_ns, expected) in [
            (0, 100 * DAY, 100 * DAY),
            (DAY, 101 * DAY, 101 * DAY),
            // Slewed as fast as it can be.
            (DAY, 101 * DAY + 43 * S, 101 * DAY + 43 * S),
            // Put back.
            (DAY, 3 * DAY, 3 * DAY),
            // Put ahead by a year.
            (0, 465 * DAY, 100 * DAY + 60 * S),
            (DAY, 466 * DAY, 101 * DAY + 60 * S + DAY / 1000),
        ] {
            let now = begun + Duration::from_nanos(passed);
            assert_eq!(ages.unix_ns(now, unix_ns), expected, "after {passed} ns at {unix_ns}");
        }
    }
}
