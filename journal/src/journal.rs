//! The journal as its owner, the proxy, holds it: opening and recovery.

mod found;
mod incarnation;
mod mark;
mod past;
mod place;
mod settle;
mod slots;

use crate::activity::{self, Activity, Base, CoolerContext, EXTENT_BYTES, Hot};
use crate::append::{AppendLock, Cursor};
use crate::attach::{Granted, Resync};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::*;
use crate::map::{Bits, PartMap, VolumeMap, runs_of};
use crate::record::{Record, SlotFault};
use crate::recover::{
    self, ActivityFound, Decision, Findings, RingFound, SavedFound, SourceFound, SpillFound,
    StateFound,
};
use crate::resume::History;
use crate::ring::{Ring, RingSpec};
use crate::saved::Saved;
use crate::spill::layout::SEGMENT_BYTES;
use crate::spill::{
    self, Durability, Owner, Persister, Place, RungWatch, Scanned, Segments, Spill, SpillOptions,
    Store,
};
use crate::state::*;
use crate::sys::sync::{Mutex, Ordering};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;
use towline_block::sys::free_bytes;
use towline_block::{
    BLOCK_BYTES, BlockRange, Disk, Extent, GroupName, Stamp, VolumeId, VolumeName, crc32c,
};

pub use crate::recover::AttachPolicy;
use found::{Found, check_volumes};
use incarnation::{Content, new_incarnation};
use past::Past;
use place::Whereabouts;
use slots::close_open_records;

/// Largest ring taken without being asked for.
const RING_BYTES_DEFAULT_MAX: u64 = 256 << 20;

/// One volume to journal. The disk must be owned ([`towline_block::Access::Own`]).
#[derive(Clone)]
pub struct Source {
    pub name: VolumeName,
    pub disk: Arc<dyn Disk>,
}

pub struct Options {
    pub group: GroupName,
    /// The `--state` directory; the group gets a folder in it.
    pub state_dir: PathBuf,
    /// Where rings live, a file system in memory.
    pub ring_dir: PathBuf,
    /// Payload bytes of a ring made now; `None`: [`default_ring_bytes`].
    pub ring_bytes: Option<u64>,
    pub sources: Vec<Source>,
    pub attach: AttachPolicy,
    pub spill: SpillOptions,
    /// Length of a round of the activity map: what nobody wrote for one to two of them goes
    /// cold; [`activity::COOL_EVERY`] unless there is a reason.
    pub cool_every: Duration,
    /// Unix time in nanoseconds.
    pub clock: fn() -> u64,
}

/// What recovery found and did, for the log and for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// A sentence for the operator.
    pub summary: String,
    pub created: bool,
    pub restarted: bool,
    /// Records between the target's ack and the head.
    pub records: u64,
    /// Records whose outcome was open: rewritten from the source.
    pub rewritten: u64,
    /// Records whose outcome was open or unreadable: their blocks are dirty.
    pub dirtied: u64,
    /// Source bytes read (only those of records with open outcome).
    pub source_bytes_read: u64,
    /// Records that the target lacks were on disk and are not any more.
    pub spill_lost: bool,
    /// Records of the lost ring that the spill has for a target that stands in it.
    pub history_records: u64,
    /// Set when the group was sealed by a cutover.
    pub seal: Option<Seal>,
}

pub struct Journal {
    pub(crate) group: GroupName,
    pub(crate) dir: GroupDir,
    pub(crate) ring: Arc<Ring>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) cooler: Option<JoinHandle<()>>,
    /// Checks what was found in the ring (`journal/settle.rs`).
    pub(crate) settling: Mutex<Option<JoinHandle<()>>>,
    pub(crate) ring_file: File,
    pub(crate) cursor: Arc<AppendLock>,
    pub(crate) spill: Option<Arc<Spill>>,
    /// Volumes whose source's flush is the spill's, too.
    pub(crate) flushed_with: Vec<bool>,
    /// What the spill has of the incarnation before, while it counts.
    pub(crate) history: Mutex<Option<(PastRing, History)>>,
    pub(crate) claims: Mutex<BTreeMap<u64, Granted>>,
    /// Of each volume's dirty blocks, which parts.
    pub(crate) parts: Vec<PartMap>,
    /// When a HEAL that nothing but the ladder holds back was first asked for; 0: it was not.
    pub(crate) heal_asked_ns: AtomicU64,
    pub(crate) state: Mutex<GroupState>,
    pub(crate) sources: Vec<Source>,
    pub(crate) clock: fn() -> u64,
    /// Ends before the lock is given up.
    pub(crate) persister: Option<Persister>,
    /// In its place without a spill.
    pub(crate) rung_watch: Option<RungWatch>,
    pub(crate) _lock: File,
}

/// min(256 MiB, 1/8 of memory, half of what is free where rings live).
pub fn default_ring_bytes(ring_dir: &Path) -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.to_owned();
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map_or(RING_BYTES_DEFAULT_MAX, |kib| kib * 1024 / 8);
    let free = free_bytes(ring_dir).map_or(RING_BYTES_DEFAULT_MAX, |free| free / 2);
    RING_BYTES_DEFAULT_MAX.min(memory).min(free).max(RING_BYTES_MIN) / PAGE_BYTES * PAGE_BYTES
}

/// The wall clock, for [`Options::clock`].
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the journal's default clock is read"
)]
pub fn unix_now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

impl Journal {
    /// Opens the group's journal: creates it, goes on with it, or recovers it, as
    /// the table in `recover.rs` says. Never writes a source (R1).
    pub fn open(options: Options) -> Result<(Arc<Journal>, OpenReport)> {
        if options.sources.is_empty() || options.sources.len() > VOLUMES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a group has 1 to {VOLUMES_MAX} volumes, not {}", options.sources.len()),
            ));
        }
        let dir = GroupDir::of(&options.state_dir, &options.group);
        dir.create()?;
        let lock = dir.lock("lock", "proxy")?;
        let stored = dir.load()?;
        if let Some(state) = &stored {
            check_volumes(state, &options.sources)?;
        }
        let whereabouts = Whereabouts::look(&dir, stored.as_ref(), &options.spill)?;
        let found = Found::gather(&dir, stored.as_ref(), &options, &whereabouts.recorded)?;
        let decision = recover::decide(&found.findings(stored.is_some(), options.attach));
        let past = stored.as_ref().and_then(|state| Past::of(state, &found.scanned));
        let mut report = OpenReport::default();
        let restart = |why: &'static str, past: Option<&Past>, report: &mut OpenReport| {
            *report = OpenReport {
                restarted: true,
                summary: Decision::Restart { why, history: false }.sentence(),
                ..OpenReport::default()
            };
            new_incarnation(&dir, &options, stored.as_ref(), &Content::Unknown, past)
        };
        let (ring, ring_file, mut state, cursor) = match decision {
            Decision::Refuse(why) => {
                return Err(Error::new(
                    ErrorKind::Newer,
                    format!("group {}: {}", options.group, Decision::Refuse(why).sentence()),
                ));
            }
            Decision::UseRing | Decision::UseRingCompareAll => {
                let (ring, file) = found.ring.expect("an intact ring was opened");
                match close_open_records(&ring, &options, &mut report) {
                    Ok(cursor) => {
                        report.summary = format!(
                            "{}: {} records for the target, {} of them rewritten",
                            Decision::UseRing.sentence(),
                            report.records,
                            report.rewritten
                        );
                        (ring, file, stored.clone().expect("state is present"), cursor)
                    }
                    Err(damage) => {
                        tracing::error!("{damage}");
                        restart(recover::RECORD_DAMAGED, past.as_ref(), &mut report)?
                    }
                }
            }
            Decision::Create => {
                report.created = true;
                report.summary = decision.sentence();
                past::tell_of_left_rings(&options);
                new_incarnation(&dir, &options, None, &Content::New, None)?
            }
            Decision::RestoreSaved => {
                report.summary = decision.sentence();
                let saved = found.saved.as_ref().expect("a valid map was read");
                let content = Content::Saved(saved, found.activity.as_ref());
                new_incarnation(&dir, &options, stored.as_ref(), &content, None)?
            }
            Decision::CompareHot { history } => {
                let past = past.as_ref().filter(|_| history);
                let hot = found.activity.as_ref().expect("a sound map was read");
                report.restarted = true;
                report.summary = decision.sentence();
                new_incarnation(&dir, &options, stored.as_ref(), &Content::Active(hot), past)?
            }
            Decision::Restart { why, history } => {
                restart(why, past.as_ref().filter(|_| history), &mut report)?
            }
        };
        report.seal = state.seal.clone();
        let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
        let activity =
            Activity::resume(&dir.activity_path(), state.group_uuid.0, state.incarnation, &sizes)?;
        let (ring, activity) = (Arc::new(ring), Arc::new(activity));
        // Of a new ring only the RESYNC, which has no payload.
        let kept = ring.get(Counter::Acked).max(ring.get(Counter::Spilled));
        let found_in_ring = kept + 1..=ring.get(Counter::Head);
        let is_new = ring.get(Counter::Acked) == 0 && ring.get(Counter::AckedClaims) == 0;
        let history = state.history.filter(|_| is_new).map(|past| {
            let runs = found.scanned.runs(&past.ring_id.0);
            report.history_records = runs.iter().map(|run| run.last + 1 - run.first).sum();
            (past, History { incarnation: past.incarnation, runs })
        });
        if report.history_records > 0 {
            report.summary += &format!(
                "; first a target that stands there gets {} records that the spill has of the \
                 lost ring",
                report.history_records
            );
        }
        let segments = found.scanned.sorted(
            &ring.superblock.ring_id,
            ring.get(Counter::Acked),
            history.as_ref().map(|(past, _)| &past.ring_id.0),
        );
        let place = whereabouts.settle(&dir, &mut state, segments, (options.clock)())?;
        ring.set(Counter::SpillFault, u64::from(place.is_none()));
        let spill = match place {
            Some((place, segments)) => open_spill(&dir, place, segments, &options.spill)?,
            None => None,
        };
        let medium = spill.as_ref().and_then(|spill| spill.medium);
        let is_with = |source: &Source| medium.is_some_and(|medium| medium.holds(&*source.disk));
        let flushed_with = options.sources.iter().map(is_with).collect();
        let cursor = Arc::new(AppendLock::new(cursor));
        let cooler = start_cooler(&options.sources, options.cool_every, &ring, &activity)?;
        let mut journal = Journal {
            group: options.group,
            dir,
            ring,
            activity,
            cooler: Some(cooler),
            settling: Mutex::new(None),
            ring_file,
            cursor,
            spill,
            flushed_with,
            history: Mutex::new(history),
            claims: Mutex::new(BTreeMap::new()),
            parts: options.sources.iter().map(|_| PartMap::new()).collect(),
            heal_asked_ns: AtomicU64::new(0),
            state: Mutex::new(state),
            sources: options.sources,
            clock: options.clock,
            persister: None,
            rung_watch: None,
            _lock: lock,
        };
        journal.start(&mut report)?;
        if decision == Decision::UseRingCompareAll && !report.restarted {
            report.summary = decision.sentence();
            tracing::error!(group = %journal.group, "{}", report.summary);
            report.spill_lost = true;
            journal.resync_all(Resync::Compare);
        }
        let owner = Owner {
            group: journal.group.clone(),
            ring: journal.ring.clone(),
            cursor: journal.cursor.clone(),
            steps_path: journal.dir.steps_path(),
            clock: journal.clock,
        };
        match &journal.spill {
            Some(spill) => {
                spill.publish(&journal.ring);
                journal.persister = Some(Persister::start(spill.clone(), owner)?);
            }
            None => journal.rung_watch = Some(RungWatch::start(owner)?),
        }
        let journal = Arc::new(journal);
        if !found_in_ring.is_empty() {
            settle::start(&journal, found_in_ring)?;
        }
        Ok((journal, report))
    }

    /// Common end of every way to open: what the last run left for a later start is
    /// gone, counts are those of the bits, claims are dirty again, failed records
    /// have dirty blocks, and a group with anything dirty is not whole.
    fn start(&self, report: &mut OpenReport) -> Result<()> {
        Saved::remove(&self.dir.saved_path())?;
        let mut state = self.state.lock().expect("state lock");
        if state.stopped.take().is_some() {
            self.store(&state)?;
        }
        drop(state);
        self.ring.set(Counter::OwnerPid, u64::from(std::process::id()));
        let mut pending = 0;
        for index in 0..self.sources.len() {
            // A kill may have come between a bit and its count.
            VolumeMap::new(&self.ring, VolumeId(index as u16)).recount(&mut pending);
        }
        self.revert_claims();
        let mut cursor = self.lock_cursor();
        if pending > 0 {
            let nothing = BlockRange::new(0, 0);
            self.make_dirty(&mut cursor, VolumeId(0), nothing);
        }
        let head = cursor.next_seq - 1;
        let kept = self.ring.get(Counter::Acked).max(self.ring.get(Counter::Spilled));
        for seq in kept + 1..=head {
            let Ok(record) = self.ring.record(seq) else { continue };
            let blocks = record.blocks();
            if record.state == SlotState::Failed && blocks.count > 0 {
                let map = VolumeMap::new(&self.ring, record.volume);
                if !map.all_set(Bits::Dirty, blocks) {
                    report.dirtied += 1;
                    self.make_dirty(&mut cursor, record.volume, blocks);
                }
            }
        }
        drop(cursor);
        self.heat_pending();
        self.heat_unknown();
        self.advance_done();
        Ok(())
    }

    /// R7: what is dirty is hot, before any guest is served: a write to dirty blocks goes
    /// past the journal and heats nothing. A kill may have come before the map knew, and
    /// the records closed above never touched it.
    fn heat_pending(&self) {
        let mut pending = Vec::new();
        for (index, volume) in self.ring.volumes.iter().enumerate() {
            let size = volume.size_bytes.get();
            let map = VolumeMap::new(&self.ring, VolumeId(index as u16));
            let extents = activity::extents_of(index, Extent::new(0, size), size);
            pending.extend(extents.into_iter().filter(|(_, extent)| {
                let offset = extent * EXTENT_BYTES;
                let range = Extent::new(offset, EXTENT_BYTES.min(size - offset));
                map.is_pending(BlockRange::touching(range))
            }));
        }
        if let Err(e) = self.activity.heat_now(&pending) {
            tracing::error!("{e}: a power loss before what is dirty is sent may go unnoticed");
        }
    }

    /// R7: writes of a killed owner went past a slow state disk; which ones is forgotten.
    fn heat_unknown(&self) {
        if self.ring.get(Counter::ActivityInvalid) == 0 {
            return;
        }
        match self.activity.heat_all() {
            Ok(()) => self.ring.set(Counter::ActivityInvalid, 0),
            Err(e) => tracing::error!("{e}: a power loss may go unnoticed (--attach resync)"),
        }
    }

    /// Bytes of extents that a power loss now would compare.
    pub fn hot_bytes(&self) -> u64 {
        self.activity.hot_extents() * EXTENT_BYTES
    }

    /// Lets extents go cold that nothing holds open, now instead of at the cooler's
    /// next round. Two calls make a whole round.
    pub fn cool_now(&self) {
        self.activity.cool_now();
    }

    pub fn group(&self) -> &GroupName {
        &self.group
    }

    pub fn dir(&self) -> &GroupDir {
        &self.dir
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.ring.get(counter)
    }

    /// Publishes a figure for `towline status`.
    pub fn publish(&self, counter: Counter, value: u64) {
        self.ring.set(counter, value);
    }

    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Records under which addresses each volume is served.
    pub fn set_exports(&self, exports: &[Vec<String>]) -> Result<()> {
        let mut state = self.state.lock().expect("state lock");
        if state.volumes.iter().map(|volume| &volume.exports).eq(exports) {
            return Ok(());
        }
        for (volume, exports) in state.volumes.iter_mut().zip(exports) {
            volume.exports.clone_from(exports);
        }
        self.store(&state)
    }

    /// Replaces `state.json`, durably.
    pub(crate) fn store(&self, state: &GroupState) -> Result<()> {
        let bytes = self.dir.store(state)?;
        self.ring.counter(Counter::StateWrittenBytes).fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The spill with what was found of it; `None` without one.
fn open_spill(
    dir: &GroupDir,
    place: Place,
    segments: Segments,
    options: &SpillOptions,
) -> Result<Option<Arc<Spill>>> {
    let folder = dir.spill_path();
    let bytes = match place.store.is_elastic() {
        true => options.bytes.unwrap_or_else(|| spill::default_bytes(dir.path())),
        false => u64::from(segments.files) * SEGMENT_BYTES,
    };
    let is_needed = !segments.live.is_empty() || !segments.history.is_empty();
    if bytes == 0 && !is_needed && segments.files > 0 {
        // Nothing needs them any more.
        std::fs::remove_dir_all(&folder)
            .map_err(|e| Error::io(format!("cannot remove {}", folder.display()), e))?;
    }
    if bytes < SEGMENT_BYTES && options.durability != Durability::Process {
        let what = format!(
            "durability \"flush\" and \"write\" need a spill of at least {SEGMENT_BYTES} bytes, and \
             {bytes} are allowed: choose a larger --spill or make room in {}",
            dir.path().display()
        );
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let spill = Spill::new(place, bytes, options, segments);
    Ok(spill.map(Arc::new))
}

/// The activity map's thread, with descriptors of its own.
fn start_cooler(
    sources: &[Source],
    round: Duration,
    ring: &Arc<Ring>,
    activity: &Arc<Activity>,
) -> Result<JoinHandle<()>> {
    let mut syncers = Vec::new();
    for source in sources {
        syncers.push(source.disk.syncer()?);
    }
    let (ring, activity) = (Arc::clone(ring), Arc::clone(activity));
    let observer = durable::observer();
    std::thread::Builder::new()
        .name("activity".into())
        .spawn(move || {
            durable::observe(observer);
            activity.serve(&ring, &mut CoolerContext { sources: syncers, round });
        })
        .map_err(|e| Error::io("cannot start the activity map's thread", e))
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.activity.stop();
        if let Some(cooler) = self.cooler.take()
            && cooler.join().is_err()
        {
            tracing::error!("the activity map's thread panicked");
        }
    }
}
