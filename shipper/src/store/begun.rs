//! Which store a group was shipped to last, kept beside the group's state: a disk that is not
//! mounted when a shipper starts is no reason to begin another store in its mount point.

use super::StoreUrl;
use super::bucket::Bucket;
use super::group::GroupFile;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::SessionId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use towline_block::GroupName;
use towline_journal::{GroupDir, durable};

/// `store.json` in the group's state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    url: String,
    /// Of the store's `group.json`: each store that is begun has another.
    session: SessionId,
}

fn path(dir: &GroupDir) -> PathBuf {
    dir.path().join("store.json")
}

impl Begun {
    /// What is known of the store at `url`; `None`: nothing, it may be begun.
    pub fn load(dir: &GroupDir, url: &StoreUrl) -> Result<Option<Begun>> {
        let path = path(dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::storage(format!("cannot read {}", path.display()), e)),
        };
        let begun: Begun = serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!(
                "{} is damaged: remove it, and see that the store is mounted",
                path.display()
            );
            Error::caused(ErrorKind::Damaged, what, e)
        })?;
        Ok(Some(begun).filter(|begun| begun.url == url.to_string()))
    }

    /// Whether this is the store that was begun.
    pub async fn check(
        &self,
        dir: &GroupDir,
        bucket: &dyn Bucket,
        group: &GroupName,
    ) -> Result<()> {
        let found = GroupFile::load(bucket, group).await?;
        if found.is_some_and(|found| found.session == self.session) {
            return Ok(());
        }
        Err(self.away(dir, group))
    }

    /// The store is not there.
    pub fn away(&self, dir: &GroupDir, group: &GroupName) -> Error {
        let what = format!(
            "the store of group {group} that was begun is not at {}: mount it; to begin another one there, \
             remove {}",
            self.url,
            path(dir).display()
        );
        Error::new(ErrorKind::Unreachable, what)
    }

    /// From now on the group's store.
    pub fn keep(dir: &GroupDir, url: &StoreUrl, session: SessionId) -> Result<()> {
        let begun = Begun { url: url.to_string(), session };
        if Begun::load(dir, url).is_ok_and(|known| known.as_ref() == Some(&begun)) {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&begun)
            .map_err(|e| Error::caused(ErrorKind::InvalidInput, "cannot write store.json", e))?;
        durable::replace(&path(dir), &bytes).map_err(crate::source::from_journal)
    }
}
