//! Applying without staging, before the first point: nothing acknowledged is lost,
//! and what comes again makes the volumes whole.

use super::crash::{Lab, each_crash};
use super::history::{GROUP, History, check, random};
use crate::batch::{Batch, Control, Keyring};
use crate::receiver::Stream;
use crate::receiver::handover::Ready;
use crate::receiver::recovery::Store;
use std::sync::Arc;
use tokio::sync::Semaphore;

fn history() -> History {
    let mut history = History::new(7);
    for n in 0..6 {
        if n % 2 == 0 { history.records(6, &[]) } else { history.blocks() }
    }
    history.records(3, &[Control::Heal]);
    history
}

/// Hands over what follows, with applying between at random; answers for each
/// acknowledgement how many changes were made before it.
fn feed(lab: &Lab, store: &mut Store, history: &History, seed: u64) -> Vec<(usize, u64)> {
    let (mut state, mut acks) = (seed, Vec::new());
    let memory = Arc::new(Semaphore::new(1000));
    let mut after: Stream = store.apply.applied().clone();
    for sealed in &history.batches[after.number as usize..] {
        let batch = Batch::open(sealed.bytes.clone(), &Keyring::default()).unwrap();
        after = after.follow(GROUP, &batch.view()).unwrap();
        let memory = memory.clone().try_acquire_owned().unwrap();
        store.apply.handover().put(Ready::direct(batch, after.clone(), memory));
        if random(&mut state).is_multiple_of(2) {
            acks.extend(store.apply.step().unwrap().map(|done| (lab.recorder.len(), done.number)));
        }
    }
    while let Some(done) = store.apply.step().unwrap() {
        acks.push((lab.recorder.len(), done.number));
    }
    assert_eq!(memory.available_permits(), 1000, "applied batches give their memory back");
    acks
}

#[test]
fn a_crash_at_any_step_of_applying_directly_is_made_good_by_what_comes_again() {
    let history = history();
    let last = history.batches.len() as u64;
    let lab = Lab::new();
    let mut store = lab.create();
    let acks = feed(&lab, &mut store, &history, 3);
    assert!(acks.len() > 2, "in several groups: {acks:?}");
    drop(store);
    check(&history, &lab.volumes(), last).unwrap();
    let changes = lab.recorder.take();
    each_crash(&lab, &changes, lab.model(), |k, _, at| {
        let acked = acks.iter().rev().find(|(before, _)| *before <= k).map_or(0, |ack| ack.1);
        let mut store = match lab.reopen() {
            Some(store) => store,
            None => lab.create(),
        };
        let found = store.durable.clone();
        assert!(found.number >= acked, "{at}: {acked} was acknowledged, {} is here", found.number);
        assert_eq!(&found, store.apply.applied(), "{at}: nothing is staged");
        assert!(found.point.is_none() || found.number == last, "{at}");
        feed(&lab, &mut store, &history, 5);
        check(&history, &lab.volumes(), last).unwrap_or_else(|e| panic!("{at}: {e}"));
        lab.recorder.take();
    });
}

#[test]
fn what_a_gone_sender_left_unapplied_is_forgotten() {
    let history = history();
    let lab = Lab::new();
    let mut store = lab.create();
    *lab.recorder.fail.lock().unwrap() = Some((lab.target(0), 5));
    let batch = Batch::open(history.batches[0].bytes.clone(), &Keyring::default()).unwrap();
    let after = Stream::default().follow(GROUP, &batch.view()).unwrap();
    let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    store.apply.handover().put(Ready::direct(batch, after, memory));
    assert!(store.apply.step().is_err());
    *lab.recorder.fail.lock().unwrap() = None;
    store.apply.drop_unstaged();
    assert_eq!(store.apply.step().unwrap(), None, "not applied behind the sender's back");
    feed(&lab, &mut store, &history, 3);
    check(&history, &lab.volumes(), history.batches.len() as u64).unwrap();
}
