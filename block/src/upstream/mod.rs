//! An export of another NBD server as a source or a target: the client's side of the protocol.
//!
//! ```text
//!  Upstream ── connect ──> Connection (socket, terms) ──> Session  bytes in, bytes out; no I/O
//!     │                                                      ^
//!     └─ Disk: read, flush, for recovery and tools           └── the volume's thread, Client, ExportReader
//! ```
//! Fixed newstyle, NBD_OPT_GO, structured replies where offered, no TLS. Implements the
//! NBD protocol document (NetworkBlockDevice/nbd, `doc/proto.md`).
//!
//! Promise: no bytes that a server can send make anything here panic, grow without bound
//! or write outside the buffer of the request they answer. What breaks the protocol ends
//! the connection.

mod backoff;
mod client;
mod disk;
mod handshake;
pub mod proto;
mod reader;
mod replies;
mod session;
mod uri;

pub use backoff::Backoff;
pub use client::{ANSWER_WAIT, Client};
pub use disk::{Connector, Role, Upstream};
pub use handshake::{Connection, Stream, Terms};
pub use reader::ExportReader;
pub use session::{Ask, Ended, Session, Violation};
pub use uri::{Address, NbdUri};
