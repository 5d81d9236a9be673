//! Marks: points that the target can be brought back to.
//!
//! ```text
//!  batches applied  ───────────┬──────────────────┬─────────────> targets now
//!                            mark A             mark B
//!  what each file holds        [ blocks as at A ] [ blocks as at B ]
//!                                overwritten A-B    overwritten since B
//! ```
//! Each mark has a file with the pre-images of what was overwritten between it and the
//! next one; only the newest grows. To go back to a mark its file and all newer ones
//! are written back, newest first. The last point before a broken phase (rule R5) is such
//! a mark, made by itself and forgotten when the group is whole again.
//!
//! A clone reads files and targets while the receiver goes on. It holds a shared `flock` on its mark's
//! file, which therefore is not removed, nor any newer one; `changes` tells it of everything that
//! is no append to the newest file.
//!
//! Files go from the oldest on, so a mark that has had its day gives its room back once
//! all older ones are gone, too. Must not write a target, except to go back.

mod age;
mod changes;
mod layout;
mod listing;
mod segment;

pub(super) use changes::{Seen, look as look_at_changes};
pub(super) use listing::{numbers, path as file_path};
pub(super) use segment::{read_data, read_entry};

pub use age::Ages;
pub use layout::{MarkHeader, PreImage};
pub use listing::{ListedMark, list};

use super::medium::{LogFile, Medium, Target};
use super::stream::{Point, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use changes::Changes;
use segment::Segment;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use towline_block::{Extent, MarkName, VolumeId};

/// The mark whose file this is, when header and every entry are whole; `None` when the header
/// is not. `sizes`: of the volumes, by id. Nothing is written.
///
/// # Errors
/// When an entry is damaged or the file cannot be read.
pub fn check_file(path: &Path, group: GroupUuid, sizes: &[u64]) -> Result<Option<Mark>> {
    let Some(segment) = Segment::open(Medium::default().open(path)?, group)? else {
        return Ok(None);
    };
    segment.check(sizes)?;
    Ok(Some(segment.mark))
}

/// Which marks are made and how long they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkPolicy {
    /// A periodic mark so often, while something is applied; `None`: none.
    pub every: Option<Duration>,
    /// A periodic mark is kept so long.
    pub keep: Duration,
    /// All files together. Past it the oldest marks go first; a point that a broken phase
    /// leads back to never goes: applying stops.
    pub bytes_max: u64,
}

/// A day of periodic marks, where they are asked for.
pub const KEEP_DEFAULT: Duration = Duration::from_secs(24 * 3600);

impl Default for MarkPolicy {
    fn default() -> MarkPolicy {
        MarkPolicy { every: None, keep: KEEP_DEFAULT, bytes_max: u64::MAX }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// The last point, while the group is broken.
    Point,
    Periodic,
    /// Asked for at the source.
    Named(MarkName),
}

/// A batch end at which the group was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub kind: MarkKind,
    /// When it was applied, by the target's clock.
    pub unix_ns: u64,
    pub stream: Stream,
}

/// How far the newest file is durable: stored with `applied`, so that damage before it
/// is told from a torn end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableMark {
    pub number: u64,
    pub bytes: u64,
}

/// A mark that was made for a clone goes when its clone has gone, and not before that had the time to
/// take hold of it.
const CLONE_WAIT: Duration = Duration::from_secs(60);

/// The file that asks for a mark where the targets stand.
pub(super) fn wanted(marks: &Path) -> PathBuf {
    marks.with_file_name("wanted")
}

/// The mark of a file's header; `None` for what is damaged, unknown or of another group.
pub(super) fn read_header(bytes: &[u8; size_of::<MarkHeader>()], group: GroupUuid) -> Option<Mark> {
    MarkHeader::read(bytes, group)
}

pub struct Marks {
    dir: PathBuf,
    medium: Medium,
    group: GroupUuid,
    /// Of the volumes, by id: nothing outside them is believed or written.
    sizes: Vec<u64>,
    policy: MarkPolicy,
    /// By number, rising; the last one is open for saving.
    segments: Vec<Segment>,
    changes: Changes,
    /// Made because a clone asked for them, since this started.
    for_clones: Vec<u64>,
}

/// What [`Marks::load`] is told of the group.
pub struct Owner<'a> {
    pub group: GroupUuid,
    pub sizes: Vec<u64>,
    pub applied: &'a Stream,
    pub durable: Option<DurableMark>,
}

impl Marks {
    /// Opens what is on disk. Files that were never built upon are removed; damage costs
    /// the marks that need the damaged part, loudly.
    pub fn load(dir: &Path, medium: Medium, policy: MarkPolicy, owner: Owner<'_>) -> Result<Marks> {
        let (group, sizes) = (owner.group, owner.sizes);
        let dir = dir.to_owned();
        let changes = Changes::open(&dir, &medium)?;
        let (segments, for_clones) = (Vec::new(), Vec::new());
        let mut marks = Marks { dir, medium, group, sizes, policy, segments, changes, for_clones };
        for number in listing::numbers(&marks.dir)? {
            let log = marks.medium.open(&marks.path(number))?;
            let segment = Segment::open(log, group)?.filter(|s| s.mark.stream.number == number);
            match segment {
                // A later one than what is applied: its batch is applied again.
                Some(segment) if number <= owner.applied.number => marks.segments.push(segment),
                Some(_) => marks.remove(number)?,
                None if marks.is_unused(number, owner.durable)? => marks.remove(number)?,
                None => marks.lose(number, "its header is damaged")?,
            }
        }
        marks.resume(owner.durable)?;
        Ok(marks)
    }

    /// Makes the newest segment ready for more.
    fn resume(&mut self, durable: Option<DurableMark>) -> Result<()> {
        let known = |number| durable.filter(|d| d.number == number).map_or(0, |d| d.bytes);
        if let Some(durable) = durable
            && let Some(at) = self.segments.iter().position(|s| s.number() == durable.number)
            && self.segments.get(at).is_some_and(|s| s.log.end() < durable.bytes)
        {
            self.lose_upto(at, "it is cut off")?;
        }
        let sizes = self.sizes.clone();
        let Some(newest) = self.segments.last_mut() else { return Ok(()) };
        let durable = known(newest.number());
        if newest.resume(&sizes, durable)? < durable {
            self.lose_upto(self.segments.len() - 1, "an entry is damaged")?;
        }
        Ok(())
    }

    /// Whether a file without a header is one whose making was cut short.
    fn is_unused(&self, number: u64, durable: Option<DurableMark>) -> Result<bool> {
        let log = self.medium.open(&self.path(number))?;
        let is_known = durable.is_some_and(|durable| durable.number >= number);
        Ok(!is_known && log.end() <= layout::HEADER_BYTES as u64)
    }

    fn path(&self, number: u64) -> PathBuf {
        listing::path(&self.dir, number)
    }

    fn remove(&self, number: u64) -> Result<()> {
        self.medium.remove(&self.path(number))
    }

    /// This file is useless, and with it every older one.
    fn lose(&mut self, number: u64, why: &str) -> Result<()> {
        tracing::error!(
            "{}: {why}; this mark and all older ones are lost",
            self.path(number).display()
        );
        self.remove(number)?;
        for segment in std::mem::take(&mut self.segments) {
            self.remove(segment.number())?;
        }
        self.changes.rewound();
        self.changes.tell()
    }

    fn lose_upto(&mut self, at: usize, why: &str) -> Result<()> {
        let newer = self.segments.split_off(at + 1);
        if let Some(damaged) = self.segments.pop() {
            self.lose(damaged.number(), why)?;
        }
        self.segments = newer;
        Ok(())
    }

    /// The newest point that a file leads back to.
    pub fn newest(&self) -> Option<Point> {
        self.segments.last().and_then(|segment| segment.mark.stream.point)
    }

    /// The last point of `applied`, if the targets can be brought back to it.
    pub fn point(&self, applied: &Stream) -> Option<Point> {
        self.newest().filter(|point| applied.point == Some(*point))
    }

    /// Where the newest file ends, durably.
    pub fn durable(&self) -> Option<DurableMark> {
        let newest = self.segments.last()?;
        Some(DurableMark { number: newest.number(), bytes: newest.log.end() })
    }

    /// Whether a periodic mark is due at `unix_ns`, at batch `number`.
    pub fn is_due(&self, number: u64, unix_ns: u64) -> bool {
        let Some(every) = self.policy.every else { return false };
        let last = self.segments.iter().rev().find(|s| s.mark.kind != MarkKind::Point);
        last.is_none_or(|last| {
            // The clock may have been put back behind it: then nobody knows how old it is.
            let age = unix_ns.checked_sub(last.mark.unix_ns);
            let is_due = age.is_none_or(|age| u128::from(age) >= every.as_nanos());
            last.number() < number && is_due
        })
    }

    /// Writes a new mark's file. It counts from [`Marks::commit`] on: until then the
    /// batch it stands at may have to be applied again.
    pub fn prepare(&mut self, mark: Mark) -> Result<Prepared> {
        let path = self.path(mark.stream.number);
        let segment = Segment::create(self.medium.create(&path)?, self.group, mark)?;
        self.medium.sync_dir(&self.dir)?;
        Ok(Prepared(segment))
    }

    /// From now on what is overwritten is saved for this mark.
    pub fn commit(&mut self, prepared: Prepared) {
        if let Some(former) = self.segments.last_mut()
            && let Err(error) = former.close()
        {
            tracing::warn!(%error, "room behind a mark's end was not given back");
        }
        self.segments.push(prepared.0);
        self.changes.added();
    }

    /// Whether a clone asks for a mark where the targets stand.
    pub fn is_wanted(&self) -> bool {
        wanted(&self.dir).exists()
    }

    /// Makes the mark that a clone asks for. `applied`: where the targets stand, exactly.
    pub fn grant(&mut self, applied: &Stream) -> Result<()> {
        if applied.whole && applied.point.is_some() && self.newest() != applied.point {
            let stream = Stream { sealed: None, ..applied.clone() };
            let prepared =
                self.prepare(Mark { kind: MarkKind::Periodic, unix_ns: unix_ns(), stream })?;
            self.commit(prepared);
            self.for_clones.push(applied.number);
        }
        self.medium.remove(&wanted(&self.dir))
    }

    /// Sees to it that the point at which `applied` stands can be gone back to: a broken
    /// phase begins behind it.
    pub fn hold(&mut self, applied: &Stream) -> Result<()> {
        if !applied.whole || self.newest() == applied.point {
            return Ok(());
        }
        let mark = Mark { kind: MarkKind::Point, unix_ns: unix_ns(), stream: applied.clone() };
        let prepared = self.prepare(mark)?;
        self.commit(prepared);
        Ok(())
    }

    /// Whether anything that is overwritten has to be saved.
    pub fn is_recording(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Makes the present content of all blocks under `ranges` durable, as far as the
    /// newest mark needs it. Where there is no room the oldest marks are given up.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the point of the broken phase that `applied` is in, or is about
    /// to enter (`breaks`), would have to be given up.
    pub fn save(
        &mut self,
        targets: &[Target],
        ranges: &[(VolumeId, Extent)],
        applied: &Stream,
        breaks: bool,
    ) -> Result<()> {
        let kept = if breaks { applied.point.map(|point| point.number) } else { None };
        loop {
            // Before anything is written over what a clone may know.
            self.changes.tell()?;
            let used: u64 = self.segments.iter().map(|segment| segment.log.end()).sum();
            let room = self.policy.bytes_max.saturating_sub(used);
            let Some(newest) = self.segments.last_mut() else { return Ok(()) };
            match newest.save(targets, ranges, room) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.changes.rewound();
                    let is_full = error.kind() == ErrorKind::NoSpace;
                    if !is_full || !self.give_up_oldest(kept)? {
                        return Err(self.explained(error));
                    }
                }
            }
        }
    }

    fn explained(&self, error: Error) -> Error {
        let oldest = self.segments.first().filter(|_| error.kind() == ErrorKind::NoSpace);
        match oldest.filter(|oldest| is_leased(&oldest.log)) {
            Some(oldest) => {
                let what = format!("a clone holds mark {} and all newer ones: end it", oldest.mark);
                Error::caused(ErrorKind::NoSpace, what, error)
            }
            None => error,
        }
    }

    /// Gives up the oldest marks until they have let go of so many bytes, or no more may go. `kept`:
    /// the number of the point that is needed to go back to. Answers how many bytes.
    pub fn make_room(&mut self, bytes: u64, kept: Option<u64>) -> Result<u64> {
        let mut freed = 0;
        while freed < bytes {
            let oldest = self.segments.first().map_or(0, |segment| segment.log.end());
            if !self.give_up_oldest(kept)? {
                break;
            }
            freed += oldest;
        }
        Ok(freed)
    }

    /// False when nothing may go.
    fn give_up_oldest(&mut self, kept: Option<u64>) -> Result<bool> {
        let Some(number) = self.segments.first().map(Segment::number) else { return Ok(false) };
        if Some(number) == kept || !self.release(number)? {
            return Ok(false);
        }
        tracing::warn!(mark = %self.segments[0].mark, "given up: the marks' room is used up");
        self.segments.remove(0);
        Ok(true)
    }

    /// Removes the oldest files as far as no mark that is kept needs them. `unix_ns`: of
    /// [`Ages`].
    pub fn prune(&mut self, applied: &Stream, unix_ns: u64) -> Result<()> {
        let broken_at = applied.point.filter(|_| !applied.whole).map(|point| point.number);
        let keep = self.policy.keep;
        let for_clones = &self.for_clones;
        let is_kept = |segment: &Segment| match segment.mark.kind {
            MarkKind::Point => broken_at == Some(segment.number()),
            MarkKind::Named(_) => true,
            MarkKind::Periodic if broken_at == Some(segment.number()) => true,
            MarkKind::Periodic if for_clones.contains(&segment.number()) => {
                !is_old(&segment.mark, keep.min(CLONE_WAIT), unix_ns)
            }
            MarkKind::Periodic => !is_old(&segment.mark, keep, unix_ns),
        };
        let useless = self.segments.iter().position(is_kept).unwrap_or(self.segments.len());
        for _ in 0..useless {
            let Some(number) = self.segments.first().map(Segment::number) else { break };
            if !self.release(number)? {
                break;
            }
            self.segments.remove(0);
        }
        Ok(())
    }

    /// Removes the oldest file, unless a clone holds it. A clone takes hold by a shared lock and then
    /// looks whether the file is still there.
    fn release(&mut self, number: u64) -> Result<bool> {
        let path = self.path(number);
        let Ok(file) = std::fs::File::open(&path) else { return Ok(false) };
        if file.try_lock().is_err() {
            return Ok(false);
        }
        self.medium.remove(&path)?;
        self.for_clones.retain(|made| *made != number);
        Ok(true)
    }

    /// Whether all that leads back to the mark at batch `number` is sound.
    pub fn check(&self, number: u64) -> Result<()> {
        let since = self.segments.iter().filter(|segment| segment.number() >= number);
        since.into_iter().try_for_each(|segment| segment.check(&self.sizes))
    }

    /// Writes back everything that was overwritten since the mark at batch `number`, and
    /// flushes all targets. Nothing is written unless all of it is sound. May be repeated.
    pub fn roll_back(&self, number: u64, targets: &[Target]) -> Result<()> {
        if self.get(number).is_none() {
            let what = format!("no mark stands at batch {number}");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        self.check(number)?;
        targets.iter().for_each(|target| target.disk.start_over());
        let newest_first = self.segments.iter().rev().take_while(|s| s.number() >= number);
        newest_first.into_iter().try_for_each(|s| s.restore(targets, &self.sizes))?;
        targets.iter().try_for_each(Target::sync)
    }

    /// The mark at batch `number`.
    pub fn get(&self, number: u64) -> Option<&Mark> {
        self.segments.iter().map(|segment| &segment.mark).find(|m| m.stream.number == number)
    }

    /// The targets stand at this mark again: newer ones are gone, and nothing is saved for it.
    /// May be repeated.
    pub fn went_back(&mut self, number: u64) -> Result<()> {
        while let Some(newest) = self.segments.pop() {
            if newest.number() == number {
                self.segments.push(newest.emptied()?);
                break;
            }
            self.remove(newest.number())?;
        }
        self.medium.sync_dir(&self.dir)
    }

    /// Whether a clone reads what is here.
    pub fn is_cloned(&self) -> bool {
        self.segments.iter().any(|segment| is_leased(&segment.log))
    }

    /// Forgets every mark.
    pub fn clear(&mut self) -> Result<()> {
        self.segments.clear();
        let numbers = listing::numbers(&self.dir)?;
        if numbers.is_empty() {
            return Ok(());
        }
        numbers.iter().try_for_each(|number| self.remove(*number))?;
        self.changes.rewound();
        self.changes.tell()?;
        self.medium.sync_dir(&self.dir)
    }
}

/// A mark whose file is written and does not count yet.
pub struct Prepared(Segment);

impl Segment {
    fn number(&self) -> u64 {
        self.mark.stream.number
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            MarkKind::Named(name) => write!(f, "{name}"),
            MarkKind::Point | MarkKind::Periodic => write!(f, "#{}", self.stream.number),
        }
    }
}

/// Whether a clone holds the file.
fn is_leased(log: &LogFile) -> bool {
    std::fs::File::open(log.path()).is_ok_and(|file| file.try_lock().is_err())
}

fn is_old(mark: &Mark, keep: Duration, unix_ns: u64) -> bool {
    u128::from(unix_ns.saturating_sub(mark.unix_ns)) > keep.as_nanos()
}

/// Now, by the target's clock.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
