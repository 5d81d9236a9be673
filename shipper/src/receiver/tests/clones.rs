//! Clones: the content at the mark, whatever the receiver does meanwhile.

use super::crash::Lab;
use super::disk::Change;
use super::history::{History, SIZES, Volumes, check, random};
use crate::batch::{Control, Keyring};
use crate::error::ErrorKind;
use crate::receiver::clones::{At, ClonedGroup, View};
use crate::receiver::marks::Marks;
use crate::receiver::recovery::Store;
use crate::receiver::{ListedMark, rewind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use towline_block::{BLOCK_BYTES, Extent, PlainDisk, VolumeId};

fn listed(lab: &Lab, store: &Store) -> Vec<ListedMark> {
    crate::receiver::marks::list(lab.dir.path(), &store.books.get()).unwrap()
}

fn content(view: &View) -> Volumes {
    [0, 1].map(|index| {
        let mut bytes = vec![0; SIZES[index] as usize];
        view.read_at(index, &mut bytes, 0).unwrap();
        bytes
    })
}

fn stage(store: &mut Store, history: &History, number: usize) {
    let sealed = &history.batches[number];
    store.staging.append(sealed.number, &sealed.bytes).unwrap();
    store.staging.sync().unwrap();
}

/// Views on every mark there is, each with the batch that it is at.
type Views = Arc<Mutex<Vec<(View, u64)>>>;

/// Takes hold of every mark as soon as it is there.
fn hold_new(lab: &Lab, store: &Store, views: &Views) {
    for ListedMark { mark, .. } in listed(lab, store) {
        let number = mark.stream.number;
        let mut views = views.lock().unwrap();
        if views.iter().all(|(_, held)| *held != number) {
            views.push((View::open(lab.dir.path(), number).unwrap(), number));
        }
    }
}

fn check_view(history: &History, (view, number): &(View, u64), at: &str) {
    check(history, &content(view), *number).unwrap_or_else(|e| panic!("{at}: mark {number}: {e}"));
}

/// Applies a history; before each change of the receiver one of the marks so far is read, in turn, and
/// between two batches all. `faults`: so many writes and syncs of marks' files succeed before one
/// fails; then one more, and so on. Answers how many steps failed.
fn read_at_every_step(seed: u64, faults: Option<u64>) -> u64 {
    let (history, marks) = History::with_marks(seed);
    let history = Arc::new(history);
    let lab = Lab::new();
    let mut store = lab.create();
    let (views, steps) = (Views::default(), Arc::<AtomicU64>::default());
    let (watched, known, counted) = (Arc::clone(&views), Arc::clone(&history), Arc::clone(&steps));
    let dir = lab.layout.marks.clone();
    let is_marks_file = move |path: &PathBuf| {
        path.starts_with(&dir) && path.extension().is_some_and(|extension| extension == "mark")
    };
    let (mut left, mut gap) = (faults.unwrap_or(u64::MAX), faults.unwrap_or(0));
    *lab.recorder.watch.lock().unwrap() = Some(Box::new(move |change| {
        let step = counted.fetch_add(1, Ordering::Relaxed) as usize;
        let views = watched.lock().unwrap();
        if let Some(view) = views.get(step % views.len().max(1)) {
            check_view(&known, view, &format!("before {change:?}"));
        }
        let (Change::Write(path, ..) | Change::Sync(path)) = change else { return Ok(()) };
        if !is_marks_file(path) {
            return Ok(());
        }
        left -= 1;
        if left == 0 {
            gap += 1;
            left = gap;
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }));
    let mut failures = 0;
    for number in 0..history.batches.len() {
        stage(&mut store, &history, number);
        loop {
            match store.apply.step() {
                Ok(None) => break,
                Ok(Some(_)) => hold_new(&lab, &store, &views),
                Err(_) => failures += 1,
            }
        }
        let views = views.lock().unwrap();
        views.iter().for_each(|view| check_view(&history, view, "between two batches"));
    }
    let held: Vec<u64> = views.lock().unwrap().iter().map(|(_, number)| *number).collect();
    for (name, number) in marks {
        assert!(held.contains(&number), "{name} was not held");
    }
    assert!(steps.load(Ordering::Relaxed) > 100);
    failures
}

#[test]
fn at_every_step_of_the_receiver_a_clone_reads_the_content_at_its_mark() {
    for seed in [21, 31] {
        assert_eq!(read_at_every_step(seed, None), 0);
    }
}

#[test]
fn failed_attempts_to_save_what_is_overwritten_do_not_show_in_a_clone() {
    for first in [2, 3] {
        assert!(read_at_every_step(51, Some(first)) > 3, "from {first} on");
    }
}

#[test]
fn what_a_failed_attempt_left_and_another_wrote_over_is_believed_no_more() {
    let mut history = History::new(17);
    history.records(3, &[Control::Resync]);
    history.blocks();
    history.write(0, 0, &[1; 4096]);
    history.write(0, BLOCK_BYTES, &[2; 4096]);
    history.records(2, &[Control::Heal]);
    history.mark(0, "m");
    let number = history.batches.len() as u64;
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number);
    let view = View::open(lab.dir.path(), number).unwrap();
    let mut syncs = 0;
    *lab.recorder.watch.lock().unwrap() = Some(Box::new(move |change| {
        let is_sync = matches!(change, Change::Sync(_));
        syncs += u64::from(is_sync);
        match is_sync && syncs == 1 {
            true => Err(std::io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }));
    let (apply, block) = (&mut store.apply, |at| [(VolumeId(0), Extent::new(at, 512))]);
    let applied = apply.applied().clone();
    apply.marks.save(&apply.targets, &block(0), &applied, false).unwrap_err();
    check(&history, &content(&view), number).unwrap();
    assert_eq!(view.overwritten_blocks(), 1, "it has seen what the attempt left");
    // Another block's pre-image comes to lie there.
    apply.marks.save(&apply.targets, &block(BLOCK_BYTES), &applied, false).unwrap();
    apply.targets[0].write(BLOCK_BYTES, &[9; 512]).unwrap();
    // That block alone: reading the other one would find out.
    let mut seen = [0; 512];
    view.read_at(0, &mut seen, BLOCK_BYTES).unwrap();
    assert!(seen == history.after[number as usize][0][BLOCK_BYTES as usize..][..512]);
    check(&history, &content(&view), number).unwrap();
}

/// A history in which the same few blocks are overwritten again and again, its mark first.
fn long(batches: usize) -> (History, u64) {
    let mut history = History::new(91);
    history.records(3, &[Control::Resync]);
    history.blocks();
    history.records(4, &[Control::Heal]);
    history.mark(4, "early");
    let number = history.batches.len() as u64;
    for _ in 0..batches {
        history.records(3, &[]);
    }
    (history, number)
}

fn apply_upto(store: &mut Store, history: &History, number: u64) {
    let from = store.apply.applied().number as usize;
    for number in from..number as usize {
        stage(store, history, number);
    }
    store.redo().unwrap();
}

fn clone(lab: &Lab, number: u64, name: &str) -> ClonedGroup {
    let overlays = lab.dir.path().join(name);
    std::fs::create_dir_all(&overlays).unwrap();
    ClonedGroup::open(lab.dir.path(), At::Mark(number), &overlays, &Keyring::default()).unwrap()
}

#[test]
fn a_receiver_that_applies_between_the_steps_of_a_read_does_not_show() {
    let (history, number) = long(60);
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number);
    let view = View::open(lab.dir.path(), number).unwrap();
    let history = Arc::new(history);
    let (known, mut next) = (Arc::clone(&history), number as usize);
    let reads = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&reads);
    *view.between.lock().unwrap() = Some(Box::new(move || {
        if next < known.batches.len() {
            stage(&mut store, &known, next);
            store.redo().unwrap();
            next += 1;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    }));
    while reads.load(Ordering::Relaxed) < 60 {
        check(&history, &content(&view), number).unwrap();
    }
    assert!(view.overwritten_blocks() > 0);
}

#[test]
fn two_clones_that_write_beside_a_busy_receiver_see_the_mark_and_their_own_writes_alone() {
    let (history, number) = long(120);
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number);
    let clones = [clone(&lab, number, "a"), clone(&lab, number, "b")];
    let (looked, looks) = mpsc::channel();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (index, clone) in clones.iter().enumerate() {
            let (model, is_done) = (history.after[number as usize].clone(), &is_done);
            let looked = looked.clone();
            scope.spawn(move || use_clone(clone, model, index, is_done, &looked));
        }
        let mut counts = [0; 2];
        for batch in number as usize..history.batches.len() {
            stage(&mut store, &history, batch);
            store.redo().unwrap();
            counts[looks.recv().unwrap()] += 1;
        }
        is_done.store(true, Ordering::SeqCst);
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    });
    let last = history.batches.len() as u64;
    check(&history, &lab.volumes(), last).unwrap();
}

/// Random changes, each followed by a look at everything, until the receiver is done.
fn use_clone(
    clone: &ClonedGroup,
    mut model: Volumes,
    index: usize,
    is_done: &AtomicBool,
    looked: &mpsc::Sender<usize>,
) {
    let mut die = index as u64 + 5;
    while !is_done.load(Ordering::SeqCst) {
        let volume = (random(&mut die) % 2) as usize;
        let disk = &clone.volumes[volume].1;
        let len = random(&mut die) % 9000;
        let offset = random(&mut die) % (SIZES[volume] - len);
        let range = offset as usize..(offset + len) as usize;
        if random(&mut die).is_multiple_of(4) {
            disk.zero(Extent::new(offset, len)).unwrap();
            model[volume][range].fill(0);
        } else {
            let bytes: Vec<u8> = (0..len).map(|_| random(&mut die) as u8).collect();
            disk.write_at(&bytes, offset).unwrap();
            model[volume][range].copy_from_slice(&bytes);
        }
        for (expected, (_, disk)) in model.iter().zip(&clone.volumes) {
            let mut seen = vec![0; expected.len()];
            disk.read_at(&mut seen, 0).unwrap();
            assert!(seen == *expected, "clone {index}");
        }
        // Nobody counts any more at the end.
        let _ = looked.send(index);
    }
}

#[test]
fn a_cloned_mark_stays_and_goes_when_its_clone_has_gone() {
    let (history, number) = long(6);
    let mut lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number);
    let held = clone(&lab, number, "a");
    let is_kept = |marks: &Marks| marks.get(number).is_some();
    let applied = store.apply.applied().clone();
    store.apply.marks.prune(&applied, u64::MAX).unwrap();
    assert!(is_kept(&store.apply.marks), "named, and held");
    assert!(store.apply.marks.is_cloned());
    // No room for a block: the clone has it, and the error says so.
    lab.limits.marks.bytes_max = 0;
    drop(store);
    let mut store = lab.reopen().unwrap();
    stage(&mut store, &history, number as usize);
    let error = match store.redo() {
        Err(error) => error,
        Ok(()) => panic!("there was room"),
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("a clone holds mark early"), "{error}");
    check(&history, &[0, 1].map(|index| all(&held, index)), number).unwrap();
    let refused = {
        drop(store);
        rewind(lab.dir.path(), number, &Keyring::default()).unwrap_err()
    };
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    drop(held);
    let mut store = lab.reopen().unwrap();
    store.redo().unwrap();
    assert!(!is_kept(&store.apply.marks), "replication outranks a mark that nobody holds");
    check(&history, &lab.volumes(), store.apply.applied().number).unwrap();
}

fn all(clone: &ClonedGroup, index: usize) -> Vec<u8> {
    let mut bytes = vec![0; SIZES[index] as usize];
    clone.volumes[index].1.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_clone_ends_when_its_marks_are_forgotten_by_a_takeover() {
    let (history, number) = long(2);
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number + 1);
    let held = clone(&lab, number, "a");
    held.check().unwrap();
    store.apply.marks.clear().unwrap();
    let error = held.volumes[0].1.read_at(&mut [0; 512], 0).unwrap_err().to_string();
    assert!(error.contains("the clone's mark is gone"), "{error}");
    assert_eq!(held.check().unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn the_present_point_is_marked_where_the_receiver_stands_and_only_when_it_stands_exactly() {
    let (history, number) = long(8);
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, number + 1);
    let wanted = crate::receiver::marks::wanted(&lab.layout.marks);
    // A group that is applied in part stands nowhere.
    stage(&mut store, &history, number as usize + 1);
    *lab.recorder.fail.lock().unwrap() = Some((lab.target(1), libc::EIO));
    assert!(store.apply.step().is_err());
    std::fs::write(&wanted, b"").unwrap();
    assert!(store.apply.step().is_err());
    assert!(wanted.exists(), "not yet");
    *lab.recorder.fail.lock().unwrap() = None;
    store.redo().unwrap();
    assert!(!wanted.exists());
    assert!(store.apply.marks.get(number + 2).is_some());
    let held = clone(&lab, number + 2, "a");
    apply_upto(&mut store, &history, number + 5);
    check(&history, &[0, 1].map(|index| all(&held, index)), number + 2).unwrap();
    drop(held);
    drop(store);
    // Nobody receives: the clone does what the receiver would.
    let overlays = lab.dir.path().join("b");
    std::fs::create_dir_all(&overlays).unwrap();
    let held =
        ClonedGroup::open(lab.dir.path(), At::Present, &overlays, &Keyring::default()).unwrap();
    assert_eq!(held.mark.stream.number, number + 5);
    let mut store = lab.reopen().unwrap();
    apply_upto(&mut store, &history, number + 7);
    check(&history, &[0, 1].map(|index| all(&held, index)), number + 5).unwrap();
}

#[test]
fn there_is_nothing_to_clone_before_the_first_point_and_without_the_mark() {
    let (history, number) = long(1);
    let lab = Lab::new();
    let mut store = lab.create();
    apply_upto(&mut store, &history, 2);
    drop(store);
    let open = |at| {
        ClonedGroup::open(lab.dir.path(), at, lab.dir.path(), &Keyring::default()).err().unwrap()
    };
    let error = open(At::Present);
    assert!(error.to_string().contains("no point yet"), "{error}");
    let error = open(At::Mark(number));
    assert!(error.to_string().contains("no mark stands at batch"), "{error}");
}

#[test]
fn a_mark_made_for_a_clone_is_forgotten_after_it() {
    let (history, number) = long(4);
    let lab = Lab::new();
    let mut store = lab.create();
    // Whole, and no mark yet.
    apply_upto(&mut store, &history, number - 1);
    let applied = store.apply.applied().clone();
    let marks = &mut store.apply.marks;
    marks.grant(&applied).unwrap();
    let made = marks.get(number - 1).unwrap().unix_ns;
    let held = clone(&lab, number - 1, "a");
    let later = made + 61_000_000_000;
    marks.prune(&applied, later).unwrap();
    assert!(marks.get(number - 1).is_some(), "held");
    drop(held);
    marks.prune(&applied, made + 1).unwrap();
    assert!(marks.get(number - 1).is_some(), "its clone may be about to take hold");
    marks.prune(&applied, later).unwrap();
    assert!(!marks.is_recording(), "nothing is saved any more");
}
