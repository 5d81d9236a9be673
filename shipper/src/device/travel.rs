//! What the source knows of its devices' journey, from the copy in its state directory.

use super::shelf::{load, local};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Welcome;
use std::path::{Path, PathBuf};
use towline_block::GroupName;
use towline_journal::GroupDir;

/// Where an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Not finished: it goes on when it is called again.
    Exporting,
    /// Finished; no target was met that has it.
    Travelling,
    /// A target was met that has its last batch.
    Imported,
}

/// A group's export, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Travel {
    pub leg: Leg,
    pub packs: usize,
    pub bytes: u64,
}

/// Left once a target was met that has the export. Nothing is decided by it.
fn imported(dir: &GroupDir) -> PathBuf {
    local(dir).dir().join("imported")
}

/// `None`: the group has no export.
pub fn travel(dir: &GroupDir) -> Result<Option<Travel>> {
    let Some(manifest) = load(&local(dir))? else { return Ok(None) };
    let leg = match (manifest.finished, imported(dir).exists()) {
        (_, true) => Leg::Imported,
        (true, false) => Leg::Travelling,
        (false, false) => Leg::Exporting,
    };
    Ok(Some(Travel { leg, packs: manifest.packs.len(), bytes: manifest.bytes() }))
}

/// While a device travels the group must not be sent to a target that does not have its
/// content: everything would be sent.
///
/// # Errors
/// [`ErrorKind::Unreachable`]: it may be imported any time.
pub(crate) fn check_travelling(dir: &GroupDir, welcome: &Welcome) -> Result<()> {
    let Some(manifest) = load(&local(dir))? else { return Ok(()) };
    if welcome.promoted.is_some() {
        return Ok(());
    }
    if manifest.is_had_at(welcome.number, welcome.hash, welcome.position) {
        if let Err(error) = std::fs::write(imported(dir), []) {
            tracing::warn!("status will not show that the devices are imported: {error}");
        }
        return Ok(());
    }
    let end = manifest.after();
    let what = format!(
        "batches up to {} (seq {}) of group {} travel on transport devices and the target has up to {} \
         (seq {}): import them there (towline device import), then shipping goes on by itself. To send \
         everything over the network instead, drop the export: towline device forget",
        end.number, end.position.seq.0, manifest.group, welcome.number, welcome.position.seq.0
    );
    Err(Error::new(ErrorKind::Unreachable, what))
}

/// Drops the group's export: its devices count for nothing more here. Answers whether there
/// was one.
pub fn forget(state_dir: &Path, group: &GroupName) -> Result<bool> {
    let dir = GroupDir::of(state_dir, group);
    let _lock = dir.lock("ship.lock", "shipper").map_err(crate::source::from_journal)?;
    let local = local(&dir);
    match std::fs::remove_dir_all(local.dir()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::storage(format!("cannot remove {}", local.dir().display()), e)),
    }
}
