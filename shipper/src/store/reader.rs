//! Reads a group's stream from a store, object by object, from any batch on.

use super::bucket::Bucket;
use super::frontier::{Objects, next};
use super::object::ObjectKind;
use super::{AHEAD_MAX, names};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use bytes::Bytes;
use std::sync::Arc;

/// So often nothing new is found before it is asked whether something is missing.
const LOOK_FOR_GAPS_EVERY: u32 = 64;
/// And whether something is that may yet come: a shipper has several objects on their way.
const LOOK_FOR_HOLES_EVERY: u32 = 1024;
pub(super) const LOOK_FOR_HOLES_AT: u32 = 128;

pub struct Reader {
    bucket: Arc<dyn Bucket>,
    group: GroupUuid,
    session: u32,
    index: u32,
    /// Batches before this one are passed over.
    number: u64,
    /// How often in a row nothing was there.
    waits: u32,
    /// Of the batches that were found last.
    object: String,
    hole: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Batches in order, as they were cut. Checked only as far as telling them apart
    /// needs: who takes them follows the chain.
    Batches(Vec<Bytes>),
    /// Nothing more yet.
    Nothing,
}

impl Reader {
    /// A reader whose first batch is `number`.
    pub async fn open(bucket: Arc<dyn Bucket>, group: GroupUuid, number: u64) -> Result<Reader> {
        let objects = Objects { bucket: &*bucket, group };
        let (session, index) = objects.place_of(number).await?;
        Ok(Reader {
            bucket,
            group,
            session,
            index,
            number,
            waits: 0,
            object: String::new(),
            hole: None,
        })
    }

    /// The name of the object whose batches were found last.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The object that has not been there for long, though later ones are.
    pub fn hole(&self) -> Option<&str> {
        self.hole.as_deref()
    }

    /// What comes next. After an error the same is read again.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when the object is not sound, or is gone though later
    /// ones are there.
    pub async fn next(&mut self) -> Result<Found> {
        loop {
            let objects = Objects { bucket: &*self.bucket, group: self.group };
            let Some((header, bytes)) = objects.whole(self.session, self.index).await? else {
                if self.waits.is_multiple_of(LOOK_FOR_GAPS_EVERY) {
                    self.check_gap().await?;
                }
                if self.waits % LOOK_FOR_HOLES_EVERY == LOOK_FOR_HOLES_AT {
                    self.hole = self.find_hole().await?;
                }
                self.waits = self.waits.wrapping_add(1);
                return Ok(Found::Nothing);
            };
            (self.waits, self.hole) = (0, None);
            if header.kind() == ObjectKind::End {
                (self.session, self.index) = (next(self.session)?, 1);
                continue;
            }
            if header.kind() == ObjectKind::Folded && header.after().number >= self.number {
                let what = format!(
                    "batch {} was folded into the store's base: what reads here was behind for longer \
                     than the store keeps its history; begin anew (an empty state directory), it then \
                     starts from the base",
                    self.number
                );
                return Err(Error::new(ErrorKind::Refused, what));
            }
            if header.kind() == ObjectKind::Folded {
                self.index = next(self.index)?;
                continue;
            }
            let skip = self.number.saturating_sub(header.first_number.get());
            let batches: Vec<Bytes> = header
                .split(&bytes)?
                .into_iter()
                .skip(usize::try_from(skip).unwrap_or(usize::MAX))
                .map(|batch| bytes.slice_ref(batch))
                .collect();
            self.object = names::object(self.session, self.index);
            self.index = next(self.index)?;
            if !batches.is_empty() {
                self.number = header.after().number + 1;
                return Ok(Found::Batches(batches));
            }
        }
    }

    /// The object that is not there, if a later one of its session is.
    async fn find_hole(&self) -> Result<Option<String>> {
        let objects = Objects { bucket: &*self.bucket, group: self.group };
        for ahead in 1..AHEAD_MAX {
            if objects.exists(self.session, self.index.saturating_add(ahead)).await? {
                return Ok(Some(names::object(self.session, self.index)));
            }
        }
        Ok(None)
    }

    /// The object that is not there yet must not have successors that prove it was.
    async fn check_gap(&self) -> Result<()> {
        let objects = Objects { bucket: &*self.bucket, group: self.group };
        let ahead = self.index.saturating_add(AHEAD_MAX);
        let later = objects.exists(next(self.session)?, 1).await?
            || objects.exists(self.session, ahead).await?;
        // It may have come in between.
        if !later || objects.exists(self.session, self.index).await? {
            return Ok(());
        }
        let name = names::object(self.session, self.index);
        Err(Error::damaged(format!(
            "object {name} is missing, though later ones are there: it was removed from the store"
        )))
    }
}
