//! What is dirty is hot (R7), whatever way it became dirty: a power loss forgets the
//! change map, and then only the activity map says that these blocks may differ.

use crate::harness::{End, Lab, SIZE};
use crate::spill::flip;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use towline_block::{BLOCK_BYTES, Extent};
use towline_journal::durable::{Event, observe};
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{AttachPolicy, Begun, Durability, SpillOptions};

/// Everything is at the target, nothing is hot.
fn cold_lab(spill: SpillOptions) -> Lab {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.spill = spill;
    lab.attach = AttachPolicy::Trust;
    lab.open();
    lab.drain();
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0);
    lab
}

/// `step`, and a kill before the activity map has heard of it.
fn kill_before_it_is_hot(lab: &mut Lab, step: impl FnOnce(&mut Lab)) {
    let path = lab.group_dir().path().join("activity.map");
    let before = std::fs::read(&path).unwrap();
    step(lab);
    lab.journal = None;
    std::fs::write(&path, before).unwrap();
    lab.open();
}

/// A guest's write that goes past the journal, flushed; then the power is cut.
fn unjournaled_write_survives(lab: &mut Lab, volume: usize) {
    assert!(lab.journal().get(Counter::DirtyBlocks) > 0);
    let begun = lab.write(volume, 0, &[0x5a; 4096], End::Done);
    assert!(matches!(begun, Begun::Map), "its block is dirty: {begun:?}");
    lab.synced[volume] = std::fs::read(lab.source_path(volume)).unwrap();
    assert!(lab.cut_power(7).restarted);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn blocks_of_a_record_that_start_closes_are_hot() {
    let mut lab = cold_lab(SpillOptions::OFF);
    kill_before_it_is_hot(&mut lab, |lab| {
        let _ = lab.zero(0, Extent::new(0, BLOCK_BYTES), End::KilledBefore);
    });
    unjournaled_write_survives(&mut lab, 0);
}

#[test]
fn blocks_that_an_overflow_dirtied_before_the_kill_are_hot() {
    let mut lab = cold_lab(SpillOptions::OFF);
    while lab.journal().get(Counter::Whole) == 1 {
        let _ = lab.write(0, 0, &[1; 50_000], End::Done);
    }
    kill_before_it_is_hot(&mut lab, |lab| {
        let begun = lab.write(1, 0, &[2; 50_000], End::KilledBefore);
        assert!(matches!(begun, Begun::Map), "the ring is full");
    });
    unjournaled_write_survives(&mut lab, 1);
}

#[test]
fn what_went_past_a_slow_state_disk_is_hot_after_a_kill() {
    let mut lab = cold_lab(SpillOptions::OFF);
    lab.journal = None;
    let (disk_goes_on, gate) = std::sync::mpsc::channel::<()>();
    observe(Some(Arc::new(Mutex::new(move |event: Event<'_>| {
        if matches!(event, Event::WriteAt { .. }) {
            let _ = gate.recv();
        }
    }))));
    lab.open();
    kill_before_it_is_hot(&mut lab, |lab| {
        let _ = lab.write(0, 0, &[0x5a; 4096], End::Done);
        assert_eq!(lab.journal().get(Counter::ActivityInvalid), 1);
        drop(disk_goes_on);
    });
    observe(None);
    assert!(lab.journal().hot_bytes() > 0);
    assert_eq!(lab.journal().get(Counter::ActivityInvalid), 0);
    lab.drain();
    // The source loses the write that the target has.
    assert!(lab.cut_power(7).restarted);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn blocks_of_a_damaged_segment_are_hot() {
    let bytes = Some(4 * SEGMENT_BYTES);
    let mut lab =
        cold_lab(SpillOptions { bytes, durability: Durability::Flush, ..SpillOptions::OFF });
    for round in 0..20u64 {
        let offset = round * 9_000 % (SIZE - 9_000);
        let _ = lab.write(0, offset, &[round as u8 | 1; 9_000], End::Done);
    }
    let done = lab.journal().get(Counter::Done);
    lab.journal().persist(done);
    assert!(lab.journal().wait_durable(done, Duration::from_secs(20)));
    lab.cool();
    assert_eq!(lab.journal().hot_bytes(), 0, "the spill has it durably");
    lab.forget_spilled();
    flip(&lab, 0, 20_000);
    // The stream passes the damaged segment; its blocks are not yet sent.
    lab.ship(1);
    assert!(lab.skipped > 0 && lab.target.durable.seq >= done);
    assert!(lab.journal().get(Counter::DirtyBlocks) > 0);
    assert!(lab.cut_power(7).restarted);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn what_a_target_says_that_it_lacks_is_sent_behind_a_break_and_hot_until_then() {
    let mut lab = cold_lab(SpillOptions::OFF);
    lab.target.images[0][..4096].fill(0xee);
    lab.target.whole = false;
    // What lies outside its volumes it does not lack.
    lab.journal().target_lacks(&[(0, 0, 1), (0, u64::MAX, 9), (7, 0, 1)]);
    let journal = lab.journal();
    assert_eq!((journal.get(Counter::DirtyBlocks), journal.get(Counter::Whole)), (1, 0));
    assert!(journal.hot_bytes() > 0);
    unjournaled_write_survives(&mut lab, 0);
}
