//! What is seen in memory and what is on disk, step by step.

use super::*;
use crate::activity::file::{Found, find};
use std::sync::mpsc;

const SIZES: [u64; 1] = [64 * EXTENT_BYTES];
const UUID: [u8; 16] = [1; 16];

fn map(dir: &Path, hot: &Hot) -> Activity {
    Activity::create(&dir.join("activity.map"), UUID, 1, Base::default(), &SIZES, hot).unwrap()
}

fn on_disk(dir: &Path) -> Found {
    find(&dir.join("activity.map"), UUID, 1, &SIZES).unwrap().unwrap()
}

fn cold() -> Hot {
    Hot::Words(vec![vec![0]])
}

/// Runs `change` on another thread and gives what memory says at each of its syncs.
fn seen_at_syncs(activity: &Activity, change: impl FnOnce() + Send) -> Vec<u64> {
    let (at_sync, syncs) = mpsc::channel();
    let (go, gone_on) = mpsc::channel::<()>();
    activity.file.lock().unwrap().before_sync = Some(Box::new(move || {
        at_sync.send(()).unwrap();
        gone_on.recv().unwrap();
    }));
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            change();
            // Ends the loop below.
            activity.file.lock().unwrap().before_sync = None;
        });
        while syncs.recv().is_ok() {
            seen.push(activity.hot_extents());
            go.send(()).unwrap();
        }
        changing.join().unwrap();
    });
    seen
}

#[test]
fn an_extent_is_seen_hot_only_when_the_disk_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let activity = map(dir.path(), &cold());
    let seen = seen_at_syncs(&activity, || activity.make_hot((vec![(0, 3), (0, 4)], 1)));
    assert_eq!(seen, [0], "a second writer would not wait for the disk");
    assert_eq!(activity.hot_extents(), 2);
    assert_eq!(on_disk(dir.path()).hot, [[0b11000]]);
}

#[test]
fn an_extent_heated_for_dirty_blocks_is_seen_hot_only_when_the_disk_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let activity = map(dir.path(), &cold());
    assert_eq!(seen_at_syncs(&activity, || activity.heat_now(&[(0, 5)]).unwrap()), [0]);
    assert_eq!(on_disk(dir.path()).hot, [[0b10_0000]]);
}

#[test]
fn all_extents_are_seen_hot_only_when_the_disk_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let activity = map(dir.path(), &cold());
    assert_eq!(seen_at_syncs(&activity, || activity.heat_all().unwrap()), [0]);
    assert_eq!(activity.hot_extents(), 64);
    assert_eq!(on_disk(dir.path()).hot, [[u64::MAX]]);
}

#[test]
fn an_extent_is_no_longer_seen_hot_when_the_disk_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let activity = map(dir.path(), &Hot::Words(vec![vec![0b111]]));
    // A writer that came after the round had looked: its extent stays as it is.
    let _ = activity.touch(VolumeId(0), Extent::new(EXTENT_BYTES, 4096));
    let base = Base { incarnation: 1, seq: 7, claims: 0 };
    let seen = seen_at_syncs(&activity, || activity.make_cold(vec![(0, 1), (0, 2)], base));
    assert_eq!(seen, [3, 2], "the base first, then the extents");
    assert_eq!(activity.hot_extents(), 2);
    assert_eq!(on_disk(dir.path()), Found { base, hot: vec![vec![0b011]] });
}

/// Two hot extents, which the cooler has found idle: it syncs the source while `heat` is
/// done, then makes them cold. Which are hot then, in memory and in the file.
fn hot_after(heat: impl FnOnce(&Activity)) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (path, sizes) = (dir.path().join("activity.map"), [2 * EXTENT_BYTES]);
    let map = Activity::create(&path, UUID, 1, Base::default(), &sizes, &Hot::All).unwrap();
    heat(&map);
    map.make_cold(vec![(0, 0), (0, 1)], Base { incarnation: 1, seq: 9, claims: 0 });
    let found = find(&path, UUID, 1, &sizes).unwrap().unwrap();
    (map.hot_extents(), found.hot[0][0] & 3)
}

#[test]
fn an_extent_heated_while_the_cooler_syncs_the_source_stays_hot() {
    assert_eq!(hot_after(|_| {}), (0, 0));
    assert_eq!(hot_after(|map| map.heat_now(&[(0, 0)]).unwrap()), (1, 1));
}

#[test]
fn a_resync_while_the_cooler_syncs_the_source_leaves_everything_hot() {
    assert_eq!(hot_after(|map| map.heat_all().unwrap()), (2, 3));
}
