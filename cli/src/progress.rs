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

pub struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    said_at: Option<Instant>,
    /// Something was missing when last looked at: a shipper that starts with the
    /// baseline behind it has nothing to say.
    open: bool,
}

impl Progress {
    pub fn new(label: impl Into<String>) -> Progress {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| new_bar(&label));
        Progress { label, bar, said_at: None, open: false }
    }

    /// Shows where the baseline stands while it is under way, and its end.
    pub fn show(&mut self, baseline: &Baseline) {
        let whole = baseline.done_bytes >= baseline.total_bytes;
        if whole && !self.open {
            return;
        }
        self.open = !whole;
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
        if whole || due {
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
