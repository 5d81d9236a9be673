//! The spill: the ring's continuation on disk (`docs/formats/spill.md`,
//! `docs/design/0004-ladder.md`).
//!
//! Owns the segments of a group's `spill/` folder, or of the device in its place. One thread writes them
//! (`persister`), everyone else only reads (`reader`); what they hold is known
//! in memory (`index`). Promises: only final records, in order; a record counts as
//! spilled when its span is written, as durable when it is synced; nothing here ever
//! makes a guest wait unless `durability` asks for it. Must not touch a source or
//! the change map: damage is reported, the journal makes it dirty.

pub mod device;
mod files;
mod index;
mod joint;
mod ladder;
pub mod layout;
mod lone;
mod owner;
mod persister;
mod reader;
mod runs;
mod scan;
mod service;
mod span;
mod steps;
mod store;
mod stretch;
mod touched;
mod trailer;
mod walk;
mod watch;

pub(crate) use index::{Place, Segments, Spill};
pub use ladder::{
    HEAL_WAIT_MAX, HealSeen, Ladder, Observed, Rung, SPILL_START_PERCENT, SPILL_START_PERCENTS,
    may_heal,
};
pub(crate) use owner::Owner;
pub(crate) use persister::Persister;
pub use reader::SpillReader;
pub use runs::Run;
pub(crate) use scan::{Scanned, scan};
pub use service::Damage;
pub use steps::{STEPS_MAX, Step, load as load_steps};
pub use store::Store;
pub use touched::Touched;
pub(crate) use walk::{CHECK_THREADS_MAX, Headers, Sound, Walk};
pub(crate) use watch::RungWatch;

use std::path::{Path, PathBuf};
use towline_block::sys::free_bytes;

/// Largest spill taken without being asked for.
const SPILL_BYTES_DEFAULT_MAX: u64 = 16 << 30;

/// What an acknowledgement waits for besides the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: the journal survives the death of every process, not a power cut.
    #[default]
    Process,
    /// A flush: the journal on disk up to every change acknowledged before it.
    Flush,
    /// Every change: its record on disk.
    Write,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpillOptions {
    /// Bytes of disk at most, in whole segments; 0: no spill. `None`: [`default_bytes`].
    pub bytes: Option<u64>,
    /// A block device, or a file of a fixed size, that takes the place of the folder; its
    /// size is the spill's, and `bytes` means nothing.
    pub device: Option<PathBuf>,
    /// The device may be taken whatever it holds.
    pub overwrite: bool,
    pub durability: Durability,
    /// An answer that waits for the journal's disk waits without bound (R14).
    pub strict: bool,
    /// Fill of the ring beyond which its oldest records are spilled: one of
    /// [`SPILL_START_PERCENTS`].
    pub start_percent: u64,
}

impl SpillOptions {
    pub const OFF: SpillOptions = SpillOptions {
        bytes: Some(0),
        device: None,
        overwrite: false,
        durability: Durability::Process,
        strict: false,
        start_percent: SPILL_START_PERCENT,
    };
}

/// min(16 GiB, a quarter of what is free where the state directory lies).
pub fn default_bytes(dir: &Path) -> u64 {
    free_bytes(dir).map_or(0, |free| free / 4).min(SPILL_BYTES_DEFAULT_MAX)
}
