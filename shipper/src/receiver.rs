//! The target side: receives a group's batches, stages them durably, acknowledges,
//! applies them whole to all volumes, and takes over when told.
//!
//! ```text
//!  sessions (tokio, one thread)        clerk (thread)                    applier (thread)
//!  TLS, frames, back-pressure  ──>  admit, stage, fdatasync, ACK  ──>  undo, write, flush, record
//!                              <──  decisions, refusals
//! ```
//!
//! Promises: what was acknowledged survives anything; from the first point on the
//! targets can always be brought to a point (docs/formats/receiver.md has the
//! order of writes and the recovery table). Nothing that a peer sends changes a
//! target before its whole batch was verified, admitted and durable.

mod applier;
mod apply;
mod bound;
mod clerk;
pub mod clones;
mod counters;
mod door;
mod follow;
mod gather;
mod handover;
mod hello;
mod hydrate;
pub(crate) mod import;
mod lacking;
mod lanes;
pub mod marks;
pub mod medium;
mod note;
mod order;
mod promote;
mod recovery;
mod remote;
mod rewind;
mod room;
mod scan;
mod server;
mod session;
mod staging;
mod state;
mod status;
mod stream;
pub mod target;
#[cfg(test)]
pub(crate) mod tests;

pub use counters::Counters;
pub use door::Door;
pub use follow::Follow;
pub use marks::{ListedMark, Mark, MarkHeader, MarkKind, MarkPolicy, PreImage};
pub use note::{note, noted};
pub use promote::Promote;
pub use recovery::recover;
pub use rewind::rewind;
pub use server::Receiver;
pub use state::{DECISIONS_MAX, Decided, Rollback, STATE_VERSION, State, Takeover, TargetRecord};
pub use status::{ReceiverStatus, StagedStatus};
pub use stream::{Point, Stream};

use crate::batch::Keyring;
use crate::security::Security;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use towline_block::{GroupName, VolumeName};

/// What a receiver is told at start.
pub struct ReceiveConfig {
    /// `HOST:PORT` for shippers; port 0 takes a free one. `None`: a store alone is followed.
    pub listen: Option<String>,
    /// A store to hydrate from and to follow.
    pub from: Option<Follow>,
    pub state_dir: PathBuf,
    /// The one group to take. Without it, the first that is authorised.
    pub group: Option<GroupName>,
    /// Where each volume goes: a raw file (created when missing), a block device, or the URI of
    /// an NBD server's export.
    pub targets: Vec<(VolumeName, PathBuf)>,
    pub security: Security,
    /// Keys of sealed batches. With any, only sealed ones are taken.
    pub keys: Keyring,
    /// Serves the volumes once the target has taken over.
    pub promote: Arc<dyn Promote>,
    pub limits: Limits,
}

/// How much of the receiver's disks its own logs may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Staged and not yet applied. Past it nothing more is read from the network.
    pub staging_bytes_max: u64,
    pub marks: MarkPolicy,
}

/// Enough to ride out a minute of a slow target on a fast link, and to be
/// re-applied in seconds after a crash.
pub const STAGING_BYTES_DEFAULT: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Limits {
        Limits { staging_bytes_max: STAGING_BYTES_DEFAULT, marks: MarkPolicy::default() }
    }
}

impl Limits {
    fn segment(&self) -> u64 {
        staging::SEGMENT_BYTES_MAX.min(self.staging_bytes_max / 4)
    }
}

/// Files of a receiver in its state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    pub dir: PathBuf,
    pub state: PathBuf,
    pub lock: PathBuf,
    pub stage: PathBuf,
    pub marks: PathBuf,
    /// What an import of transport devices has done, while it is under way.
    pub device: PathBuf,
    /// What the targets lack since an import.
    pub lacking: PathBuf,
    /// Why nothing is received now.
    pub problem: PathBuf,
}

impl Layout {
    pub fn of(state_dir: &Path) -> Layout {
        let dir = state_dir.join("receive");
        Layout {
            state: dir.join("state.json"),
            lock: dir.join("lock"),
            stage: dir.join("stage"),
            marks: dir.join("marks"),
            device: dir.join("device.json"),
            lacking: dir.join("lacking.json"),
            problem: state_dir.join("receive.error"),
            dir,
        }
    }
}
