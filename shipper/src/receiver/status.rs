//! What a receiver's files say, read without disturbing it: works when it is dead.

use super::Layout;
use super::recovery;
use super::state::{State, load};
use super::stream::Stream;
use crate::error::Result;
use std::path::Path;

/// The receiver as its files show it.
#[derive(Clone, Debug)]
pub struct ReceiverStatus {
    pub state: State,
    /// The stream after the last batch in staging that follows.
    pub durable: Stream,
    pub staged: StagedStatus,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagedStatus {
    pub segments: u64,
    pub bytes: u64,
}

impl ReceiverStatus {
    /// Reads `state_dir`; `None` when no group was ever received there. Staging is
    /// read up to where it is valid at this moment.
    pub fn load(state_dir: &Path) -> Result<Option<ReceiverStatus>> {
        let layout = Layout::of(state_dir);
        let Some(state) = load(&layout.state)? else { return Ok(None) };
        // Segments may be removed between listing and reading: they were applied.
        let scan = if state.promoted.is_none() {
            recovery::scan(&layout.stage, &state).unwrap_or_default()
        } else {
            recovery::Scan::default()
        };
        let durable = if scan.durable.number > state.applied.number {
            scan.durable
        } else {
            state.applied.clone()
        };
        let staged = StagedStatus {
            segments: scan.segments.len() as u64,
            bytes: scan.segments.iter().map(|segment| segment.bytes).sum(),
        };
        Ok(Some(ReceiverStatus { state, durable, staged }))
    }
}
