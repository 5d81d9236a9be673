use super::*;
use proptest::prelude::*;

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len)
}

/// Whether the second may run beside the first, on the same range.
fn beside(first: Use, second: Use) -> bool {
    let mut table = Overlaps::default();
    assert!(table.enter(0, extent(0, 8), first, 8).1);
    table.enter(1, extent(4, 8), second, 8).1
}

#[test]
fn only_reads_run_beside_each_other_on_the_same_range() {
    assert!(beside(Use::Read, Use::Read));
    assert!(!beside(Use::Read, Use::Change));
    assert!(!beside(Use::Change, Use::Read));
    assert!(!beside(Use::Change, Use::Change));
}

#[test]
fn neighbours_do_not_wait_for_each_other() {
    let mut table = Overlaps::default();
    table.enter(0, extent(4, 4), Use::Change, 4);
    assert!(table.enter(1, extent(0, 4), Use::Change, 4).1);
    assert!(table.enter(2, extent(8, 4), Use::Change, 4).1);
}

#[test]
fn nothing_overtakes_what_waits() {
    let mut table = Overlaps::default();
    let (read, _) = table.enter(0, extent(0, 4), Use::Read, 4);
    assert!(!table.enter(1, extent(0, 8), Use::Change, 8).1);
    // Would fit beside the running read, but stands behind the change.
    assert!(!table.enter(2, extent(4, 4), Use::Read, 4).1);
    let mut runnable = Vec::new();
    table.leave(read, &mut runnable);
    assert_eq!(runnable, [1]);
}

#[test]
fn a_claim_waits_for_changes_before_it_and_for_no_later_ones() {
    let mut table = Overlaps::default();
    let (change, _) = table.enter(0, extent(0, 4), Use::Change, 4);
    let mark = table.mark();
    table.enter(1, extent(0, 4), Use::Change, 4);
    assert!(table.changes_before(mark, extent(3, 1)));
    assert!(!table.changes_before(mark, extent(4, 1)));
    table.leave(change, &mut Vec::new());
    assert!(!table.changes_before(mark, extent(3, 1)));
}

#[test]
fn permits_end_at_the_limits_of_operations_and_bytes() {
    let mut table = Overlaps::default();
    for slot in 0..OPERATIONS_MAX {
        assert!(table.admits(1));
        table.enter(slot, extent(0, 1), Use::Read, 1);
    }
    assert!(!table.admits(0));
    let mut table = Overlaps::default();
    let (arrival, _) = table.enter(0, extent(0, 1), Use::Read, OPERATION_BYTES_MAX);
    assert!(!table.admits(1));
    table.leave(arrival, &mut Vec::new());
    assert!(table.admits(OPERATION_BYTES_MAX));
}

proptest! {
    /// Operations end in any order: no two that conflict run together, conflicting ones
    /// start in the order of arrival, and each one starts.
    #[test]
    fn conflicting_operations_run_one_after_the_other_in_order(
        arrivals in prop::collection::vec((0u64..12, 1u64..6, any::<bool>()), 1..100),
        picks in prop::collection::vec((any::<bool>(), any::<u16>()), 400),
    ) {
        let uses: Vec<_> = arrivals.iter().map(|(offset, len, change)| {
            (extent(*offset, *len), if *change { Use::Change } else { Use::Read })
        }).collect();
        let conflict = |a: usize, b: usize| {
            let ((x, p), (y, q)) = (uses[a], uses[b]);
            (p == Use::Change || q == Use::Change)
                && (x.offset..x.end()).any(|at| (y.offset..y.end()).contains(&at))
        };
        let (mut table, mut numbers) = (Overlaps::default(), Vec::new());
        let (mut started, mut running) = (Vec::new(), Vec::new());
        let mut picks = picks.into_iter();
        loop {
            let (arrive, pick) = picks.next().unwrap_or((true, 0));
            let mut new = Vec::new();
            if numbers.len() < uses.len() && (arrive || running.is_empty()) {
                let slot = numbers.len();
                let (number, runs) = table.enter(slot, uses[slot].0, uses[slot].1, 1);
                numbers.push(number);
                new.extend(runs.then_some(slot));
            } else if !running.is_empty() {
                let ended: usize = running.swap_remove(usize::from(pick) % running.len());
                table.leave(numbers[ended], &mut new);
            } else {
                break;
            }
            for slot in new {
                for other in &running {
                    prop_assert!(!conflict(slot, *other), "{slot} beside {other}");
                }
                for earlier in 0..slot {
                    prop_assert!(!conflict(slot, earlier) || started.contains(&earlier));
                }
                running.push(slot);
                started.push(slot);
            }
        }
        prop_assert_eq!(started.len(), uses.len());
        prop_assert!(table.is_idle());
    }
}
