//! A base: what all batches up to an object's end come to, as batches of a chain of its own.
//!
//! Its parts lie where its attempt put them; `bases/<generation>.json`, created if absent when
//! all parts are durable, makes them the base of that generation. That file is never removed.

use super::bucket::{Bucket, Created};
use super::frontier::longest;
use super::object::ObjectHeader;
use super::{OBJECT_BYTES_MAX, names};
use crate::batch::{Batch, Keyring};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use crate::receiver::{Stream, import};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use towline_block::crc32c;

const BASE_VERSION: u32 = 1;
const BASE_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub version: u32,
    pub group_uuid: GroupUuid,
    pub generation: u32,
    /// Which attempt's parts these are.
    pub attempt: u32,
    /// The run that made it.
    pub owner: SessionId,
    /// By the clock of who made it: how long its parts are there for readers.
    pub created_unix_ns: u64,
    pub parts: u32,
    pub bytes: u64,
    /// Of the last of its batches; none: [`BatchHash::NONE`].
    pub hash: BatchHash,
    /// Where the group's stream stands: what the base is in place of. A point.
    pub after: Stream,
}

#[derive(Serialize, Deserialize)]
struct Checked {
    base: Base,
    /// Of `base`, written as JSON without spaces.
    crc32c: u32,
}

impl Base {
    pub(crate) fn version() -> u32 {
        BASE_VERSION
    }

    /// The newest generation; 0 when there is none.
    pub(crate) async fn generations(bucket: &dyn Bucket) -> Result<u32> {
        longest(async |generation| {
            let name = names::base(generation);
            Ok(bucket.read(&name, Some(1), BASE_BYTES_MAX).await?.is_some())
        })
        .await
    }

    /// The newest base.
    pub async fn newest(bucket: &dyn Bucket, group: GroupUuid) -> Result<Option<Base>> {
        match Base::generations(bucket).await? {
            0 => Ok(None),
            generation => Base::load(bucket, group, generation).await.map(Some),
        }
    }

    pub(crate) async fn load(
        bucket: &dyn Bucket,
        group: GroupUuid,
        generation: u32,
    ) -> Result<Base> {
        let name = names::base(generation);
        let damaged = |what: &str| Error::damaged(format!("the store's {name} {what}"));
        let bytes = bucket.read(&name, None, BASE_BYTES_MAX).await?;
        let bytes = bytes.ok_or_else(|| damaged("is missing"))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|_| damaged("is damaged"))?;
        if value["base"]["version"].as_u64().is_some_and(|v| v > u64::from(BASE_VERSION)) {
            let what = format!("the store's {name} is newer than this program: update towline");
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let checked: Checked = serde_json::from_value(value).map_err(|_| damaged("is damaged"))?;
        let base = checked.base;
        if crc(&base)? != checked.crc32c {
            return Err(damaged("has a checksum that does not match"));
        }
        match (base.group_uuid, base.generation) == (group, generation) {
            true => Ok(base),
            false => Err(damaged("is of another group or generation")),
        }
    }

    /// Makes it the base of its generation; false when another one is.
    pub(crate) async fn publish(&self, bucket: &dyn Bucket) -> Result<bool> {
        let checked = Checked { crc32c: crc(self)?, base: self.clone() };
        let bytes = serde_json::to_vec_pretty(&checked).map_err(unwritable)?;
        let name = names::base(self.generation);
        if bucket.create(&name, Bytes::from(bytes)).await? == Created::Yes {
            return Ok(true);
        }
        // It may be ours, of which the answer was lost.
        let there = Base::load(bucket, self.group_uuid, self.generation).await?;
        Ok(there.owner == self.owner)
    }
}

fn crc(base: &Base) -> Result<u32> {
    Ok(crc32c(&serde_json::to_vec(base).map_err(unwritable)?))
}

fn unwritable(e: serde_json::Error) -> Error {
    Error::caused(ErrorKind::InvalidInput, "cannot write a base's description", e)
}

/// Reads a base part by part; every batch is opened and checked to be the next of its chain.
pub struct BaseReader {
    bucket: Arc<dyn Bucket>,
    base: Base,
    sizes: Vec<u64>,
    /// Read so far.
    parts: u32,
    number: u64,
    hash: BatchHash,
}

impl BaseReader {
    /// `sizes`: of the group's volumes.
    pub fn new(bucket: Arc<dyn Bucket>, base: Base, sizes: Vec<u64>) -> BaseReader {
        BaseReader { bucket, base, sizes, parts: 0, number: 0, hash: BatchHash::NONE }
    }

    /// The next part's batches; `None` when all was read and ends as it should.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for anything else; the base is not to be used then.
    pub async fn next(&mut self, keys: &Keyring) -> Result<Option<Vec<Batch>>> {
        let generation = self.base.generation;
        if self.parts == self.base.parts {
            return match self.hash == self.base.hash {
                true => Ok(None),
                false => Err(Error::damaged(format!("base {generation} does not end as it says"))),
            };
        }
        let part = self.parts + 1;
        let bad = |what: &str| {
            let why = format!("part {part} of base {generation} {what}");
            Error::damaged(why)
        };
        let name = names::part(generation, self.base.attempt, part);
        let bytes = self.bucket.read(&name, None, OBJECT_BYTES_MAX as u64).await?;
        let bytes = bytes.ok_or_else(|| bad("is gone: a newer base may have replaced it"))?;
        let header = ObjectHeader::read_part(&bytes, self.base.group_uuid, generation, part)?;
        if header.owner() != self.base.owner {
            return Err(bad("is of another compaction"));
        }
        let mut batches = Vec::new();
        for bytes in header.split(&bytes)? {
            let named = |error: Error| error.of(format_args!("object {name}"));
            let batch = Batch::open(bytes.to_vec(), keys).map_err(named)?;
            check_sealed(&batch, keys)?;
            let view = batch.view();
            import::check_bounds(&view, &self.sizes).map_err(named)?;
            let follows = view.group() == self.base.group_uuid
                && view.session() == self.base.owner
                && view.number() == self.number + 1
                && view.prev_hash() == self.hash;
            if !follows {
                return Err(bad("has a batch that does not follow the one before"));
            }
            (self.number, self.hash) = (view.number(), view.hash());
            batches.push(batch);
        }
        self.parts = part;
        Ok(Some(batches))
    }
}

/// Who gives keys takes nothing unsealed.
pub(crate) fn check_sealed(batch: &Batch, keys: &Keyring) -> Result<()> {
    if batch.is_sealed() || keys.newest().is_none() {
        return Ok(());
    }
    let what = "the store holds batches that are not sealed, though a key was given: whoever can \
                write there may have written them";
    Err(Error::new(ErrorKind::NotAuthorised, what))
}
