//! A window of the calendar: on these days, between these times, this limit.
//!
//! Written `DAYS FROM-TO LIMIT`, all in UTC: `mon-fri 08:00-18:00 20M`,
//! `sat,sun 00:00-24:00 none`, `daily 22:00-06:00 200M 5000ops`. One that ends before it
//! begins goes past midnight; it belongs to the day on which it begins.

use super::{BYTES_PER_S_MIN, Limit};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use towline_block::size::parse_size;

/// Longest text of a window.
pub const WINDOW_BYTES_MAX: usize = 128;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u32 = 24 * 60;
/// 1 January 1970 was a Thursday.
const EPOCH_DAY: u64 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Bit 0: Monday.
    days: u8,
    from_minute: u32,
    to_minute: u32,
    pub limit: Limit,
    /// As it was written: for people.
    text: String,
}

impl Window {
    /// Whether it has begun and not ended at this moment, of UTC.
    pub fn holds(&self, unix_s: u64) -> bool {
        let minute = (unix_s / 60 % u64::from(DAY_MINUTES)) as u32;
        let day = (unix_s / 86_400 + EPOCH_DAY) % 7;
        let begins_on = |day: u64| self.days & 1 << day != 0;
        if self.from_minute < self.to_minute {
            return begins_on(day) && (self.from_minute..self.to_minute).contains(&minute);
        }
        (begins_on(day) && minute >= self.from_minute)
            || (begins_on((day + 6) % 7) && minute < self.to_minute)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Window, String> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let parsed = match words.as_slice() {
            [days, times, limits @ ..] if text.len() <= WINDOW_BYTES_MAX => {
                parse_days(days).zip(parse_times(times)).zip(parse_limit(limits))
            }
            _ => None,
        };
        let ((days, (from_minute, to_minute)), limit) = parsed.ok_or_else(|| {
            format!(
                "{text:?} is no window: write DAYS FROM-TO LIMIT in UTC, such as `mon-fri 08:00-18:00 20M` \
                 or `sat,sun 00:00-24:00 none`; a limit is bytes a second from 1K on, none, and NUMBERops"
            )
        })?;
        Ok(Window { days, from_minute, to_minute, limit, text: words.join(" ") })
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Window, String> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.text
    }
}

fn parse_days(text: &str) -> Option<u8> {
    if text == "daily" {
        return Some(0x7f);
    }
    let day_of = |name: &str| DAYS.iter().position(|day| *day == name);
    text.split(',').try_fold(0, |days, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day_of(first)?, day_of(last)?);
        // `sat-mon` goes round.
        let count = (last + 7 - first) % 7 + 1;
        Some((0..count).fold(days, |days, n| days | 1 << ((first + n) % 7)))
    })
}

fn parse_times(text: &str) -> Option<(u32, u32)> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (parse_time(from)?, parse_time(to)?);
    (from != to && from < DAY_MINUTES).then_some((from, to))
}

fn parse_time(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| -> Option<u32> {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let minutes = hour * 60 + minute;
    (minute < 60 && minutes <= DAY_MINUTES).then_some(minutes)
}

/// Bytes, operations, or both; `none` for no limit of bytes.
fn parse_limit(words: &[&str]) -> Option<Limit> {
    let mut limit = Limit::NONE;
    if words.is_empty() || words.len() > 2 {
        return None;
    }
    for word in words {
        match word.strip_suffix("ops") {
            Some(ops) => limit.ops_per_s = Some(ops.parse().ok().filter(|ops| *ops > 0)?),
            None if *word == "none" => {}
            None => {
                let bytes = parse_size(word).ok();
                limit.bytes_per_s = Some(bytes.filter(|bytes| *bytes >= BYTES_PER_S_MIN)?);
            }
        }
    }
    Some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Monday, 00:00 UTC.
    const MONDAY: u64 = 1_772_409_600;

    fn window(text: &str) -> Window {
        text.parse().unwrap()
    }

    /// On which days and hours of a week it holds, as `day.hour`.
    fn hours(text: &str) -> Vec<String> {
        let window = window(text);
        let held = (0..7 * 24).filter(|hour| window.holds(MONDAY + hour * 3600));
        held.map(|hour| format!("{}.{}", DAYS[hour as usize / 24], hour % 24)).collect()
    }

    #[test]
    fn windows_hold_on_their_days_between_their_times() {
        assert_eq!(hours("tue,thu 09:00-11:00 1M"), ["tue.9", "tue.10", "thu.9", "thu.10"]);
        assert_eq!(hours("sun 22:00-01:00 1M"), ["mon.0", "sun.22", "sun.23"]);
        assert_eq!(hours("daily 03:00-04:00 1M").len(), 7);
        assert_eq!(hours("sat-mon 23:00-24:00 1M"), ["mon.23", "sat.23", "sun.23"]);
        let short = window("mon 08:00-08:01 1M");
        let at = |s: u64| short.holds(MONDAY + 8 * 3600 + s);
        assert!(at(0) && at(59) && !at(60) && !short.holds(MONDAY + 8 * 3600 - 1));
    }

    #[test]
    fn limits_are_of_bytes_of_operations_or_of_both() {
        let limit = |text: &str| window(&format!("daily 00:00-24:00 {text}")).limit;
        let of = |bytes_per_s, ops_per_s| Limit { bytes_per_s, ops_per_s };
        assert_eq!(limit("20M"), of(Some(20 << 20), None));
        assert_eq!(limit("500ops"), of(None, Some(500)));
        assert_eq!(limit("1G 500ops"), of(Some(1 << 30), Some(500)));
        assert_eq!(limit("none"), Limit::NONE);
    }

    #[test]
    fn what_is_no_window_is_refused_with_an_example() {
        for text in [
            "",
            "mon",
            "mon 08:00-18:00",
            "mon 8:00-18:00 1M",
            "mon 08:00-08:00 1M",
            "mon 08:00-24:01 1M",
            "mon 24:00-08:00 1M",
            "mo 08:00-18:00 1M",
            "mon 08:60-18:00 1M",
            "mon 08:00-18:00 fast",
            "mon 08:00-18:00 0",
            "mon 08:00-18:00 1M 2M 3M",
            "mon 08:00-18:00 0ops",
        ] {
            let error = text.parse::<Window>().unwrap_err();
            assert!(error.contains("mon-fri 08:00-18:00 20M"), "{text}: {error}");
        }
        assert_eq!(window("  mon   08:00-18:00  1M ").to_string(), "mon 08:00-18:00 1M");
    }
}
