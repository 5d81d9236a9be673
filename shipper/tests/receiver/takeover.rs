//! PROMOTE and ABORT: decided once, durably, by whichever was first.

use crate::lab::{Lab, Sender, at, hello};
use std::sync::atomic::Ordering::Relaxed;
use towline_block::{Epoch, Position};
use towline_shipper::batch::Control;
use towline_shipper::receiver::{Receiver, ReceiverStatus};
use towline_shipper::wire::{Abort, Decision, Message, Outcome, Promote, Refusal, RefusalCode};

pub fn promote(attempt: &str, position: Position, allow_rollback: bool) -> Message {
    Message::Promote(Promote { attempt: attempt.into(), position, allow_rollback })
}

fn abort(attempt: &str) -> Message {
    Message::Abort(Abort { attempt: attempt.into() })
}

async fn decision(sender: &mut Sender, request: &Message) -> Decision {
    sender.send(request).await;
    next_decision(sender).await
}

async fn next_decision(sender: &mut Sender) -> Decision {
    match sender.answer().await {
        Some(Message::Decision(decision)) => decision,
        other => panic!("expected DECISION, got {other:?}"),
    }
}

async fn refusal(sender: &mut Sender, request: &Message) -> Refusal {
    sender.send(request).await;
    match sender.answer().await {
        Some(Message::Error(refusal)) => refusal,
        other => panic!("expected ERROR, got {other:?}"),
    }
}

/// Ships to a seal; answers the SEAL's position.
async fn sealed(lab: &Lab, receiver: &Receiver) -> (Sender, Position) {
    let mut sender = Sender::connect(lab, receiver).await;
    sender.ship(&[(0, 0, b"data")], &[Control::Heal]).await;
    sender.ship(&[(1, 0, b"last")], &[Control::Seal]).await;
    (sender, at(4))
}

#[tokio::test]
async fn promote_at_the_seal_serves_and_is_told_the_same_for_ever() {
    let lab = Lab::new();
    let receiver = lab.start();
    let (mut sender, seal) = sealed(&lab, &receiver).await;
    let first = decision(&mut sender, &promote("a-1", seal, false)).await;
    assert_eq!((first.outcome, first.epoch), (Outcome::Promoted, Epoch(2)));
    assert_eq!(first.exports, ["nbd://here/disk0", "nbd://here/disk1"]);
    assert_eq!((&lab.contents(0)[..4], &lab.contents(1)[..4]), (&b"data"[..], &b"last"[..]));
    assert_eq!(decision(&mut sender, &promote("a-1", seal, false)).await, first);
    assert_eq!(decision(&mut sender, &abort("a-1")).await, first);
    sender.ship(&[(0, 0, b"late")], &[]).await;
    assert_eq!(sender.refused().await.code, RefusalCode::AlreadyPromoted);
    receiver.stop();

    lab.served.volumes.lock().unwrap().clear();
    let receiver = lab.start();
    assert_eq!(lab.served.calls.load(Relaxed), 2, "it serves again after a restart");
    let mut sender = Sender::connect(&lab, &receiver).await;
    let promoted = sender.welcome.promoted.clone().unwrap();
    assert_eq!((promoted.attempt.as_str(), promoted.epoch), ("a-1", Epoch(2)));
    assert_eq!((promoted.position, promoted.exports.len()), (seal, 2));
    assert_eq!(decision(&mut sender, &promote("a-1", seal, false)).await, first);
    let other = refusal(&mut sender, &abort("b-2")).await;
    assert_eq!(other.code, RefusalCode::AlreadyPromoted, "another attempt is never told aborted");
    assert_eq!(&lab.contents(0)[..4], b"data");
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert_eq!(status.state.epoch, Epoch(2));
    receiver.stop();
}

#[tokio::test]
async fn an_aborted_attempt_never_promotes_and_shipping_goes_on() {
    let lab = Lab::new();
    let receiver = lab.start();
    let (mut sender, seal) = sealed(&lab, &receiver).await;
    // An abort does not wait for what came before it: that would be sent again.
    sender.acked(2).await;
    let first = decision(&mut sender, &abort("a-1")).await;
    assert_eq!((first.outcome, first.epoch), (Outcome::Aborted, Epoch(1)));
    assert_eq!(decision(&mut sender, &promote("a-1", seal, false)).await, first);
    drop(sender);
    receiver.stop();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!(decision(&mut sender, &promote("a-1", seal, false)).await, first);
    sender.ship(&[(0, 0, b"more")], &[]).await;
    sender.applied(3).await;
    let late = refusal(&mut sender, &promote("a-2", seal, false)).await;
    assert_eq!(late.code, RefusalCode::NotReady, "the seal is not the stream's end any more");
    sender.ship(&[], &[Control::Seal]).await;
    let second = decision(&mut sender, &promote("a-2", at(6), false)).await;
    assert_eq!(second.outcome, Outcome::Promoted);
    assert_eq!(lab.served.calls.load(Relaxed), 1);
    receiver.stop();
}

#[tokio::test]
async fn promote_without_its_seal_decides_nothing_and_the_session_goes_on() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"data")], &[Control::Heal]).await;
    let early = refusal(&mut sender, &promote("a-1", at(3), false)).await;
    assert_eq!(early.code, RefusalCode::NotReady);
    let wrong = refusal(&mut sender, &promote("a b", at(3), false)).await;
    assert_eq!(wrong.code, RefusalCode::NotReady);
    sender.ship(&[], &[Control::Seal]).await;
    let decided = decision(&mut sender, &promote("a-1", at(3), false)).await;
    assert_eq!(decided.outcome, Outcome::Promoted);
    receiver.stop();
}

#[tokio::test]
async fn a_broken_group_is_promoted_only_at_its_point_and_only_when_allowed() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let none = refusal(&mut sender, &promote("a-0", at(1), true)).await;
    assert_eq!(none.code, RefusalCode::NotReady, "no point yet");
    sender.ship(&[(0, 0, b"point"), (1, 70_000, b"point")], &[Control::Heal]).await;
    sender.ship(&[(0, 0, b"lost!")], &[Control::Break]).await;
    sender.ship(&[(1, 70_000, b"lost!"), (1, 0, b"new")], &[Control::Seal]).await;
    let ack = sender.applied(3).await;
    assert_eq!((ack.point, ack.broken), (Some(at(3)), true));
    assert_eq!(&lab.contents(0)[..5], b"lost!");
    let broken = refusal(&mut sender, &promote("a-1", at(8), false)).await;
    assert!(broken.message.contains("broken"), "{}", broken.message);
    let decided = decision(&mut sender, &promote("a-1", at(8), true)).await;
    assert_eq!(decided.outcome, Outcome::Promoted);
    assert_eq!(&lab.contents(0)[..5], b"point");
    assert_eq!(
        (&lab.contents(1)[..3], &lab.contents(1)[70_000..70_005]),
        (&[0; 3][..], &b"point"[..])
    );
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert_eq!(status.state.promoted.unwrap().position, at(3));
    receiver.stop();
}

#[tokio::test]
async fn heal_after_a_broken_phase_discards_the_old_point() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"old")], &[Control::Heal]).await;
    sender.ship(&[(0, 0, b"new")], &[Control::Break]).await;
    sender.applied(2).await;
    let marks = lab.state_dir().join("receive/marks");
    let is_mark = |path: std::path::PathBuf| path.extension().is_some_and(|of| of == "mark");
    let entries = || std::fs::read_dir(&marks).unwrap().map(|entry| entry.unwrap().path());
    let kept = || entries().filter(|path| is_mark(path.clone())).count();
    assert_eq!(kept(), 1);
    sender.ship(&[], &[Control::Heal]).await;
    let ack = sender.applied(3).await;
    assert_eq!((ack.point, ack.broken), (Some(at(5)), false));
    assert_eq!(kept(), 0);
    receiver.stop();
}

#[tokio::test]
async fn a_target_that_cannot_serve_says_so_and_serves_when_asked_again() {
    let lab = Lab::new();
    *lab.served.fail.lock().unwrap() = Some("the address is in use".into());
    let receiver = lab.start();
    let (mut sender, seal) = sealed(&lab, &receiver).await;
    let silent = decision(&mut sender, &promote("a-1", seal, false)).await;
    assert_eq!((silent.outcome, silent.exports.len()), (Outcome::Promoted, 0));
    assert!(silent.problem.unwrap().contains("address is in use"));
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert!(status.state.last_error.unwrap().contains("address is in use"));
    *lab.served.fail.lock().unwrap() = None;
    let decided = decision(&mut sender, &abort("a-1")).await;
    assert_eq!(decided.outcome, Outcome::Promoted, "the decision stands");
    assert_eq!((decided.exports.len(), decided.problem), (2, None));
    receiver.stop();
}

#[tokio::test]
async fn a_target_that_could_not_serve_makes_up_for_it_unasked_and_says_where() {
    let lab = Lab::new();
    *lab.served.fail.lock().unwrap() = Some("the address is in use".into());
    let receiver = lab.start();
    let (mut sender, seal) = sealed(&lab, &receiver).await;
    let silent = decision(&mut sender, &promote("a-1", seal, false)).await;
    assert_eq!(silent.exports.len(), 0);
    *lab.served.fail.lock().unwrap() = None;
    let served = next_decision(&mut sender).await;
    assert_eq!((served.attempt.as_str(), served.exports.len(), served.problem), ("a-1", 2, None));
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert_eq!(status.state.last_error, None);
    receiver.stop();
}

#[tokio::test]
async fn a_full_undo_store_stops_applying_and_still_leads_back_to_the_point() {
    let mut lab = Lab::new();
    lab.limits.marks.bytes_max = 100 << 10;
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, &[1; 1 << 20])], &[Control::Heal]).await;
    sender.ship(&[(0, 0, b"x")], &[Control::Break]).await;
    sender.applied(2).await;
    sender.ship(&[(0, 65536, b"x"), (0, 131_072, b"x")], &[]).await;
    assert_eq!(sender.acked(3).await.applied, 2, "durable, but not applied");
    let said =
        || ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap().state.last_error;
    while said().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(said().unwrap().contains("undo store"), "{:?}", said());
    let decided = decision(&mut sender, &promote("a-1", at(1), true)).await;
    assert_eq!(decided.outcome, Outcome::Promoted);
    assert_eq!(lab.contents(0), vec![1; 1 << 20]);
    receiver.stop();
}

#[tokio::test]
async fn a_promoted_target_welcomes_the_old_epoch_only_to_tell_it() {
    let lab = Lab::new();
    let receiver = lab.start();
    let (mut sender, seal) = sealed(&lab, &receiver).await;
    decision(&mut sender, &promote("a-1", seal, false)).await;
    let again = Sender::hello(&lab, &receiver, hello()).await.unwrap();
    assert!(again.welcome.promoted.is_some());
    receiver.stop();
}
