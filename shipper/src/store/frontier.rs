//! Finding places without listing: sessions and places are numbered without gaps, so the
//! last one is found by doubling and halving, a handful of small reads each.
//!
//! A session that was taken over while objects were on their way may have holes near its
//! end, at most [`AHEAD_MAX`] places wide: there every place is looked at.

use super::bucket::Bucket;
use super::object::{ObjectHeader, ObjectKind};
use super::{AHEAD_MAX, OBJECT_BYTES_MAX, OBJECT_HEADER_BYTES, names};
use crate::batch;
use crate::error::{Error, Result};
use crate::ids::GroupUuid;
use crate::receiver::Stream;
use bytes::Bytes;

/// The next free place of the newest session, and the stream before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frontier {
    pub session: u32,
    pub index: u32,
    pub after: Stream,
}

/// Reads objects of one group.
#[derive(Clone, Copy)]
pub(crate) struct Objects<'a> {
    pub bucket: &'a dyn Bucket,
    pub group: GroupUuid,
}

impl Objects<'_> {
    pub async fn header(&self, session: u32, index: u32) -> Result<Option<ObjectHeader>> {
        let first = Some(OBJECT_HEADER_BYTES as u64);
        let name = names::object(session, index);
        let bytes = self.bucket.read(&name, first, OBJECT_BYTES_MAX as u64).await?;
        bytes.map(|bytes| ObjectHeader::read(&bytes, self.group, session, index)).transpose()
    }

    pub async fn whole(&self, session: u32, index: u32) -> Result<Option<(ObjectHeader, Bytes)>> {
        let name = names::object(session, index);
        let bytes = self.bucket.read(&name, None, OBJECT_BYTES_MAX as u64).await?;
        let Some(bytes) = bytes else { return Ok(None) };
        let header = ObjectHeader::read(&bytes, self.group, session, index)?;
        Ok(Some((header, bytes)))
    }

    pub async fn exists(&self, session: u32, index: u32) -> Result<bool> {
        Ok(self.header(session, index).await?.is_some())
    }

    /// Where the stream ends.
    pub async fn frontier(&self) -> Result<Frontier> {
        // All sessions but the newest have an object at their first place: at least an END.
        let last = longest(async |session| self.exists(session, 1).await).await?;
        if last == 0 {
            return Ok(Frontier { session: 1, index: 1, after: Stream::default() });
        }
        let landing = longest(async |index| self.exists(last, index).await).await?;
        let mut index = landing.saturating_sub(AHEAD_MAX).max(1);
        let mut after = Stream::default();
        loop {
            match self.header(last, index).await? {
                Some(header) if header.kind() == ObjectKind::End => {
                    let session = next(last)?;
                    return Ok(Frontier { session, index: 1, after: header.after() });
                }
                Some(header) => after = header.after(),
                None => break,
            }
            index = next(index)?;
        }
        self.check_last(last, index - 1).await?;
        Ok(Frontier { session: last, index, after })
    }

    /// Whether the last batch of an object is what its header says: the stream is about to
    /// be built upon it.
    async fn check_last(&self, session: u32, index: u32) -> Result<()> {
        let Some((header, bytes)) = self.whole(session, index).await? else { return Ok(()) };
        // Was checked before it was folded.
        if header.kind() == ObjectKind::Folded {
            return Ok(());
        }
        let batches = header.split(&bytes)?;
        let hash = batches.last().and_then(|bytes| batch::check(bytes).ok());
        if hash == Some(header.after().hash) {
            return Ok(());
        }
        let name = names::object(session, index);
        Err(Error::damaged(format!(
            "object {name}, the last of the stream, is damaged: ship to another folder or prefix"
        )))
    }

    /// The place of the object that has batch `number`, or would have it next.
    pub async fn place_of(&self, number: u64) -> Result<(u32, u32)> {
        let begins_by = async |session, index| {
            let header = self.header(session, index).await?;
            Ok(header.is_some_and(|header| header.first_number.get() <= number))
        };
        let session = longest(async |session| begins_by(session, 1).await).await?.max(1);
        let index = longest(async |index| begins_by(session, index).await).await?.max(1);
        Ok((session, index))
    }
}

/// The place or session after this one.
pub(crate) fn next(at: u32) -> Result<u32> {
    at.checked_add(1)
        .ok_or_else(|| Error::damaged("the store has an object at the last place there is"))
}

/// The largest `n` with `is_there(n)`, where that holds from 1 up to somewhere; 0 when
/// it does not hold for 1.
pub(crate) async fn longest(is_there: impl AsyncFn(u32) -> Result<bool>) -> Result<u32> {
    let (mut there, mut beyond) = (0, 1);
    while is_there(beyond).await? {
        there = beyond;
        if beyond == u32::MAX {
            return Ok(beyond);
        }
        beyond = beyond.saturating_mul(2);
    }
    while beyond - there > 1 {
        let middle = there + (beyond - there) / 2;
        if is_there(middle).await? {
            there = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_place_is_found_in_few_looks() {
        for last in [0, 1, 2, 3, 7, 8, 100, 1_000_000, u32::MAX] {
            let looks = std::cell::Cell::new(0);
            let found = longest(async |n| {
                looks.set(looks.get() + 1);
                Ok(n <= last)
            });
            assert_eq!(found.await.unwrap(), last);
            assert!(looks.get() <= 65, "{} looks for {last}", looks.get());
        }
    }
}
