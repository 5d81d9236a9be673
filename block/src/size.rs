//! Sizes as people write them.

use crate::error::{Error, ErrorKind};

const UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Parses `4096`, `64K`, `256M`, `1.5G`, also with `B`/`iB` behind the unit.
/// Units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let bad = || {
        Error::new(
            ErrorKind::InvalidInput,
            format!(
                "size {text:?} is not usable: write bytes or a number with K, M, G, T or P (powers of 1024), such as 256M"
            ),
        )
    };
    let trimmed = text.trim();
    let upper = trimmed.to_ascii_uppercase();
    let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (number, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| bare.strip_suffix(unit).map(|number| (number, *shift)))
        .unwrap_or((bare, 0));
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(bad);
    }
    let fraction: f64 = number.parse().map_err(|_| bad())?;
    let bytes = fraction * (1u64 << shift) as f64;
    if shift == 0 || !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// `1.5 GiB`, three digits at most.
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in UNITS.iter().rev() {
        let one = 1u64 << shift;
        if bytes >= one {
            let value = bytes as f64 / one as f64;
            let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
            return format!("{value:.digits$} {unit}iB");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64K", 65536),
            ("64KiB", 65536),
            ("256m", 256 << 20),
            ("1.5G", 3 << 29),
            ("2TB", 2 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "x", "-1", "1.5", "99999999P", "1Q", "nanG", "infG"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_with_three_digits() {
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(1536), "1.50 KiB");
        assert_eq!(format_size(250 << 20), "250 MiB");
    }
}
