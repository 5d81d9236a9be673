//! What an import of transport devices does to a receiver that does not run: it brings
//! targets and state to where the export ended, as if the batches had been received.

use super::Layout;
use super::hello;
use super::lacking;
use super::medium::{Medium, Target};
use super::server;
use super::state::{self, Books, State};
use super::stream::Stream;
use crate::device::BlockSet;
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::path::Path;
use towline_block::{Position, Seq, VolumeName};

pub use super::apply::check_bounds;
pub use super::target::place;

/// Keeps receivers and other imports out while the file lives.
pub fn occupy(layout: &Layout) -> Result<File> {
    for dir in [&layout.stage, &layout.marks] {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::storage(format!("cannot create {}", dir.display()), e))?;
    }
    server::lock(layout)
}

/// The state of a receiver that was bound before.
pub fn bound_state(layout: &Layout) -> Result<Option<State>> {
    state::load(&layout.state)
}

/// Opened or made, and owned from now on.
pub fn open_target(
    name: VolumeName,
    path: &Path,
    size_bytes: u64,
    medium: &Medium,
) -> Result<Target> {
    hello::open_or_create(name, path, size_bytes, medium)
}

/// Where a target stands that has everything up to `after` but `lacking` (`None`: nobody
/// knows what it lacks). In the latter case it stands in the same ring before its first
/// record, so that the source compares everything.
pub fn stands_at(after: Stream, lacking: Option<&BlockSet>) -> Stream {
    let broken = Stream { whole: false, point: None, sealed: None, ..after.clone() };
    match lacking {
        Some(lacking) if lacking.is_empty() => after,
        Some(_) => broken,
        None => {
            let position = Position { seq: Seq::NONE, ..after.position };
            Stream { position, claims_upto: 0, ..broken }
        }
    }
}

/// Makes that durable: from now on it is a receiver like any other. What it lacks is there
/// before it is one.
pub fn stand(
    layout: &Layout,
    state: State,
    lacking: Option<&BlockSet>,
    medium: &Medium,
) -> Result<()> {
    if let Some(lacking) = lacking {
        lacking::store(&layout.lacking, medium, lacking)?;
    }
    Books::create(&layout.state, medium.clone(), state).map(drop)
}

/// A receiver must not begin on targets that an import is writing.
pub fn check_none_under_way(layout: &Layout) -> Result<()> {
    // Killed behind its end, before its ledger was removed: the receiver has batches then.
    let has_ended = |state: State| state.applied.number > 0;
    if !layout.device.exists() || state::load(&layout.state)?.is_some_and(has_ended) {
        return Ok(());
    }
    let what = format!(
        "an import of transport devices is under way in {}: let it end first (towline device import; \
         with --without-missing if nothing more comes)",
        layout.dir.display()
    );
    Err(Error::new(ErrorKind::Refused, what))
}
