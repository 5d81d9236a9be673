//! The receiver's durable knowledge beside its staging: `state.json`.
//!
//! Every change replaces the whole file (temporary file, fsync, rename, fsync of
//! the directory). A file of a newer version is refused and left alone.

use super::marks::DurableMark;
use super::medium::Medium;
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::wire::{ATTEMPT_BYTES_MAX, Outcome};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use towline_block::{Epoch, GroupName, Position, VolumeName};

pub const STATE_VERSION: u32 = 1;

/// Decisions kept. An attempt is asked about while its cutover runs; hundreds of
/// attempts later nobody does.
pub const DECISIONS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    pub name: VolumeName,
    pub size_bytes: u64,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    pub attempt: String,
    pub outcome: Outcome,
}

/// Whether taking over means going back to the point first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rollback {
    None,
    /// Decided, not yet done: recovery does it before anything else.
    Pending,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    pub attempt: String,
    pub epoch: Epoch,
    pub position: Position,
    pub rollback: Rollback,
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub group: GroupName,
    pub group_uuid: GroupUuid,
    /// The epoch whose batches are taken.
    pub epoch: Epoch,
    /// In the order of the volumes' ids.
    pub volumes: Vec<TargetRecord>,
    /// What the targets hold, at least; staging has what comes after.
    pub applied: Stream,
    /// How far the newest mark's file is durable.
    #[serde(default)]
    pub marks_durable: Option<DurableMark>,
    /// A way back to the mark at this batch that was decided and is not finished.
    #[serde(default)]
    pub rewind: Option<u64>,
    pub decisions: Vec<Decided>,
    pub promoted: Option<Takeover>,
    /// For people: why it does not go on.
    pub last_error: Option<String>,
}

impl State {
    pub fn decision(&self, attempt: &str) -> Option<Outcome> {
        self.decisions.iter().find(|d| d.attempt == attempt).map(|d| d.outcome)
    }

    pub fn record(&mut self, attempt: &str, outcome: Outcome) {
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.remove(0);
        }
        self.decisions.push(Decided { attempt: attempt.to_owned(), outcome });
    }
}

/// Whether an attempt's id may be stored and shown.
pub fn attempt_is_usable(attempt: &str) -> bool {
    (1..=ATTEMPT_BYTES_MAX).contains(&attempt.len())
        && attempt.bytes().all(|b| b.is_ascii_graphic())
}

/// Reads a state file; `None` when there is none.
pub fn load(path: &Path) -> Result<Option<State>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::storage(format!("cannot read {}", path.display()), e)),
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |e| {
        let what = format!(
            "{} is damaged: begin anew with another state directory (the target then receives \
             everything again)",
            path.display()
        );
        Error::caused(ErrorKind::Damaged, what, e)
    };
    let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > STATE_VERSION {
        let what = format!(
            "{} has version {version}, this program reads up to {STATE_VERSION}: update towline",
            path.display()
        );
        return Err(Error::new(ErrorKind::TooNew, what));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// The state of a bound receiver, in memory and on disk.
pub struct Books {
    path: PathBuf,
    medium: Medium,
    state: Mutex<State>,
}

impl Books {
    /// Makes `state` durable as the first one.
    pub fn create(path: &Path, medium: Medium, state: State) -> Result<Arc<Books>> {
        store(path, &medium, &state)?;
        Ok(Books::loaded(path, medium, state))
    }

    pub fn loaded(path: &Path, medium: Medium, state: State) -> Arc<Books> {
        Arc::new(Books { path: path.to_owned(), medium, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> State {
        self.lock().clone()
    }

    pub fn group_uuid(&self) -> GroupUuid {
        self.lock().group_uuid
    }

    /// Changes the state durably, or not at all.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut current = self.lock();
        let mut next = current.clone();
        change(&mut next);
        if next != *current {
            store(&self.path, &self.medium, &next)?;
            *current = next;
        }
        Ok(())
    }
}

fn store(path: &Path, medium: &Medium, state: &State) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(state).map_err(|e| {
        Error::caused(ErrorKind::InvalidInput, format!("cannot write {}", path.display()), e)
    })?;
    medium.replace(path, &bytes)
}
