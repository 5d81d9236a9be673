//! `group.json`: which group the objects are of. Made once, by the first shipper, whose
//! session is the first; never changed.

use super::bucket::{Bucket, Created};
use super::names;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{GroupUuid, SessionId};
use crate::wire::{VOLUMES_MAX, VolumeSize};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use towline_block::{Epoch, GroupName};

pub const STORE_VERSION: u32 = 1;
/// As of a HELLO, which says the same.
pub(super) const GROUP_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFile {
    pub version: u32,
    pub group: GroupName,
    pub group_uuid: GroupUuid,
    /// Of the group when the store was begun.
    pub epoch: Epoch,
    /// In the order of their ids.
    pub volumes: Vec<VolumeSize>,
    /// Owner of session 1.
    pub session: SessionId,
}

impl GroupFile {
    /// What the store says; `None` for a store that was not begun.
    pub async fn load(bucket: &dyn Bucket, group: &GroupName) -> Result<Option<GroupFile>> {
        let Some(bytes) = bucket.read(names::GROUP, None, GROUP_BYTES_MAX).await? else {
            return Ok(None);
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |e| Error::caused(ErrorKind::Damaged, "the store's group.json is damaged", e);
        let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > STORE_VERSION {
            let what = format!(
                "the store has version {version}, this program reads up to {STORE_VERSION}: update towline"
            );
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let file: GroupFile = serde_json::from_slice(&bytes).map_err(damaged)?;
        if file.group != *group {
            let what = format!("the store's group.json is of group {}, not {group}", file.group);
            return Err(Error::damaged(what));
        }
        if !(1..=VOLUMES_MAX).contains(&file.volumes.len()) {
            return Err(Error::damaged("the store's group.json has too few or too many volumes"));
        }
        Ok(Some(file))
    }

    /// Begins a store, or finds who did.
    pub async fn load_or_create(&self, bucket: &dyn Bucket) -> Result<GroupFile> {
        loop {
            if let Some(file) = GroupFile::load(bucket, &self.group).await? {
                return Ok(file);
            }
            let bytes = serde_json::to_vec_pretty(self).map_err(|e| {
                Error::caused(ErrorKind::InvalidInput, "cannot write group.json", e)
            })?;
            if bucket.create(names::GROUP, Bytes::from(bytes)).await? == Created::Yes {
                return Ok(self.clone());
            }
        }
    }

    /// Whether this shipper's group may go on in a store that `theirs` began.
    pub fn check(&self, theirs: &GroupFile) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if self.group_uuid != theirs.group_uuid {
            return wrong(format!(
                "the store holds another group of the name {} ({}, not {}): give this one a folder \
                 or prefix of its own",
                self.group, theirs.group_uuid, self.group_uuid
            ));
        }
        if self.volumes != theirs.volumes {
            return wrong(format!(
                "the volumes of group {} are not those that the store was begun with: give it a \
                 folder or prefix of its own",
                self.group
            ));
        }
        Ok(())
    }
}
