//! The latency-impact harness: what the servers cost a guest on the administrator's
//! own storage, ours and those that he would use instead.
//!
//! Owns all that it starts and makes: servers, clients, spinners, the scratch file,
//! folders beside it and rings in shared memory end with [`run`], whatever happens.
//! Every server meets the same file in the same state, in random order, round by
//! round; what is reported is medians over rounds and ratios with intervals, and
//! whether anybody else used the machine meanwhile. It writes to the file it is given:
//! [`Scratch`] refuses what is not meant for that.

mod baseline;
mod child;
mod cpu;
mod fio;
mod gates;
mod html;
mod machine;
mod noise;
mod placement;
mod plan;
mod qmp;
mod report;
mod runner;
mod scratch;
mod servers;
mod stats;
mod text;
mod tools;
mod window;

pub use child::install_spinners_command;
pub use html::page;
pub use placement::Placement;
pub use plan::{Cell, Choice, ClientKind, Job, Level, PEERS, ServerKind, Settings, plan};
pub use regex_lite::Regex;
pub use report::{CellReport, GateReport, ImpactReport};
pub use runner::{Watch, estimate_s, run};
pub use scratch::{Refused, SCRATCH_ENDING, SIZE_BYTES_MIN, Scratch};
pub use stats::{Interval, median, ratio_interval};
pub use text::table;
