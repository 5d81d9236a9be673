//! Results on stdout: one JSON object, or text for people.

use anyhow::Context;
use serde::Serialize;
use std::io::Write;

/// Version of every `--json` object's shape; rises when a key goes or changes meaning.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// Prints `body` as the command's one JSON object, `schema` first.
pub fn json(body: &impl Serialize) -> anyhow::Result<()> {
    text_line(&json_text(body)?)
}

/// The same object as text, for a file.
pub fn json_text(body: &impl Serialize) -> anyhow::Result<String> {
    serde_json::to_string(&Versioned { schema: SCHEMA, body })
        .context("cannot write the result as JSON")
}

/// Prints text. A reader that closed the pipe is no error: it has what it wanted.
pub fn text_line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context("cannot write the result to stdout")
        }
        _ => Ok(()),
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
