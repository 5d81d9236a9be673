//! The proxy in the storage path: an NBD server over raw files and block devices
//! that journals every change, and the proxy's half of a cutover.
//!
//! Owns connections, the order of a volume's operations, and the gate that holds
//! or refuses changes during a cutover. Knows nothing of shipping: it meets the
//! shipper in the journal and over the link only. Promise: no failure of the
//! journal or of a shipper fails a guest's I/O.

mod accept;
mod engine;
pub mod error;
mod gate;
pub mod group;
pub mod latency;
pub mod link;
pub mod listen;
pub mod nbd;
pub mod overlap;
pub mod plain;
pub mod server;
mod syncs;
mod volume;

pub use engine::LatencyPolicy;
pub use error::{Error, ErrorKind, Result};
pub use group::Group;
pub use link::LinkServer;
pub use listen::{ListenAddr, Reserved};
pub use plain::PlainServer;
pub use server::{ExportConfig, Server, StartGate, VolumeFigures};
pub use volume::Journaled;
