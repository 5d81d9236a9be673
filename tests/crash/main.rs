//! `kill -9` of the real processes under a guest that knows every write it made.

mod controls;
mod cuts;
mod kills;
mod overflow;
mod recovery;
mod spill;
mod streams;

use std::time::Duration;
use towline_bench::stamp::{Pattern, Plan};

const DISK_BYTES: u64 = 24 << 20;

/// A busy guest whose writes a debug build on a busy machine ships as they come.
fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        rate_per_s: Some(400.0),
        pattern: Pattern::Zipf(0.6),
        reconnect_wait: Duration::from_millis(5),
        ..Plan::default()
    }
}

/// From the environment, so that a failing run can be repeated and a long one asked for.
fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}
