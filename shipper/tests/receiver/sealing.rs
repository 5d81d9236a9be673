//! Sealed batches at the receiver: nothing of them lies open, keys follow one another,
//! and a key that is missing stops it and is never taken for damage.

use crate::faults::{Faults, start_faulty};
use crate::lab::{Lab, Sender, hello};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use towline_shipper::ErrorKind;
use towline_shipper::batch::{GroupKey, Keyring};
use towline_shipper::receiver::{Receiver, ReceiverStatus, recover, rewind};
use towline_shipper::wire::{Hello, RefusalCode};

fn key(secret: u8) -> GroupKey {
    GroupKey::of_secret([secret; 32]).unwrap()
}

fn keys(secrets: &[u8]) -> Keyring {
    let mut keys = Keyring::default();
    secrets.iter().for_each(|secret| keys.add(key(*secret)));
    keys
}

fn sealing(secret: u8) -> Hello {
    Hello { key: Some(key(secret).id), ..hello() }
}

async fn connect(lab: &Lab, receiver: &Receiver, secret: u8) -> Sender {
    let mut sender = Sender::hello(lab, receiver, sealing(secret)).await.expect("refused");
    sender.key = Some(key(secret));
    sender
}

/// All files below `dir`, but the word to clones that a receiver looked there: nothing is
/// decided by it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.append(&mut files(&entry));
        } else if !entry.ends_with("marks/changes") {
            found.insert(entry.clone(), std::fs::read(&entry).unwrap());
        }
    }
    found
}

const SECRET_TEXT: &[u8] = b"what nobody else is to read ";

/// A receiver with sealed batches of `secret` that are staged and cannot be applied.
async fn staged(lab: &Lab, secret: u8) -> (Receiver, Arc<Faults>) {
    let (receiver, faults) = start_faulty(lab);
    let mut sender = connect(lab, &receiver, secret).await;
    // From a point on: what comes before it needs no staging.
    sender.ship(&[(0, 0, b"first")], &[towline_shipper::batch::Control::Heal]).await;
    sender.applied(1).await;
    faults.set(lab.target(0), 5);
    sender.ship(&[(0, 4096, &SECRET_TEXT.repeat(50))], &[]).await;
    sender.acked(2).await;
    (receiver, faults)
}

#[tokio::test]
async fn what_is_staged_is_sealed_and_what_is_applied_is_not() {
    let mut lab = Lab::new();
    lab.keys = keys(&[1]);
    let (receiver, faults) = staged(&lab, 1).await;
    let open = |content: &Vec<u8>| content.windows(SECRET_TEXT.len()).any(|w| w == SECRET_TEXT);
    assert!(!files(&lab.state_dir()).values().any(open), "nothing of it lies open in the state");
    faults.clear();
    receiver.stop();
    lab.start().stop();
    assert!(lab.contents(0)[4096..].starts_with(SECRET_TEXT));
}

#[tokio::test]
async fn keys_follow_one_another_and_the_receiver_knows_them_all() {
    let mut lab = Lab::new();
    lab.keys = keys(&[1, 2]);
    let receiver = lab.start();
    for (number, secret) in [(1, 1), (2, 2), (3, 1)] {
        let mut sender = connect(&lab, &receiver, secret).await;
        sender.ship(&[(0, 4096 * number, b"sealed")], &[]).await;
        sender.applied(number).await;
        assert!(lab.contents(0)[4096 * number as usize..].starts_with(b"sealed"));
    }
    receiver.stop();
}

#[tokio::test]
async fn a_shipper_hears_of_a_missing_key_before_its_first_batch() {
    let mut lab = Lab::new();
    lab.keys = keys(&[1]);
    let receiver = lab.start();
    let refusal = Sender::hello(&lab, &receiver, sealing(9)).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::NoKey);
    assert!(refusal.message.contains(&key(9).id.to_string()), "{}", refusal.message);
    assert!(refusal.message.contains("--key"), "{}", refusal.message);
    // Whoever was given keys takes nothing in the open.
    let refusal = Sender::hello(&lab, &receiver, hello()).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::NotAuthorised);
    assert!(refusal.message.contains("only sealed"), "{}", refusal.message);
    let mut sender = Sender::hello(&lab, &receiver, sealing(1)).await.expect("refused");
    sender.ship(&[(0, 0, b"in the open after all")], &[]).await;
    assert_eq!(sender.refused().await.code, RefusalCode::NotAuthorised);
    receiver.stop();
    assert!(lab.contents(0).iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_key_that_is_missing_in_the_middle_of_staging_stops_there() {
    let mut lab = Lab::new();
    lab.keys = keys(&[1, 2]);
    let (receiver, _faults) = staged(&lab, 1).await;
    let mut sender = connect(&lab, &receiver, 2).await;
    sender.ship(&[(0, 8192, b"of the new key")], &[]).await;
    sender.acked(3).await;
    receiver.stop();
    let both = std::mem::replace(&mut lab.keys, keys(&[1]));
    for _ in 0..2 {
        let error = lab.start_with(|_| ()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");
        assert!(error.to_string().contains(&key(2).id.to_string()), "{error}");
        let status = ReceiverStatus::load(&lab.state_dir(), &both).unwrap().unwrap();
        // What lies before it may be applied, nothing else.
        assert!(status.state.applied.number <= 2);
        assert_eq!(status.durable.number, 3);
    }
    lab.keys = both;
    lab.start().stop();
    assert!(lab.contents(0)[4096..].starts_with(SECRET_TEXT));
    assert!(lab.contents(0)[8192..].starts_with(b"of the new key"));
}

#[tokio::test]
async fn a_missing_or_wrong_key_stops_the_receiver_and_is_no_damage() {
    let mut lab = Lab::new();
    lab.keys = keys(&[1]);
    let (receiver, _faults) = staged(&lab, 1).await;
    receiver.stop();
    let before = files(&lab.state_dir());
    for wrong in [Keyring::default(), keys(&[2, 3])] {
        let error = lab.start_with(|config| config.keys = wrong.clone()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");
        assert!(error.to_string().contains(&key(1).id.to_string()), "{error}");
        assert!(error.to_string().contains("--key"), "{error}");
        assert_eq!(recover(&lab.state_dir(), &wrong).unwrap_err().kind(), error.kind());
        assert_eq!(rewind(&lab.state_dir(), 1, &wrong).unwrap_err().kind(), error.kind());
        let status = ReceiverStatus::load(&lab.state_dir(), &wrong).unwrap().unwrap();
        assert_eq!(status.durable.number, 1, "what is applied is known all the same");
        assert!(status.locked.unwrap().contains("--key"));
        assert_eq!(files(&lab.state_dir()), before, "nothing was touched");
    }
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert_eq!((status.durable.number, status.locked), (2, None));
    lab.start().stop();
    assert!(lab.contents(0)[4096..].starts_with(SECRET_TEXT));
}
