//! Bytes for people: sixteen a line with their offset, repetitions as one `*`.

use std::fmt::Write;

const LINE_BYTES: usize = 16;

/// The dump; `offset` is that of the first byte.
pub fn text(bytes: &[u8], offset: u64) -> String {
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut starred = false;
    for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
        if last == Some(line) {
            if !starred {
                text.push_str("            *\n");
            }
            starred = true;
            continue;
        }
        (last, starred) = (Some(line), false);
        write_line(&mut text, offset + (index * LINE_BYTES) as u64, line);
    }
    text
}

fn write_line(text: &mut String, offset: u64, line: &[u8]) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{offset:>12x} ");
    for column in 0..LINE_BYTES {
        let gap = if column == LINE_BYTES / 2 { " " } else { "" };
        let _ = match line.get(column) {
            Some(byte) => write!(text, "{gap} {byte:02x}"),
            None => write!(text, "{gap}   "),
        };
    }
    let shown =
        |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' };
    let _ = writeln!(text, "  |{}|", line.iter().map(shown).collect::<String>());
}

/// All bytes as hexadecimal digits.
pub fn digits(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one_star_and_offsets_go_on_behind_them() {
        let mut bytes = vec![b'a'; 64];
        bytes.extend(b"end\n");
        let dump = text(&bytes, 4096);
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
    }
}
