//! The baseline's progress on stderr: a bar on a terminal, a line every few
//! seconds otherwise.

use crate::report::Baseline;
use crate::table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use towline_block::size::format_size;

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// Rates are taken over about this time: long enough to be calm, short enough to
/// show a change of the line.
const RATE_OVER: Duration = Duration::from_secs(5);

pub struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    said_at: Option<Instant>,
    done: bool,
}

impl Progress {
    pub fn new(label: impl Into<String>) -> Progress {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| new_bar(&label));
        Progress { label, bar, said_at: None, done: false }
    }

    /// Shows where the baseline stands; the first time it is whole, says so.
    pub fn show(&mut self, baseline: &Baseline) {
        let whole = baseline.total_bytes > 0 && baseline.done_bytes >= baseline.total_bytes;
        if self.done && whole {
            return;
        }
        self.done = whole;
        if let Some(bar) = &self.bar {
            bar.set_length(baseline.total_bytes);
            bar.set_position(baseline.done_bytes);
            bar.set_message(describe_speed(baseline));
            if whole {
                bar.finish();
            }
            return;
        }
        let due = self.said_at.is_none_or(|at| at.elapsed() >= LINE_EVERY);
        if baseline.total_bytes > 0 && (whole || due) {
            self.said_at = Some(Instant::now());
            eprintln!(
                "{}: {}  {} of {}  {}",
                self.label,
                table::bar(baseline.done_bytes, baseline.total_bytes),
                format_size(baseline.done_bytes),
                format_size(baseline.total_bytes),
                describe_speed(baseline)
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn new_bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:32}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("#>-"));
    }
    bar.set_prefix(label.to_owned());
    bar
}

fn describe_speed(baseline: &Baseline) -> String {
    let rate = baseline.rate_bytes_per_s.map(table::rate);
    let left = baseline.eta_s.map(|s| format!("{} left", table::duration(s)));
    [rate, left].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Turns a growing figure into a rate over the last seconds.
#[derive(Default)]
pub struct RateMeter {
    seen: std::collections::VecDeque<(Instant, u64)>,
}

impl RateMeter {
    /// Takes a reading; `None` until there are two.
    pub fn rate_bytes_per_s(&mut self, now: Instant, total_bytes: u64) -> Option<f64> {
        // A total that fell was counted anew: a restart, not a negative rate.
        if self.seen.back().is_some_and(|(_, last)| *last > total_bytes) {
            self.seen.clear();
        }
        self.seen.push_back((now, total_bytes));
        while self.seen.len() > 2 && self.seen.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER)
        {
            self.seen.pop_front();
        }
        let (first_at, first) = *self.seen.front()?;
        let seconds = (now - first_at).as_secs_f64();
        (seconds > 0.0).then(|| (total_bytes - first) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_the_last_seconds_only() {
        let mut meter = RateMeter::default();
        let start = Instant::now();
        assert_eq!(meter.rate_bytes_per_s(start, 0), None);
        for second in 1..=20 {
            let rate = meter.rate_bytes_per_s(start + Duration::from_secs(second), second * 100);
            assert_eq!(rate, Some(100.0));
        }
        for second in 21..=40 {
            let rate = meter.rate_bytes_per_s(start + Duration::from_secs(second), 2000);
            if second > 26 {
                assert_eq!(rate, Some(0.0));
            }
        }
    }

    #[test]
    fn a_total_that_falls_starts_anew() {
        let mut meter = RateMeter::default();
        let start = Instant::now();
        meter.rate_bytes_per_s(start, 1000);
        assert_eq!(meter.rate_bytes_per_s(start + Duration::from_secs(1), 10), None);
    }
}
