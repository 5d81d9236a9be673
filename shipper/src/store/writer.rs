//! One shipper's way into a store: taking over, then objects one after the other.
//!
//! Taking over puts an END at the next free place of the newest session. Whatever was
//! acknowledged before lies in front of it; whatever lands behind it counts for nobody.
//! An object is acknowledged once it and all before it are there.

use super::bucket::{Bucket, Created};
use super::frontier::{Frontier, Objects, next};
use super::group::GroupFile;
use super::object::{At, ObjectHeader, ObjectKind};
use super::{OBJECT_BYTES, OBJECT_HEADER_BYTES, names};
use crate::batch::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{GroupUuid, SessionId};
use crate::receiver::Stream;
use bytes::Bytes;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Others that take over at the same time are met so often.
const CONTENDERS_MAX: usize = 256;

pub(crate) struct Writer {
    group: GroupUuid,
    owner: SessionId,
    /// Of the store's `group.json`.
    begun_by: SessionId,
    session: u32,
    /// Place of the next object.
    index: u32,
    /// The stream behind all objects that were made.
    after: Stream,
    draft: Draft,
}

/// Batches that will be the next object.
#[derive(Default)]
struct Draft {
    bytes: Vec<u8>,
    first: u64,
    count: u32,
    op_count: u64,
}

/// An object as it will lie in the store.
#[derive(Clone)]
pub(crate) struct Made {
    name: String,
    header: ObjectHeader,
    bytes: Bytes,
    pub after: Stream,
    /// Operations in its batches.
    pub op_count: u64,
}

impl Made {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// As it is put.
    #[cfg(test)]
    pub fn as_put(&self) -> (String, Bytes) {
        (self.name.clone(), self.bytes.clone())
    }
}

impl Writer {
    /// Begins a session of its own behind everything that counts in the store.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the store is of a later epoch; [`ErrorKind::InvalidInput`] when
    /// it is of another group or other volumes; [`ErrorKind::Damaged`] when its end is not sound.
    pub async fn take_over(bucket: &Arc<dyn Bucket>, own: &GroupFile) -> Result<Writer> {
        let theirs = own.load_or_create(&**bucket).await?;
        own.check(&theirs)?;
        let objects = Objects { bucket: &**bucket, group: own.group_uuid };
        let mut at = objects.frontier().await?;
        if (at.session, at.index) == (1, 1) && theirs.session == own.session {
            return Ok(Writer::at(own, &theirs, at));
        }
        for _ in 0..CONTENDERS_MAX {
            if at.after.position.epoch > own.epoch {
                let what = format!(
                    "the store is of epoch {}, this side of {}: somebody else writes the group now",
                    at.after.position.epoch.0, own.epoch.0
                );
                return Err(Error::new(ErrorKind::Refused, what));
            }
            at = match end(bucket, objects, own, &at).await? {
                (next, true) => return Ok(Writer::at(own, &theirs, next)),
                (next, false) => next,
            };
        }
        Err(Error::new(ErrorKind::Unreachable, "too many shippers take over the store at once"))
    }

    fn at(own: &GroupFile, theirs: &GroupFile, at: Frontier) -> Writer {
        Writer {
            group: own.group_uuid,
            owner: own.session,
            begun_by: theirs.session,
            session: at.session,
            index: at.index,
            after: at.after,
            draft: Draft::default(),
        }
    }

    /// Where the stream stands behind all objects made so far.
    pub fn after(&self) -> &Stream {
        &self.after
    }

    /// By what the store is known again.
    pub fn begun_by(&self) -> SessionId {
        self.begun_by
    }

    pub fn session(&self) -> u32 {
        self.session
    }

    pub fn is_empty(&self) -> bool {
        self.draft.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.draft.bytes.len() >= OBJECT_BYTES
    }

    /// Adds the batch that comes next.
    pub fn push(&mut self, sealed: &Sealed) {
        if self.is_empty() {
            self.draft.bytes = vec![0; OBJECT_HEADER_BYTES];
            self.draft.first = sealed.number;
        }
        self.draft.bytes.extend_from_slice(&sealed.bytes);
        self.draft.count += 1;
        self.draft.op_count += u64::from(sealed.op_count);
        self.after = self.after.then(sealed);
    }

    /// Makes an object of what was added.
    pub fn make(&mut self) -> Result<Made> {
        let Draft { mut bytes, first, count, op_count } = std::mem::take(&mut self.draft);
        let at =
            At { group: self.group, owner: self.owner, session: self.session, index: self.index };
        let body = (bytes.len() - OBJECT_HEADER_BYTES) as u64;
        let header = ObjectHeader::batches(at, first, count, body, &self.after);
        let (place, _) = bytes.split_at_mut(OBJECT_HEADER_BYTES);
        place.copy_from_slice(header.as_bytes());
        let name = names::object(self.session, self.index);
        self.index = next(self.index)?;
        Ok(Made { name, header, bytes: bytes.into(), after: self.after.clone(), op_count })
    }
}

/// Ends the session of `at` there. Answers where the stream ends now, and whether it was
/// us who ended it.
async fn end(
    bucket: &Arc<dyn Bucket>,
    objects: Objects<'_>,
    own: &GroupFile,
    at: &Frontier,
) -> Result<(Frontier, bool)> {
    let place =
        At { group: own.group_uuid, owner: own.session, session: at.session, index: at.index };
    let header = ObjectHeader::end(place, &at.after);
    let name = names::object(at.session, at.index);
    let bytes = Bytes::copy_from_slice(header.as_bytes());
    let created = bucket.create(&name, bytes).await?;
    let there = match created {
        Created::Yes => Some(header.clone()),
        Created::Exists => objects.header(at.session, at.index).await?,
    };
    match there {
        Some(there) if there.kind() == ObjectKind::End => {
            let after = Frontier { session: next(at.session)?, index: 1, after: there.after() };
            Ok((after, there == header))
        }
        // The other shipper was faster: this one counts, too.
        Some(there) => Ok((
            Frontier { session: at.session, index: next(at.index)?, after: there.after() },
            false,
        )),
        None => Ok((at.clone(), false)),
    }
}

/// Puts an object to its place. May be repeated after an error, until it is known how it
/// went.
///
/// # Errors
/// [`ErrorKind::Refused`] when another shipper has taken over: nothing more of this one's
/// counts.
pub(crate) async fn put(bucket: &dyn Bucket, made: &Made) -> Result<()> {
    if bucket.create(&made.name, made.bytes.clone()).await? == Created::Yes {
        return Ok(());
    }
    let first = Some(OBJECT_HEADER_BYTES as u64);
    let there = bucket.read(&made.name, first, super::OBJECT_BYTES_MAX as u64).await?;
    let there = there.unwrap_or_default();
    // The header has the hash of the last batch: the same header is the same object, which may
    // have been folded since.
    if there.starts_with(made.header.as_bytes())
        || there.starts_with(made.header.folded().as_bytes())
    {
        return Ok(());
    }
    let what = format!("another shipper has taken over the store at {}: end this one", made.name);
    Err(Error::new(ErrorKind::Refused, what))
}
