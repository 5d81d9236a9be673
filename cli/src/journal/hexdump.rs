//! Bytes for people: sixteen a line (eight where there is little room) with their
//! offset, repetitions as one `*`.

use std::fmt::Write;

/// Bytes of a line.
const LINE_BYTES: usize = 16;
const NARROW_LINE_BYTES: usize = 8;
/// Digits of an offset at least: a line fits into 80 columns.
const OFFSET_DIGITS_MIN: usize = 8;

/// The dump; `offset` is that of the first byte. Ends with a newline unless it is empty.
pub fn text(bytes: &[u8], offset: u64, columns: Option<usize>) -> String {
    let last = offset.saturating_add(bytes.len() as u64);
    let digits = (u64::BITS - last.leading_zeros()).div_ceil(4) as usize;
    let digits = digits.max(OFFSET_DIGITS_MIN);
    let fits = |count: usize| columns.is_none_or(|columns| digits + 6 + 4 * count <= columns);
    let line_bytes = if fits(LINE_BYTES) { LINE_BYTES } else { NARROW_LINE_BYTES };
    let mut text = String::with_capacity(bytes.len() / line_bytes * (digits + 6 + 4 * line_bytes));
    let mut last: Option<&[u8]> = None;
    let mut starred = false;
    for (index, line) in bytes.chunks(line_bytes).enumerate() {
        if last == Some(line) {
            if !starred {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{:digits$}  *", "");
            }
            starred = true;
            continue;
        }
        (last, starred) = (Some(line), false);
        let _ = write!(text, "{:>digits$x} ", offset + (index * line_bytes) as u64);
        write_line(&mut text, line, line_bytes);
    }
    text
}

fn write_line(text: &mut String, line: &[u8], line_bytes: usize) {
    for column in 0..line_bytes {
        text.push_str(if column == LINE_BYTES / 2 { "  " } else { " " });
        match line.get(column) {
            Some(byte) => push_digits(text, *byte),
            None => text.push_str("  "),
        }
    }
    text.push_str("  |");
    let shown =
        |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' };
    text.extend(line.iter().map(shown));
    text.push_str("|\n");
}

/// All bytes as hexadecimal digits.
pub fn digits(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    bytes.iter().for_each(|byte| push_digits(&mut text, *byte));
    text
}

fn push_digits(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push(DIGITS[usize::from(byte >> 4)] as char);
    text.push(DIGITS[usize::from(byte & 15)] as char);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one_star_and_offsets_go_on_behind_them() {
        let mut bytes = vec![b'a'; 64];
        bytes.extend(b"end\n");
        let dump = text(&bytes, 4096, None);
        let lines: Vec<&str> = dump.lines().collect();
        assert_eq!(lines.len(), 3, "{dump}");
        assert!(
            lines[0].trim_start().starts_with("1000  61 61")
                && lines[0].ends_with("|aaaaaaaaaaaaaaaa|")
        );
        assert_eq!(lines[1].trim(), "*");
        assert!(
            lines[2].trim_start().starts_with("1040  65 6e 64 0a") && lines[2].ends_with("|end.|")
        );
        assert_eq!(digits(b"\x00\xff"), "00ff");
        assert_eq!(text(b"", 4096, None), "");
    }

    #[test]
    fn lines_fit_the_terminal_also_far_inside_a_large_volume() {
        let bytes: Vec<u8> = (0..=255).collect();
        for (offset, columns) in [(0, 80), (60 << 30, 80), (60 << 30, 60), (8 << 40, 60)] {
            let dump = text(&bytes, offset, Some(columns));
            assert!(dump.lines().all(|line| line.len() <= columns), "{columns}:\n{dump}");
        }
        assert_eq!(text(&bytes, 0, Some(80)).lines().count(), 16);
        assert_eq!(text(&bytes, 0, Some(60)).lines().count(), 32);
    }
}
