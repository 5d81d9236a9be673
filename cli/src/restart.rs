//! When a group that failed is started again inside a process that goes on with the others.

use std::time::{Duration, Instant};

/// A disk that was mounted late, a target that was put right: soon.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// After so long without a failure the next one counts as the first.
const SETTLED: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub struct Restart {
    wait: Option<Duration>,
    failed_at: Option<Instant>,
    said: String,
}

impl Restart {
    /// Whether another start is due.
    pub fn is_due(&self, now: Instant) -> bool {
        match (self.failed_at, self.wait) {
            (Some(at), Some(wait)) => now.saturating_duration_since(at) >= wait,
            _ => true,
        }
    }

    /// Notes a failure; whether it is another one than the last.
    pub fn failed(&mut self, now: Instant, why: &str) -> bool {
        let is_first = self.failed_at.is_none_or(|at| now.saturating_duration_since(at) >= SETTLED);
        self.wait = match self.wait {
            Some(wait) if !is_first => Some((wait * 2).min(LONGEST)),
            _ => Some(FIRST),
        };
        self.failed_at = Some(now);
        let is_new = self.said != why;
        why.clone_into(&mut self.said);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_quiet_time() {
        let mut now = Instant::now();
        let mut restart = Restart::default();
        assert!(restart.is_due(now));
        let mut waited = Vec::new();
        for _ in 0..8 {
            restart.failed(now, "x");
            let wait = (1..).map(Duration::from_secs).find(|wait| restart.is_due(now + *wait));
            waited.push(wait.unwrap().as_secs());
            now += wait.unwrap();
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 32, 60, 60]);
        now += SETTLED;
        restart.failed(now, "x");
        assert!(restart.is_due(now + FIRST));
    }

    #[test]
    fn the_same_failure_is_said_once() {
        let now = Instant::now();
        let mut restart = Restart::default();
        assert!(restart.failed(now, "a"));
        assert!(!restart.failed(now, "a"));
        assert!(restart.failed(now, "b"));
    }
}
