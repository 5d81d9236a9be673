//! What a cutover would come to, seen before anybody is held.
//!
//! | seen | then |
//! |---|---|
//! | the target cannot be reached; it applies nothing | refused |
//! | even with nothing to go it takes too long | refused |
//! | not caught up, and the forecast is too long | refused |
//! | caught up | tried, whatever the forecast: it is of a moment, and may be wrong |
//! | not caught up, and the forecast is short or not known | tried |

use crate::source::meter::Meter;
use crate::source::stream::Stream;
use std::time::Duration;
use towline_control::{PauseInput, forecast_pause_ms};
use towline_journal::progress::Figure;

const CAUGHT_UP_BYTES: u64 = 256 * 1024;
/// A target that has applied nothing for so long of what it has will not do so while guests wait.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(5);
pub(crate) const STALLED: &str = "the target has what was shipped and applies nothing of it: `towline status` \
                                  there says why";
pub(super) const UNREACHED: &str = "the target cannot be reached";
/// Assumed until measured: from sending a batch to its durable acknowledgement.
const ROUND_TRIP_ASSUMED: Duration = Duration::from_millis(5);
const FLUSH_ASSUMED: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    pub backlog_bytes: u64,
    /// Made durable a second, as of late; 0: not known.
    durable_rate: f64,
    connected: bool,
    /// The target has written all but the last moment's batches.
    nearly_applied: bool,
    stalled_for: Duration,
    round_trip: Option<Duration>,
    least_round_trip: Option<Duration>,
    apply_time: Option<Duration>,
}

impl Outlook {
    pub fn of(stream: &Stream, meter: &Meter) -> Outlook {
        Outlook {
            backlog_bytes: stream.progress().get(Figure::LagBytes),
            durable_rate: meter.durable_rate,
            connected: stream.connected(),
            nearly_applied: stream.is_nearly_applied(),
            stalled_for: stream.stalled_for(),
            round_trip: stream.round_trip(),
            least_round_trip: stream.least_round_trip(),
            apply_time: stream.apply_time(),
        }
    }

    pub fn is_caught_up(&self) -> bool {
        // A hold right after the start waits for the first rate: it is to have a forecast.
        let has_forecast = self.backlog_bytes == 0 || self.durable_rate > 0.0;
        self.backlog_bytes <= CAUGHT_UP_BYTES && self.nearly_applied && has_forecast
    }

    pub fn forecast_ms(&self) -> Option<u64> {
        forecast_pause_ms(&PauseInput {
            backlog_bytes: self.backlog_bytes,
            drain_bytes_per_s: self.durable_rate as u64,
            round_trip: self.round_trip.unwrap_or(ROUND_TRIP_ASSUMED),
            source_flush: FLUSH_ASSUMED,
            target_flush: self.apply_time.unwrap_or(FLUSH_ASSUMED),
        })
    }

    /// What even a drained group takes at its best: what was slow lately, a target's server that
    /// was away, says nothing of now.
    fn least_ms(&self) -> Option<u64> {
        forecast_pause_ms(&PauseInput {
            backlog_bytes: 0,
            drain_bytes_per_s: 0,
            round_trip: self.least_round_trip.unwrap_or_default(),
            source_flush: Duration::ZERO,
            target_flush: Duration::ZERO,
        })
    }

    /// Why nobody is to be held, if so.
    pub fn refusal(&self, max_pause: Duration) -> Option<String> {
        if !self.connected {
            return Some(UNREACHED.to_owned());
        }
        if self.stalled_for >= STALLED_AFTER {
            return Some(STALLED.to_owned());
        }
        let too_long = |ms: &u64| Duration::from_millis(*ms) > max_pause;
        if let Some(least) = self.least_ms().filter(too_long) {
            return Some(format!(
                "a cutover takes {least} ms here at the least, more than the longest pause of {max_pause:?} \
                 that is allowed: nobody was held; allow a longer --max-pause"
            ));
        }
        let ms = self.forecast_ms().filter(too_long).filter(|_| !self.is_caught_up())?;
        Some(format!(
            "{} bytes are still to go, which at the rate of late takes {ms} ms, more than the longest pause \
             of {max_pause:?} that is allowed: nobody was held; lift the limits on the rate, or allow a \
             longer --max-pause",
            self.backlog_bytes
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A megabyte a second, a group that has caught up.
    const CALM: Outlook = Outlook {
        backlog_bytes: 1000,
        durable_rate: 1e6,
        connected: true,
        nearly_applied: true,
        stalled_for: Duration::ZERO,
        round_trip: Some(Duration::from_millis(10)),
        least_round_trip: Some(Duration::from_millis(10)),
        apply_time: None,
    };

    #[test]
    fn nobody_is_held_for_a_pause_that_cannot_be_kept() {
        let s = Duration::from_secs;
        let behind = Outlook { backlog_bytes: 10_000_000, ..CALM };
        for (outlook, max_pause, expected) in [
            (CALM, s(2), None),
            (Outlook { connected: false, ..CALM }, s(2), Some("cannot be reached")),
            (Outlook { stalled_for: STALLED_AFTER, ..CALM }, s(2), Some("applies nothing")),
            (Outlook { least_round_trip: Some(s(3)), ..CALM }, s(2), Some("at the least")),
            (behind, s(2), Some("10000000 bytes are still to go")),
            (behind, s(60), None),
            // Its forecast is of a moment.
            (Outlook { round_trip: Some(s(30)), ..CALM }, s(2), None),
            (
                Outlook { nearly_applied: false, apply_time: Some(s(30)), ..CALM },
                s(2),
                Some("to go"),
            ),
            // No rate, no forecast.
            (Outlook { durable_rate: 0.0, ..behind }, s(2), None),
        ] {
            let why = outlook.refusal(max_pause);
            match expected {
                None => assert_eq!(why, None, "{outlook:?}"),
                Some(part) => assert!(why.as_ref().is_some_and(|w| w.contains(part)), "{why:?}"),
            }
        }
    }

    #[test]
    fn caught_up_is_little_to_go_nearly_applied_and_a_rate() {
        assert!(CALM.is_caught_up());
        assert!(Outlook { backlog_bytes: 0, durable_rate: 0.0, ..CALM }.is_caught_up());
        for not in [
            Outlook { backlog_bytes: CAUGHT_UP_BYTES + 1, ..CALM },
            Outlook { nearly_applied: false, ..CALM },
            Outlook { durable_rate: 0.0, ..CALM },
        ] {
            assert!(!not.is_caught_up(), "{not:?}");
        }
    }
}
