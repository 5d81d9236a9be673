//! What a target lacks since an import of transport devices: blocks of packs that were
//! lost. The shipper hears of them and sends them; until all are there the group is not
//! whole, whatever a HEAL says that was written before the loss was known.
//!
//! The set follows the batches as they are admitted. On disk (`receive/lacking.json`) it
//! may have more than is lacking, never less: what is forgotten by a crash comes twice.

use super::medium::Medium;
use super::stream::Stream;
use crate::batch::{BatchView, Op};
use crate::device::{BlockRun, BlockSet};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{LACKS_RUNS_MAX, Lacks};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
/// The file is replaced when so large a part of what it had has come.
const STORE_EVERY: u64 = 8;

#[derive(Serialize, Deserialize)]
struct LackingFile {
    version: u32,
    runs: Vec<BlockRun>,
}

pub struct Lacking {
    path: PathBuf,
    medium: Medium,
    /// Beyond what was admitted.
    set: BlockSet,
    /// What admitted batches bring that are not applied yet.
    coming: VecDeque<(u64, Vec<BlockRun>)>,
    /// Blocks in the file.
    stored: u64,
    /// A HEAL that did not count, by its batch.
    unheard: Option<u64>,
}

/// Makes a set durable, for the receiver to find; an empty one needs no file.
pub fn store(path: &Path, medium: &Medium, set: &BlockSet) -> Result<()> {
    if set.is_empty() {
        medium.remove(path)?;
        return medium.sync_dir(path.parent().unwrap_or(Path::new(".")));
    }
    let file = LackingFile { version: VERSION, runs: set.runs().collect() };
    let bytes = serde_json::to_vec(&file).map_err(|e| {
        Error::caused(ErrorKind::InvalidInput, format!("cannot write {}", path.display()), e)
    })?;
    medium.replace(path, &bytes)
}

impl Lacking {
    /// `None` when nothing is lacking.
    pub fn load(path: &Path, medium: &Medium, sizes: &[u64]) -> Result<Option<Lacking>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::storage(format!("cannot read {}", path.display()), e)),
        };
        let damaged = || {
            let what = format!(
                "{} is damaged: what the target lacks is not known; begin anew with another state \
                 directory",
                path.display()
            );
            Error::new(ErrorKind::Damaged, what)
        };
        let file: LackingFile = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if file.version > VERSION {
            let what = format!("{} is of a newer version: update towline", path.display());
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let mut set = BlockSet::new(sizes);
        for run in &file.runs {
            if !run.is_within(sizes) {
                return Err(damaged());
            }
            set.insert(run);
        }
        let (path, medium, stored) = (path.to_owned(), medium.clone(), set.count());
        Ok(Some(Lacking { path, medium, set, coming: VecDeque::new(), stored, unheard: None }))
    }

    /// A batch that was admitted: `after` is the stream behind it by its own account.
    pub fn admit(&mut self, batch: &BatchView<'_>, after: Stream) -> Stream {
        let mut brought = Vec::new();
        for entry in batch.ops() {
            // What is compared is as the source has it once its claim is complete, but who
            // knows when that is: only what comes counts.
            let (Op::Write { .. } | Op::Zero { .. } | Op::Trim { .. }) = entry.op else { continue };
            let whole =
                entry.op.touches().and_then(|(volume, extent)| self.set.whole(volume, extent));
            if let Some(run) = whole {
                let before = self.set.count();
                let here = self.set.within(&run);
                self.set.remove(&run);
                if self.set.count() != before {
                    brought.extend(here);
                }
            }
        }
        if !brought.is_empty() {
            self.coming.push_back((batch.number(), brought));
        }
        if !after.whole || self.set.is_empty() {
            return after;
        }
        tracing::warn!(
            blocks = self.set.count(),
            "the source counts the group as whole, though blocks of lost packs are lacking here"
        );
        self.unheard = Some(batch.number());
        Stream { whole: false, point: None, ..after }
    }

    /// Everything up to batch `number` is at the targets. True when the shipper has to be
    /// told again what is lacking: a HEAL came and went.
    ///
    /// # Errors
    /// When the file cannot be replaced: it has more than is lacking then.
    pub fn applied(&mut self, number: u64) -> Result<bool> {
        while self.coming.front().is_some_and(|(batch, _)| *batch <= number) {
            self.coming.pop_front();
        }
        let tell = self.unheard.is_some_and(|unheard| unheard <= number);
        if tell {
            self.unheard = None;
        }
        let left = self.set.count() + self.coming_count();
        if left == 0 || self.stored - left.min(self.stored) >= (self.stored / STORE_EVERY).max(1) {
            let mut set = self.set.clone();
            self.coming.iter().flat_map(|(_, runs)| runs).for_each(|run| set.insert(run));
            store(&self.path, &self.medium, &set)?;
            self.stored = left;
        }
        Ok(tell)
    }

    /// What was admitted and not applied will not be.
    pub fn revert(&mut self) {
        for (_, runs) in self.coming.drain(..) {
            runs.iter().for_each(|run| self.set.insert(run));
        }
        self.unheard = None;
    }

    fn coming_count(&self) -> u64 {
        self.coming.iter().flat_map(|(_, runs)| runs).map(|run| run.blocks.count).sum()
    }

    /// Nothing is lacking and the file is gone.
    pub fn is_over(&self) -> bool {
        self.set.is_empty() && self.coming.is_empty() && self.stored == 0
    }

    /// Bytes of the volumes that are lacking.
    pub fn bytes(&self) -> u64 {
        self.set.bytes()
    }

    /// As the shipper is told.
    pub fn frames(&self) -> Vec<Lacks> {
        let runs: Vec<BlockRun> = self.set.runs().collect();
        runs.chunks(LACKS_RUNS_MAX).map(|runs| Lacks { runs: runs.to_vec() }).collect()
    }
}
