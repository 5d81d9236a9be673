//! Clones: the target's volumes as they were at a mark, to read and to write, while the receiver
//! goes on.
//!
//! ```text
//!  guest ──> CloneDisk ──> overlay file   what the clone wrote
//!                   └────> View ──> marks' files   what the receiver has overwritten since the mark
//!                              └──> target         everything else
//! ```
//! The receiver saves what it overwrites before it overwrites it, so a read takes the target first,
//! then looks what was saved meanwhile, and lets that win: whatever the target showed, the answer is
//! the content at the mark. No lock is shared with the receiver but the clone's hold on its mark.
//!
//! Writes nothing but its overlay, and a file that asks for a mark.

mod disk;
mod index;
mod overlay;
mod view;

pub use disk::CloneDisk;
pub use view::View;

use super::marks::{self, Mark};
use super::state::{State, load};
use super::{Layout, Limits, recovery, server};
use crate::batch::Keyring;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::VolumeName;

/// How long a receiver may take to make a mark. It looks every second, after the group in work.
const MARK_WAIT: Duration = Duration::from_secs(60);
/// How long a running receiver may take to apply its first point.
const POINT_WAIT: Duration = Duration::from_secs(2);
const MARK_LOOK: Duration = Duration::from_millis(50);
/// A mark may go between being chosen and being held.
const TRIES_MAX: usize = 5;

/// Where a clone begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The mark at this batch.
    Mark(u64),
    /// The present point, or while the group is broken its last one.
    Present,
}

/// The volumes of a group at a mark.
pub struct ClonedGroup {
    pub mark: Mark,
    pub volumes: Vec<(VolumeName, Arc<CloneDisk>)>,
    view: Arc<View>,
}

impl ClonedGroup {
    /// Takes hold of the mark; overlays are made in `overlays`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] without such a mark or any point, or when the target has taken
    /// over; [`ErrorKind::Busy`] when the receiver runs and makes no mark;
    /// [`ErrorKind::NotAuthorised`] when it does not run and `keys` lack those of what is staged.
    pub fn open(state_dir: &Path, at: At, overlays: &Path, keys: &Keyring) -> Result<ClonedGroup> {
        let mut tries = 0;
        let view = loop {
            let number = match at {
                At::Mark(number) => number,
                At::Present => present(state_dir, keys)?,
            };
            match View::open(state_dir, number) {
                Err(error) if at == At::Present && tries < TRIES_MAX => {
                    tracing::debug!(%error, "the mark has gone: another one");
                    tries += 1;
                }
                opened => break Arc::new(opened?),
            }
        };
        let mut volumes = Vec::new();
        for (index, name) in view.names().iter().enumerate() {
            let disk = CloneDisk::create(Arc::clone(&view), index, name, overlays)?;
            volumes.push((name.to_owned(), Arc::new(disk)));
        }
        Ok(ClonedGroup { mark: view.mark().clone(), volumes, view })
    }

    /// Whether the mark can still be read.
    ///
    /// # Errors
    /// Why not: the target has taken over, or the mark's file is damaged or gone.
    pub fn check(&self) -> Result<()> {
        self.view.check()
    }

    /// Bytes that the clone has written into its overlays.
    pub fn overlay_bytes(&self) -> u64 {
        self.volumes.iter().map(|(_, disk)| disk.overlay_bytes()).sum()
    }
}

fn state_of(state_dir: &Path) -> Result<State> {
    let state = load(&Layout::of(state_dir).state)?.ok_or_else(|| {
        let what = format!("no group was ever received in {}", state_dir.display());
        Error::new(ErrorKind::InvalidInput, what)
    })?;
    let why = if state.promoted.is_some() {
        "the target has taken over: its volumes are the guest's now"
    } else if state.rewind.is_some() {
        "a way back to a mark is not finished: start the receiver once"
    } else {
        return Ok(state);
    };
    Err(Error::new(ErrorKind::InvalidInput, why))
}

/// The mark of the present point: made by the receiver, or by us where none runs.
fn present(state_dir: &Path, keys: &Keyring) -> Result<u64> {
    let layout = Layout::of(state_dir);
    let begun = Instant::now();
    while state_of(state_dir)?.applied.point.is_none() {
        // A receiver that has it durably is about to apply it.
        if begun.elapsed() >= POINT_WAIT || server::try_lock(&layout)?.is_some() {
            let what = "no point yet: the baseline is not done";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        std::thread::sleep(MARK_LOOK);
    }
    let wanted = marks::wanted(&layout.marks);
    std::fs::write(&wanted, b"")
        .map_err(|e| Error::storage(format!("cannot write {}", wanted.display()), e))?;
    let deadline = Instant::now() + MARK_WAIT;
    while wanted.exists() {
        match server::try_lock(&layout)? {
            Some(_lock) => make_mark(&layout, keys)?,
            None if Instant::now() < deadline => std::thread::sleep(MARK_LOOK),
            None => {
                let what = "the receiver makes no mark: see its log, or stop it and try again";
                return Err(Error::new(ErrorKind::Busy, what));
            }
        }
    }
    let state = state_of(state_dir)?;
    // The newest file leads back to the last point, whatever its kind.
    let mut applied =
        marks::numbers(&layout.marks)?.into_iter().filter(|n| *n <= state.applied.number);
    applied.next_back().ok_or_else(|| {
        Error::new(ErrorKind::Busy, "the mark that was made has gone already: try again")
    })
}

/// What a receiver would do: what is staged is applied, then the mark made.
fn make_mark(layout: &Layout, keys: &Keyring) -> Result<()> {
    let (medium, limits) = (super::medium::Medium::default(), Limits::default());
    recovery::open_and_redo(layout, &medium, &limits, keys).map(|_| ())
}

/// What a mark is called in an overlay's folder.
pub(super) fn file_of(overlays: &Path, name: &VolumeName) -> PathBuf {
    overlays.join(format!("{name}.overlay"))
}
