//! Bringing packs to the targets of a receiver that does not run.
//!
//! Packs are applied one after the other in the order of the stream, as far as they are
//! here; reading and checking runs ahead. A pack that comes after a later one (its device
//! came later) leaves alone what that one touched: these blocks are lacking, unless a pack
//! behind both holds them whole. So the order in which devices arrive costs bytes, never
//! truth.

use super::later::Later;
use super::ledger::{Entry, Ledger};
use super::pack::PackReader;
use super::set::{DeviceSet, Fate};
use super::sign::Trust;
use crate::batch::{Batch, Keyring, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::receiver::medium::{Medium, Target};
use crate::receiver::{Layout, STATE_VERSION, State, Stream, TargetRecord, import as receiver};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use towline_block::{GroupName, VolumeName};

/// Batches that are read ahead of each pack.
const READ_AHEAD: usize = 4;

/// How long a target's server may be gone; another call goes on where this one ended.
const SERVER_WAIT: Duration = Duration::from_secs(60);
const RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

/// What is imported, and to where.
#[derive(Clone, Debug)]
pub struct ImportConfig {
    pub devices: Vec<PathBuf>,
    pub group: Option<GroupName>,
    pub trust: Trust,
    /// Of the receiver.
    pub state_dir: PathBuf,
    pub targets: Vec<(VolumeName, PathBuf)>,
    pub keys: Keyring,
    /// Packs that are read at once.
    pub jobs: usize,
    /// Nothing more comes: what is missing is lost.
    pub without_missing: bool,
}

/// What an import came to.
#[derive(Debug)]
pub struct Imported {
    pub group: GroupName,
    /// An earlier call had done all of it: nothing was written.
    pub already: bool,
    /// Packs of the export, and those that are at the targets or, where that is not known
    /// any more, all.
    pub packs: usize,
    pub done: usize,
    /// Packs that are on none of these devices and are not at the targets.
    pub missing: Vec<usize>,
    pub damaged: Vec<(usize, String)>,
    /// Where the receiver stands; `None`: it waits for the rest.
    pub stands: Option<Stands>,
}

/// The receiver can be started, and shipping goes on behind this.
#[derive(Debug)]
pub struct Stands {
    pub after: Stream,
    /// Bytes that come over the network because they are lost; `None`: not known, so all is
    /// compared; or it was said by the call that did it.
    pub lacking_bytes: Option<u64>,
}

/// Applies what is here. `applied` counts bytes of packs.
///
/// # Errors
/// Nothing was written when the manifest, the state directory or the targets are refused.
/// After any other error the same call goes on; at most one pack is applied again. A target
/// that is another server's export, and away, is waited for for a minute.
pub fn import(config: &ImportConfig, applied: &AtomicU64) -> Result<Imported> {
    import_on(config, applied, &Medium::default())
}

/// As [`import`], with its own way to the disk: tests observe it.
pub(super) fn import_on(
    config: &ImportConfig,
    applied: &AtomicU64,
    medium: &Medium,
) -> Result<Imported> {
    let set = DeviceSet::open(&config.devices, config.group.as_ref(), &config.trust)?;
    check_key(&set, &config.keys)?;
    let layout = Layout::of(&config.state_dir);
    let _lock = receiver::occupy(&layout)?;
    let bound = receiver::bound_state(&layout)?;
    let mut ledger = Ledger::load(&layout.device, medium)?;
    if let Some(state) = &bound {
        check_state(&set, state)?;
        if state.applied.number > 0 {
            return finished_before(&set, state, ledger);
        }
    }
    if let Some(ledger) = &ledger {
        check_ledger(&set, ledger)?;
    }
    let records = match (&ledger, &bound) {
        (Some(ledger), _) => Some(&ledger.volumes),
        (None, Some(state)) => Some(&state.volumes),
        (None, None) => None,
    };
    let targets = open_targets(&set, config, records.map(Vec::as_slice), medium)?;
    let ledger = ledger.get_or_insert_with(|| {
        let volumes = targets.iter().map(record).collect();
        Ledger::new(&layout.device, set.manifest.set, volumes, medium)
    });
    ledger.store()?;
    let later = Later::of(&set, ledger)?;
    let mut work = Work { set: &set, config, ledger, targets: &targets, later, applied };
    let damaged = work.run()?;
    let missing: Vec<usize> = set
        .manifest
        .numbers()
        .filter(|n| !work.ledger.is_done(*n) && damaged.iter().all(|(bad, _)| bad != n))
        .collect();
    let done = set.manifest.numbers().filter(|n| work.ledger.is_done(*n)).count();
    let is_all = missing.is_empty() && damaged.is_empty();
    let stands = match is_all || config.without_missing {
        true => Some(work.finish(&layout, bound, medium)?),
        false => None,
    };
    let (group, packs) = (set.manifest.group.clone(), set.manifest.packs.len());
    Ok(Imported { group, already: false, packs, done, missing, damaged, stands })
}

fn check_key(set: &DeviceSet, keys: &Keyring) -> Result<()> {
    match set.manifest.key {
        Some(id) => keys.get(id).map(|_| ()).map_err(|e| {
            let what = format!("the packs are sealed with key {id}: give its file with --key");
            Error::caused(ErrorKind::NotAuthorised, what, e)
        }),
        None if keys.newest().is_some() => {
            let what = "the packs are not sealed, though a key was given: whoever had the device may \
                        have written them; leave --key out if that is meant";
            Err(Error::new(ErrorKind::NotAuthorised, what))
        }
        None => Ok(()),
    }
}

/// A receiver that was bound before has to be of this group, this epoch and these volumes.
fn check_state(set: &DeviceSet, state: &State) -> Result<()> {
    let manifest = &set.manifest;
    let refused = |what: String| Err(Error::new(ErrorKind::Refused, what));
    if (&state.group, state.group_uuid) != (&manifest.group, manifest.group_uuid) {
        return refused(format!(
            "the state directory is of group {} ({}), the devices of {} ({})",
            state.group, state.group_uuid, manifest.group, manifest.group_uuid
        ));
    }
    if state.epoch > manifest.epoch || state.promoted.is_some() {
        return refused(format!(
            "the target is in epoch {}, the devices are of epoch {}: somebody else writes the group \
             now",
            state.epoch.0, manifest.epoch.0
        ));
    }
    let same = state.volumes.len() == manifest.volumes.len()
        && state.volumes.iter().zip(&manifest.volumes).all(|(ours, theirs)| {
            (&ours.name, ours.size_bytes) == (&theirs.name, theirs.size_bytes)
        });
    match same {
        true => Ok(()),
        false => refused("the target has other volumes than the devices".into()),
    }
}

/// The receiver has batches already: of this import, or of a shipper. What is missing of an
/// import that has ended is lacking there, and waited for no more.
fn finished_before(set: &DeviceSet, state: &State, ledger: Option<Ledger>) -> Result<Imported> {
    let (manifest, applied) = (&set.manifest, &state.applied);
    let done = match ledger {
        Some(ledger) if ledger.set == manifest.set => {
            ledger.remove()?;
            manifest.numbers().filter(|n| ledger.is_done(*n)).count()
        }
        None if manifest.is_had_at(applied.number, applied.hash, applied.position) => {
            manifest.packs.len()
        }
        _ => {
            let what = format!(
                "the target has {} batches already: a device is imported into a new target; what it \
                 lacks comes over the network",
                applied.number
            );
            return Err(Error::new(ErrorKind::Refused, what));
        }
    };
    Ok(Imported {
        group: manifest.group.clone(),
        already: true,
        packs: manifest.packs.len(),
        done,
        missing: Vec::new(),
        damaged: Vec::new(),
        stands: Some(Stands { after: applied.clone(), lacking_bytes: None }),
    })
}

fn check_ledger(set: &DeviceSet, ledger: &Ledger) -> Result<()> {
    let manifest = &set.manifest;
    let refused = |what: String| Err(Error::new(ErrorKind::Refused, what));
    if ledger.set != manifest.set {
        return refused(format!(
            "another export ({}) is being imported there, not this one ({}): finish that one, or give \
             an empty state directory",
            ledger.set, manifest.set
        ));
    }
    // A manifest may be shorter than the one before, never another.
    let known = |(number, entry): (&usize, &Entry)| {
        manifest.pack(*number).is_none_or(|pack| pack.map == entry.map)
    };
    if !ledger.packs.iter().all(known) {
        return refused("the manifest contradicts the one that was imported before".into());
    }
    if ledger.packs.keys().next_back().is_some_and(|last| *last > manifest.packs.len()) {
        return refused(
            "these devices' manifest ends before packs that are imported already: add the device \
             with the newest one"
                .into(),
        );
    }
    Ok(())
}

fn record(target: &Target) -> TargetRecord {
    let path = target.disk.path();
    TargetRecord {
        name: target.name.clone(),
        size_bytes: target.disk.size_bytes(),
        path: receiver::place(path),
    }
}

/// Opened or made, as by a receiver; those that an earlier call began have to be the same.
fn open_targets(
    set: &DeviceSet,
    config: &ImportConfig,
    records: Option<&[TargetRecord]>,
    medium: &Medium,
) -> Result<Vec<Target>> {
    let open = |(index, volume): (usize, &crate::wire::VolumeSize)| {
        let given = config.targets.iter().find(|(name, _)| *name == volume.name);
        let Some((name, path)) = given else {
            let what = format!(
                "there is no target for volume {}: add --target {}=PATH",
                volume.name, volume.name
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        };
        let whole = receiver::place(path);
        if let Some(record) = records.and_then(|records| records.get(index))
            && record.path != whole
        {
            let what = format!(
                "target {name} was {} before, not {}: give that path again",
                record.path.display(),
                whole.display()
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        receiver::open_target(name.clone(), path, volume.size_bytes, medium)
    };
    set.manifest.volumes.iter().enumerate().map(open).collect()
}

/// What a reading thread says of its pack.
enum Read {
    Batch(Box<Batch>),
    /// All of it was read, and it ends where the manifest says.
    End,
    Bad(Error),
}

struct Work<'a> {
    set: &'a DeviceSet,
    config: &'a ImportConfig,
    ledger: &'a mut Ledger,
    targets: &'a [Target],
    later: Later,
    applied: &'a AtomicU64,
}

impl Work<'_> {
    /// Applies all packs that are here and not done. Answers those that are damaged.
    fn run(&mut self) -> Result<Vec<(usize, String)>> {
        let mut todo: VecDeque<usize> = self
            .set
            .manifest
            .numbers()
            .filter(|number| !self.ledger.is_done(*number) && self.set.has(*number))
            .collect();
        let (set, keys) = (self.set, &self.config.keys);
        let mut damaged = Vec::new();
        std::thread::scope(|scope| {
            let start = |number| {
                let (to, from) = sync_channel(READ_AHEAD);
                scope.spawn(move || read(set, number, keys, &to));
                (number, from)
            };
            let mut reading: VecDeque<(usize, Receiver<Read>)> = VecDeque::new();
            let mut failed_since = None;
            loop {
                while reading.len() < self.config.jobs.max(1)
                    && let Some(number) = todo.pop_front()
                {
                    reading.push_back(start(number));
                }
                let Some((number, batches)) = reading.pop_front() else { return Ok(damaged) };
                match self.apply(number, &batches) {
                    Ok(None) => failed_since = None,
                    Ok(Some(why)) => {
                        tracing::error!(pack = number, "{why}");
                        damaged.push((number, why));
                    }
                    Err(error) => {
                        self.wait_for_server(error, failed_since.get_or_insert_with(Instant::now))?;
                        reading.push_front(start(number));
                    }
                }
            }
        })
    }

    /// A server that is gone may come back: then the pack is written again from its start,
    /// since nobody knows what was kept of it.
    fn wait_for_server(&self, error: Error, failed_since: &Instant) -> Result<()> {
        let remote = self.targets.iter().any(|target| target.disk.is_remote());
        let lasted = failed_since.elapsed();
        if error.kind() != ErrorKind::Storage || !remote || lasted >= SERVER_WAIT {
            return Err(error);
        }
        tracing::warn!("{error}; the pack is written again");
        std::thread::sleep((lasted / 2).clamp(RETRY_WAIT_MIN, RETRY_WAIT_MAX));
        self.targets.iter().for_each(|target| target.disk.start_over());
        Ok(())
    }

    /// One pack. Answers why it is not usable, if so; what of it was written does no harm:
    /// its blocks are lacking.
    fn apply(&mut self, number: usize, batches: &Receiver<Read>) -> Result<Option<String>> {
        self.begin(number)?;
        loop {
            match batches.recv() {
                Ok(Read::Batch(batch)) => {
                    for entry in batch.view().ops() {
                        self.write(number, entry.op)?;
                    }
                    self.applied.fetch_add(batch.bytes().len() as u64, Ordering::Relaxed);
                }
                Ok(Read::End) => break,
                Ok(Read::Bad(error)) => return Ok(Some(error.to_string())),
                Err(_) => return Ok(Some("reading it ended by a panic".into())),
            }
        }
        self.targets.iter().try_for_each(Target::sync)?;
        if let Some(entry) = self.ledger.packs.get_mut(&number) {
            entry.done = true;
        }
        self.ledger.store()?;
        Ok(None)
    }

    /// Notes durably that the targets may hold anything of the pack from now on, but in the
    /// blocks that later packs have written.
    fn begin(&mut self, number: usize) -> Result<()> {
        let Some(pack) = self.set.manifest.pack(number) else { return Ok(()) };
        let touched = self.set.map(number).map(|map| map.touched).unwrap_or_default();
        let skipped = self.later.common(&touched, number);
        self.ledger.packs.insert(number, Entry { map: pack.map, done: false, skipped });
        self.ledger.store()
    }

    fn write(&self, number: usize, op: Op<'_>) -> Result<()> {
        let Some((volume, extent)) = op.touches() else { return Ok(()) };
        let target = self.targets.get(volume.index());
        let target = target.ok_or_else(|| Error::damaged("a batch names an unknown volume"))?;
        for piece in self.later.pieces(volume, extent, number) {
            match op {
                Op::Write { offset, payload, .. } => {
                    let from = (piece.offset - offset) as usize;
                    let bytes = payload.get(from..from + piece.len as usize);
                    target.write(piece.offset, bytes.unwrap_or_default())?;
                }
                Op::Zero { keep_allocated, .. } => target.zero(piece, keep_allocated)?,
                _ => target.zero(piece, false)?,
            }
        }
        Ok(())
    }

    /// The receiver stands where the export ended: what is lost is lacking there.
    fn finish(&mut self, layout: &Layout, bound: Option<State>, medium: &Medium) -> Result<Stands> {
        let manifest = &self.set.manifest;
        let ledger = &*self.ledger;
        let lacking = self.set.lacking(|number| match ledger.packs.get(&number) {
            Some(entry) if entry.done => Fate::Applied(&entry.skipped),
            _ => Fate::Lost,
        });
        let after = receiver::stands_at(manifest.after(), lacking.as_ref());
        self.targets.iter().try_for_each(Target::sync)?;
        let state = bound.unwrap_or_else(|| State {
            version: STATE_VERSION,
            group: manifest.group.clone(),
            group_uuid: manifest.group_uuid,
            epoch: manifest.epoch,
            volumes: ledger.volumes.clone(),
            applied: Stream::default(),
            marks_durable: None,
            rewind: None,
            decisions: Vec::new(),
            promoted: None,
            last_error: None,
        });
        let state = State { applied: after.clone(), epoch: manifest.epoch, ..state };
        receiver::stand(layout, state, lacking.as_ref(), medium)?;
        self.ledger.remove()?;
        Ok(Stands { after, lacking_bytes: lacking.map(|lacking| lacking.bytes()) })
    }
}

/// Reads and checks a pack, ahead of who applies it.
fn read(set: &DeviceSet, number: usize, keys: &Keyring, to: &SyncSender<Read>) {
    let end = read_all(set, number, keys, to).map_or_else(Read::Bad, |()| Read::End);
    // Whoever applied is gone after an error of its own.
    let _ = to.send(end);
}

fn read_all(set: &DeviceSet, number: usize, keys: &Keyring, to: &SyncSender<Read>) -> Result<()> {
    let lost = || Error::damaged(format!("the map of pack {number} is lost or damaged"));
    let map = set.map(number).ok_or_else(lost)?;
    let gone = || Error::damaged(format!("pack {number} is gone"));
    let mut reader = set.reader(number, &map)?.ok_or_else(gone)?;
    while let Some(batch) = reader.next(keys)? {
        check_batch(&batch, set, &reader)?;
        if to.send(Read::Batch(Box::new(batch))).is_err() {
            return Ok(());
        }
    }
    check_end(set, number, &reader)
}

/// What a batch's own checks do not know of: the volumes, and the export's epoch.
pub(super) fn check_batch(batch: &Batch, set: &DeviceSet, reader: &PackReader<'_>) -> Result<()> {
    let view = batch.view();
    receiver::check_bounds(&view, set.sizes())?;
    match view.position().epoch <= set.manifest.epoch {
        true => Ok(()),
        false => Err(reader.damaged("a batch is of a later epoch than the export")),
    }
}

/// The stream has to end where the manifest says that the pack ends.
pub(super) fn check_end(set: &DeviceSet, number: usize, reader: &PackReader<'_>) -> Result<()> {
    let after = set.manifest.pack(number).map(|pack| &pack.after);
    match after == Some(reader.after()) {
        true => Ok(()),
        false => Err(reader.damaged("it does not end where the manifest says")),
    }
}
