//! Text for people: aligned label and value lines, bars, durations.

use std::fmt::Write;

/// Cells of a progress bar in plain text.
const BAR_CELLS: usize = 24;

/// Lines of `label  value`, aligned.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, String)>,
}

impl Table {
    pub fn row(&mut self, label: impl Into<String>, value: impl Into<String>) -> &mut Table {
        self.rows.push((label.into(), value.into()));
        self
    }

    /// Each line is indented by `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (label, value) in &self.rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:indent$}{label:width$}  {value}", "");
        }
        text.truncate(text.trim_end_matches('\n').len());
        text
    }
}

/// `[#####-----]  50 %`
pub fn bar(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
    let full = (share * BAR_CELLS as f64).floor() as usize;
    format!("[{}{}] {:3.0} %", "#".repeat(full), "-".repeat(BAR_CELLS - full), share * 100.0)
}

/// `850 ms`, `12.3 s`, `4 min 10 s`, `3 h 5 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".into();
    }
    if seconds < 1.0 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        return format!("{} min {} s", whole / 60, whole % 60);
    }
    format!("{} h {} min", whole / 3600, whole % 3600 / 60)
}

/// A rate in bytes.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", towline_block::size::format_size(bytes_per_s.max(0.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_inside_their_frame() {
        assert!(bar(0, 0).ends_with("100 %"));
        assert_eq!(bar(1, 2), format!("[{}{}]  50 %", "#".repeat(12), "-".repeat(12)));
        assert!(bar(9, 2).ends_with("100 %"));
    }

    #[test]
    fn durations_read_as_people_say_them() {
        for (seconds, text) in [
            (0.25, "250 ms"),
            (12.34, "12.3 s"),
            (250.0, "4 min 10 s"),
            (11_100.0, "3 h 5 min"),
            (f64::INFINITY, "unknown"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn rows_are_aligned() {
        let mut table = Table::default();
        table.row("a", "1").row("long", "2");
        assert_eq!(table.render(2), "  a     1\n  long  2");
    }
}
