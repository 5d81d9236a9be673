//! The journal, black box: its format, its start, and its promise under kills.

mod formats;
mod harness;
mod model;
mod spill;
mod start;
