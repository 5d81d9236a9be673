//! The journal of a group: a ring of records in shared memory, a change map of
//! what the ring does not hold, and the rules that keep the two honest.
//!
//! The proxy appends ([`Journal`]), the shipper drains ([`RingReader`]), tools look
//! on ([`inspect`]). The two daemons meet only here, over [`link`]. Formats:
//! `docs/formats/journal.md`; rules R1 to R14: `docs/design/0001-spine.md`.
//!
//! Promises: an acknowledged change is in the ring or dirty in the map, whatever
//! process is killed; nothing here ever fails or delays a guest's request.

pub mod activity;
mod append;
mod attach;
#[doc(hidden)]
pub mod durable;
pub mod error;
pub mod format;
pub mod inspect;
mod journal;
pub mod link;
pub mod map;
#[cfg(loom)]
pub mod model;
pub mod progress;
mod reader;
mod record;
pub mod recover;
pub mod resume;
mod ring;
mod saved;
pub mod spill;
pub mod state;
mod stop;
mod sys;

pub use append::{Begun, Change, Outcome, Ticket};
pub use attach::{Attached, Claim, HistoryPart, Resync};
pub use error::{Error, ErrorKind, Result};
pub use format::{Control, Kind, SlotState};
pub use journal::{Journal, OpenReport, Options, Source, default_ring_bytes, unix_now_ns};
pub use reader::RingReader;
pub use record::Record;
pub use recover::AttachPolicy;
pub use resume::Durable;
pub use spill::{Damage, Durability, SpillOptions, SpillReader};
pub use state::{GroupDir, GroupState};
