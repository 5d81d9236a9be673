//! Going back to a mark: the targets, and the stream with them.
//!
//! | on disk | after a crash |
//! |---|---|
//! | nothing decided | nothing happened |
//! | `rewind` in state.json | the next start does it (again) from the first step |
//! | `applied` is the mark | newer marks and staging are leftovers and go |
//!
//! A shipper that comes afterwards hears where the target stands, like after any other
//! restart: what its journal has no more is compared, nothing is received twice blindly.

use super::marks::{Mark, Marks};
use super::medium::{Medium, Target};
use super::recovery::open;
use super::state::Books;
use super::{Layout, Limits};
use crate::batch::Keyring;
use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// Brings the targets of a receiver that does not run back to the mark at batch `number`,
/// and answers which that is.
///
/// # Errors
/// [`ErrorKind::Busy`] while the receiver runs or a clone reads what would go;
/// [`ErrorKind::InvalidInput`] when there is no such mark, or the target has taken over;
/// [`ErrorKind::NotAuthorised`] when staging holds batches of a key that is not in `keys`;
/// [`ErrorKind::Damaged`] when a file that is needed fails its checks: then nothing was written.
pub fn rewind(state_dir: &Path, number: u64, keys: &Keyring) -> Result<Mark> {
    let layout = Layout::of(state_dir);
    let _lock = super::server::lock(&layout)?;
    let (medium, limits) = (Medium::default(), Limits::default());
    let none = || {
        let what = format!("no group was ever received in {}", state_dir.display());
        Error::new(ErrorKind::InvalidInput, what)
    };
    // Finishes what an earlier run may have begun, and lets go of the targets again.
    let mut store = open(&layout, &medium, &limits, keys)?.ok_or_else(none)?;
    let state = store.books.get();
    if state.promoted.is_some() {
        let what = "the target has taken over: its volumes are the guest's and are not taken back";
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let marks = &mut store.apply.marks;
    let Some(mark) = marks.get(number).cloned() else {
        let what =
            format!("no mark stands at batch {number}: `towline target list-marks` shows them");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    };
    if marks.is_cloned() {
        let what = "a clone reads the target as it was at a mark: end it first";
        return Err(Error::new(ErrorKind::Busy, what));
    }
    marks.check(number)?;
    store.books.update(|state| state.rewind = Some(number))?;
    finish(&store.books, &mut store.apply.marks, &store.apply.targets, &layout, &medium)?;
    Ok(mark)
}

/// Does what `rewind` in state.json says; nothing where it says nothing.
pub fn finish(
    books: &Books,
    marks: &mut Marks,
    targets: &[Target],
    layout: &Layout,
    medium: &Medium,
) -> Result<()> {
    let Some(number) = books.get().rewind else { return Ok(()) };
    let Some(mark) = marks.get(number).cloned() else {
        let what =
            format!("the mark at batch {number} is gone in the middle of the way back to it");
        return Err(Error::new(ErrorKind::Damaged, what));
    };
    if books.get().applied != mark.stream {
        marks.roll_back(number, targets)?;
        // Staging first: what it holds follows what is applied now.
        let found = super::staging::list(&layout.stage)?;
        let stale = found.iter().map(|first| super::staging::segment_path(&layout.stage, *first));
        stale.into_iter().try_for_each(|path| medium.remove(&path))?;
        medium.sync_dir(&layout.stage)?;
        books.update(|state| {
            state.applied = mark.stream.clone();
            state.marks_durable = None;
        })?;
    }
    marks.went_back(number)?;
    books.update(|state| state.rewind = None)
}
