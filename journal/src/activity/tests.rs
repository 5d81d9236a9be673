//! What becomes dirty between the cooler's look and its step stays hot.

use super::*;

/// Two hot extents, which the cooler has found idle: it syncs the source while `heat` is
/// done, then makes them cold. Which are hot then, in memory and in the file.
fn hot_after(heat: impl FnOnce(&Activity)) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (path, sizes) = (dir.path().join("activity.map"), [2 * EXTENT_BYTES]);
    let map = Activity::create(&path, [1; 16], 1, Base::default(), &sizes, &Hot::All).unwrap();
    heat(&map);
    map.make_cold(vec![(0, 0), (0, 1)], Base { incarnation: 1, seq: 9, claims: 0 });
    let found = find(&path, [1; 16], 1, &sizes).unwrap().unwrap();
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
