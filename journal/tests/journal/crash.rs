//! The state folder and the rings after a kill between any two changes, and after a
//! power cut that loses rings and whatever was not synced, down to single sectors: the
//! next start serves, decides by what is true, and the target ends up identical.

use crate::harness::{End, Lab, Target, VOLUMES};
use crate::sparse::{SECTOR_BYTES, Sparse};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use towline_journal::durable::{Event, observe};
use towline_journal::format::RING_BYTES_MIN;
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{AttachPolicy, OpenReport};

/// Files by path, with what they hold.
pub(crate) type Image = BTreeMap<PathBuf, Sparse>;

/// A disk that does not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// A file's content stays volatile.
    Sync,
    /// So does that of the spill's segments.
    SegmentSync,
    /// A folder's names stay volatile.
    SyncDir,
    /// It is not looked at any more.
    Ignored,
}

/// The state folder as it survives: contents that were synced, names that were
/// synced, and the changes of names since, of which a power cut keeps the first few.
#[derive(Clone)]
pub(crate) struct Disk {
    fault: Fault,
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    volatile: Vec<NameChange>,
}

#[derive(Clone, Default)]
struct Content {
    now: Sparse,
    durable: Sparse,
    /// Sectors written in place and not synced.
    volatile: BTreeMap<usize, Vec<u8>>,
}

/// Unsynced sectors of which every subset is tried; of more, each alone and all but each.
const SUBSETS_MAX: usize = 5;

impl Content {
    fn new(now: Sparse, durable: Sparse) -> Content {
        Content { now, durable, volatile: BTreeMap::new() }
    }

    fn write_at(&mut self, at: usize, bytes: &[u8]) {
        self.now.put(at, bytes);
        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let at = at + index * SECTOR_BYTES;
            let same = self.durable.get(at, sector.len()) == sector;
            if !same || self.volatile.contains_key(&at) {
                self.volatile.insert(at, sector.to_vec());
            }
        }
    }

    fn sync(&mut self) {
        self.durable = self.now.clone();
        self.volatile.clear();
    }

    /// Every content that a power cut may leave: any subset of the unsynced sectors.
    fn after_power_cut(&self) -> Vec<Sparse> {
        let count = self.volatile.len();
        let with = |keep: &dyn Fn(usize) -> bool| {
            let mut bytes = self.durable.clone();
            let kept = self.volatile.iter().enumerate().filter(|(index, _)| keep(*index));
            kept.for_each(|(_, (at, sector))| bytes.put(*at, sector));
            bytes
        };
        if count <= SUBSETS_MAX {
            return (0..1usize << count).map(|set| with(&|index| set >> index & 1 == 1)).collect();
        }
        let alone = (0..count).map(|one| with(&|index| index == one));
        let but_one = (0..count).map(|one| with(&|index| index != one));
        let ends = [with(&|_| false), with(&|_| true)];
        ends.into_iter().chain(alone).chain(but_one).collect()
    }
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    fn path(&self) -> &Path {
        match self {
            NameChange::Set(path, _) | NameChange::Rename(path, _) | NameChange::Remove(path) => {
                path
            }
        }
    }
}

fn change(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Set(path, file) => drop(names.insert(path.clone(), *file)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(path) => drop(names.remove(path)),
    }
}

impl Disk {
    pub(crate) fn new(fault: Fault, image: &Image) -> Disk {
        let image: Image = image
            .iter()
            .filter(|(path, _)| !is_ring(path))
            .map(|(p, b)| (p.clone(), b.clone()))
            .collect();
        let content = |bytes: &Sparse| Content::new(bytes.clone(), bytes.clone());
        let on_disk = || image.iter().filter(|(path, _)| !is_ring(path));
        let names: BTreeMap<_, _> = on_disk().map(|(path, _)| path.clone()).zip(0..).collect();
        let files = on_disk().map(|(_, bytes)| content(bytes)).collect();
        Disk { fault, files, durable_names: names.clone(), names, volatile: Vec::new() }
    }

    /// `faulty`: as its fault has it.
    fn make(&mut self, event: Event<'_>, faulty: bool) {
        let fault = if faulty { self.fault } else { Fault::None };
        match event {
            _ if self.fault == Fault::Ignored => {}
            Event::Write { file, bytes } => {
                // A new file: what its name held before may come back.
                self.files.push(Content::new(Sparse::of(bytes), Sparse::default()));
                self.rename(NameChange::Set(file.into(), self.files.len() - 1));
            }
            Event::WriteAt { file, at, bytes } => {
                self.files[self.names[file]].write_at(at as usize, bytes);
            }
            Event::Sync { file } => {
                let is_segment = is_segment(file);
                let lies = fault == Fault::Sync && !is_segment
                    || fault == Fault::SegmentSync && is_segment;
                if !lies {
                    self.files[self.names[file]].sync();
                }
            }
            Event::Rename { from, to } => self.rename(NameChange::Rename(from.into(), to.into())),
            Event::Remove { file } if is_ring(file) => {}
            Event::Remove { file } => self.rename(NameChange::Remove(file.into())),
            Event::SyncDir { .. } if fault == Fault::SyncDir => {}
            Event::SyncDir { dir } => {
                let is_here = |path: &Path| path.parent() == Some(dir);
                self.durable_names.retain(|path, _| !is_here(path));
                let here = self.names.iter().filter(|(path, _)| is_here(path));
                self.durable_names.extend(here.map(|(path, file)| (path.clone(), *file)));
                self.volatile.retain(|what| !is_here(what.path()));
            }
        }
    }

    /// Whose changes nobody looks at.
    fn none() -> Disk {
        Disk::new(Fault::Ignored, &Image::new())
    }

    fn rename(&mut self, what: NameChange) {
        change(&mut self.names, &what);
        self.volatile.push(what);
    }

    /// What a kill now leaves. Of segments what was written to them: to read them would keep
    /// those who make extents hot waiting for longer than a guest waits for them.
    fn after_kill(&self, root: &Path) -> Image {
        let content = |path: &PathBuf| match self.names.get(path) {
            Some(file) if is_segment(path) => self.files[*file].now.clone(),
            _ => Sparse::read(path),
        };
        files(root).into_iter().map(|path| (path.clone(), content(&path))).collect()
    }

    /// What a power cut now may leave. Rings are gone.
    fn after_power_cut(&self) -> Vec<Image> {
        let mut names = self.durable_names.clone();
        let mut images = self.images(&names);
        for what in &self.volatile {
            change(&mut names, what);
            images.extend(self.images(&names));
        }
        images
    }

    /// Every combination of what the named files may hold.
    fn images(&self, names: &BTreeMap<PathBuf, usize>) -> Vec<Image> {
        let mut images = vec![Image::new()];
        for (path, file) in names {
            let contents = self.files[*file].after_power_cut();
            let with = |image: &Image| -> Vec<Image> {
                let add = |bytes: &Sparse| {
                    let mut image = image.clone();
                    image.insert(path.clone(), bytes.clone());
                    image
                };
                contents.iter().map(add).collect()
            };
            images = images.iter().flat_map(with).collect();
        }
        images
    }
}

fn is_ring(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "ring")
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "seg")
}

/// The files that a crash is about: in the state folder, and rings.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in [root.to_owned(), root.join("state/lab"), root.join("state/lab/spill")] {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let kept = is_ring(&path) || path.parent() != Some(root);
            // The ladder's history, which decides nothing, is replaced unobserved.
            let is_other =
                |name: &OsStr| name == "lock" || name == "ladder.json" || name == "ladder.tmp";
            if kept && path.is_file() && path.file_name().is_some_and(|name| !is_other(name)) {
                files.push(path);
            }
        }
    }
    files
}

fn rings(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let rings = files(root).into_iter().filter(|path| is_ring(path));
    rings.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

pub(crate) fn take(root: &Path) -> Image {
    files(root).into_iter().map(|path| (path.clone(), Sparse::read(&path))).collect()
}

pub(crate) fn put_back(root: &Path, image: &Image) {
    for path in files(root) {
        fs::remove_file(path).unwrap();
    }
    for (path, content) in image {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        content.write(path).unwrap();
        if is_segment(path) {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(SEGMENT_BYTES).unwrap();
        }
    }
}

/// What a step went through: an image before each change and after the last, each
/// with those that a power cut may leave in its place.
struct Crashes {
    kills: Vec<Image>,
    power_cuts: Vec<Image>,
    disk: Disk,
}

/// What a crash before one change, or after the last, leaves.
pub(crate) struct Crash {
    pub kill: Image,
    pub power_cuts: Vec<Image>,
}

/// Runs one step under observation: each crash with what `known` said then. While it says
/// nothing nobody crashes, and the disk does what it is told.
pub(crate) fn watch_each<K: Send + 'static>(
    lab: &mut Lab,
    disk: Disk,
    known: impl Fn() -> Option<K> + Send + 'static,
    step: impl FnOnce(&mut Lab),
) -> (Vec<(K, Crash)>, Disk) {
    let root = lab.dir.path().to_owned();
    let crash = move |disk: &Disk| {
        // The step goes on beside the threads that report here: what is known and a ring of two
        // moments are no crash.
        let (known, kill) = loop {
            let before = rings(&root);
            let found = (known()?, disk.after_kill(&root));
            if rings(&root) == before {
                break found;
            }
        };
        Some((known, Crash { kill, power_cuts: disk.after_power_cut() }))
    };
    let seen = Arc::new(Mutex::new((Vec::new(), disk, crash)));
    let watched = seen.clone();
    observe(Some(Arc::new(Mutex::new(move |event: Event<'_>| {
        let (crashes, disk, crash) = &mut *watched.lock().unwrap();
        if disk.fault != Fault::Ignored {
            let seen = crash(disk);
            disk.make(event, seen.is_some());
            crashes.extend(seen);
        }
    }))));
    step(lab);
    observe(None);
    // A journal that is still open has threads that report here, too: what they do later
    // is not part of the step.
    let (crashes, disk, crash) = &mut *seen.lock().unwrap();
    crashes.extend(crash(disk));
    (std::mem::take(crashes), std::mem::replace(disk, Disk::none()))
}

/// The same, of crashes alone.
fn watch(lab: &mut Lab, disk: Disk, step: impl FnOnce(&mut Lab)) -> Crashes {
    let (crashes, disk) = watch_each(lab, disk, || Some(()), step);
    let (mut kills, mut power_cuts) = (Vec::new(), Vec::new());
    for (_, crash) in crashes {
        kills.push(crash.kill);
        power_cuts.extend(crash.power_cuts);
    }
    Crashes { kills, power_cuts, disk }
}

/// Starts on each image, ships everything, compares.
fn survive(lab: &mut Lab, images: &[Image], sound: impl Fn(&OpenReport)) {
    let root = lab.dir.path().to_owned();
    let (now, target) = (take(&root), lab.target.clone());
    let running = lab.journal.take().is_some();
    for (index, image) in images.iter().enumerate() {
        put_back(&root, image);
        lab.target = target.clone();
        let report = lab.try_open().unwrap_or_else(|e| panic!("image {index} is refused: {e}"));
        sound(&report);
        lab.drain();
        lab.assert_identical();
        lab.journal = None;
    }
    put_back(&root, &now);
    lab.target = target;
    if running {
        lab.open();
    }
}

fn goes_on(report: &OpenReport) {
    assert!(!report.restarted, "an intact ring is not given up: {report:?}");
}

fn anything(_: &OpenReport) {}

/// A group with a record that the target lacks, and a block of the map on its way.
fn used_lab() -> Lab {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    lab.drain();
    let _ = lab.write(0, 100_000, &[3; 100], End::Done);
    let _ = lab.write(1, 70_000, &[4; 5000], End::Failed);
    // The operator vouches for the sources: nothing but our own files decides.
    lab.attach = AttachPolicy::Trust;
    lab
}

fn first_start() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    let disk = Disk::new(Fault::None, &Image::new());
    let crashes = watch(&mut lab, disk, |lab| drop(lab.open()));
    assert!(crashes.kills.len() > 4, "the step is seen");
    survive(&mut lab, &crashes.kills, goes_on);
    survive(&mut lab, &crashes.power_cuts, anything);
}

#[test]
fn a_first_start_survives_a_crash_at_any_change() {
    first_start();
}

/// An orderly stop, the next start, and a write after it.
fn stop_and_start(fault: Fault, ring_survives: bool) {
    let mut lab = used_lab();
    let disk = Disk::new(fault, &take(lab.dir.path()));
    let stop = watch(&mut lab, disk, |lab| {
        lab.journal().stop().unwrap();
        lab.journal = None;
    });
    survive(&mut lab, &stop.kills, goes_on);
    let restored = Cell::new(0);
    survive(&mut lab, &stop.power_cuts, |report| {
        restored.set(restored.get() + usize::from(!report.restarted));
    });
    let cuts = stop.power_cuts.len();
    assert!((1..cuts).contains(&restored.get()), "{} of {cuts} are restored", restored.get());
    if !ring_survives {
        let ring = lab.ring_path();
        fs::remove_file(ring).unwrap();
    }
    let start = watch(&mut lab, stop.disk, |lab| goes_on(&lab.open()));
    survive(&mut lab, &start.kills, goes_on);
    survive(&mut lab, &start.power_cuts, anything);
    // Recovery has run on copies; the group itself goes on where the start left it.
    let _ = lab.write(0, 200_000, &[9; 4096], End::Done);
    let cuts = start.disk.after_power_cut();
    survive(&mut lab, &cuts, anything);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_stop_and_a_start_survive_a_crash_at_any_change() {
    stop_and_start(Fault::None, true);
}

#[test]
fn a_stop_and_a_start_without_the_ring_survive_a_crash_at_any_change() {
    stop_and_start(Fault::None, false);
}

#[test]
fn a_restart_survives_a_crash_at_any_change() {
    let mut lab = used_lab();
    let disk = Disk::new(Fault::None, &take(lab.dir.path()));
    lab.journal = None;
    lab.attach = AttachPolicy::Resync;
    let crashes = watch(&mut lab, disk, |lab| assert!(lab.open().restarted));
    lab.attach = AttachPolicy::Trust;
    survive(&mut lab, &crashes.kills, goes_on);
    survive(&mut lab, &crashes.power_cuts, anything);
}

#[test]
fn a_seal_survives_a_crash_at_any_change_or_was_never_answered() {
    let mut lab = used_lab();
    lab.drain();
    let disk = Disk::new(Fault::None, &take(lab.dir.path()));
    let crashes = watch(&mut lab, disk, |lab| drop(lab.journal().seal(7).unwrap()));
    survive(&mut lab, &crashes.kills, goes_on);
    survive(&mut lab, &crashes.power_cuts, anything);
    let sealed = |report: &OpenReport| assert!(report.seal.is_some(), "the answered seal is lost");
    survive(&mut lab, &crashes.disk.after_power_cut(), sealed);
}

// --- the activity map: sectors written in place

/// All at the target, all cold; its activity map is seen from the start on.
fn cold_lab(fault: Fault) -> (Lab, Disk) {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.attach = AttachPolicy::Trust;
    lab.open();
    lab.drain();
    lab.cool();
    lab.journal = None;
    let disk = Disk::new(Fault::None, &take(lab.dir.path()));
    let disk = watch(&mut lab, disk, |lab| drop(lab.open())).disk;
    assert_eq!(lab.journal().hot_bytes(), 0);
    (lab, Disk { fault, ..disk })
}

/// Each step's events go to the observer that the journal was opened under, so a step
/// that is to be seen begins with a start.
fn watch_open(lab: &mut Lab, disk: Disk, step: impl FnOnce(&mut Lab)) -> Crashes {
    lab.journal = None;
    watch(lab, disk, |lab| {
        lab.open();
        step(lab);
    })
}

pub(crate) fn sources(lab: &Lab) -> Vec<Vec<u8>> {
    (0..VOLUMES).map(|volume| fs::read(lab.source_path(volume)).unwrap()).collect()
}

/// The power goes on each image, with these sources and this target.
fn survive_cuts(lab: &mut Lab, images: &[Image], sources: &[Vec<u8>], target: &Target) {
    let root = lab.dir.path().to_owned();
    let (now, kept) = (take(&root), lab.target.clone());
    let paths: Vec<PathBuf> = (0..VOLUMES).map(|volume| lab.source_path(volume)).collect();
    lab.journal = None;
    assert!(!images.is_empty());
    for image in images {
        put_back(&root, image);
        for (path, bytes) in paths.iter().zip(sources) {
            fs::write(path, bytes).unwrap();
        }
        lab.target = target.clone();
        assert!(lab.open().restarted, "the ring is lost");
        lab.drain();
        lab.assert_identical();
        lab.journal = None;
    }
    put_back(&root, &now);
    lab.target = kept;
}

/// Hot, durably, before the first write of an extent.
fn first_write_survives(fault: Fault) {
    let (mut lab, disk) = cold_lab(fault);
    let (before, target) = (sources(&lab), lab.target.clone());
    let crashes = watch_open(&mut lab, disk, |lab| {
        let _ = lab.write(0, 4096, &[7; 4096], End::Done);
    });
    let after = sources(&lab);
    survive_cuts(&mut lab, &crashes.disk.after_power_cut(), &after, &target);
    // The state disk was asked before the source was written.
    survive_cuts(&mut lab, &crashes.power_cuts, &before, &target);
}

#[test]
fn the_first_write_of_an_extent_survives_a_power_cut() {
    first_write_survives(Fault::None);
}

/// The base, durably, before the bits that rely on it are cleared.
fn cooling_survives(fault: Fault) {
    let (mut lab, disk) = cold_lab(Fault::None);
    let early = lab.target.clone();
    let crashes = watch_open(&mut lab, disk, |lab| {
        let _ = lab.write(0, 4096, &[7; 4096], End::Done);
        lab.drain();
    });
    let now = lab.target.clone();
    let disk = Disk { fault, ..crashes.disk };
    let crashes = watch_open(&mut lab, disk, |lab| {
        lab.cool();
        assert_eq!(lab.journal().hot_bytes(), 0);
    });
    let after = sources(&lab);
    survive_cuts(&mut lab, &crashes.power_cuts, &after, &now);
    // A target that was put back to before the write is found out, or compared.
    survive_cuts(&mut lab, &crashes.power_cuts, &after, &early);
}

#[test]
fn cooling_survives_a_power_cut_at_any_sector() {
    cooling_survives(Fault::None);
}

#[test]
fn a_hot_bit_that_a_killed_proxy_wrote_and_did_not_sync_is_synced_by_the_next() {
    let (mut lab, disk) = cold_lab(Fault::Sync);
    let crashes = watch_open(&mut lab, disk, |lab| {
        let _ = lab.write(0, 4096, &[7; 4096], End::KilledBefore);
    });
    // The kill came before the sync; the ring and the page cache are what they were.
    let disk = Disk { fault: Fault::None, ..crashes.disk };
    let crashes = watch_open(&mut lab, disk, |lab| {
        assert!(lab.journal().hot_bytes() > 0);
        let _ = lab.write(0, 4096, &[8; 4096], End::Done);
    });
    let (after, target) = (sources(&lab), lab.target.clone());
    survive_cuts(&mut lab, &crashes.disk.after_power_cut(), &after, &target);
}

// --- each checker over a disk or a state that breaks the rules

#[test]
fn a_source_written_before_its_extent_is_hot_is_found() {
    must_fail("left == right", || first_write_survives(Fault::Sync));
}

#[test]
fn bits_cleared_before_their_base_is_durable_are_found() {
    must_fail("left == right", || cooling_survives(Fault::Sync));
}

pub(crate) fn must_fail(reason: &str, run: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("the fault was not found");
    observe(None);
    let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(said.contains(reason), "another failure: {said}");
}

#[test]
fn a_state_renamed_before_it_is_synced_is_found() {
    must_fail("is refused", || stop_and_start(Fault::Sync, true));
}

#[test]
fn a_saved_map_that_comes_back_is_found() {
    must_fail("left == right", || stop_and_start(Fault::SyncDir, true));
}

#[test]
fn a_ring_given_up_without_need_is_found() {
    let mut lab = used_lab();
    let mut image = take(lab.dir.path());
    image.retain(|path, _| !is_ring(path));
    must_fail("an intact ring is not given up", || survive(&mut lab, &[image], goes_on));
}
