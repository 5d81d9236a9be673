//! The terminal that standard output goes to, if it is one.

/// Narrower ones are treated as this wide: a word must fit somewhere.
const COLUMNS_MIN: usize = 40;

/// Columns of standard output's terminal; `None` for files and pipes, whose lines are
/// never broken: programs read them.
pub fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col).max(COLUMNS_MIN))
}

/// `text` in lines of at most `columns`, each after the first indented by `indent`.
/// Broken at spaces only: longer words stand out.
pub fn wrapped(text: &str, indent: usize, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return text.to_owned() };
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        wrap_line(&mut out, line, indent, columns);
    }
    out
}

fn wrap_line(out: &mut String, line: &str, indent: usize, columns: usize) {
    if line.chars().count() <= columns {
        out.push_str(line);
        return;
    }
    let own_indent = line.len() - line.trim_start().len();
    out.push_str(&line[..own_indent]);
    let (mut at, mut first) = (own_indent, true);
    // Several spaces in a row are columns: kept while they fit.
    let mut gap = 0;
    for word in line[own_indent..].split(' ') {
        if word.is_empty() {
            gap += 1;
            continue;
        }
        let len = word.chars().count();
        if first {
            first = false;
        } else if at + gap + 1 + len <= columns {
            out.extend(std::iter::repeat_n(' ', gap + 1));
            at += gap + 1;
        } else {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            at = indent;
        }
        gap = 0;
        out.push_str(word);
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_hang_below_their_value() {
        let text = "  ring  one two three four\nshort";
        assert_eq!(
            wrapped(text, 8, Some(16)),
            "  ring  one two\n        three\n        four\nshort"
        );
        assert_eq!(wrapped(text, 8, None), text, "files and pipes get whole lines");
        assert_eq!(wrapped("a bbbbbbbbbbbb c", 2, Some(6)), "a\n  bbbbbbbbbbbb\n  c");
        assert_eq!(wrapped("", 2, Some(6)), "");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_while_words_fit() {
        let text = "  label   alpha beta  gamma delta epsilon zeta eta theta iota kappa";
        for columns in 20..60 {
            let broken = wrapped(text, 10, Some(columns));
            assert!(broken.lines().all(|line| line.len() <= columns), "{columns}: {broken}");
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&broken), words(text));
        }
    }
}
