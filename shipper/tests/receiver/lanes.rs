//! Further connections of a session, each row of the table in `receiver/lanes.rs`.

use crate::lab::{Lab, Sender, dial, group, hello, receive};
use towline_shipper::SessionId;
use towline_shipper::batch::{Control, Sealed};
use towline_shipper::receiver::Receiver;
use towline_shipper::security::BoxedConnection;
use towline_shipper::wire::{Join, Message, Refusal, RefusalCode, write_message};

async fn try_join(
    lab: &Lab,
    receiver: &Receiver,
    session: SessionId,
    join: u64,
) -> Result<BoxedConnection, Refusal> {
    let mut lane = dial(lab, receiver).await;
    let message = Message::Join(Join { group: group("erp"), session, join });
    write_message(&mut lane, &message).await.unwrap();
    match receive(&mut lane).await {
        Some(Message::KeepAlive) => Ok(lane),
        Some(Message::Error(refusal)) => Err(refusal),
        other => panic!("{other:?} answers JOIN"),
    }
}

async fn lane_of(lab: &Lab, receiver: &Receiver, sender: &Sender) -> BoxedConnection {
    let join = sender.welcome.join.unwrap();
    try_join(lab, receiver, sender.chain.session, join).await.unwrap()
}

async fn send(lane: &mut BoxedConnection, sealed: &Sealed) {
    write_message(lane, &Message::Batch(sealed.bytes.clone())).await.unwrap();
}

async fn refusal_of(lane: &mut BoxedConnection) -> Refusal {
    loop {
        match receive(lane).await {
            Some(Message::KeepAlive) => {}
            Some(Message::Error(refusal)) => return refusal,
            other => panic!("expected ERROR, got {other:?}"),
        }
    }
}

/// `count` batches that write the same place; the last one ends at a point.
fn cut(sender: &mut Sender, count: u8) -> Vec<Sealed> {
    let heal = [Control::Heal];
    (1..=count)
        .map(|n| sender.cut(&[(0, 0, &[n; 4096])], if n == count { &heal } else { &[] }))
        .collect()
}

#[tokio::test]
async fn batches_of_several_connections_are_applied_in_order_whatever_comes_first() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let mut lanes = Vec::new();
    for _ in 0..3 {
        lanes.push(lane_of(&lab, &receiver, &sender).await);
    }
    let batches = cut(&mut sender, 12);
    // Rising numbers in each lane; the first connection has what all others wait for.
    for (index, sealed) in batches.iter().enumerate().skip(1) {
        send(&mut lanes[index % 3], sealed).await;
    }
    sender.send(&Message::Batch(batches[0].bytes.clone())).await;
    let ack = sender.applied(12).await;
    assert_eq!(ack.point, Some(ack.position));
    assert_eq!(&lab.contents(0)[..4096], &[12; 4096]);
    // Beyond the point they are staged; the lanes go on.
    for sealed in cut(&mut sender, 6).iter().rev() {
        send(&mut lanes[0], sealed).await;
    }
    sender.applied(18).await;
    assert_eq!(&lab.contents(0)[..4096], &[6; 4096]);
}

#[tokio::test]
async fn without_further_connections_a_gap_is_refused() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let batches = cut(&mut sender, 2);
    sender.send(&Message::Batch(batches[1].bytes.clone())).await;
    assert_eq!(sender.refused().await.code, RefusalCode::OutOfOrder);
}

#[tokio::test]
async fn a_batch_that_comes_twice_is_refused() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let mut lane = lane_of(&lab, &receiver, &sender).await;
    let batches = cut(&mut sender, 2);
    send(&mut lane, &batches[1]).await;
    send(&mut lane, &batches[1]).await;
    assert_eq!(sender.refused().await.code, RefusalCode::Protocol);
}

#[tokio::test]
async fn the_end_of_one_connection_is_the_end_of_its_session_and_the_next_goes_on() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let (lane, mut other) =
        (lane_of(&lab, &receiver, &sender).await, lane_of(&lab, &receiver, &sender).await);
    let batches = cut(&mut sender, 3);
    send(&mut other, &batches[2]).await;
    sender.send(&Message::Batch(batches[0].bytes.clone())).await;
    sender.acked(1).await;
    drop(lane);
    let refused = sender.refused().await;
    assert_eq!(refused.code, RefusalCode::OutOfOrder);
    assert_eq!(refusal_of(&mut other).await, refused, "the same reason");
    let mut again = Sender::connect(&lab, &receiver).await;
    assert_eq!(again.welcome.number, 1, "what waited for a lost batch is forgotten");
    again.ship(&[(0, 0, b"on")], &[Control::Heal]).await;
    again.applied(2).await;
}

#[tokio::test]
async fn a_session_that_takes_over_ends_the_connections_of_the_old_one() {
    let lab = Lab::new();
    let receiver = lab.start();
    let sender = Sender::connect(&lab, &receiver).await;
    let mut lane = lane_of(&lab, &receiver, &sender).await;
    let _new = Sender::hello(&lab, &receiver, hello()).await.unwrap();
    assert_eq!(refusal_of(&mut lane).await.code, RefusalCode::Superseded);
}

#[tokio::test]
async fn who_does_not_know_the_session_or_is_one_too_many_does_not_join() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let (session, join) = (sender.chain.session, sender.welcome.join.unwrap());
    let code = |joined: Result<BoxedConnection, Refusal>| joined.err().map(|r| r.code);
    let wrong = try_join(&lab, &receiver, session, join ^ 1).await;
    assert_eq!(code(wrong), Some(RefusalCode::Superseded));
    let wrong = try_join(&lab, &receiver, SessionId::random(), join).await;
    assert_eq!(code(wrong), Some(RefusalCode::Superseded));
    let mut lanes = Vec::new();
    for _ in 0..7 {
        lanes.push(lane_of(&lab, &receiver, &sender).await);
    }
    let eighth = try_join(&lab, &receiver, session, join).await;
    assert_eq!(code(eighth), Some(RefusalCode::Protocol));
    // None of them has harmed the session.
    sender.ship(&[(0, 0, b"well")], &[]).await;
    sender.acked(1).await;
}
