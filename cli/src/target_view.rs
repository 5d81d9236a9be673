//! A receiver's state directory, as `status` shows it.

use crate::report::{GroupStatus, ProcessStatus, VolumeStatus};
use std::fs::{File, TryLockError};
use std::path::Path;
use towline_shipper::receiver::{Layout, ReceiverStatus, Rollback};

/// The group that is received into `dir`; none where no receiver ever ran.
pub fn status(dir: &Path) -> anyhow::Result<Option<GroupStatus>> {
    let Some(found) = ReceiverStatus::load(dir)? else { return Ok(None) };
    let state = &found.state;
    let (durable, applied) = (&found.durable, &state.applied);
    let promoted = state.promoted.as_ref();
    let point =
        promoted.map(|takeover| takeover.position).or(durable.point.as_ref().map(|p| p.position));
    let volume = |target: &towline_shipper::receiver::TargetRecord| VolumeStatus {
        name: target.name.to_string(),
        size_bytes: target.size_bytes,
        exports: Vec::new(),
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
        volumes: state.volumes.iter().map(volume).collect(),
        processes: vec![ProcessStatus {
            process: "receive",
            alive: is_locked(&Layout::of(dir).lock),
        }],
        last_error: state.last_error.clone(),
        ..GroupStatus::default()
    }))
}

fn is_locked(lock: &Path) -> bool {
    File::open(lock)
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
