//! What a receiver's files say, read without disturbing it: works when it is dead.

use super::Layout;
use super::lacking::Lacking;
use super::medium::Medium;
use super::scan::{Scan, Scanner};
use super::state::{State, load};
use super::stream::Stream;
use crate::batch::Keyring;
use crate::error::{ErrorKind, Result};
use std::path::Path;

/// The receiver as its files show it.
#[derive(Clone, Debug)]
pub struct ReceiverStatus {
    pub state: State,
    /// The stream after the last batch in staging that follows.
    pub durable: Stream,
    pub staged: StagedStatus,
    /// Staged batches are sealed with a key that was not given: `durable` is what is
    /// applied, and may be more.
    pub locked: Option<String>,
    /// What the targets lack of packs that were lost.
    pub lacking_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagedStatus {
    pub segments: u64,
    pub bytes: u64,
}

impl ReceiverStatus {
    /// Reads `state_dir`; `None` when no group was ever received there. Staging is
    /// read up to where it is valid at this moment.
    pub fn load(state_dir: &Path, keys: &Keyring) -> Result<Option<ReceiverStatus>> {
        let layout = Layout::of(state_dir);
        let Some(state) = load(&layout.state)? else { return Ok(None) };
        let mut locked = None;
        let scan = match state.promoted {
            Some(_) => Scan::default(),
            None => scan(&layout.stage, &state, keys).unwrap_or_else(|error| {
                // Anything else: segments were removed between listing and reading, since
                // they were applied.
                if error.kind() == ErrorKind::NotAuthorised {
                    locked = Some(error.to_string());
                }
                Scan::default()
            }),
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
        let sizes: Vec<u64> = state.volumes.iter().map(|volume| volume.size_bytes).collect();
        let lacking = Lacking::load(&layout.lacking, &Medium::default(), &sizes)?;
        let lacking_bytes = lacking.map_or(0, |lacking| lacking.bytes());
        Ok(Some(ReceiverStatus { state, durable, staged, locked, lacking_bytes }))
    }
}

fn scan(dir: &Path, state: &State, keys: &Keyring) -> Result<Scan> {
    Scanner::new(dir, state, keys)?.finish()
}
