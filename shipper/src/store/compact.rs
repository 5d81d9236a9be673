//! Compaction: what is superseded folds into a base (table in docs/design/0013-store.md).
//!
//! The order of writes: parts of the new base, its description, only later what it replaces.
//! Objects are not removed but replaced by their headers: their names stay taken, so that no
//! shipper that comes late finds a free place where there was one taken.

use super::base::{Base, BaseReader, check_sealed};
use super::bucket::{Bucket, Created};
use super::fold::{Folder, Part};
use super::frontier::{Objects, longest, next};
use super::object::ObjectKind;
use super::{GroupFile, OBJECT_BYTES_MAX, OBJECT_HEADER_BYTES, StoreUrl, names};
use crate::batch::{Batch, Keyring, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use crate::receiver::import::check_bounds;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use towline_block::GroupName;
use zerocopy::IntoBytes;

/// A day.
pub const HISTORY_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
pub const GRACE_DEFAULT: Duration = HISTORY_DEFAULT;

/// What is kept.
#[derive(Clone, Debug)]
pub struct Compaction {
    pub keys: Keyring,
    /// Changes and marks younger than this stay as they are.
    pub history: Duration,
    /// What a base replaces is there for so long after it was made.
    pub grace: Duration,
    /// Older marks of these names may go.
    pub drop_marks: Vec<String>,
    pub now_unix_ns: u64,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// The base that this run made.
    pub made: Option<Base>,
    /// Another run made that generation meanwhile.
    pub other_was_faster: bool,
    /// The mark that keeps the base from being newer.
    pub held_by: Option<String>,
    /// Objects replaced by their headers, and parts of older bases removed.
    pub folded: u64,
    pub removed_parts: u64,
    pub freed_bytes: u64,
}

/// An object that counts and is in no base.
struct Place {
    session: u32,
    index: u32,
    number: u64,
    whole: bool,
    created_unix_ns: u64,
}

#[derive(Default)]
struct Survey {
    places: Vec<Place>,
    /// Name, batch, when.
    marks: Vec<(String, u64, u64)>,
}

struct Run<'a> {
    bucket: &'a Arc<dyn Bucket>,
    group: GroupUuid,
    sizes: Vec<u64>,
    owner: SessionId,
    plan: &'a Compaction,
}

/// Makes a newer base where there is something to fold, then gives back what bases replaced
/// that are older than the plan's grace. May be repeated after an error.
///
/// # Errors
/// [`ErrorKind::Damaged`] when what would be folded is not sound: nothing was given back then.
pub async fn compact(
    bucket: &Arc<dyn Bucket>,
    file: &GroupFile,
    plan: &Compaction,
) -> Result<Compacted> {
    let run = Run {
        bucket,
        group: file.group_uuid,
        sizes: file.volumes.iter().map(|volume| volume.size_bytes).collect(),
        owner: SessionId::random(),
        plan,
    };
    let mut report = Compacted::default();
    run.make_base(&mut report).await?;
    run.give_back(&mut report).await?;
    Ok(report)
}

/// As [`compact`], of a group in the store at `url`.
///
/// # Errors
/// Also [`ErrorKind::InvalidInput`] when there is nothing of the group.
pub fn compact_at(url: &StoreUrl, group: &GroupName, plan: &Compaction) -> Result<Compacted> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Error::storage("cannot start the runtime of the store", e))?;
    runtime.block_on(async {
        let bucket = url.open(group, false)?;
        let file = GroupFile::load(&*bucket, group).await?.ok_or_else(|| {
            let what = format!("nothing of group {group} was ever shipped to {url}");
            Error::new(ErrorKind::Unreachable, what)
        })?;
        compact(&bucket, &file, plan).await
    })
}

impl Run<'_> {
    fn objects(&self) -> Objects<'_> {
        Objects { bucket: &**self.bucket, group: self.group }
    }

    async fn make_base(&self, report: &mut Compacted) -> Result<()> {
        let old = Base::newest(&**self.bucket, self.group).await?;
        let survey = self.survey(old.as_ref()).await?;
        let is_young = |created: u64| {
            Duration::from_nanos(self.plan.now_unix_ns.saturating_sub(created)) < self.plan.history
        };
        let stays = |(name, _, created): &&(String, u64, u64)| {
            is_young(*created) || !self.plan.drop_marks.contains(name)
        };
        let mark = survey.marks.iter().find(stays);
        let chosen = survey.places.iter().rposition(|place| {
            place.whole
                && !is_young(place.created_unix_ns)
                && mark.is_none_or(|(_, number, _)| place.number < *number)
        });
        let is_old = |place: &Place| !is_young(place.created_unix_ns);
        report.held_by = mark
            .filter(|(_, number, _)| survey.places.iter().any(|p| is_old(p) && p.number >= *number))
            .map(|(name, ..)| name.clone());
        let Some(chosen) = chosen else { return Ok(()) };
        let places = survey.places.get(..=chosen).unwrap_or_default();
        self.fold(old, places, report).await
    }

    /// Everything behind the newest base: all of it is read, and its chain followed.
    async fn survey(&self, old: Option<&Base>) -> Result<Survey> {
        let (mut number, mut hash) =
            old.map_or((0, BatchHash::NONE), |base| (base.after.number, base.after.hash));
        let mut survey = Survey::default();
        let (mut session, mut index) = self.objects().place_of(number + 1).await?;
        while let Some((header, bytes)) = self.objects().whole(session, index).await? {
            let at = (session, index);
            (session, index) = match header.kind() {
                ObjectKind::End => (next(session)?, 1),
                _ => (session, next(index)?),
            };
            let after = header.after();
            if header.kind() == ObjectKind::End || after.number <= number {
                continue;
            }
            if header.kind() == ObjectKind::Folded {
                return Err(overtaken());
            }
            let mut created_unix_ns = 0;
            for bytes in header.split(&bytes)? {
                let batch = self.open(bytes)?;
                let view = batch.view();
                if (view.number(), view.prev_hash()) != (number + 1, hash) {
                    let name = names::object(at.0, at.1);
                    let what = format!("object {name} does not follow the batch before it");
                    return Err(Error::damaged(what));
                }
                (number, hash) = (view.number(), view.hash());
                created_unix_ns = view.created_unix_ns();
                for entry in view.ops() {
                    if let Op::Mark { label } = entry.op {
                        let name = String::from_utf8_lossy(label).into_owned();
                        survey.marks.push((name, number, created_unix_ns));
                    }
                }
            }
            if (number, hash) != (after.number, after.hash) {
                let name = names::object(at.0, at.1);
                return Err(Error::damaged(format!("object {name} does not end as it says")));
            }
            let (number, whole) = (after.number, after.whole);
            survey.places.push(Place {
                session: at.0,
                index: at.1,
                number,
                whole,
                created_unix_ns,
            });
        }
        Ok(survey)
    }

    fn open(&self, bytes: &[u8]) -> Result<Batch> {
        let batch = Batch::open(bytes.to_vec(), &self.plan.keys)?;
        check_sealed(&batch, &self.plan.keys)?;
        check_bounds(&batch.view(), &self.sizes)?;
        Ok(batch)
    }

    async fn fold(
        &self,
        old: Option<Base>,
        places: &[Place],
        report: &mut Compacted,
    ) -> Result<()> {
        let Some(last) = places.last() else { return Ok(()) };
        let end = self.objects().header(last.session, last.index).await?;
        let after = end.ok_or_else(overtaken)?.after();
        let generation = next(old.as_ref().map_or(0, |base| base.generation))?;
        let id = (self.group, self.owner, generation);
        let (key, now) = (self.plan.keys.newest().cloned(), self.plan.now_unix_ns);
        let mut folder = Folder::new(id, self.sizes.len(), &after, key, now);
        let mut attempt = 0;
        for place in places.iter().rev() {
            let found = self.objects().whole(place.session, place.index).await?;
            let (header, bytes) = found.ok_or_else(overtaken)?;
            if header.kind() != ObjectKind::Batches {
                return Err(overtaken());
            }
            for bytes in header.split(&bytes)?.into_iter().rev() {
                let parts = folder.add(&self.open(bytes)?.view())?;
                self.put_parts(parts, generation, &mut attempt).await?;
            }
        }
        if let Some(old) = old {
            let mut reader = BaseReader::new(self.bucket.clone(), old, self.sizes.clone());
            while let Some(batches) = reader.next(&self.plan.keys).await? {
                for batch in batches {
                    let parts = folder.add(&batch.view())?;
                    self.put_parts(parts, generation, &mut attempt).await?;
                }
            }
        }
        self.put_parts(folder.finish()?, generation, &mut attempt).await?;
        let (parts, bytes, hash) = folder.made();
        let base = Base {
            version: Base::version(),
            group_uuid: self.group,
            generation,
            attempt,
            owner: self.owner,
            created_unix_ns: now,
            parts,
            bytes,
            hash,
            after,
        };
        match base.publish(&**self.bucket).await? {
            true => report.made = Some(base),
            false => {
                report.other_was_faster = true;
                self.remove_parts(generation, attempt, parts).await?;
            }
        }
        Ok(())
    }

    /// The first part decides which attempt this is.
    async fn put_parts(&self, parts: Vec<Part>, generation: u32, attempt: &mut u32) -> Result<()> {
        for part in parts {
            if *attempt == 0 {
                *attempt = next(self.attempts(generation).await?)?;
                while !self.put_part(&part, generation, *attempt).await? {
                    *attempt = next(*attempt)?;
                }
            } else if !self.put_part(&part, generation, *attempt).await? {
                return Err(overtaken());
            }
        }
        Ok(())
    }

    /// False when another one lies there.
    async fn put_part(&self, part: &Part, generation: u32, attempt: u32) -> Result<bool> {
        let name = names::part(generation, attempt, part.index);
        if self.bucket.create(&name, part.bytes.clone()).await? == Created::Yes {
            return Ok(true);
        }
        let there = self.bucket.read(&name, Some(OBJECT_HEADER_BYTES as u64), READ_MAX).await?;
        Ok(there.is_some_and(|there| there.starts_with(part.header.as_bytes())))
    }

    async fn attempts(&self, generation: u32) -> Result<u32> {
        longest(async |attempt| self.is_there(&names::part(generation, attempt, 1)).await).await
    }

    async fn is_there(&self, name: &str) -> Result<bool> {
        Ok(self.bucket.read(name, Some(1), READ_MAX).await?.is_some())
    }

    /// From the last to the first, so that what an unfinished run leaves is found again.
    async fn remove_parts(&self, generation: u32, attempt: u32, parts: u32) -> Result<u64> {
        for part in (1..=parts).rev() {
            self.bucket.remove(&names::part(generation, attempt, part)).await?;
        }
        Ok(parts.into())
    }

    /// Gives back what the newest base replaces that is old enough.
    async fn give_back(&self, report: &mut Compacted) -> Result<()> {
        let bucket = &**self.bucket;
        let mut older = Vec::new();
        let mut kept = None;
        for generation in (1..=Base::generations(bucket).await?).rev() {
            let base = Base::load(bucket, self.group, generation).await?;
            let age = self.plan.now_unix_ns.saturating_sub(base.created_unix_ns);
            match kept {
                None if Duration::from_nanos(age) >= self.plan.grace => kept = Some(base),
                None => {}
                Some(_) => older.push(base),
            }
        }
        let Some(kept) = kept else { return Ok(()) };
        let from = self.first_unfolded(&older).await?;
        if from <= kept.after.number {
            self.check(&kept).await?;
            self.replace_objects(from, kept.after.number, report).await?;
        }
        self.remove_attempts(&kept, true, report).await?;
        for base in &older {
            self.remove_attempts(base, false, report).await?;
        }
        Ok(())
    }

    /// Objects are replaced in their order: where the last of an older base's is, all up to
    /// it are.
    async fn first_unfolded(&self, older: &[Base]) -> Result<u64> {
        for base in older {
            let (session, index) = self.objects().place_of(base.after.number).await?;
            let there = self.objects().header(session, index).await?;
            if there.is_some_and(|there| there.kind() == ObjectKind::Folded) {
                return Ok(base.after.number + 1);
            }
        }
        Ok(1)
    }

    /// Nothing is given back for a base that cannot be read to its end.
    async fn check(&self, base: &Base) -> Result<()> {
        let mut reader = BaseReader::new(self.bucket.clone(), base.clone(), self.sizes.clone());
        while reader.next(&self.plan.keys).await?.is_some() {}
        Ok(())
    }

    async fn replace_objects(&self, from: u64, upto: u64, report: &mut Compacted) -> Result<()> {
        let (mut session, mut index) = self.objects().place_of(from).await?;
        loop {
            let header = self.objects().header(session, index).await?;
            let header = header.ok_or_else(|| {
                let name = names::object(session, index);
                Error::damaged(format!("object {name} is missing: it was removed from the store"))
            })?;
            if header.kind() == ObjectKind::End {
                (session, index) = (next(session)?, 1);
                continue;
            }
            if header.after().number > upto {
                return Ok(());
            }
            if header.kind() == ObjectKind::Batches {
                let bytes = Bytes::copy_from_slice(header.folded().as_bytes());
                self.bucket.replace(&names::object(session, index), bytes).await?;
                report.folded += 1;
                report.freed_bytes += header.body_bytes.get();
            }
            if header.after().number == upto {
                return Ok(());
            }
            index = next(index)?;
        }
    }

    /// Parts of other attempts at a generation that is decided, and, but with `keep`, its own.
    async fn remove_attempts(&self, base: &Base, keep: bool, report: &mut Compacted) -> Result<()> {
        let generation = base.generation;
        let last = self.attempts(generation).await?.max(base.attempt);
        for attempt in (1..=last).rev() {
            if keep && attempt == base.attempt {
                continue;
            }
            let parts =
                longest(async |part| self.is_there(&names::part(generation, attempt, part)).await);
            let parts = parts.await?;
            if parts > 0 && attempt == base.attempt {
                report.freed_bytes += base.bytes;
            }
            report.removed_parts += self.remove_parts(generation, attempt, parts).await?;
        }
        Ok(())
    }
}

const READ_MAX: u64 = OBJECT_BYTES_MAX as u64;

fn overtaken() -> Error {
    let what = "another compaction of this store went on meanwhile: run this one again";
    Error::new(ErrorKind::Busy, what)
}
