//! Logs go to stderr, one line an event; stdout belongs to results.

use std::io::IsTerminal;
use tracing_subscriber::filter::LevelFilter;

/// `error`, `warn`, `info` (default), `debug`, `trace` or `off`.
const LEVEL_VARIABLE: &str = "TOWLINE_LOG";

/// Starts logging. `default` is what a command shows when nothing is asked.
///
/// # Errors
/// The environment names a level that does not exist.
pub fn start(default: LevelFilter) -> anyhow::Result<()> {
    let level = match std::env::var(LEVEL_VARIABLE) {
        Err(_) => default,
        Ok(text) => text.parse().map_err(|_| {
            crate::exit::usage(format!(
                "{LEVEL_VARIABLE}={text:?} is not a level: take off, error, warn, info, debug or trace"
            ))
        })?,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}
