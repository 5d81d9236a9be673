//! Crashes at every step, and the checker checked.

use super::disk::{Change, Crash, Model, Recorder, lay_out};
use super::history::{GROUP, History, SIZES, Volumes, blank, check, random};
use crate::batch::Keyring;
use crate::receiver::medium::{Medium, Target};
use crate::receiver::recovery::{Opening, Store, begin, open};
use crate::receiver::state::{Rollback, STATE_VERSION, State, Takeover, TargetRecord};
use crate::receiver::{Layout, Limits, Stream};
use crate::wire::Outcome;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use towline_block::{Access, Epoch, FileDisk};

const OWN: Access = Access::Own { wait: Duration::from_secs(10) };

/// A directory with two targets and a receiver's files, memory-backed where possible.
pub struct Lab {
    pub dir: TempDir,
    pub layout: Layout,
    pub recorder: Arc<Recorder>,
    pub medium: Medium,
    pub limits: Limits,
}

impl Lab {
    pub fn new() -> Lab {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        let layout = Layout::of(dir.path());
        std::fs::create_dir_all(&layout.stage).unwrap();
        std::fs::create_dir_all(&layout.marks).unwrap();
        let recorder = Arc::new(Recorder::default());
        let medium = Medium::observed(recorder.clone());
        // Small segments, so that they come and go within a history.
        let limits = Limits { staging_bytes_max: 400 << 10, ..Limits::default() };
        Lab { dir, layout, recorder, medium, limits }
    }

    pub fn target(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("disk{index}"))
    }

    pub fn create(&self) -> Store {
        let open = |index: usize| {
            let disk = FileDisk::open_or_create(&self.target(index), SIZES[index], OWN).unwrap();
            Target::new(format!("disk{index}").parse().unwrap(), disk, self.medium.clone())
        };
        self.create_on((0..2).map(open).collect())
    }

    pub fn create_on(&self, targets: Vec<Target>) -> Store {
        let record = |target: &Target| TargetRecord {
            name: target.name.clone(),
            size_bytes: target.disk.size_bytes(),
            path: target.disk.path().to_owned(),
        };
        let state = State {
            version: STATE_VERSION,
            group: "erp".parse().unwrap(),
            group_uuid: GROUP,
            epoch: Epoch(1),
            volumes: targets.iter().map(record).collect(),
            applied: Stream::default(),
            marks_durable: None,
            rewind: None,
            decisions: Vec::new(),
            promoted: None,
            last_error: None,
        };
        let keys = Keyring::default();
        Store::create(&self.layout, &self.medium, &self.limits, state, targets, &keys).unwrap()
    }

    /// Groups are a batch or two.
    fn begin(&self) -> Option<Opening> {
        let keys = Keyring::default();
        let mut opening = begin(&self.layout, &self.medium, &self.limits, &keys).unwrap()?;
        opening.apply().group_bytes_max = GROUP_BYTES;
        Some(opening)
    }

    /// As a receiver starts: applied while it is read.
    pub fn restart(&self) -> Option<Store> {
        let mut opening = self.begin()?;
        opening.redo().unwrap();
        Some(opening.finish().unwrap())
    }

    pub fn reopen(&self) -> Option<Store> {
        open(&self.layout, &self.medium, &self.limits, &Keyring::default()).unwrap()
    }

    pub fn volumes(&self) -> Volumes {
        [0, 1].map(|index| std::fs::read(self.target(index)).unwrap())
    }

    pub fn model(&self) -> Model {
        let mut model = Model::default();
        for (index, content) in blank().into_iter().enumerate() {
            model.put(&self.target(index), content);
        }
        model
    }
}

/// Stages a history in random bursts with random applying between; answers for
/// each acknowledgement how many changes were made before it.
pub fn run(lab: &Lab, store: &mut Store, history: &History, seed: u64) -> Vec<(usize, u64)> {
    let mut state = seed;
    let mut acks = Vec::new();
    for sealed in &history.batches {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
        let last = sealed.number == history.batches.len() as u64;
        if last || !random(&mut state).is_multiple_of(3) {
            store.staging.sync().unwrap();
            acks.push((lab.recorder.len(), sealed.number));
        }
        if random(&mut state).is_multiple_of(2) {
            store.apply.step().unwrap();
        }
    }
    store.redo().unwrap();
    acks
}

/// Recovery, on files that are laid out; what was acknowledged must be there, the
/// volumes must be a prefix, and the last point must be reachable.
fn recover_and_check(lab: &Lab, history: &History, acked: u64, at: &str) {
    let Some(store) = lab.reopen() else {
        assert_eq!(acked, 0, "{at}: acknowledged batches are gone");
        return;
    };
    let durable = store.durable.clone();
    assert!(durable.number >= acked, "{at}: {acked} was acknowledged, {} is here", durable.number);
    let before = store.books.get().applied;
    if !before.whole {
        let point = history_point(history, before.number);
        let logged = store.apply.marks.point(&before).map(|point| point.number);
        assert_eq!(logged, point, "{at}: broken, and the last point is out of reach");
    }
    if let Some(point) = store.apply.marks.point(&before) {
        // The undo log alone leads back, also out of the middle of a group.
        let torn = lab.volumes();
        store.apply.marks.roll_back(point.number, &store.apply.targets).unwrap();
        check(history, &lab.volumes(), point.number)
            .unwrap_or_else(|e| panic!("{at}, rolled back without redo: {e}"));
        (0..2).for_each(|index| std::fs::write(lab.target(index), &torn[index]).unwrap());
    }
    drop(store);
    let store = lab.restart().unwrap();
    let applied = store.apply.applied().clone();
    assert_eq!((&applied, &store.durable), (&durable, &durable), "{at}");
    check(history, &lab.volumes(), applied.number).unwrap_or_else(|e| panic!("{at}: {e}"));
    let point = history_point(history, applied.number);
    assert_eq!(applied.point.map(|point| point.number), point, "{at}");
    if let (false, Some(number)) = (applied.whole, point) {
        assert_eq!(store.apply.marks.point(&applied), applied.point, "{at}");
        store.apply.marks.roll_back(number, &store.apply.targets).unwrap();
        check(history, &lab.volumes(), number).unwrap_or_else(|e| panic!("{at}, rolled back: {e}"));
    }
}

/// The last point up to batch `number`, by folding from the beginning.
fn history_point(history: &History, number: u64) -> Option<u64> {
    let mut stream = Stream::default();
    for sealed in &history.batches[..number as usize] {
        let view = crate::batch::BatchView::parse(&sealed.bytes).unwrap();
        stream = stream.follow(GROUP, &view).unwrap();
    }
    stream.point.map(|point| point.number)
}

/// Lays out what a crash before change `k` leaves: of the process, the change torn
/// where it can be, and of the power.
pub fn each_crash(
    lab: &Lab,
    changes: &[Change],
    mut model: Model,
    mut then: impl FnMut(usize, Crash, &str),
) {
    for k in 0..=changes.len() {
        let next = changes.get(k);
        let torn = matches!(next, Some(Change::Write(..)));
        let power = if k % 2 == 0 { Crash::Power } else { Crash::PowerMixed(k as u64) };
        let kill = if torn { Crash::Torn } else { Crash::Kill };
        for crash in [kill, power] {
            lay_out(lab.dir.path(), &model.after(crash, next));
            then(k, crash, &format!("{crash:?} before change {k}"));
        }
        next.into_iter().for_each(|change| model.make(change));
    }
}

fn crash_everywhere(seed: u64) {
    let history = History::scenario(seed);
    let lab = Lab::new();
    let mut store = lab.create();
    let acks = run(&lab, &mut store, &history, seed);
    drop(store);
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
    let changes = lab.recorder.take();
    each_crash(&lab, &changes, lab.model(), |k, _, at| {
        let acked = acks.iter().rev().find(|(before, _)| *before <= k);
        recover_and_check(&lab, &history, acked.map_or(0, |ack| ack.1), at);
        lab.recorder.take();
    });
}

#[test]
fn after_a_crash_at_any_step_the_volumes_are_a_prefix_with_everything_acknowledged() {
    crash_everywhere(1);
}

#[test]
fn after_a_crash_at_any_step_of_another_history_too() {
    crash_everywhere(2);
}

#[test]
fn a_crash_at_any_step_of_recovery_itself_changes_nothing() {
    let history = History::scenario(5);
    let lab = Lab::new();
    let mut store = lab.create();
    for sealed in &history.batches[..9] {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
        if sealed.number == 7 {
            store.staging.sync().unwrap();
            store.redo().unwrap();
        }
    }
    store.staging.sync().unwrap();
    drop(store);
    let mut model = lab.model();
    lab.recorder.take().iter().for_each(|change| model.make(change));
    lab.restart().unwrap();
    let changes = lab.recorder.take();
    assert!(changes.len() > 10, "the recovery had something to do");
    each_crash(&lab, &changes, model, |_, _, at| {
        recover_and_check(&lab, &history, 9, at);
        lab.recorder.take();
    });
}

/// A store with all of a history staged, opened anew, whose groups are small.
fn backlog(lab: &Lab, history: &History) -> Store {
    let mut store = lab.create();
    for sealed in &history.batches {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
    }
    store.staging.sync().unwrap();
    drop(store);
    let mut store = lab.reopen().unwrap();
    store.apply.group_bytes_max = GROUP_BYTES;
    store
}

/// One or two batches of a history.
const GROUP_BYTES: usize = 4 << 10;

#[test]
fn a_backlog_is_applied_group_by_group_while_the_next_one_is_read() {
    for seed in 1..6 {
        let history = History::scenario(seed);
        let lab = Lab::new();
        let mut store = backlog(&lab, &history);
        let (mut groups, mut were_ahead) = (0, 0);
        while let Some(applied) = store.apply.step().unwrap() {
            check(&history, &lab.volumes(), applied.number).unwrap();
            groups += 1;
            were_ahead += usize::from(store.apply.is_behind());
        }
        assert_eq!(store.apply.applied().number, history.batches.len() as u64);
        assert!(groups > 3 && were_ahead > 2, "{groups} groups, {were_ahead} with more behind");
        assert!(!store.apply.is_behind());
    }
}

#[test]
fn a_restart_applies_what_is_staged_and_keeps_its_last_segment_alone() {
    let history = History::scenario(2);
    let lab = Lab::new();
    drop(backlog(&lab, &history));
    let staged = || crate::receiver::staging::list(&lab.layout.stage).unwrap().len();
    assert!(staged() > 2);
    let store = lab.restart().unwrap();
    assert_eq!(store.apply.applied().number, history.batches.len() as u64);
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
    assert_eq!(staged(), 1);
}

#[test]
fn a_crash_at_any_step_of_applying_a_backlog_loses_nothing_of_it() {
    let history = History::scenario(4);
    let lab = Lab::new();
    let mut store = backlog(&lab, &history);
    let mut model = lab.model();
    lab.recorder.take().iter().for_each(|change| model.make(change));
    while store.apply.step().unwrap().is_some() {}
    drop(store);
    let changes = lab.recorder.take();
    let acked = history.batches.len() as u64;
    each_crash(&lab, &changes, model, |_, _, at| {
        recover_and_check(&lab, &history, acked, at);
        lab.recorder.take();
    });
}

#[test]
fn a_target_that_fails_while_the_next_group_is_read_gets_its_group_again() {
    let history = History::scenario(2);
    let lab = Lab::new();
    let mut store = backlog(&lab, &history);
    *lab.recorder.fail.lock().unwrap() = Some((lab.target(0), 5));
    let first = store.apply.step();
    assert!(first.is_err(), "{first:?}");
    assert!(store.apply.step().is_err(), "it goes on failing");
    *lab.recorder.fail.lock().unwrap() = None;
    while store.apply.step().unwrap().is_some() {}
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
}

#[test]
fn a_target_that_fails_while_staging_is_read_gets_the_rest_later() {
    let history = History::scenario(3);
    let count = history.batches.len() as u64;
    for fails_at in [0, 3, 20] {
        let lab = Lab::new();
        drop(backlog(&lab, &history));
        let mut opening = lab.begin().unwrap();
        *lab.recorder.fail.lock().unwrap() = Some((lab.target(0), fails_at));
        assert!(opening.redo().is_err());
        let mut store = opening.finish().unwrap();
        assert_eq!(store.durable.number, count, "staging is known as a whole");
        let applied = store.apply.applied().number;
        assert!(applied < count, "{applied} are applied");
        *lab.recorder.fail.lock().unwrap() = None;
        store.redo().unwrap();
        assert_eq!(*store.apply.applied(), store.durable);
        check(&history, &lab.volumes(), count).unwrap();
        // What is applied is in staging no more, but for the last segment.
        assert_eq!(crate::receiver::staging::list(&lab.layout.stage).unwrap().len(), 1);
    }
}

#[test]
fn damage_in_the_middle_of_staging_loses_the_point_behind_what_was_applied() {
    let history = History::scenario(1);
    let lab = Lab::new();
    drop(backlog(&lab, &history));
    let segments = crate::receiver::staging::list(&lab.layout.stage).unwrap();
    assert!(segments.len() > 2, "{segments:?}");
    let path = crate::receiver::staging::segment_path(&lab.layout.stage, segments[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..].iter_mut().for_each(|byte| *byte ^= 0x40);
    std::fs::write(&path, bytes).unwrap();
    let store = lab.restart().unwrap();
    let good = segments[1] - 1;
    check(&history, &lab.volumes(), good).unwrap();
    let state = store.books.get();
    let expected = Stream { number: good, ..store.durable.clone() };
    assert_eq!((&state.applied, &store.durable), (&expected, &expected));
    assert_eq!(store.apply.applied(), &expected);
    assert_eq!((expected.point, expected.whole), (None, false));
    assert!(state.last_error.unwrap().contains("everything is received again"));
    assert!(crate::receiver::staging::list(&lab.layout.stage).unwrap().is_empty());
}

#[test]
fn damage_that_is_read_ahead_is_told_when_its_turn_comes_and_never_applied() {
    let history = History::scenario(1);
    let lab = Lab::new();
    let mut store = backlog(&lab, &history);
    // After recovery had found it sound.
    let segments = crate::receiver::staging::list(&lab.layout.stage).unwrap();
    let last = crate::receiver::staging::segment_path(&lab.layout.stage, *segments.last().unwrap());
    let mut bytes = std::fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().for_each(|byte| *byte ^= 0x40);
    std::fs::write(&last, bytes).unwrap();
    let error = loop {
        match store.apply.step() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the damage was not seen"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), crate::ErrorKind::Damaged, "{error}");
    let applied = store.apply.applied().number;
    assert!(applied > 0 && applied < history.batches.len() as u64, "{applied}");
    check(&history, &lab.volumes(), applied).unwrap();
}

#[test]
fn a_decided_rollback_is_finished_after_a_crash_at_any_step() {
    let history = History::scenario(3);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 3);
    let point = store.apply.applied().point.unwrap();
    let mut model = lab.model();
    lab.recorder.take().iter().for_each(|change| model.make(change));
    store
        .books
        .update(|state| {
            state.record("a-1", Outcome::Promoted);
            let (epoch, rollback) = (Epoch(2), Rollback::Pending);
            let (attempt, position) = ("a-1".to_owned(), point.position);
            state.promoted = Some(Takeover { attempt, epoch, position, rollback });
        })
        .unwrap();
    let decided = lab.recorder.len();
    drop(store);
    drop(lab.reopen().unwrap());
    check(&history, &lab.volumes(), point.number).unwrap();
    let changes = lab.recorder.take();
    each_crash(&lab, &changes, model, |k, crash, at| {
        let mut store = lab.reopen().unwrap();
        let promoted = store.books.get().promoted;
        assert!(promoted.is_some() || k < decided, "{at}: the decision is gone");
        if let Some(takeover) = promoted {
            assert_eq!(takeover.rollback, Rollback::Done, "{at}");
        } else {
            store.redo().unwrap();
            assert!(store.apply.marks.point(store.apply.applied()).is_some());
            store.apply.marks.roll_back(point.number, &store.apply.targets).unwrap();
        }
        check(&history, &lab.volumes(), point.number)
            .unwrap_or_else(|e| panic!("{at} ({crash:?}): {e}"));
        lab.recorder.take();
    });
}

/// Both writes go to the same place, so that every fault shows.
fn two_writes_over_each_other() -> (Lab, History, Vec<Change>) {
    let mut history = History::scenario(7);
    history.write(0, 4096, &[1; 4096]);
    history.write(1, 4096, &[2; 4096]);
    history.write(0, 4096, &[3; 4096]);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 7);
    drop(store);
    let changes = lab.recorder.take();
    (lab, history, changes)
}

#[test]
fn the_checker_sees_a_lost_a_stale_a_reordered_and_a_torn_write() {
    let (lab, history, changes) = two_writes_over_each_other();
    let number = history.batches.len() as u64;
    let target = lab.target(0);
    let finds = |byte: u8| {
        let is_it = |change: &Change| {
            matches!(change, Change::Write(file, 4096, bytes)
                if *file == target && bytes[..] == [byte; 4096])
        };
        changes.iter().rposition(is_it).unwrap()
    };
    let (first, last) = (finds(1), finds(3));
    let verdict = |changes: &[Change]| {
        let mut model = lab.model();
        changes.iter().for_each(|change| model.make(change));
        lay_out(lab.dir.path(), &model.after(Crash::Kill, None));
        let mut store = lab.reopen().unwrap();
        store.redo().unwrap();
        assert_eq!(store.apply.applied().number, number);
        check(&history, &lab.volumes(), number)
    };
    verdict(&changes).unwrap();
    type Fault<'a> = (&'a str, Box<dyn Fn(&mut Vec<Change>)>);
    let faults: [Fault<'_>; 4] = [
        ("lost", Box::new(move |changes| drop(changes.remove(last)))),
        ("stale", Box::new(move |changes| changes[last] = changes[first].clone())),
        ("reordered", Box::new(move |changes| changes.swap(first, last))),
        (
            "torn",
            Box::new(move |changes| {
                let Change::Write(_, _, bytes) = &mut changes[last] else { panic!() };
                bytes.truncate(2048);
            }),
        ),
    ];
    for (fault, inject) in faults {
        let mut faulty = changes.clone();
        inject(&mut faulty);
        assert!(verdict(&faulty).is_err(), "{fault} was not seen");
    }
}

#[test]
fn the_checker_sees_a_volume_that_is_ahead_of_the_other() {
    let history = History::scenario(8);
    let (early, late) = (&history.after[3], &history.after[7]);
    let mixed = [late[0].clone(), early[1].clone()];
    assert!((0..history.after.len()).all(|n| check(&history, &mixed, n as u64).is_err()));
}

#[test]
fn the_models_power_cut_loses_what_was_not_synced() {
    let history = History::scenario(1);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 1);
    drop(store);
    let mut model = lab.model();
    let staged = |change: &Change| matches!(change, Change::Sync(path) if path.starts_with(&lab.layout.stage));
    let changes = lab.recorder.take();
    // Before the first batch was applied: staging alone holds what was acknowledged.
    let end = changes
        .iter()
        .position(|change| matches!(change, Change::Write(path, ..) if *path == lab.target(0)));
    changes[..end.unwrap()].iter().filter(|c| !staged(c)).for_each(|c| model.make(c));
    lay_out(lab.dir.path(), &model.after(Crash::Power, None));
    let store = lab.reopen().unwrap();
    assert_eq!(store.durable.number, 0, "the power cut of the model does lose unsynced data");
}
