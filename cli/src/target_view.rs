//! A receiver's state directory, as `status` shows it.

use crate::report::{GroupStatus, ProcessStatus, VolumeStatus};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use towline_shipper::batch::Keyring;
use towline_shipper::receiver::{Layout, ReceiverStatus, Rollback, TargetRecord, noted};

/// The group that is received into `dir`; none where no receiver ever ran.
pub fn status(dir: &Path, keys: &Keyring) -> anyhow::Result<Option<GroupStatus>> {
    let Some(found) = ReceiverStatus::load(dir, keys)? else { return Ok(None) };
    let state = &found.state;
    let (durable, applied) = (&found.durable, &state.applied);
    let promoted = state.promoted.as_ref();
    let point =
        promoted.map(|takeover| takeover.position).or(durable.point.as_ref().map(|p| p.position));
    let alive = is_locked(&Layout::of(dir).lock);
    let served = if alive && promoted.is_some() { exports(dir) } else { Vec::new() };
    let volume = |target: &TargetRecord| VolumeStatus {
        name: target.name.to_string(),
        size_bytes: target.size_bytes,
        exports: of_volume(&served, target.name.as_str()),
    };
    Ok(Some(GroupStatus {
        group: state.group.to_string(),
        role: "target",
        state: match (promoted, point) {
            (Some(takeover), _) if takeover.rollback == Rollback::Pending => "cutover".into(),
            (Some(_), _) => "promoted".into(),
            (None, None) => "baseline".into(),
            (None, Some(_)) if durable.whole => "live".into(),
            (None, Some(_)) => "resync".into(),
        },
        epoch: state.epoch.0,
        incarnation: durable.position.incarnation.0,
        head_seq: durable.position.seq.0,
        done_seq: applied.position.seq.0,
        durable_seq: durable.position.seq.0,
        acked_seq: durable.position.seq.0,
        point_seq: point.map(|position| position.seq.0),
        lag_bytes: durable.stream_bytes.saturating_sub(applied.stream_bytes),
        lacking_bytes: found.lacking_bytes,
        volumes: state.volumes.iter().map(volume).collect(),
        processes: vec![ProcessStatus { process: "receive", alive }],
        last_error: state.last_error.clone(),
        key_needed: found.locked.is_some(),
        ..GroupStatus::default()
    }))
}

/// Every group that is received into `dir`: one, or each in a folder of its own.
pub fn all(dir: &Path, keys: &Keyring) -> anyhow::Result<Vec<GroupStatus>> {
    let mut found: Vec<GroupStatus> = known(dir, status(dir, keys)?, "").into_iter().collect();
    let mut folders: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| Layout::of(path).dir.is_dir())
        .collect();
    folders.sort_unstable();
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        // One that is damaged hides no other.
        found.extend(match status(&folder, keys) {
            Ok(group) => known(&folder, group, &name),
            Err(error) => Some(GroupStatus {
                last_error: Some(crate::exit::sentence(&error)),
                ..bare(&folder, &name)
            }),
        });
    }
    Ok(found)
}

/// What is known of a folder: its group, or a receiver that has none yet.
fn known(dir: &Path, group: Option<GroupStatus>, name: &str) -> Option<GroupStatus> {
    let problem = noted(&Layout::of(dir));
    match group {
        Some(group) => {
            Some(GroupStatus { last_error: problem.or(group.last_error.clone()), ..group })
        }
        None if problem.is_some() || Layout::of(dir).lock.exists() => {
            Some(GroupStatus { last_error: problem, ..bare(dir, name) })
        }
        None => None,
    }
}

/// A receiver that never came to receive anything.
fn bare(dir: &Path, name: &str) -> GroupStatus {
    let alive = is_locked(&Layout::of(dir).lock);
    GroupStatus {
        group: name.to_owned(),
        role: "target",
        state: "baseline".into(),
        processes: vec![ProcessStatus { process: "receive", alive }],
        ..GroupStatus::default()
    }
}

fn is_locked(lock: &Path) -> bool {
    File::open(lock)
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Beside the receiver's own files: the addresses under which it serves.
pub fn exports_file(state_dir: &Path) -> PathBuf {
    state_dir.join("receive.exports")
}

/// Notes the exports for `status`. Not durable, not needed for anything else: a
/// restarted receiver writes it anew.
pub fn keep_exports(file: &Path, uris: &[String]) {
    if let Err(error) = std::fs::write(file, uris.join("\n")) {
        tracing::warn!(
            "status will not show the exports: cannot write {}: {error}",
            file.display()
        );
    }
}

fn exports(state_dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(exports_file(state_dir)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The URIs whose export is this volume.
fn of_volume(uris: &[String], volume: &str) -> Vec<String> {
    let is_of = |uri: &&String| {
        let (path, _) = uri.split_once('?').unwrap_or((uri, ""));
        path.rsplit('/').next() == Some(volume)
    };
    uris.iter().filter(is_of).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_sorted_by_their_volume() {
        let uris = ["nbd+unix:///a?socket=/x/b", "nbd://h:1/b", "nbd://h:1/a"].map(String::from);
        assert_eq!(of_volume(&uris, "a"), ["nbd+unix:///a?socket=/x/b", "nbd://h:1/a"]);
        assert_eq!(of_volume(&uris, "b"), ["nbd://h:1/b"]);
    }

    #[test]
    fn a_folder_without_a_receiver_has_no_target() {
        let dir = tempfile::tempdir().unwrap();
        assert!(all(dir.path(), &Keyring::default()).unwrap().is_empty());
    }

    #[test]
    fn a_receiver_without_a_group_is_shown_with_what_it_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path());
        std::fs::create_dir_all(&layout.dir).unwrap();
        let lock = File::create(&layout.lock).unwrap();
        lock.lock().unwrap();
        let shown = || all(dir.path(), &Keyring::default()).unwrap().remove(0);
        assert_eq!((shown().group.as_str(), shown().processes[0].alive), ("", true));
        towline_shipper::receiver::note(&layout, Some("the store is empty"));
        assert_eq!(shown().last_error.as_deref(), Some("the store is empty"));
        drop(lock);
        assert!(!shown().processes[0].alive);
    }
}
