//! Reading a TOML file into a configuration, with errors that name the place.

use crate::exit::usage;
use serde::de::DeserializeOwned;
use std::path::Path;

/// # Errors
/// The file is missing or not readable, is no TOML, or has a key that is unknown,
/// missing or of the wrong shape; the message names file, line and key.
pub fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| usage(format!("cannot read the configuration {}: {e}", path.display())))?;
    parse(&text).map_err(|fault| usage(format!("{}:{fault}", path.display())))
}

/// Whether a file configures several groups, each in a `[[groups]]` table. What cannot be read
/// does not: [`load`] says why.
pub fn names_groups(path: &Path) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| usage(format!("cannot read the configuration {}: {e}", path.display())))?;
    Ok(text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("groups")))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let (line, key) = place(text, at);
        let key = key.map(|key| format!(" key `{key}`:")).unwrap_or_default();
        format!("{line}:{key} {}", error.message())
    })
}

/// The line (from 1) of byte `at` and the key that stands on it, if one does.
fn place(text: &str, at: usize) -> (usize, Option<&str>) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let content = text.lines().nth(line - 1).unwrap_or("");
    let key = content.split_once('=').map(|(key, _)| key.trim()).filter(|key| !key.is_empty());
    (line, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[allow(dead_code)]
        port: u16,
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let error = parse::<Config>("# comment\nport = 1\nprot = 2\n").unwrap_err();
        assert!(error.starts_with("3: key `prot`:") && error.contains("unknown field"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let error = parse::<Config>("\nport = \"x\"\n").unwrap_err();
        assert!(error.starts_with("2: key `port`:"), "{error}");
        let error = parse::<Config>("port = \n").unwrap_err();
        assert!(error.starts_with("1:"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = parse::<Config>("").unwrap_err();
        assert!(error.contains("port"), "{error}");
    }
}
