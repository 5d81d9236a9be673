//! Moments in time as people write them: RFC 3339, or how long ago.

use crate::exit::usage;

const NS_PER_S: u64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// `2026-03-01T12:00:00.5Z`, `2026-03-01T13:00:00+01:00`, `-5m`, `-90s`, `-250ms`, `-2h`, `-1d`.
pub fn parse(text: &str, now_ns: u64) -> anyhow::Result<u64> {
    let found = match text.strip_prefix('-') {
        Some(ago) => parse_span(ago).map(|span| now_ns.saturating_sub(span)),
        None => parse_moment(text),
    };
    found.ok_or_else(|| {
        usage(format!(
            "{text:?} is no moment: write one as 2026-03-01T12:00:00Z, or how long ago as -5m \
             (ms, s, m, h, d)"
        ))
    })
}

/// A span in nanoseconds, such as `90s` or `1.5h`.
pub fn parse_span(text: &str) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let unit_ns = match unit {
        "ms" => NS_PER_S / 1000,
        "s" => NS_PER_S,
        "m" | "min" => 60 * NS_PER_S,
        "h" => 3600 * NS_PER_S,
        "d" => SECONDS_PER_DAY as u64 * NS_PER_S,
        _ => return None,
    };
    let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    Some((number * unit_ns as f64) as u64)
}

fn parse_moment(text: &str) -> Option<u64> {
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let between = matches!(
        (bytes[4], bytes[7], bytes[10], bytes[13], bytes[16]),
        (b'-', b'-', b'T' | b't' | b' ', b':', b':')
    );
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let possible = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !between || !possible {
        return None;
    }
    let zone_at = 19 + text[19..].find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let fraction_ns = fraction_ns(&text[19..zone_at])?;
    let zone = match &text[zone_at..] {
        "Z" | "z" => 0,
        zone if zone.len() == 6 && zone.as_bytes()[3] == b':' => {
            let (hours, minutes) =
                (number(zone_at + 1, zone_at + 3)?, number(zone_at + 4, zone_at + 6)?);
            let seconds = hours * 3600 + minutes * 60;
            match zone.as_bytes()[0] {
                b'+' => seconds,
                b'-' => -seconds,
                _ => return None,
            }
        }
        _ => return None,
    };
    let of_day = hour * 3600 + minute * 60 + second;
    let seconds = days_from_epoch(year, month, day) * SECONDS_PER_DAY + of_day - zone;
    u64::try_from(seconds).ok()?.checked_mul(NS_PER_S)?.checked_add(fraction_ns)
}

/// Nanoseconds of `.25`; an empty text is none.
fn fraction_ns(text: &str) -> Option<u64> {
    let Some(digits) = text.strip_prefix('.') else { return text.is_empty().then_some(0) };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
    nine.parse().ok()
}

/// `2026-03-01T12:00:00.500000Z`
pub fn format(unix_ns: u64) -> String {
    let seconds = (unix_ns / NS_PER_S) as i64;
    let (mut days, of_day) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let mut year = 1970;
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_of(year, month) {
        days -= days_of(year, month);
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        days + 1,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        unix_ns % NS_PER_S / 1000
    )
}

fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let years: i64 = if year >= 1970 {
        (1970..year).map(year_days).sum()
    } else {
        -(year..1970).map(year_days).sum::<i64>()
    };
    years + (1..month).map(|m| days_of(year, m)).sum::<i64>() + day - 1
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && year % 100 != 0 || year % 400 == 0
}

fn year_days(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_they_print() {
        for (text, ns) in [
            ("1970-01-01T00:00:00.000000Z", 0),
            ("2000-02-29T23:59:59.250000Z", 951_868_799_250_000_000),
            ("2026-11-22T10:19:31.000001Z", 1_795_342_771_000_001_000),
        ] {
            assert_eq!(parse(text, 0).unwrap(), ns, "{text}");
            assert_eq!(format(ns), text);
        }
        assert_eq!(
            parse("2026-03-01T13:00:00+01:00", 0).unwrap(),
            parse("2026-03-01 12:00:00Z", 0).unwrap()
        );
    }

    #[test]
    fn how_long_ago_is_counted_from_now() {
        let now = 10_000 * NS_PER_S;
        for (text, seconds) in [("-5m", 9700), ("-90s", 9910), ("-2h", 2800), ("-1d", 0)] {
            assert_eq!(parse(text, now).unwrap(), seconds * NS_PER_S, "{text}");
        }
        assert_eq!(parse("-250ms", NS_PER_S).unwrap(), NS_PER_S / 4 * 3);
    }

    #[test]
    fn what_is_no_moment_is_a_usage_error() {
        for bad in [
            "",
            "now",
            "-",
            "-5",
            "-5y",
            "-m",
            "2026-03-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01T12:00:00",
            "2026-03-01T12:00:00.Z",
            "2026-03-01T12:00:00*01:00",
            "ü026-03-01T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-03-01T12:00:00+0100",
        ] {
            assert!(parse(bad, 0).is_err(), "{bad}");
        }
    }
}
