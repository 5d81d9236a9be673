//! The data path of one volume: one thread, one io_uring, all connections.
//!
//! ```text
//!  recv ──> input buffer ──> all complete requests, run to completion ──> output buffer ──> send
//!                 ^                    │ flush, FUA                            ^
//!                 └─ more bytes        └──> fdatasync (asynchronous) ──────────┘
//! ```
//! A connection's input buffer is either with the kernel (receiving) or with us
//! (being parsed, or waiting for something named in [`connection::Pause`]); sending
//! goes on beside either, so a client that does not read stops only itself.
//!
//! Promises: no allocation, one receive and one send per batch in the steady
//! state; bounded memory per connection and per volume; a late completion of a
//! closed connection reaches nobody.

mod alone;
mod asynchronous;
mod buffers;
mod command;
mod connection;
mod core;
mod cores;
mod durable;
mod execute;
mod obey;
mod pending;
mod run;
mod seat;
mod slots;
mod spin;
mod upstream;

pub use command::{Command, Inbox, Mailbox, NewConnection, mailbox};
pub use durable::WakeOnDurable;
pub use run::{Engine, Setup};
pub use spin::LatencyPolicy;
