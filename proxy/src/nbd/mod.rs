//! The NBD codec: pure functions over bytes, no I/O and no state but a
//! negotiation's. Implements the NBD protocol document (NetworkBlockDevice/nbd,
//! `doc/proto.md`), fixed newstyle, without TLS and without the experimental
//! extensions.
//!
//! Promise: no bytes a client can send make any function here panic.

pub mod errno;
pub mod handshake;
mod option_data;
pub mod reply;
pub mod request;

pub use towline_block::upstream::proto;
