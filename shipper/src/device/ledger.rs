//! What an import has done: `receive/device.json` in the receiver's state directory, until
//! the receiver stands where the export ended.

use super::blocks::BlockRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Digest, SetId};
use crate::receiver::TargetRecord;
use crate::receiver::medium::Medium;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LEDGER_VERSION: u32 = 1;

/// A pack of which anything may be at the targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub map: Digest,
    /// All of it is at the targets, durably.
    pub done: bool,
    /// Blocks that it did not write, because a later pack had written them before.
    pub skipped: Vec<BlockRun>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Ledger {
    version: u32,
    pub set: SetId,
    pub volumes: Vec<TargetRecord>,
    pub packs: BTreeMap<usize, Entry>,
    #[serde(skip)]
    path: PathBuf,
    #[serde(skip)]
    medium: Medium,
}

impl Ledger {
    pub fn new(path: &Path, set: SetId, volumes: Vec<TargetRecord>, medium: &Medium) -> Ledger {
        let (packs, path, medium) = (BTreeMap::new(), path.to_owned(), medium.clone());
        Ledger { version: LEDGER_VERSION, set, volumes, packs, path, medium }
    }

    /// `None` when no import is under way.
    pub fn load(path: &Path, medium: &Medium) -> Result<Option<Ledger>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::storage(format!("cannot read {}", path.display()), e)),
        };
        let ledger: Ledger = serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!(
                "{} is damaged: begin the import anew with an empty state directory",
                path.display()
            );
            Error::caused(ErrorKind::Damaged, what, e)
        })?;
        if ledger.version > LEDGER_VERSION {
            let what = format!("{} is of a newer version: update towline", path.display());
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        Ok(Some(Ledger { path: path.to_owned(), medium: medium.clone(), ..ledger }))
    }

    pub fn store(&self) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|e| {
            Error::caused(
                ErrorKind::InvalidInput,
                format!("cannot write {}", self.path.display()),
                e,
            )
        })?;
        self.medium.replace(&self.path, &bytes)
    }

    pub fn remove(&self) -> Result<()> {
        self.medium.remove(&self.path)?;
        self.medium.sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }

    pub fn is_done(&self, number: usize) -> bool {
        self.packs.get(&number).is_some_and(|entry| entry.done)
    }
}
