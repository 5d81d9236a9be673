//! Did anybody else use the machine? User time is the sign: kernel threads also work
//! for us, and their time is system time.

use super::cpu::CpuTime;
use std::time::Instant;

/// Processors that others may use within a clean cell.
pub(super) const OTHERS_MAX: f64 = 0.12;

const TICK_NS: f64 = 1e7;

/// The machine's time so far, from /proc/stat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    user_ticks: u64,
    steal_ticks: u64,
    at: Instant,
}

/// What was used besides the cell itself, in processors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Noise {
    /// User time of processes that are not ours.
    pub others: f64,
    /// Time that the hypervisor gave to somebody else.
    pub stolen: f64,
}

impl Noise {
    pub(super) fn is_clean(&self) -> bool {
        self.others <= OTHERS_MAX && self.stolen <= OTHERS_MAX
    }
}

impl Machine {
    pub(super) fn now() -> Machine {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let (user_ticks, steal_ticks) = parse(&text).unwrap_or_default();
        Machine { user_ticks, steal_ticks, at: Instant::now() }
    }

    /// Noise since `before`, given what our own processes used since then.
    pub(super) fn since(&self, before: &Machine, ours: CpuTime) -> Noise {
        let ticks_ns = (self.at - before.at).as_secs_f64() * 1e9;
        let used = |now: u64, then: u64| now.saturating_sub(then) as f64 * TICK_NS;
        // Whole ticks are charged to who runs when the clock ticks: below zero is none.
        let others = used(self.user_ticks, before.user_ticks) - ours.user_ns as f64;
        Noise {
            others: (others / ticks_ns).max(0.0),
            stolen: used(self.steal_ticks, before.steal_ticks) / ticks_ns,
        }
    }
}

/// User (with nice) and steal of all processors.
fn parse(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    Some((fields.first()? + fields.get(1)?, *fields.get(7)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_kernels_line_is_read() {
        assert_eq!(parse("cpu  10 5 3 100 1 0 2 7 0 0\ncpu0 1 1"), Some((15, 7)));
        assert_eq!(parse("intr 5"), None);
    }

    #[test]
    fn what_we_used_ourselves_is_no_noise() {
        let at = Instant::now();
        let before = Machine { user_ticks: 100, steal_ticks: 0, at };
        let later = at + Duration::from_secs(1);
        // Half a second of user time: all ours, or none of it.
        let after = Machine { user_ticks: 150, steal_ticks: 0, at: later };
        let ours = CpuTime { total_ns: 0, user_ns: 500_000_000 };
        assert!(after.since(&before, ours).is_clean());
        let noise = after.since(&before, CpuTime::default());
        assert!(!noise.is_clean() && (noise.others - 0.5).abs() < 1e-9, "{noise:?}");
        let stolen = Machine { user_ticks: 100, steal_ticks: 30, at: later };
        assert!(!stolen.since(&before, CpuTime::default()).is_clean());
    }
}
