//! How long a cutover would hold the guests, from what is measured while replication runs.

use std::time::Duration;

/// What the forecast is made of; all of it is known before the button is pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseInput {
    /// Bytes not yet durable at the receiver: unacknowledged records, and all blocks of the
    /// change map that are dirty or claimed.
    pub backlog_bytes: u64,
    /// Rate at which the receiver lately made bytes durable.
    pub drain_bytes_per_s: u64,
    /// From sending a batch to its durable acknowledgement, with the receiver's sync.
    pub round_trip: Duration,
    /// One flush of all source volumes.
    pub source_flush: Duration,
    /// Applying the last batch and one flush of all target volumes.
    pub target_flush: Duration,
}

/// Round trips a cutover cannot avoid: the acknowledgement of the last held record, of the
/// SEAL record, and the receiver's decision.
pub const CUTOVER_ROUND_TRIPS: u32 = 3;

/// Milliseconds from the hold to the receiver's decision:
///
/// `backlog / rate + 3 * round_trip + source_flush + target_flush`, rounded up.
///
/// `None` if there is a backlog and no rate is known: the pause has no bound that can be named.
pub fn forecast_pause_ms(input: &PauseInput) -> Option<u64> {
    let drain_ms = match (input.backlog_bytes, input.drain_bytes_per_s) {
        (0, _) => 0,
        (_, 0) => return None,
        (backlog, rate) => {
            u64::try_from((u128::from(backlog) * 1000).div_ceil(u128::from(rate))).ok()?
        }
    };
    let fixed = input
        .round_trip
        .saturating_mul(CUTOVER_ROUND_TRIPS)
        .saturating_add(input.source_flush)
        .saturating_add(input.target_flush);
    let fixed_ms = u64::try_from(fixed.as_micros().div_ceil(1000)).ok()?;
    drain_ms.checked_add(fixed_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(backlog_bytes: u64, drain_bytes_per_s: u64) -> PauseInput {
        PauseInput {
            backlog_bytes,
            drain_bytes_per_s,
            round_trip: Duration::from_millis(10),
            source_flush: Duration::from_millis(4),
            target_flush: Duration::from_micros(1),
        }
    }

    #[test]
    fn the_forecast_is_the_backlog_over_the_rate_and_the_fixed_round_trips() {
        assert_eq!(forecast_pause_ms(&input(50_000_000, 100_000_000)), Some(500 + 30 + 4 + 1));
        assert_eq!(forecast_pause_ms(&input(1, 1_000_000)), Some(1 + 30 + 4 + 1));
    }

    #[test]
    fn without_a_backlog_no_rate_is_needed() {
        assert_eq!(forecast_pause_ms(&input(0, 0)), Some(35));
    }

    #[test]
    fn a_backlog_without_a_rate_has_no_forecast() {
        assert_eq!(forecast_pause_ms(&input(1, 0)), None);
    }

    #[test]
    fn figures_beyond_any_clock_have_no_forecast_and_do_not_wrap() {
        assert_eq!(forecast_pause_ms(&input(u64::MAX, 1)), None);
    }
}
