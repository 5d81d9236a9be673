//! Text for people: aligned labels and values, columns, bars, durations, counts.

use crate::terminal::{columns, wrapped};
use std::fmt::{Display, Write};

/// Cells of a progress bar; half of them in a terminal narrower than this.
const BAR_CELLS: usize = 24;
const BAR_COLUMNS: usize = 72;
/// Least room for a value beside its label; with less it goes below.
const VALUE_COLUMNS_MIN: usize = 24;
/// How far what goes on below a label is indented then.
const HANGING: usize = 4;

/// Lines of `label  value`, aligned; on a terminal, long values go on below themselves.
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
        self.render_within(indent, columns())
    }

    fn render_within(&self, indent: usize, columns: Option<usize>) -> String {
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let mut value_at = indent + width + 2;
        if columns.is_some_and(|columns| value_at + VALUE_COLUMNS_MIN > columns) {
            value_at = indent + HANGING;
        }
        let mut text = String::new();
        for (label, value) in &self.rows {
            let line = format!("{:indent$}{label:width$}  {value}", "");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", wrapped(&line, value_at, columns));
        }
        text.truncate(text.trim_end_matches('\n').len());
        text
    }
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of several columns below their heads.
pub struct Columns {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    pub fn new(heads: &[(&'static str, Align)]) -> Columns {
        Columns { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// One cell a head.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Each line is indented by `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        self.render_within(indent, columns())
    }

    fn render_within(&self, indent: usize, columns: Option<usize>) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
            let cells = cells.chain([self.heads[column].0]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let whole = indent + widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let gap = if columns.is_some_and(|columns| whole > columns) { 1 } else { 2 };
        let mut text = String::new();
        let heads = self.heads.iter().map(|(head, _)| (*head).to_owned()).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            for (number, ((_, align), width)) in self.heads.iter().zip(&widths).enumerate() {
                let cell = row.get(number).map_or("", String::as_str);
                let between = if number == 0 { 0 } else { gap };
                // Writing to a String cannot fail.
                let _ = match align {
                    Align::Left => write!(line, "{:between$}{cell:<width$}", ""),
                    Align::Right => write!(line, "{:between$}{cell:>width$}", ""),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.truncate(text.trim_end_matches('\n').len());
        text
    }
}

/// `1 record`, `2 records`.
pub fn count(number: impl Into<u64>, noun: &str) -> String {
    match number.into() {
        1 => format!("1 {noun}"),
        many => format!("{many} {noun}s"),
    }
}

/// A list cut at `shown` of `all`: what is left out, and how to see it.
pub fn more(all: usize, shown: usize, noun: &str, how: impl Display) -> Option<String> {
    let left = all.checked_sub(shown).filter(|left| *left > 0)?;
    Some(format!("and {} more: {how}", count(left as u64, noun)))
}

/// `[#####-----]  50 %`
pub fn bar(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
    let narrow = columns().is_some_and(|columns| columns < BAR_COLUMNS);
    let cells = if narrow { BAR_CELLS / 2 } else { BAR_CELLS };
    let full = (share * cells as f64).floor() as usize;
    format!("[{}{}] {:3.0} %", "#".repeat(full), "-".repeat(cells - full), share * 100.0)
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

/// Numbers in order as ranges: `1-3, 7`.
pub fn numbers(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
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
    fn counts_are_of_one_or_of_many() {
        assert_eq!(
            (count(0u64, "record"), count(1u64, "record")),
            ("0 records".into(), "1 record".into())
        );
        assert_eq!(more(5, 5, "volume", "--json"), None);
        assert_eq!(more(6, 5, "volume", "--json").unwrap(), "and 1 volume more: --json");
    }

    #[test]
    fn rows_are_aligned_and_go_on_below_their_value_or_their_label() {
        let mut table = Table::default();
        table.row("a", "1").row("long", "2");
        assert_eq!(table.render_within(2, None), "  a     1\n  long  2");
        table.row("b", "one two three four five six seven");
        let narrow = "  a     1\n  long  2\n  b     one two three four five\n        six seven";
        assert_eq!(table.render_within(2, Some(32)), narrow);
        table.row("a label that is very long", "one two three");
        let below = table.render_within(2, Some(40));
        assert!(below.contains("  one two\n      three"), "{below}");
    }

    #[test]
    fn columns_keep_their_place_and_move_together_where_there_is_little_room() {
        let mut columns = Columns::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        columns.row(["a".into(), "10".into()]);
        columns.row(["longer".into(), "2".into()]);
        let wide = "  name    bytes\n  a          10\n  longer      2";
        assert_eq!(columns.render_within(2, None), wide);
        let narrow = "  name   bytes\n  a         10\n  longer     2";
        assert_eq!(columns.render_within(2, Some(14)), narrow);
    }
}
