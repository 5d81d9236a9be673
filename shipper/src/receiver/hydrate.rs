//! A new target from a store's base: written to the targets before there is a state, so a
//! crash on the way leaves none, and the next start begins again. A newer base covers all
//! that an older one did.

use super::follow::Follow;
use super::hello::open_or_create;
use super::import;
use super::medium::{Medium, Target};
use super::state::{STATE_VERSION, State, TargetRecord};
use super::{Layout, Limits, room, target};
use crate::batch::{Keyring, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Base, BaseReader, Bucket, GroupFile};
use std::path::PathBuf;
use std::sync::Arc;
use towline_block::VolumeName;

/// What hydrating needs of the receiver.
pub(super) struct Ground {
    pub layout: Layout,
    pub medium: Medium,
    pub limits: Limits,
    pub targets: Vec<(VolumeName, PathBuf)>,
    pub keys: Keyring,
}

impl Ground {
    /// Whether nothing was ever received here.
    pub fn is_new(&self) -> bool {
        !self.layout.state.exists()
    }

    /// Brings the targets to where the base stands. Answers the state that says so, which is
    /// not durable yet.
    pub async fn hydrate(
        &self,
        bucket: &Arc<dyn Bucket>,
        file: &GroupFile,
        base: Base,
        follow: &Follow,
    ) -> Result<State> {
        tracing::info!(
            from = %follow.url, base = base.generation, batch = base.after.number,
            bytes = base.bytes, "hydrating from the store's base"
        );
        let targets = self.open_targets(file)?;
        room::check(&self.layout, &targets, &self.limits)?;
        let sizes = file.volumes.iter().map(|volume| volume.size_bytes).collect();
        let after = base.after.clone();
        let mut reader = BaseReader::new(bucket.clone(), base, sizes);
        while let Some(batches) = reader.next(&self.keys).await? {
            for batch in batches {
                for entry in batch.view().ops() {
                    write(&targets, entry.op)?;
                }
            }
        }
        targets.iter().try_for_each(Target::sync)?;
        let record = |target: &Target| TargetRecord {
            name: target.name.clone(),
            size_bytes: target.disk.size_bytes(),
            path: target::place(target.disk.path()),
        };
        Ok(State {
            version: STATE_VERSION,
            group: file.group.clone(),
            group_uuid: file.group_uuid,
            epoch: after.position.epoch,
            volumes: targets.iter().map(record).collect(),
            applied: after,
            marks_durable: None,
            rewind: None,
            decisions: Vec::new(),
            promoted: None,
            last_error: None,
        })
    }

    fn open_targets(&self, file: &GroupFile) -> Result<Vec<Target>> {
        let open = |volume: &crate::wire::VolumeSize| {
            let given = self.targets.iter().find(|(name, _)| *name == volume.name);
            let Some((name, path)) = given else {
                let name = &volume.name;
                let what =
                    format!("there is no target for volume {name}: add --target {name}=PATH");
                return Err(Error::new(ErrorKind::InvalidInput, what));
            };
            open_or_create(name.clone(), path, volume.size_bytes, &self.medium)
        };
        file.volumes.iter().map(open).collect()
    }
}

fn write(targets: &[Target], op: Op<'_>) -> Result<()> {
    let Some((volume, extent)) = op.touches() else { return Ok(()) };
    let target = targets.get(volume.index());
    let target = target.ok_or_else(|| Error::damaged("a base names an unknown volume"))?;
    match op {
        Op::Write { offset, payload, .. } => target.write(offset, payload),
        Op::Zero { keep_allocated, .. } => target.zero(extent, keep_allocated),
        _ => target.zero(extent, false),
    }
}

impl super::clerk::Clerk {
    /// The targets hold what `state` says, and nobody was received meanwhile: from now on
    /// this is a receiver that stands there.
    pub fn hydrated(&mut self, state: State) -> Result<()> {
        if self.bound.is_some() {
            let what = "a shipper connected while the targets were hydrated from the store";
            return Err(Error::new(ErrorKind::Refused, what));
        }
        let desk = &self.desk;
        import::stand(&desk.layout, state, None, &desk.medium)?;
        let opened = super::recovery::open(&desk.layout, &desk.medium, &desk.limits, &desk.keys)?;
        if let Some(store) = opened {
            self.bind(store);
        }
        Ok(())
    }
}
