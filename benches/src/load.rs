//! A load generator for NBD servers that costs next to nothing a request.
//!
//! One thread a connection; requests that are due leave in one gathered send without
//! a copy, replies are parsed in bulk, the clock is read once a batch. A closed loop
//! keeps a fixed number of requests in flight; an open loop sends at a given rate
//! whatever the server does, and counts a request's latency from the moment it was
//! due: a server that stalls cannot hide the requests that were waiting (coordinated
//! omission). Times are until the reply's arrival was seen.
//!
//! Must not retry: an error reply or a lost connection ends the run.

mod affinity;
mod closed;
mod open;
mod phase;
mod receiver;
mod replies;
mod run;
mod sender;
mod slots;
mod tally;
#[cfg(test)]
mod tests;
mod workload;

pub use affinity::{Cpus, allowed_cpus};
pub use run::{Edge, Outcome, Plan, run};
pub use tally::{Kind, Tally, new_histogram};
pub use workload::Workload;
