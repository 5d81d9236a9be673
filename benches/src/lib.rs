//! Measuring and judging instruments: a small NBD client, a guest workload that
//! knows every write it made, and checkers over the images it left behind.
//!
//! Serves `towline demo`, `towline bench`, the black-box tests and the latency
//! harness. Talks to servers over the standard protocol only and reads images as
//! plain files: it must not know how proxy, journal or shipper work, or it would
//! share their mistakes.

pub mod check;
pub mod error;
pub mod impact;
pub mod load;
#[cfg(test)]
mod memory_server;
pub mod nbd_client;
pub mod stamp;

pub use error::{Error, ErrorKind, Result};
