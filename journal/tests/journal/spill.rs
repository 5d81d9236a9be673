//! The spill: what the ring cannot hold goes to disk and comes back in order.

use crate::harness::{End, Lab, SIZE};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use towline_block::VolumeId;
use towline_journal::format::{Counter, RING_BYTES_MIN};
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::spill::{Rung, load_steps};
use towline_journal::{Begun, Change, Durability, Journal, Outcome, RingReader, SpillOptions};

const LIMIT: Duration = Duration::from_secs(20);

pub fn lab(segments: u64) -> Lab {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.spill = SpillOptions {
        bytes: Some(segments * SEGMENT_BYTES),
        durability: Durability::Process,
        ..SpillOptions::OFF
    };
    lab.open();
    lab.drain();
    lab
}

/// Writes until `bytes` are journaled, never faster than the spill takes them.
pub fn write_mib(lab: &Lab, mib: u64) {
    for round in 0..mib * 16 {
        let offset = round * 37_000 % (SIZE - 65_536);
        let _ = lab.write((round % 2) as usize, offset, &vec![round as u8 | 1; 65_536], End::Done);
        if round % 8 == 7 {
            let journal = lab.journal();
            journal.persist(journal.get(Counter::Done));
            assert!(journal.wait_spilled(journal.get(Counter::Done), LIMIT));
        }
    }
}

/// Waits for what the spill's thread does by itself.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..LIMIT.as_millis() {
        if reached() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("{what}");
}

#[test]
fn more_than_the_ring_holds_goes_through_the_disk_without_a_break() {
    let mut lab = lab(4);
    let breaks = lab.journal().get(Counter::Breaks);
    write_mib(&lab, 24);
    let journal = lab.journal().clone();
    assert_eq!(journal.get(Counter::Breaks), breaks);
    assert!(journal.get(Counter::SpillUsedBytes) > 20 << 20);
    assert!(journal.get(Counter::SpillOldestNs) > 0);
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 300);
    assert_eq!(journal.get(Counter::SpillUsedBytes), 0);
    assert_eq!(journal.get(Counter::Breaks), breaks);
}

#[test]
fn while_the_target_keeps_up_no_payload_goes_to_disk() {
    let mut lab = lab(4);
    for round in 0..400u64 {
        let offset = round * 37_000 % (SIZE - 65_536);
        let _ = lab.write(0, offset, &[round as u8 | 1; 65_536], End::Done);
        if round % 8 == 7 {
            lab.ship(1);
        }
    }
    // What does reach the disk is counted apart, and does not grow with the payload.
    let activity = lab.journal().get(Counter::ActivityWrittenBytes);
    assert!((1..=64 << 10).contains(&activity), "{activity}");
    let state = lab.journal().get(Counter::StateWrittenBytes);
    assert!((1..=64 << 10).contains(&state), "{state}");
    for none in [
        Counter::SpillPayloadBytes,
        Counter::SpillWrittenBytes,
        Counter::SpillFilledBytes,
        Counter::MapWrittenBytes,
    ] {
        assert_eq!(lab.journal().get(none), 0, "{none:?}");
    }
    assert!(!lab.group_dir().spill_path().exists());
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_ring_more_than_half_full_is_spilled_by_itself_and_the_ladder_comes_back() {
    let mut lab = lab(4);
    let journal = lab.journal().clone();
    until("the ladder is in memory", || journal.get(Counter::Rung) == 0);
    let steps = journal.get(Counter::LadderSteps);
    for round in 0..36u64 {
        let _ = lab.write(0, round * 65_536 % (SIZE - 65_536), &[7; 65_536], End::Done);
    }
    until("it spills", || journal.get(Counter::Spilled) > 0 && journal.get(Counter::Rung) == 1);
    until("to below a quarter", || {
        let used = journal.get(Counter::PayloadHead) - journal.get(Counter::PayloadTail);
        used < RING_BYTES_MIN / 4
    });
    lab.drain();
    until("it is in memory again", || journal.get(Counter::Rung) == 0);
    assert_eq!(journal.get(Counter::LadderSteps) - steps, 2, "down and up again");
    let steps = load_steps(&lab.group_dir().steps_path());
    let [.., down, up] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((down.from, down.to), (Rung::Ring, Rung::Spill));
    assert_eq!((up.from, up.to), (Rung::Spill, Rung::Ring));
    assert!(down.fill_percent > 50 && down.unix_ns <= up.unix_ns, "{steps:?}");
    assert!(up.reason.contains("in memory alone"), "{up:?}");
    lab.assert_identical();
}

/// Of the last step that went past the journal, once it is noted.
fn why_to_the_map(lab: &Lab) -> String {
    let mut why = String::new();
    until("it is on the map", || {
        let steps = load_steps(&lab.group_dir().steps_path());
        why =
            steps.last().filter(|s| s.to == Rung::Map).map_or(String::new(), |s| s.reason.clone());
        !why.is_empty()
    });
    why
}

#[test]
fn a_full_spill_goes_to_the_map_and_comes_back_by_heal() {
    let mut lab = lab(1);
    let breaks = lab.journal().get(Counter::Breaks);
    let mut round = 0u64;
    while lab.journal().get(Counter::MappedBytes) == 0 || round < 1200 {
        let offset = round * 37_000 % (SIZE - 65_536);
        let _ = lab.write((round % 2) as usize, offset, &vec![round as u8 | 1; 65_536], End::Done);
        let journal = lab.journal();
        if round % 8 == 7 && journal.get(Counter::Whole) == 1 {
            let done = journal.get(Counter::Done);
            journal.persist(done);
            journal.wait_spilled(done, Duration::from_millis(100));
        }
        round += 1;
        assert!(round < 4000);
    }
    let journal = lab.journal().clone();
    assert_eq!(journal.get(Counter::Breaks), breaks + 1);
    assert!(journal.get(Counter::SpillUsedBytes) <= SEGMENT_BYTES);
    until("it is told to be full", || journal.get(Counter::SpillFault) == 2);
    assert!(why_to_the_map(&lab).ends_with("the spill is full"), "{}", why_to_the_map(&lab));
    lab.drain();
    lab.assert_identical();
    assert_eq!(journal.get(Counter::Whole), 1);
    until("it has room again", || journal.get(Counter::SpillFault) == 0);
}

#[test]
fn a_kill_keeps_what_was_spilled() {
    let mut lab = lab(4);
    let breaks = lab.journal().get(Counter::Breaks);
    write_mib(&lab, 10);
    let report = lab.open();
    assert!(!report.restarted && !report.spill_lost, "{report:?}");
    write_mib(&lab, 10);
    lab.open();
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 300);
    assert_eq!(lab.journal().get(Counter::Breaks), breaks);
}

#[test]
fn a_damaged_payload_makes_its_segment_dirty_and_nothing_else() {
    let mut lab = lab(4);
    let breaks = lab.journal().get(Counter::Breaks);
    write_mib(&lab, 10);
    flip(&lab, 0, 3 << 20);
    lab.open();
    lab.drain();
    lab.assert_identical();
    assert!(lab.skipped >= 1);
    assert_eq!(lab.journal().get(Counter::Breaks), breaks + 1);
    assert_eq!(lab.journal().get(Counter::ResyncSeq), 0);
}

#[test]
fn a_lost_segment_means_that_everything_is_compared() {
    let mut lab = lab(4);
    write_mib(&lab, 10);
    std::fs::remove_dir_all(lab.group_dir().spill_path()).unwrap();
    let report = lab.open();
    assert!(report.spill_lost && !report.restarted, "{report:?}");
    assert!(lab.journal().get(Counter::SuspectBlocks) > 0);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_damaged_header_means_that_everything_is_compared() {
    let mut lab = lab(4);
    write_mib(&lab, 10);
    lab.journal = None;
    // Of the first span: what follows it is not found either.
    flip(&lab, 0, 40);
    let report = lab.open();
    assert!(report.spill_lost && !report.restarted, "{report:?}");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_disk_that_fails_leads_to_the_map_and_is_used_again_when_it_works() {
    let mut lab = lab(4);
    let folder = lab.group_dir().spill_path();
    std::fs::write(&folder, b"in the way").unwrap();
    let journal = lab.journal().clone();
    let breaks = journal.get(Counter::Breaks);
    for round in 0..100u64 {
        let _ = lab.write(0, round * 65_536 % (SIZE - 65_536), &[9; 65_536], End::Done);
        if round == 36 {
            // Past half of the ring; once it is full, nothing is spilled any more.
            until("the fault is seen", || journal.get(Counter::SpillFault) == 1);
        }
    }
    assert_eq!(journal.get(Counter::Breaks), breaks + 1);
    assert!(why_to_the_map(&lab).ends_with("cannot be written"), "{}", why_to_the_map(&lab));
    lab.drain();
    lab.assert_identical();
    assert_eq!(journal.get(Counter::SpillFault), 1);
    std::fs::remove_file(&folder).unwrap();
    until("it is seen to work again", || journal.get(Counter::SpillFault) == 0);
    write_mib(&lab, 8);
    assert_eq!(journal.get(Counter::SpillFault), 0);
    assert_eq!(journal.get(Counter::Breaks), breaks + 1);
    lab.drain();
    lab.assert_identical();
}

#[test]
fn an_orderly_stop_and_a_lost_ring_lose_nothing_that_was_spilled() {
    let mut lab = lab(4);
    write_mib(&lab, 10);
    lab.journal().stop().unwrap();
    std::fs::remove_file(lab.ring_path()).unwrap();
    let report = lab.open();
    assert!(!report.restarted, "{report:?}");
    lab.drain();
    lab.assert_identical();
}

#[test]
fn a_group_whose_spill_was_turned_off_still_ships_what_is_on_disk() {
    let mut lab = lab(4);
    write_mib(&lab, 10);
    lab.spill = SpillOptions::OFF;
    let report = lab.open();
    assert!(!report.spill_lost);
    lab.drain();
    lab.assert_identical();
    assert!(lab.from_spill > 100);
    lab.open();
    assert!(!lab.group_dir().spill_path().exists());
}

/// Each round of the persister finds a newer wish, of a record that has no outcome yet.
#[test]
fn a_wish_is_served_whatever_is_wished_for_after_it() {
    let mut lab = lab(4);
    lab.spill.durability = Durability::Flush;
    lab.open();
    lab.drain();
    let journal = lab.journal().clone();
    let begin = |journal: &Journal| {
        let data = [7; 512];
        match journal.begin(VolumeId(0), &Change::Write { offset: 0, data: &data }) {
            Begun::Record(ticket) => ticket,
            Begun::Map => panic!("there is room"),
        }
    };
    let open = Arc::new(Mutex::new(begin(&journal)));
    let first = open.lock().unwrap().first_seq();
    let (weak, rounds) = (Arc::downgrade(&journal), AtomicU32::new(0));
    let (served, answer) = mpsc::channel();
    let theirs = open.clone();
    journal.on_durable(move || {
        let Some(journal) = weak.upgrade() else { return };
        if journal.durable_seq() >= first {
            // Whoever waits drops the journal, which must not happen on this thread.
            drop(journal);
            let _ = served.send(Ok(()));
            return;
        }
        if rounds.fetch_add(1, Ordering::Relaxed) > 100 {
            let _ = served.send(Err("not after 100 rounds"));
            return;
        }
        let next = begin(&journal);
        journal.persist(next.first_seq());
        let last = std::mem::replace(&mut *theirs.lock().unwrap(), next);
        journal.finish(last, Outcome::Done);
    });
    // The first round: what begins the stream of wishes.
    let next = begin(&journal);
    journal.persist(next.first_seq());
    let last = std::mem::replace(&mut *open.lock().unwrap(), next);
    journal.finish(last, Outcome::Done);
    assert_eq!(answer.recv_timeout(LIMIT), Ok(Ok(())));
}

/// Damages a byte of a segment file.
pub fn flip(lab: &Lab, file: u32, offset: u64) {
    let path = lab.group_dir().spill_path().join(format!("{file:05}.seg"));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    if file.read_exact_at(&mut byte, offset).is_err() {
        return; // not made yet
    }
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

#[test]
fn without_a_spill_the_steps_past_the_journal_and_back_are_noted_with_their_reasons() {
    let mut lab = Lab::new(RING_BYTES_MIN);
    lab.open();
    let journal = lab.journal().clone();
    let taken = || journal.get(Counter::LadderSteps);
    assert_eq!((journal.get(Counter::Rung), taken()), (Rung::Map as u64, 0), "a baseline");
    lab.drain();
    until("the baseline is healed", || taken() == 1 && journal.get(Counter::Rung) == 0);
    for round in 0..=RING_BYTES_MIN / 65_536 {
        let _ = lab.write(0, round * 65_536 % (SIZE - 65_536), &[7; 65_536], End::Done);
    }
    until("it breaks", || taken() == 2 && journal.get(Counter::Rung) == Rung::Map as u64);
    lab.drain();
    until("it is healed", || taken() == 3 && journal.get(Counter::Rung) == 0);
    let steps = load_steps(&lab.group_dir().steps_path());
    let told: Vec<(Rung, Rung, &str)> =
        steps.iter().map(|step| (step.from, step.to, step.reason.as_str())).collect();
    let healed = "healed: the journal holds every change, in memory";
    let broken = "changes bypass the journal until HEAL: there is no spill";
    let (up, down) = ((Rung::Map, Rung::Ring, healed), (Rung::Ring, Rung::Map, broken));
    assert_eq!(told, [up, down, up]);
    assert!(steps[1].fill_percent > 90, "{:?}", steps[1]);
    assert!(journal.get(Counter::StateWrittenBytes) > 0);
    drop(journal);
    lab.open();
    assert_eq!(load_steps(&lab.group_dir().steps_path()), steps, "a start is no step");
}

/// A failed write leaves the ring nearly empty, and the spill's thread asleep.
#[test]
fn a_break_without_a_full_ring_is_noted_too() {
    let mut lab = lab(4);
    let journal = lab.journal().clone();
    until("the ladder is in memory", || journal.get(Counter::Rung) == 0);
    let steps = journal.get(Counter::LadderSteps);
    let _ = lab.write(0, 0, &[7; 4096], End::Failed);
    until("it breaks", || journal.get(Counter::Rung) == Rung::Map as u64);
    lab.drain();
    until("it is healed", || journal.get(Counter::Rung) == 0);
    assert_eq!(journal.get(Counter::LadderSteps), steps + 2);
}

/// The target is away more than once: its records go on in the segment of the first time,
/// whose records it has, and what it took from memory meanwhile is not on disk.
#[test]
fn bytes_and_age_of_what_waits_on_disk_are_true_whenever_the_spill_is_used() {
    let mut lab = lab(4);
    write_mib(&lab, 4);
    lab.drain();
    for round in 0..1000u64 {
        let _ = lab.write(0, round * 512 % SIZE, &[round as u8 | 1; 512], End::Done);
        if round % 50 == 49 {
            lab.ship(1);
        }
    }
    lab.drain();
    pause(1500);
    write_slowly(&lab, 8);
    assert_told(&lab);
    for share in [4, 3, 2] {
        let journal = lab.journal();
        let (acked, spilled) = (journal.get(Counter::Acked), journal.get(Counter::Spilled));
        journal.ack(acked + (spilled - acked) / share, 0);
        assert_told(&lab);
    }
    lab.open();
    assert_told(&lab);
    // Without anything between the last use and this one.
    let journal = lab.journal();
    journal.ack(journal.get(Counter::Spilled), 0);
    assert_told(&lab);
    pause(1500);
    write_slowly(&lab, 4);
    assert_told(&lab);
}

fn pause(ms: u64) {
    std::thread::park_timeout(Duration::from_millis(ms));
}

fn write_slowly(lab: &Lab, mib: u64) {
    for _ in 0..mib {
        write_mib(lab, 1);
        pause(100);
    }
}

/// Holds the spill's figures against the records themselves.
fn assert_told(lab: &Lab) {
    let journal = lab.journal();
    let reader = RingReader::open(journal.ring_file()).unwrap().with_spill(lab.spill_store());
    let (acked, spilled) = (journal.get(Counter::Acked), journal.get(Counter::Spilled));
    let (mut payload, mut oldest) = (Vec::new(), None);
    for seq in acked + 1..=spilled {
        let record = reader.read(seq, &mut payload).unwrap();
        oldest = oldest.or(Some(record.unix_ns));
    }
    let bytes = payload.len() as u64;
    let (told, told_ns) =
        (journal.get(Counter::SpillUsedBytes), journal.get(Counter::SpillOldestNs));
    let slack = bytes / 20 + (128 << 10) * u64::from(bytes > 0);
    assert!(told.abs_diff(bytes) <= slack, "{told} bytes told, {bytes} there");
    assert!(told_ns.abs_diff(oldest.unwrap_or(0)) < 300_000_000, "{told_ns}, not {oldest:?}");
}
