//! Opening a group's files to look at them: those of a living group, or copies.

use super::GroupView;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::ring::Ring;
use crate::spill::{SpillReader, Store};
use crate::state::{GroupDir, GroupState};
use crate::sys::Use;
use std::cell::RefCell;
use std::fs::File;
use std::path::Path;

impl GroupView {
    /// # Errors
    /// When `state.json` is missing, damaged or newer. A missing or damaged ring is
    /// not an error here: see [`GroupView::ring_error`].
    pub fn open(dir: &GroupDir) -> Result<GroupView> {
        GroupView::open_with(dir, None)
    }

    /// As [`GroupView::open`], with the ring in a file of its own. Without one, a
    /// ring beside `state.json` counts before the place recorded there: beside it,
    /// rings lie in copies only.
    ///
    /// # Errors
    /// As [`GroupView::open`].
    pub fn open_with(dir: &GroupDir, ring_file: Option<&Path>) -> Result<GroupView> {
        let mut state = dir.load()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Missing,
                format!("{} holds no group: state.json is missing", dir.path().display()),
            )
        })?;
        let (ring, ring_error) = match find_ring(dir, &mut state, ring_file) {
            Ok(ring) => (Some(ring), None),
            Err(e) => (None, Some(e)),
        };
        // The shipper's figures say nothing of the journal: without them it is shown
        // all the same.
        let progress = match Progress::view(&dir.progress_path()) {
            Err(e) if e.kind() == ErrorKind::Damaged => None,
            other => other?,
        };
        let (uuid, id) = (state.group_uuid.0, state.ring.id.0);
        let spill = SpillReader::new(Store::of(dir, Some(&state)), uuid, id);
        let spill = RefCell::new(spill);
        let names = match &ring {
            Some(ring) => ring.volumes.iter().map(|v| crate::format::name_of(&v.name)).collect(),
            None => state.volumes.iter().map(|v| v.name.to_string()).collect(),
        };
        let dir = dir.clone();
        Ok(GroupView { dir, state, ring, names, spill, lone: None, ring_error, progress })
    }
}

/// The ring, and its real place in `state`.
fn find_ring(dir: &GroupDir, state: &mut GroupState, given: Option<&Path>) -> Result<Ring> {
    if let Some(path) = given {
        state.ring.path = path.to_owned();
        return open_ring(path, state);
    }
    let beside = state.ring.path.file_name().map(|name| dir.path().join(name));
    // A damaged copy is told of, and never replaced by the ring that still lives.
    if let Some(beside) = beside.filter(|path| path.is_file()) {
        state.ring.path = beside;
    }
    open_ring(&state.ring.path.clone(), state)
}

fn open_ring(path: &Path, state: &GroupState) -> Result<Ring> {
    let what = |e| Error::io(format!("cannot open {}", path.display()), e);
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => what(e).with_kind(ErrorKind::Missing),
        _ => what(e),
    };
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(missing)?.is_file() {
        let what = format!("{} is not a regular file", path.display());
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    let ring = Ring::open(&File::open(path).map_err(what)?, Use::Look)?;
    if ring.superblock.ring_id != state.ring.id.0 {
        let name = crate::format::name_of(&ring.superblock.group_name);
        let what = format!(
            "another ring lies in its place: it is of group {name}, incarnation {}, and not the \
             one that state.json names",
            ring.incarnation()
        );
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    Ok(ring)
}
