//! A seeded model of the whole protocol: two volumes, four blocks, and a kill at any step.
//!
//! Models what `docs/design/0001-spine.md` and the rules R1 to R14 say, as small machines in
//! one thread; each loses at its kill what a process loses. The cutover is not modelled but
//! run: it is `towline-control`'s own machine. `docs/design/0002-model.md` says what is
//! modelled, what is checked, and which rule each mutation proves necessary.
//!
//! Promises: a seed is a run, for ever; a failing run prints its seed and every step.
//! Knows nothing of files, sockets or clocks.

mod activity;
mod disk;
mod faults;
mod guest;
mod ledger;
mod oracle;
mod parts;
mod persister;
mod proxy;
mod receiver;
mod ring;
mod rng;
mod rules;
mod run;
mod shipper;
mod spill;
mod wire;
mod world;

pub use faults::{Config, FaultRates, Pace, SpillConfig};
pub use rules::Rules;
pub use run::{Failure, Passed, run, sweep};
pub use world::Process;
