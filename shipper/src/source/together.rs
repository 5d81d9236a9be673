//! Timers that a process's idle groups share.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Until the next of the instants, a period apart, that are the same for all groups: a core is
/// woken once for all of them, and finds in its caches what they look with. At most `period`.
pub(super) fn until_next(period: Duration) -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    rest_of(FIRST.get_or_init(Instant::now).elapsed(), period)
}

fn rest_of(since: Duration, period: Duration) -> Duration {
    let passed = since.as_nanos() % period.as_nanos().max(1);
    period.saturating_sub(Duration::from_nanos(passed as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whenever_it_is_asked_the_next_instant_is_a_multiple_of_the_period() {
        let ms = Duration::from_millis;
        for (since, rest) in [(0, 500), (1, 499), (499, 1), (500, 500), (1_234, 266)] {
            assert_eq!(rest_of(ms(since), ms(500)), ms(rest), "after {since} ms");
        }
        assert!(until_next(ms(500)) <= ms(500));
    }
}
