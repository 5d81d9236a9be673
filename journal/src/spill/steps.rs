//! The last steps of the ladder, for people: `DIR/<group>/ladder.json`.
//!
//! Written at a step by the persister, without a spill by `watch.rs`, replaced whole, not synced: after a power loss it
//! may lack its end. Nothing is decided by it; one that cannot be read is no steps.

use super::Rung;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Steps kept: at the pace that the ladder's hysteresis allows, the last minutes of the
/// worst day and the last weeks of a good one.
pub const STEPS_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub unix_ns: u64,
    pub from: Rung,
    pub to: Rung,
    /// Of the ring, then.
    pub fill_percent: u64,
    pub reason: String,
}

/// The last steps, oldest first.
pub fn load(path: &Path) -> Vec<Step> {
    let Ok(bytes) = std::fs::read(path) else { return Vec::new() };
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Adds a step; the oldest make room. Returns the bytes written.
pub(crate) fn note(path: &Path, step: Step) -> io::Result<u64> {
    let mut steps = load(path);
    steps.push(step);
    let surplus = steps.len().saturating_sub(STEPS_MAX);
    steps.drain(..surplus);
    let temporary = path.with_extension("tmp");
    let bytes = serde_json::to_vec(&steps)?;
    std::fs::write(&temporary, &bytes)?;
    std::fs::rename(&temporary, path)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_are_kept_and_damage_is_no_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ladder.json");
        assert_eq!(load(&path), []);
        let step = |unix_ns| Step {
            unix_ns,
            from: Rung::Ring,
            to: Rung::Spill,
            fill_percent: 51,
            reason: "the target lags".into(),
        };
        for at in 0..STEPS_MAX as u64 + 5 {
            note(&path, step(at)).unwrap();
        }
        assert_eq!(load(&path), (5..STEPS_MAX as u64 + 5).map(step).collect::<Vec<_>>());
        std::fs::write(&path, b"[{").unwrap();
        assert_eq!(load(&path), []);
        note(&path, step(7)).unwrap();
        assert_eq!(load(&path), [step(7)]);
    }
}
