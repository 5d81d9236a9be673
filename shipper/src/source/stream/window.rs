//! How much may be sent and not yet durable: twice what fits into bandwidth and delay, and what
//! both ends work on meanwhile.
//!
//! As Cardwell et al. measure a path ("BBR: Congestion-Based Congestion Control", 2016):
//! the bandwidth is the fastest, the delay the shortest that was seen in the last 10 to 20
//! seconds, and every 10 seconds the window is half of what the path seems to hold until a
//! batch has passed, since a full queue hides the delay. Twice, so that a link that has become
//! wider is found: a window that is too small doubles with each round trip.

use std::time::{Duration, Instant};

/// Two batches of records.
const BYTES_MIN: u64 = 4 << 20;
/// Memory of the shipper: 10 Gbit/s at 100 ms.
const BYTES_MAX: u64 = 256 << 20;
/// Both ends work in groups: read, packed, written and flushed together. So much of a second's bytes
/// keeps disks and processors of both busy at once (docs/design/0012-shipping.md).
const WORKED_ON_S: f64 = 0.05;
/// Batches are durable in order: what a further connection carries waits for the slowest one's.
/// So many bytes of a batch on each are beside what the path holds.
const LANE_BYTES: u64 = 4 << 20;
/// A rate is measured over at least so long.
const MEASURED_OVER: Duration = Duration::from_millis(100);
/// What is older than two of these is forgotten.
const PERIOD: Duration = Duration::from_secs(10);

/// The best of the running and the last period.
#[derive(Clone, Copy, Debug, Default)]
struct Best {
    running: Option<f64>,
    last: Option<f64>,
}

impl Best {
    fn add(&mut self, value: f64, better: fn(f64, f64) -> f64) {
        self.running = Some(self.running.map_or(value, |best| better(best, value)));
    }

    fn get(&self, better: fn(f64, f64) -> f64) -> Option<f64> {
        self.running.into_iter().chain(self.last).reduce(better)
    }

    fn turn(&mut self) {
        self.last = self.running.take();
    }
}

#[derive(Debug)]
pub struct Sizing {
    bytes: u64,
    is_fixed: bool,
    /// Seconds from the cut to the acknowledgement.
    shortest: Best,
    /// Bytes a second made durable.
    fastest: Best,
    period: Option<Instant>,
    /// Since when the window is small, until a batch cut since then is acknowledged.
    probing: Option<Instant>,
    measured: Option<(Instant, u64)>,
    /// Bytes beyond one connection's.
    lanes_bytes: u64,
}

impl Sizing {
    /// As given, or by measurement.
    pub fn new(fixed: Option<u64>) -> Sizing {
        Sizing {
            bytes: fixed.unwrap_or(BYTES_MIN),
            is_fixed: fixed.is_some(),
            shortest: Best::default(),
            fastest: Best::default(),
            period: None,
            probing: None,
            measured: None,
            lanes_bytes: 0,
        }
    }

    pub fn bytes(&self) -> u64 {
        match self.probing {
            Some(_) => self.small(),
            None => self.bytes,
        }
    }

    /// Besides the first connection there are so many.
    pub fn set_lanes(&mut self, lanes: usize) {
        self.lanes_bytes = lanes as u64 * LANE_BYTES;
    }

    /// Half of what the path seems to hold: with no queue it is nearly full even then, and
    /// a queue that hides the delay halves with each period.
    fn small(&self) -> u64 {
        let holds = self.fastest.get(f64::max).zip(self.shortest.get(f64::min));
        let half = holds.map_or(0, |(rate, delay)| (rate * delay / 2.0) as u64);
        half.max(BYTES_MIN).min(self.bytes)
    }

    /// The stream is durable up to `durable_bytes`; the newest batch of it took so long.
    pub fn acked(&mut self, now: Instant, durable_bytes: u64, took: Duration) {
        if self.is_fixed {
            return;
        }
        self.probing = self.probing.filter(|since| *since + took > now);
        let period = *self.period.get_or_insert(now);
        if now.saturating_duration_since(period) >= PERIOD {
            (self.period, self.probing) = (Some(now), Some(now));
            self.shortest.turn();
            self.fastest.turn();
        }
        self.shortest.add(took.as_secs_f64(), f64::min);
        let (since, bytes) = *self.measured.get_or_insert((now, durable_bytes));
        let over = now.saturating_duration_since(since);
        if over >= MEASURED_OVER {
            let rate = durable_bytes.saturating_sub(bytes) as f64 / over.as_secs_f64();
            self.fastest.add(rate, f64::max);
            self.measured = Some((now, durable_bytes));
        }
        if let (Some(delay), Some(rate)) = (self.shortest.get(f64::min), self.fastest.get(f64::max))
        {
            let one = (rate * (2.0 * delay + WORKED_ON_S)) as u64;
            self.bytes = (one + self.lanes_bytes).clamp(BYTES_MIN, BYTES_MAX);
        }
    }

    /// The connection is another one: the time between is no measurement.
    pub fn reconnected(&mut self) {
        (self.measured, self.probing) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const BATCH: u64 = 1 << 20;

    /// A link with a queue that takes all it is given.
    struct Path {
        now_s: f64,
        start: Instant,
        sizing: Sizing,
        /// Cut, acknowledged, stream bytes then.
        flying: VecDeque<(f64, f64, u64)>,
        sent: u64,
        free_s: f64,
    }

    impl Path {
        fn new(fixed: Option<u64>) -> Path {
            let (flying, start) = (VecDeque::new(), Instant::now());
            Path { now_s: 0.0, start, sizing: Sizing::new(fixed), flying, sent: 0, free_s: 0.0 }
        }

        /// Bytes a second that arrive in so many seconds of an endless stream.
        fn run(&mut self, rate: f64, delay_s: f64, s: f64) -> f64 {
            let (end, mut arrived) = (self.now_s + s, 0);
            while self.now_s < end {
                while self.flying.len() as u64 * BATCH < self.sizing.bytes() {
                    self.free_s = self.free_s.max(self.now_s) + BATCH as f64 / rate;
                    self.sent += BATCH;
                    self.flying.push_back((self.now_s, self.free_s + delay_s, self.sent));
                }
                let (cut, acked, bytes) = self.flying.pop_front().unwrap();
                self.now_s = acked;
                arrived += BATCH;
                let now = self.start + Duration::from_secs_f64(acked);
                self.sizing.acked(now, bytes, Duration::from_secs_f64(acked - cut));
            }
            arrived as f64 / s
        }
    }

    #[test]
    fn a_long_fat_link_is_filled_after_a_second() {
        let mut path = Path::new(None);
        path.run(1.25e9, 0.08, 1.5);
        let reached = path.run(1.25e9, 0.08, 60.0);
        assert!(reached > 0.95 * 1.25e9, "{reached}");
        assert!(path.sizing.bytes >= 190_000_000, "{}", path.sizing.bytes);
    }

    #[test]
    fn a_thin_link_is_filled_and_has_no_more_than_seconds_in_its_queue() {
        let mut path = Path::new(None);
        let reached = path.run(1.25e6, 0.05, 120.0);
        assert!(reached > 0.95 * 1.25e6, "{reached}");
        assert!(path.sizing.bytes <= 3 * BYTES_MIN, "{}", path.sizing.bytes);
    }

    #[test]
    fn a_gigabit_at_80_ms_is_filled_by_20_megabytes() {
        let mut path = Path::new(None);
        let reached = path.run(125e6, 0.08, 60.0);
        // Looking for the delay costs less than a hundredth of it.
        assert!(reached > 0.99 * 125e6, "{reached}");
        assert!((10 << 20..=30 << 20).contains(&path.sizing.bytes), "{}", path.sizing.bytes);
    }

    #[test]
    fn a_queue_that_hid_the_delay_from_the_first_is_found_out() {
        let mut path = Path::new(None);
        // As after a connection over a link that others have filled.
        path.sizing.shortest.add(2.0, f64::min);
        path.sizing.fastest.add(125e6, f64::max);
        path.run(125e6, 0.08, 60.0);
        assert!((10 << 20..=40 << 20).contains(&path.sizing.bytes), "{}", path.sizing.bytes);
    }

    #[test]
    fn each_further_connection_adds_a_batch() {
        let mut path = Path::new(None);
        path.run(125e6, 0.08, 60.0);
        let one = path.sizing.bytes;
        path.sizing.set_lanes(3);
        path.run(125e6, 0.08, 60.0);
        let added = path.sizing.bytes as f64 - one as f64;
        assert!((added / LANE_BYTES as f64 - 3.0).abs() < 0.5, "{added}");
    }

    #[test]
    fn a_link_that_becomes_wider_is_found_and_one_that_becomes_narrower_too() {
        let mut path = Path::new(None);
        path.run(12.5e6, 0.08, 30.0);
        let narrow = path.sizing.bytes;
        path.run(1.25e9, 0.08, 3.0);
        let wide = path.sizing.bytes;
        assert!(wide > 10 * narrow, "{wide} after {narrow}");
        path.run(12.5e6, 0.08, 90.0);
        assert!(path.sizing.bytes < wide / 4, "{} after {wide}", path.sizing.bytes);
    }

    #[test]
    fn a_window_that_was_given_stays() {
        let mut path = Path::new(Some(8 << 20));
        path.run(1.25e9, 0.08, 1.0);
        assert_eq!(path.sizing.bytes(), 8 << 20);
    }
}
