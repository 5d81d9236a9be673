//! The journal as its owner, the proxy, holds it: opening and recovery.

use crate::activity::{self, Activity, Base, CoolerContext, EXTENT_BYTES, Hot};
use crate::append::Cursor;
use crate::attach::Resync;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::*;
use crate::map::{Bits, VolumeMap, runs_of};
use crate::record::{Record, SlotFault};
use crate::recover::{
    self, ActivityFound, Decision, RingFound, SavedFound, SourceFound, StateFound,
};
use crate::ring::{Ring, RingSpec};
use crate::saved::Saved;
use crate::spill::layout::SEGMENT_BYTES;
use crate::spill::{self, Durability, Owner, Persister, Scanned, Spill, SpillOptions};
use crate::state::*;
use crate::sys::shm_free_bytes;
use crate::sys::sync::{Mutex, Ordering};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use towline_block::{
    BLOCK_BYTES, BlockRange, Extent, FileDisk, GroupName, Stamp, VolumeId, VolumeName, crc32c,
};

pub use crate::recover::AttachPolicy;

/// How much later than the last journaled change a source may claim to have been
/// changed before it counts as changed by somebody else: file stamps are taken
/// when a write ends, ours when it begins, and a write may wait for a slow disk.
const STAMP_SLACK_NS: i128 = 2_000_000_000;

/// Largest ring taken without being asked for.
const RING_BYTES_DEFAULT_MAX: u64 = 256 << 20;

/// One volume to journal. The disk must be owned ([`towline_block::Access::Own`]).
#[derive(Clone)]
pub struct Source {
    pub name: VolumeName,
    pub disk: Arc<FileDisk>,
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
    /// Set when the group was sealed by a cutover.
    pub seal: Option<Seal>,
}

pub struct Journal {
    pub(crate) group: GroupName,
    pub(crate) dir: GroupDir,
    pub(crate) ring: Arc<Ring>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) cooler: Option<JoinHandle<()>>,
    pub(crate) ring_file: File,
    pub(crate) cursor: Arc<Mutex<Cursor>>,
    pub(crate) spill: Option<Arc<Spill>>,
    pub(crate) claims: Mutex<BTreeMap<u64, (VolumeId, BlockRange)>>,
    pub(crate) state: Mutex<GroupState>,
    pub(crate) sources: Vec<Source>,
    pub(crate) clock: fn() -> u64,
    /// Ends before the lock is given up.
    pub(crate) _persister: Option<Persister>,
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
    let free = shm_free_bytes(ring_dir).map_or(RING_BYTES_DEFAULT_MAX, |free| free / 2);
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
        let found = Found::gather(&dir, stored.as_ref(), &options)?;
        let decision = recover::decide(
            if stored.is_some() { StateFound::Present } else { StateFound::Absent },
            found.ring_found,
            found.saved_found,
            if found.activity.is_some() { ActivityFound::Sound } else { ActivityFound::Unusable },
            found.source,
            options.attach,
        );
        let mut report = OpenReport::default();
        let restart = |why: &str, report: &mut OpenReport| {
            *report = OpenReport {
                restarted: true,
                summary: format!("everything will be compared with the target: {why}"),
                ..OpenReport::default()
            };
            new_incarnation(&dir, &options, stored.as_ref(), &Content::Unknown)
        };
        let (ring, ring_file, state, cursor) = match decision {
            Decision::Refuse(why) => {
                return Err(Error::new(
                    ErrorKind::Newer,
                    format!("group {} is left untouched: {why}", options.group),
                ));
            }
            Decision::UseRing => {
                let (ring, file) = found.ring.expect("an intact ring was opened");
                match close_open_records(&ring, &options, &mut report) {
                    Ok(cursor) => {
                        report.summary = format!(
                            "journal goes on: {} records for the target, {} of them rewritten",
                            report.records, report.rewritten
                        );
                        (ring, file, stored.clone().expect("state is present"), cursor)
                    }
                    Err(damage) => {
                        tracing::error!("{damage}");
                        restart("a record in the ring is damaged", &mut report)?
                    }
                }
            }
            Decision::Create => {
                report.created = true;
                report.summary = "new group: everything will be sent".into();
                new_incarnation(&dir, &options, None, &Content::New)?
            }
            Decision::RestoreSaved => {
                report.summary = "journal restored from the orderly stop".into();
                let saved = found.saved.as_ref().expect("a valid map was read");
                let content = Content::Saved(saved, found.activity.as_ref());
                new_incarnation(&dir, &options, stored.as_ref(), &content)?
            }
            Decision::CompareHot => {
                let hot = found.activity.as_ref().expect("a sound map was read");
                report.restarted = true;
                report.summary = "the ring is lost: what was active then will be compared".into();
                new_incarnation(&dir, &options, stored.as_ref(), &Content::Active(hot))?
            }
            Decision::Restart(why) => restart(why, &mut report)?,
        };
        report.seal = state.seal.clone();
        let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
        let activity =
            Activity::resume(&dir.activity_path(), state.group_uuid.0, state.incarnation, &sizes)?;
        let (ring, activity) = (Arc::new(ring), Arc::new(activity));
        let (spill, spill_is_lost) = open_spill(&dir, &ring, &options.spill)?;
        let cursor = Arc::new(Mutex::new(cursor));
        let cooler = start_cooler(&options.sources, &ring, &activity)?;
        let mut journal = Journal {
            group: options.group,
            dir,
            ring,
            activity,
            cooler: Some(cooler),
            ring_file,
            cursor,
            spill,
            claims: Mutex::new(BTreeMap::new()),
            state: Mutex::new(state),
            sources: options.sources,
            clock: options.clock,
            _persister: None,
            _lock: lock,
        };
        journal.start(&mut report)?;
        if spill_is_lost {
            report.summary = "part of the spill is lost or damaged: everything will be compared \
                              with the target"
                .into();
            tracing::error!(group = %journal.group, "{}", report.summary);
            report.spill_lost = true;
            journal.resync_all(Resync::Compare);
        }
        if let Some(spill) = &journal.spill {
            spill.publish(&journal.ring);
            let owner = Owner {
                group: journal.group.clone(),
                ring: journal.ring.clone(),
                cursor: journal.cursor.clone(),
            };
            journal._persister = Some(Persister::start(spill.clone(), owner)?);
        }
        Ok((Arc::new(journal), report))
    }

    /// Common end of every way to open: what the last run left for a later start is
    /// gone, counts are those of the bits, claims are dirty again, failed records
    /// have dirty blocks, and a group with anything dirty is not whole.
    fn start(&self, report: &mut OpenReport) -> Result<()> {
        Saved::remove(&self.dir.saved_path())?;
        let mut state = self.state.lock().expect("state lock");
        if state.stopped.take().is_some() {
            self.dir.store(&state)?;
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
            if record.state == SlotState::Failed && !record.extent.is_empty() {
                let blocks = BlockRange::touching(record.extent);
                let map = VolumeMap::new(&self.ring, record.volume);
                if !map.all_set(Bits::Dirty, blocks) {
                    report.dirtied += 1;
                    self.make_dirty(&mut cursor, record.volume, blocks);
                }
            }
        }
        drop(cursor);
        self.advance_done();
        Ok(())
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
        for (volume, exports) in state.volumes.iter_mut().zip(exports) {
            volume.exports.clone_from(exports);
        }
        self.dir.store(&state)
    }
}

fn check_volumes(state: &GroupState, sources: &[Source]) -> Result<()> {
    let known: Vec<_> = state.volumes.iter().map(|v| (&v.name, v.size_bytes)).collect();
    let given: Vec<_> = sources.iter().map(|s| (&s.name, s.disk.size_bytes())).collect();
    if known == given {
        return Ok(());
    }
    let list = |volumes: &[(&VolumeName, u64)]| {
        volumes.iter().map(|(n, b)| format!("{n} ({b} bytes)")).collect::<Vec<_>>().join(", ")
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "group {} was made of {}, not of {}: volumes cannot be added, removed, renamed or \
             resized yet; give the same ones, or another --state directory for a new group",
            state.group,
            list(&known),
            list(&given)
        ),
    ))
}

/// Everything the decision depends on.
struct Found {
    ring: Option<(Ring, File)>,
    ring_found: RingFound,
    saved: Option<Saved>,
    saved_found: SavedFound,
    activity: Option<activity::Found>,
    source: SourceFound,
}

impl Found {
    fn gather(dir: &GroupDir, state: Option<&GroupState>, options: &Options) -> Result<Found> {
        let mut found = Found {
            ring: None,
            ring_found: RingFound::Absent,
            saved: None,
            saved_found: SavedFound::Absent,
            activity: None,
            source: SourceFound::Same,
        };
        let Some(state) = state else { return Ok(found) };
        match OpenOptions::new().read(true).write(true).open(&state.ring.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => found.ring_found = RingFound::Unusable,
            Ok(file) => match Ring::open(&file, true) {
                Ok(ring)
                    if ring.superblock.ring_id == state.ring.id.0
                        && ring.superblock.group_uuid == state.group_uuid.0
                        // A ring directory on disk: what came through a boot is not
                        // what was in memory.
                        && ring.superblock.boot_id == boot_id() =>
                {
                    found.ring_found = RingFound::Intact;
                    found.ring = Some((ring, file));
                }
                Ok(_) => found.ring_found = RingFound::Unusable,
                Err(e) if e.kind() == ErrorKind::Newer => found.ring_found = RingFound::Newer,
                Err(e) => {
                    tracing::error!(ring = %state.ring.path.display(), "{e}");
                    found.ring_found = RingFound::Unusable;
                }
            },
        }
        match Saved::load(&dir.saved_path()) {
            Ok(None) => {}
            Ok(Some(saved))
                if state.stopped.is_some()
                    && saved.group_uuid == state.group_uuid.0
                    && saved.ring_id == state.ring.id.0 =>
            {
                found.saved_found = SavedFound::Valid;
                found.saved = Some(saved);
            }
            Ok(Some(_)) => found.saved_found = SavedFound::Unusable,
            Err(e) => {
                tracing::error!("{e}");
                found.saved_found = SavedFound::Unusable;
            }
        }
        let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
        found.activity =
            activity::find(&dir.activity_path(), state.group_uuid.0, state.incarnation, &sizes)?;
        found.source = sources_found(state, found.ring.as_ref().map(|(r, _)| r), &options.sources)?;
        Ok(found)
    }
}

fn sources_found(
    state: &GroupState,
    ring: Option<&Ring>,
    sources: &[Source],
) -> Result<SourceFound> {
    let mut result = SourceFound::Same;
    for (index, (source, known)) in sources.iter().zip(&state.volumes).enumerate() {
        if source.disk.identity()? != known.identity {
            tracing::warn!(volume = %source.name, "the source is another disk than before");
            return Ok(SourceFound::Changed);
        }
        let Some(now) = source.disk.stamp()? else {
            result = SourceFound::Unknown;
            continue;
        };
        let changed = match (&state.stopped, ring) {
            (Some(stopped), _) => stopped.stamps.get(index).copied().flatten() != Some(now),
            (None, Some(ring)) => is_later_than_journal(now, ring),
            // The ring went with its boot: since then nobody may have written.
            (None, None) if state.ring.boot_id.0 != boot_id() => {
                boot_unix_ns().is_none_or(|boot| now.modified_ns > boot + STAMP_SLACK_NS)
            }
            (None, None) => {
                result = SourceFound::Unknown;
                continue;
            }
        };
        if changed {
            tracing::warn!(volume = %source.name, "the source was changed while no proxy ran");
            return Ok(SourceFound::Changed);
        }
    }
    Ok(result)
}

fn is_later_than_journal(stamp: Stamp, ring: &Ring) -> bool {
    let last = ring.get(Counter::LastChangeNs).max(ring.superblock.created_unix_ns.get());
    stamp.modified_ns > i128::from(last) + STAMP_SLACK_NS
}

/// Looks through the spill: what it holds of this ring, and whether anything that it
/// should hold is missing.
fn open_spill(
    dir: &GroupDir,
    ring: &Ring,
    options: &SpillOptions,
) -> Result<(Option<Arc<Spill>>, bool)> {
    let folder = dir.spill_path();
    let (acked, spilled) = (ring.get(Counter::Acked), ring.get(Counter::Spilled));
    let found: Scanned =
        spill::scan(&folder, &ring.superblock.group_uuid, &ring.superblock.ring_id, acked)?;
    let is_lost = !found.covers(acked, spilled);
    let bytes = options.bytes.unwrap_or_else(|| spill::default_bytes(dir.path()));
    if bytes == 0 && found.segments.live.is_empty() && found.segments.files > 0 {
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
    let spill = Spill::new(folder, bytes, options.durability, found.segments);
    Ok((spill.map(Arc::new), is_lost))
}

/// Scans the slots behind the target's ack, closes every record without outcome
/// (R1) and rebuilds the cursor from what the slots say.
fn close_open_records(ring: &Ring, options: &Options, report: &mut OpenReport) -> Result<Cursor> {
    // What is spilled no longer needs its slot.
    let acked = ring.get(Counter::Acked);
    let kept = acked.max(ring.get(Counter::Spilled));
    let slots = ring.slots();
    let spilled_too_far = kept > acked && kept > ring.get(Counter::Done);
    if kept > SEQ_MAX - slots || spilled_too_far {
        let what = format!("the ring of group {} counts {kept} records", options.group);
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    let head = (kept + 1..=kept + slots)
        .rev()
        .find(|seq| commit_parts(ring.commit(*seq).load(Ordering::Acquire)).0 == *seq)
        .unwrap_or(kept);
    let mut cursor = Cursor {
        next_seq: head + 1,
        payload_head: 0,
        payload_tail: u64::MAX,
        freed_seq: kept,
        whole: ring.get(Counter::Whole) == 1,
        wake_payload: u64::MAX,
        wake_seq: u64::MAX,
    };
    report.records = head - acked;
    let mut payload = Vec::new();
    for seq in kept + 1..=head {
        let record = match ring.record(seq) {
            Ok(record) => record,
            Err(SlotFault::OtherRecord { .. }) => {
                void_record(ring, seq, options);
                continue;
            }
            Err(fault) => {
                // Its commit word is right, its content is not: memory was overwritten,
                // and with it the knowledge of which blocks it touched.
                let what = format!("record {seq} of group {}: {fault:?}", options.group);
                return Err(Error::new(ErrorKind::Damaged, what));
            }
        };
        match record.control {
            Some(Control::Break | Control::Resync) => cursor.whole = false,
            Some(Control::Heal) => {
                cursor.whole = true;
                ring.counter(Counter::HealedSeq).fetch_max(seq, Ordering::SeqCst);
            }
            _ => {}
        }
        if let Some(position) = record.payload_position {
            let end = position + record.extent.len.next_multiple_of(PAYLOAD_ALIGN);
            cursor.payload_head = cursor.payload_head.max(end);
            cursor.payload_tail = cursor.payload_tail.min(position);
        }
        if record.state == SlotState::Intent {
            close_record(ring, &record, options, report);
            continue;
        }
        payload.clear();
        if record.state == SlotState::Done && !ring.read_payload(&record, &mut payload) {
            tracing::error!(seq, "payload fails its checksum: its blocks go to the change map");
            ring.commit(seq).store(commit_word(seq, SlotState::Failed), Ordering::SeqCst);
        }
    }
    if cursor.payload_tail == u64::MAX {
        let head = ring.get(Counter::PayloadHead);
        (cursor.payload_head, cursor.payload_tail) = (head, head);
    }
    ring.set(Counter::Head, head);
    ring.set(Counter::Whole, u64::from(cursor.whole));
    Ok(cursor)
}

/// A slot that was given out but never completed. Nothing happened at the source:
/// the record becomes visible before the source is written.
fn void_record(ring: &Ring, seq: u64, options: &Options) {
    let mut slot = Slot::new(Kind::Void, VolumeId(0), Extent::new(0, 0), (options.clock)());
    ring.publish(seq, &mut slot, SlotState::Failed);
}

/// R1: a record without outcome was never acknowledged. A write takes the content
/// the source has now, whatever part of it arrived; a barrier has no effect; the
/// rest becomes a tombstone whose blocks are dirtied before exports open.
fn close_record(ring: &Ring, record: &Record, options: &Options, report: &mut OpenReport) {
    let seq = record.seq;
    let state = match (record.kind, record.payload_position) {
        (Kind::Barrier, _) => SlotState::Done,
        (Kind::Write, Some(position)) => {
            let mut now = vec![0; record.extent.len as usize];
            let disk = &options.sources[record.volume.index()].disk;
            if let Err(e) = disk.read_at(&mut now, record.extent.offset) {
                tracing::error!(seq, "{e}: its blocks go to the change map");
                SlotState::Failed
            } else {
                report.source_bytes_read += now.len() as u64;
                report.rewritten += 1;
                ring.write_payload(position, &now);
                let mut slot = Slot::new(Kind::Write, record.volume, record.extent, record.unix_ns);
                slot.payload_position = position.into();
                slot.payload_crc = crc32c(&now).into();
                ring.publish(seq, &mut slot, SlotState::Done);
                return;
            }
        }
        _ => SlotState::Failed,
    };
    ring.commit(seq).store(commit_word(seq, state), Ordering::SeqCst);
}

/// What is known of the target's content when an incarnation begins.
enum Content<'a> {
    /// The target has nothing.
    New,
    /// The target may have anything.
    Unknown,
    /// All but these blocks is there; the activity map, if it is sound.
    Saved(&'a Saved, Option<&'a activity::Found>),
    /// All but what was active.
    Active(&'a activity::Found),
}

impl Content<'_> {
    /// Where a target must stand for this to be true of it.
    fn base(&self) -> Base {
        match self {
            Content::New | Content::Unknown => Base::default(),
            Content::Saved(saved, _) => Base {
                incarnation: saved.incarnation,
                seq: saved.acked_seq,
                claims: saved.acked_claims,
            },
            Content::Active(found) => found.base,
        }
    }

    /// The activity map to begin with. What is dirty in the change map is hot here.
    fn activity(&self) -> (Base, Hot) {
        match self {
            Content::New | Content::Unknown | Content::Saved(_, None) => {
                (Base::default(), Hot::All)
            }
            Content::Saved(_, Some(found)) | Content::Active(found) => {
                (found.base, Hot::Words(found.hot.clone()))
            }
        }
    }

    /// Sets a volume's bits of the new change map.
    fn mark(&self, volume: usize, map: VolumeMap<'_>) {
        let all = map.all();
        match self {
            Content::New => {
                map.set(Bits::Dirty, all);
            }
            Content::Unknown => {
                map.set(Bits::Suspect, all);
                map.set(Bits::Dirty, all);
            }
            Content::Saved(saved, _) => {
                let words = saved.words.get(volume).map_or(&[][..], Vec::as_slice);
                for run in runs_of(words, all.count) {
                    map.set(Bits::Dirty, run);
                }
            }
            Content::Active(found) => {
                let hot = Hot::Words(found.hot.clone());
                let blocks = EXTENT_BYTES / BLOCK_BYTES;
                for extent in (0..all.count.div_ceil(blocks)).filter(|e| hot.has(volume, *e)) {
                    let first = extent * blocks;
                    let run = BlockRange::new(first, blocks.min(all.count - first));
                    map.set(Bits::Suspect, run);
                    map.set(Bits::Dirty, run);
                }
            }
        }
    }
}

/// The activity map's thread, with descriptors of its own.
fn start_cooler(
    sources: &[Source],
    ring: &Arc<Ring>,
    activity: &Arc<Activity>,
) -> Result<JoinHandle<()>> {
    let mut files = Vec::new();
    for source in sources {
        let path = source.disk.path();
        let file = File::open(path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        files.push(file);
    }
    let (ring, activity) = (Arc::clone(ring), Arc::clone(activity));
    std::thread::Builder::new()
        .name("activity".into())
        .spawn(move || activity.serve(&ring, &CoolerContext { sources: files }))
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

/// Makes a ring for the next incarnation and names it in `state.json`; the change
/// map is everything, or what an orderly stop saved.
fn new_incarnation(
    dir: &GroupDir,
    options: &Options,
    old: Option<&GroupState>,
    content: &Content<'_>,
) -> Result<(Ring, File, GroupState, Cursor)> {
    let ring_id = Hex16::random();
    let name = format!("towline-{}-{}.ring", options.group, &ring_id.to_string()[..12]);
    let ring_path = options.ring_dir.join(name);
    let payload_bytes = options.ring_bytes.unwrap_or_else(|| default_ring_bytes(&options.ring_dir));
    if payload_bytes < RING_BYTES_MIN {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a ring of {payload_bytes} bytes is too small: {RING_BYTES_MIN} is the least"),
        ));
    }
    let mut volumes = Vec::new();
    for source in &options.sources {
        volumes.push(VolumeState {
            name: source.name.clone(),
            path: source.disk.path().to_owned(),
            size_bytes: source.disk.size_bytes(),
            identity: source.disk.identity()?,
            exports: Vec::new(),
        });
    }
    let state = GroupState {
        version: STATE_VERSION,
        group: options.group.clone(),
        group_uuid: old.map_or_else(Hex16::random, |old| old.group_uuid),
        epoch: old.map_or(1, |old| old.epoch),
        incarnation: old.map_or(1, |old| old.incarnation + 1),
        ring: RingPlace { path: ring_path.clone(), id: ring_id, boot_id: Hex16(boot_id()) },
        volumes,
        seal: old.and_then(|old| old.seal.clone()),
        stopped: None,
    };
    let spec = RingSpec {
        group_name: options.group.to_string(),
        group_uuid: state.group_uuid.0,
        ring_id: ring_id.0,
        boot_id: boot_id(),
        epoch: state.epoch,
        incarnation: state.incarnation,
        base_incarnation: content.base().incarnation,
        base_seq: content.base().seq,
        base_claims: content.base().claims,
        payload_bytes,
        created_unix_ns: (options.clock)(),
        volumes: options
            .sources
            .iter()
            .map(|s| (s.name.to_string(), s.disk.size_bytes()))
            .collect(),
    };
    let (ring, file) = Ring::create(&ring_path, &spec)?;
    for index in 0..options.sources.len() {
        let map = VolumeMap::new(&ring, VolumeId(index as u16));
        content.mark(index, map);
    }
    let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
    ring.set(Counter::NextClaim, 1);
    let nothing = Extent::new(0, 0);
    let mut slot = Slot::new(Kind::Control, VolumeId(0), nothing, spec.created_unix_ns);
    slot.control = (Control::Resync as u32).into();
    ring.publish(1, &mut slot, SlotState::Done);
    ring.set(Counter::Head, 1);
    ring.set(Counter::Done, 1);
    let (activity_base, hot) = content.activity();
    let stored = Activity::create(
        &dir.activity_path(),
        state.group_uuid.0,
        state.incarnation,
        activity_base,
        &sizes,
        &hot,
    )
    .and_then(|_| dir.store(&state));
    if let Err(error) = stored {
        durable::remove_ring(&ring_path);
        return Err(error);
    }
    // Only now is the new ring the group's; the old one is garbage.
    if let Some(old) = old {
        durable::remove_ring(&old.ring.path);
    }
    let cursor = Cursor {
        next_seq: 2,
        payload_head: 0,
        payload_tail: 0,
        freed_seq: 0,
        whole: false,
        wake_payload: u64::MAX,
        wake_seq: u64::MAX,
    };
    Ok((ring, file, state, cursor))
}
