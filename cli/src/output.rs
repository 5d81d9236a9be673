//! Results on stdout: one JSON object, or text for people.

use anyhow::Context;
use serde::Serialize;
use std::io::{BufWriter, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Version of every `--json` object's shape; rises when a key goes or changes meaning.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// One object is printed, not more.
static IS_PRINTED: AtomicBool = AtomicBool::new(false);

/// Prints `body` as the command's one JSON object, `schema` first, while it is being made:
/// an object can be larger than memory.
pub fn json(body: &impl Serialize) -> anyhow::Result<()> {
    IS_PRINTED.store(true, Ordering::Relaxed);
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = match serde_json::to_writer(&mut out, &Versioned { schema: SCHEMA, body }) {
        Ok(()) => writeln!(out).and_then(|()| out.flush()),
        Err(e) if e.is_io() => Err(e.into()),
        Err(e) => return Err(e).context("cannot write the result as JSON"),
    };
    still_read(written).map(drop)
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    exit: u8,
}

/// The object of a command that was asked for one and failed before it had any.
pub fn failure(error: &str, exit: u8) {
    let is_asked_for = std::env::args_os().any(|word| word == "--json");
    if is_asked_for && !IS_PRINTED.load(Ordering::Relaxed) {
        // Nothing is left to be done where stdout cannot be written.
        let _ = json(&Failure { error, exit });
    }
}

/// The same object as text, for a file.
pub fn json_text(body: &impl Serialize) -> anyhow::Result<String> {
    serde_json::to_string(&Versioned { schema: SCHEMA, body })
        .context("cannot write the result as JSON")
}

/// Prints text. A reader that closed the pipe is no error: it has what it wanted.
pub fn text_line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    still_read(writeln!(out, "{text}").and_then(|()| out.flush())).map(drop)
}

/// Whether somebody still reads what was written.
pub fn still_read(written: std::io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("cannot write the result to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_stands_beside_the_keys_of_the_body() {
        #[derive(Serialize)]
        struct Body {
            ok: bool,
        }
        let text = serde_json::to_string(&Versioned { schema: SCHEMA, body: &Body { ok: true } });
        assert_eq!(text.unwrap(), r#"{"schema":1,"ok":true}"#);
    }
}
