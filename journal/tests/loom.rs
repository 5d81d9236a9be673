//! The appender, its finishers, the shipper and the acknowledgements under every
//! interleaving and every memory order that a C11 machine allows (up to a bound of
//! preemptions). Run by `scripts/loom`; an empty target otherwise.
//!
//! Each property is also run over broken fences, orders, locks, or against a shipper
//! that breaks the rules, and must then fail.
#![cfg(loom)]

use loom::thread;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use towline_block::VolumeId;
use towline_journal::format::{Control, Counter, Kind, SlotState};
use towline_journal::model::{Fault, Start, WRITE_BYTES, set_fault};
use towline_journal::{Begun, Change, Journal, Outcome, RingReader, Ticket};

const ROOMY: Start = Start { slots: 12, payloads: 2, whole: true };
const TIGHT: Start = Start { slots: 12, payloads: 1, whole: true };

/// Switches away from a running thread that are tried in one execution. Every fault
/// below needs at most two.
const PREEMPTIONS_MAX: usize = 3;

/// Stack of a modelled thread, in words: a superblock is moved about on it.
const STACK_WORDS: usize = 32 * 1024;

fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(STACK_WORDS).spawn(run).unwrap()
}

fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    let scenario = Arc::new(scenario);
    model.check(move || {
        let scenario = scenario.clone();
        spawn(move || scenario()).join().unwrap();
    });
}

/// The scenario never fails, and says at least once each of `expected`: a search that
/// did not get anywhere proves nothing either.
fn holds<T: Ord + Debug + Send + 'static>(
    expected: &[T],
    scenario: impl Fn() -> T + Sync + Send + 'static,
) {
    set_fault(None);
    let reached = Arc::new(Mutex::new(BTreeSet::new()));
    let said = reached.clone();
    explore(move || {
        said.lock().unwrap().insert(scenario());
    });
    let reached = reached.lock().unwrap();
    assert!(expected.iter().all(|one| reached.contains(one)), "reached only {reached:?}");
}

/// The scenario must end in a panic that says one of these.
fn fails_with<T>(
    fault: Option<Fault>,
    reasons: &[&str],
    scenario: impl Fn() -> T + Sync + Send + 'static,
) {
    set_fault(fault);
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(move || drop(scenario()))));
    set_fault(None);
    let panic = outcome.expect_err("the fault was not found");
    let said = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let said = said.unwrap_or_default();
    assert!(reasons.iter().any(|reason| said.contains(reason)), "another failure: {said}");
}

fn volume(index: u16) -> VolumeId {
    VolumeId(index)
}

fn content(index: u16, round: u8) -> [u8; WRITE_BYTES as usize] {
    [index as u8 * 16 + round + 1; WRITE_BYTES as usize]
}

fn begin(journal: &Journal, index: u16, round: u8) -> Begun {
    journal.begin(volume(index), &Change::Write { offset: 0, data: &content(index, round) })
}

fn ticket(begun: Begun) -> Ticket {
    match begun {
        Begun::Record(ticket) => ticket,
        Begun::Map => panic!("there is room"),
    }
}

/// A guest's write, whole.
fn write(journal: &Journal, index: u16, round: u8, outcome: Outcome) {
    if let Begun::Record(ticket) = begin(journal, index, round) {
        journal.finish(ticket, outcome);
    }
}

// --- the done mark

/// Writes begun in order, then finished at once by a thread each.
fn finish_at_once(outcomes: &'static [Outcome]) {
    let (journal, _) = Journal::model(ROOMY);
    let journal = Arc::new(journal);
    let tickets: Vec<_> =
        (0..outcomes.len()).map(|index| ticket(begin(&journal, index as u16, 0))).collect();
    let threads: Vec<_> = tickets
        .into_iter()
        .zip(outcomes)
        .map(|(ticket, outcome)| {
            let journal = journal.clone();
            spawn(move || journal.finish(ticket, *outcome))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(
        journal.get(Counter::Done),
        journal.get(Counter::Head),
        "the done mark stands still"
    );
}

#[test]
fn the_done_mark_never_stands_still_when_neighbours_finish_at_once() {
    holds(&[()], || finish_at_once(&[Outcome::Done, Outcome::Done]));
}

#[test]
fn without_fences_the_done_mark_stands_still() {
    fails_with(Some(Fault::Fences), &["the done mark stands still"], || {
        finish_at_once(&[Outcome::Done, Outcome::Done])
    });
}

/// The failed write's BREAK is appended as done while its neighbour finishes.
#[test]
fn the_done_mark_passes_a_control_record_appended_at_once() {
    holds(&[()], || finish_at_once(&[Outcome::Done, Outcome::Failed]));
}

#[test]
fn without_fences_the_done_mark_stops_before_a_control_record() {
    fails_with(Some(Fault::Fences), &["the done mark stands still"], || {
        finish_at_once(&[Outcome::Done, Outcome::Failed]);
    });
}

// --- the reader below the done mark

/// Everything below the done mark, checked against what was written.
fn read_all(reader: &RingReader, from: u64) -> u64 {
    let done = reader.done_seq();
    for seq in from..=done {
        let mut payload = Vec::new();
        let record = reader.read(seq, &mut payload).expect("below the done mark all is sound");
        assert_eq!((record.seq, record.incarnation), (seq, 1));
        if record.kind == Kind::Write && record.state == SlotState::Done {
            let rounds = (0..4).map(|round| content(record.volume.0, round));
            assert!(rounds.into_iter().any(|content| payload == content), "{payload:?}");
            assert_eq!(record.extent.len, WRITE_BYTES);
        }
    }
    done
}

/// Says how far the reader got while the producers were at work.
fn producers_and_a_reader(producers: u16) -> u64 {
    let (journal, reader) = Journal::model(ROOMY);
    let (journal, reader) = (Arc::new(journal), Arc::new(reader));
    let threads: Vec<_> = (0..producers)
        .map(|index| {
            let journal = journal.clone();
            spawn(move || write(&journal, index, 0, Outcome::Done))
        })
        .collect();
    // Last, so that the search begins where there is something to see.
    let reading = {
        let reader = reader.clone();
        spawn(move || read_all(&reader, 1))
    };
    let seen = reading.join().unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(read_all(&reader, seen + 1), u64::from(producers));
    seen
}

#[test]
fn a_reader_below_the_done_mark_sees_whole_records() {
    holds(&[0, 1, 2], || producers_and_a_reader(2));
}

#[test]
fn with_relaxed_orders_a_reader_sees_half_a_record() {
    let reasons = ["Causality violation", "below the done mark all is sound"];
    fails_with(Some(Fault::Orders), &reasons, || producers_and_a_reader(1));
}

// --- reuse

/// Room for one payload: the second write reuses it as soon as it is free. Says
/// whether it did.
fn reuse(shipper_is_honest: bool) -> bool {
    let (journal, reader) = Journal::model(TIGHT);
    let journal = Arc::new(journal);
    write(&journal, 0, 0, Outcome::Done);
    let shipper = {
        let journal = journal.clone();
        spawn(move || {
            let mut seen = 0;
            for _ in 0..2 {
                if shipper_is_honest {
                    seen = read_all(&reader, seen + 1);
                    journal.ack(seen, 0);
                } else {
                    journal.ack(reader.done_seq(), 0);
                    seen = read_all(&reader, seen + 1);
                }
            }
        })
    };
    write(&journal, 0, 1, Outcome::Done);
    shipper.join().unwrap();
    journal.get(Counter::PayloadHead) == 2 * WRITE_BYTES
}

#[test]
fn nothing_is_reused_before_it_is_acknowledged() {
    holds(&[false, true], || reuse(true));
}

#[test]
fn a_shipper_that_acknowledges_before_it_reads_is_found() {
    fails_with(None, &["Causality violation"], || reuse(false));
}

// --- BREAK before dirty before tombstone

fn has_break(reader: &RingReader) -> bool {
    (1..=4).any(|seq| reader.record(seq).is_some_and(|r| r.control == Some(Control::Break)))
}

/// One volume overflows while another's write fails; who looks on, as recovery would,
/// sees the three steps in their order only. Says what it saw: tombstone, dirty.
fn overflow_and_failure() -> (bool, bool) {
    let (journal, reader) = Journal::model(TIGHT);
    let journal = Arc::new(journal);
    let failing = ticket(begin(&journal, 0, 0));
    let fails = {
        let journal = journal.clone();
        spawn(move || journal.finish(failing, Outcome::Failed))
    };
    let overflows = {
        let journal = journal.clone();
        spawn(move || assert_eq!(begin(&journal, 1, 0), Begun::Map))
    };
    let looks_on = spawn(move || {
        let tombstone = reader.slot_state(1) == Some(SlotState::Failed);
        let dirty = [0, 1].map(|index| reader.is_dirty(volume(index)));
        assert!(dirty[0] || !tombstone, "a tombstone whose block is not dirty");
        let seen = (tombstone, dirty[0] || dirty[1]);
        assert!(!seen.1 || has_break(&reader), "dirty blocks without a BREAK");
        seen
    });
    let seen = looks_on.join().unwrap();
    fails.join().unwrap();
    overflows.join().unwrap();
    assert_eq!(journal.get(Counter::Breaks), 1, "a group breaks once");
    assert_eq!(journal.get(Counter::Whole), 0);
    assert_eq!((journal.get(Counter::DirtyBlocks), journal.get(Counter::Done)), (2, 2));
    seen
}

#[test]
fn break_comes_before_the_first_dirty_bit_and_that_before_the_tombstone() {
    holds(&[(false, false), (false, true), (true, true)], overflow_and_failure);
}

#[test]
fn with_relaxed_orders_dirty_bits_overtake_their_break() {
    fails_with(
        Some(Fault::Orders),
        &["dirty blocks without a BREAK", "whose block is not dirty"],
        overflow_and_failure,
    );
}

#[test]
fn without_the_append_lock_a_group_breaks_twice() {
    fails_with(
        Some(Fault::Locks),
        &["breaks once", "dirty blocks without a BREAK"],
        overflow_and_failure,
    );
}

// --- HEAL never crosses an overflow

/// A broken group heals, its last claim just acknowledged, while a volume overflows.
/// Says whether HEAL came first.
fn heal_and_overflow() -> bool {
    let (journal, reader) = Journal::model(Start { whole: false, ..TIGHT });
    let journal = Arc::new(journal);
    write(&journal, 0, 0, Outcome::Done);
    let overflows = {
        let journal = journal.clone();
        spawn(move || assert_eq!(begin(&journal, 1, 0), Begun::Map))
    };
    let healed = journal.heal();
    overflows.join().unwrap();
    let controls: Vec<_> = (1..=4).filter_map(|seq| reader.record(seq)?.control).collect();
    let expected: &[Control] =
        if healed.is_some() { &[Control::Heal, Control::Break] } else { &[] };
    assert_eq!(controls, expected);
    assert!(reader.is_dirty(volume(1)));
    assert_eq!(journal.get(Counter::Whole), 0, "whole with a dirty block");
    healed.is_some()
}

#[test]
fn heal_never_crosses_an_overflow() {
    holds(&[false, true], heal_and_overflow);
}

#[test]
fn without_the_append_lock_heal_crosses_an_overflow() {
    fails_with(Some(Fault::Locks), &["whole with a dirty block"], heal_and_overflow);
}

/// A dirty block is claimed, sent and acknowledged while the shipper's session ends
/// and its claims revert; HEAL is asked for at any time.
fn heal_and_revert() {
    let (journal, reader) = Journal::model(Start { whole: false, ..TIGHT });
    let journal = Arc::new(journal);
    let first = begin(&journal, 0, 0);
    assert_eq!(begin(&journal, 1, 0), Begun::Map);
    journal.finish(ticket(first), Outcome::Done);
    let claim = journal.claim(volume(1), 0, 1).expect("it is dirty");
    let reverts = {
        let journal = journal.clone();
        let target = towline_journal::Durable { epoch: 1, incarnation: 1, seq: 0, claims: 0 };
        spawn(move || journal.attach(target).is_some())
    };
    let healed = journal.heal();
    assert!(reverts.join().unwrap());
    assert!(healed.is_none(), "HEAL while claim {} was open", claim.id);
    assert!(reader.is_dirty(volume(1)));
}

#[test]
fn heal_never_slips_between_a_claim_and_its_reversal() {
    holds(&[()], heal_and_revert);
}

#[test]
fn without_the_claims_lock_heal_slips_between() {
    fails_with(Some(Fault::Locks), &["HEAL while claim"], heal_and_revert);
}
