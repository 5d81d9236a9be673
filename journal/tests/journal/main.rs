//! The journal, black box: its format, its start, and its promise under kills.

mod crash;
mod crash_spill;
mod device;
mod formats;
mod harness;
mod heat;
mod history;
mod lone;
mod model;
mod parts;
mod sparse;
mod spill;
mod start;
mod tools;
