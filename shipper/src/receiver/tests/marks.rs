//! Marks: each can be gone back to, whatever crashed and whatever came after it.

use super::crash::{Lab, each_crash, run};
use super::history::{History, check};
use crate::batch::Keyring;
use crate::receiver::marks::{Mark, MarkKind};
use crate::receiver::recovery::Store;
use crate::receiver::{ListedMark, MarkPolicy, Stream, rewind};
use std::time::Duration;

fn listed(lab: &Lab, store: &Store) -> Vec<ListedMark> {
    crate::receiver::marks::list(lab.dir.path(), &store.books.get()).unwrap()
}

fn names(marks: &[ListedMark]) -> Vec<(String, u64)> {
    let named = marks.iter().filter(|listed| matches!(listed.mark.kind, MarkKind::Named(_)));
    named.map(|listed| (listed.mark.to_string(), listed.mark.stream.number)).collect()
}

fn owned(marks: &[(&str, u64)]) -> Vec<(String, u64)> {
    marks.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
}

/// The volumes at every mark, tried on copies; the lab's own stay as they are.
fn check_all(lab: &Lab, store: &Store, history: &History, at: &str) {
    let before = lab.volumes();
    for ListedMark { mark, .. } in listed(lab, store) {
        let number = mark.stream.number;
        store.apply.marks.roll_back(number, &store.apply.targets).unwrap();
        check(history, &lab.volumes(), number).unwrap_or_else(|e| panic!("{at}: mark {mark}: {e}"));
        (0..2).for_each(|index| std::fs::write(lab.target(index), &before[index]).unwrap());
    }
}

#[test]
fn every_mark_leads_back_exactly_through_broken_phases() {
    for seed in [21, 22, 23] {
        let (history, marks) = History::with_marks(seed);
        let lab = Lab::new();
        let mut store = lab.create();
        run(&lab, &mut store, &history, seed);
        assert_eq!(names(&listed(&lab, &store)), owned(&marks));
        check_all(&lab, &store, &history, "as it ran");
        drop(store);
        let store = lab.reopen().unwrap();
        check_all(&lab, &store, &history, "reopened");
    }
}

#[test]
fn after_a_crash_at_any_step_every_mark_up_to_there_leads_back() {
    let (history, marks) = History::with_marks(31);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 31);
    drop(store);
    let changes = lab.recorder.take();
    let mut most = 0;
    each_crash(&lab, &changes, lab.model(), |_, _, at| {
        let Some(mut store) = lab.reopen() else { return };
        check_all(&lab, &store, &history, at);
        store.redo().unwrap();
        let applied = store.apply.applied().number;
        let reached: Vec<_> =
            marks.iter().filter(|(_, number)| *number <= applied).copied().collect();
        assert_eq!(names(&listed(&lab, &store)), owned(&reached), "{at}");
        check_all(&lab, &store, &history, at);
        most = most.max(reached.len());
        lab.recorder.take();
    });
    assert_eq!(most, marks.len());
}

#[test]
fn a_way_back_is_finished_after_a_crash_at_any_step_and_the_stream_goes_on_from_the_mark() {
    let (history, marks) = History::with_marks(41);
    let (_, number) = marks[1];
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 41);
    let mut model = lab.model();
    lab.recorder.take().iter().for_each(|change| model.make(change));
    store.books.update(|state| state.rewind = Some(number)).unwrap();
    let decided = lab.recorder.len();
    drop(store);
    drop(lab.reopen().unwrap());
    let changes = lab.recorder.take();
    assert!(changes.len() > decided + 3, "there was something to do");
    each_crash(&lab, &changes, model, |k, _, at| {
        let mut store = lab.reopen().unwrap();
        store.redo().unwrap();
        let state = store.books.get();
        if state.applied.number == number {
            assert_eq!((state.rewind, state.applied.whole), (None, true), "{at}");
            check(&history, &lab.volumes(), number).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!(names(&listed(&lab, &store)), owned(&marks[..2]), "{at}");
            go_on(&lab, &mut store, &history, number);
        } else {
            assert!(k < decided, "{at}: the decision is gone");
        }
        check_all(&lab, &store, &history, at);
        lab.recorder.take();
    });
}

/// The same batches come again from the mark on.
fn go_on(lab: &Lab, store: &mut Store, history: &History, number: u64) {
    for sealed in &history.batches[number as usize..] {
        store.staging.append(sealed.number, &sealed.bytes).unwrap();
        store.staging.sync().unwrap();
        store.redo().unwrap();
    }
    check(history, &lab.volumes(), history.batches.len() as u64).unwrap();
}

#[test]
fn going_back_needs_a_mark_and_sound_files_and_writes_nothing_otherwise() {
    let (history, marks) = History::with_marks(51);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 51);
    drop(store);
    let before = lab.volumes();
    let refused = rewind(lab.dir.path(), 1, &Keyring::default()).unwrap_err().to_string();
    assert!(refused.contains("no mark stands at batch 1"), "{refused}");

    let file = lab.layout.marks.join(format!("{:020}.mark", marks[2].1));
    let sound = std::fs::read(&file).unwrap();
    let mut damaged = sound.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let refused = rewind(lab.dir.path(), marks[0].1, &Keyring::default()).unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
    assert!(lab.volumes() == before, "nothing was written");

    std::fs::write(&file, &sound).unwrap();
    let reader = std::fs::File::open(&file).unwrap();
    reader.lock_shared().unwrap();
    let refused = rewind(lab.dir.path(), marks[0].1, &Keyring::default()).unwrap_err().to_string();
    assert!(refused.contains("clone"), "{refused}");
    drop(reader);

    let mark = rewind(lab.dir.path(), marks[0].1, &Keyring::default()).unwrap();
    assert_eq!(mark.to_string(), "first");
    check(&history, &lab.volumes(), marks[0].1).unwrap();
}

#[test]
fn without_room_the_oldest_marks_go_and_the_rest_still_leads_back() {
    let (history, marks) = History::with_marks(61);
    let mut lab = Lab::new();
    lab.limits.marks.bytes_max = 420 << 10;
    let mut store = lab.create();
    run(&lab, &mut store, &history, 61);
    let kept = names(&listed(&lab, &store));
    assert!(!kept.is_empty() && kept.len() < marks.len(), "{kept:?}");
    assert_eq!(kept, owned(&marks[marks.len() - kept.len()..]));
    check_all(&lab, &store, &history, "short of room");
}

#[test]
fn a_damaged_file_costs_its_mark_and_the_older_ones() {
    let (history, marks) = History::with_marks(71);
    let lab = Lab::new();
    let mut store = lab.create();
    run(&lab, &mut store, &history, 71);
    drop(store);
    let file = lab.layout.marks.join(format!("{:020}.mark", marks[1].1));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let store = lab.reopen().unwrap();
    assert_eq!(names(&listed(&lab, &store)), owned(&marks[2..]));
    check_all(&lab, &store, &history, "after damage");
}

#[test]
fn a_periodic_mark_is_due_by_age_and_only_when_something_was_applied() {
    let lab = Lab::new();
    let mut store = lab.create();
    let marks = &mut store.apply.marks;
    assert!(!marks.is_due(1, u64::MAX), "none were asked for");
    drop(store);
    let mut lab = Lab::new();
    lab.limits.marks = MarkPolicy { every: Some(Duration::from_secs(5)), ..lab.limits.marks };
    let mut store = lab.create();
    let marks = &mut store.apply.marks;
    assert!(marks.is_due(1, 0), "the first one");
    let stream = Stream { number: 1, whole: true, ..Stream::default() };
    let prepared = marks.prepare(Mark { kind: MarkKind::Periodic, unix_ns: 7, stream }).unwrap();
    marks.commit(prepared);
    for (number, unix_ns, due) in [
        (1, 99_000_000_000, false),
        (2, 5_000_000_006, false),
        (2, 5_000_000_007, true),
        (2, 7, false),
        // Put back behind the last mark.
        (2, 6, true),
    ] {
        assert_eq!(marks.is_due(number, unix_ns), due, "batch {number} at {unix_ns}");
    }
}

#[test]
fn periodic_marks_go_with_age_oldest_first_and_named_ones_stay() {
    let mut lab = Lab::new();
    lab.limits.marks.keep = Duration::from_nanos(100);
    let mut store = lab.create();
    let marks = &mut store.apply.marks;
    let mut applied = Stream { whole: true, ..Stream::default() };
    let kinds = [MarkKind::Periodic, MarkKind::Periodic, MarkKind::Named("a".parse().unwrap())];
    for (index, kind) in kinds.into_iter().chain([MarkKind::Periodic]).enumerate() {
        applied.number = 1 + index as u64;
        let mark = Mark { kind, unix_ns: 100 * index as u64, stream: applied.clone() };
        let prepared = marks.prepare(mark).unwrap();
        marks.commit(prepared);
    }
    let at = |marks: &crate::receiver::marks::Marks| {
        (1..=4).filter(|number| marks.get(*number).is_some()).collect::<Vec<u64>>()
    };
    marks.prune(&applied, 100).unwrap();
    assert_eq!(at(marks), [1, 2, 3, 4]);
    marks.prune(&applied, 101).unwrap();
    assert_eq!(at(marks), [2, 3, 4]);
    marks.prune(&applied, u64::MAX).unwrap();
    assert_eq!(at(marks), [3, 4], "a named mark and what leads back to it stay");
}
