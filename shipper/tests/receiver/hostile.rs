//! What somebody between or before could do with bytes that were right once.

use crate::lab::{Lab, Sender, dial, hello, receive};
use tokio::io::AsyncWriteExt;
use towline_block::Epoch;
use towline_shipper::batch::{Control, HEADER_BYTES};
use towline_shipper::wire::{Hello, Message, RefusalCode, write_message};

const CONTENT: &[u8] = b"what is there";

#[tokio::test]
async fn a_recorded_session_played_again_changes_nothing() {
    let lab = Lab::new();
    let receiver = lab.start();
    let first = Hello { epoch: Epoch(1), ..hello() };
    let mut recorded = Vec::new();
    write_message(&mut recorded, &Message::Hello(first.clone())).await.unwrap();
    let mut sender = Sender::hello(&lab, &receiver, first).await.unwrap();
    for content in [b"older".as_slice(), CONTENT] {
        let sealed = sender.cut(&[(0, 0, content)], &[Control::Heal]);
        let message = Message::Batch(sealed.bytes);
        write_message(&mut recorded, &message).await.unwrap();
        sender.send(&message).await;
    }
    sender.applied(2).await;

    // In the same epoch it is heard, but its batches do not follow.
    let mut replay = dial(&lab, &receiver).await;
    replay.write_all(&recorded).await.unwrap();
    let Some(Message::Welcome(welcome)) = receive(&mut replay).await else { panic!() };
    assert_eq!(welcome.number, 2);
    loop {
        match receive(&mut replay).await {
            Some(Message::Error(refusal)) => {
                break assert_eq!(refusal.code, RefusalCode::OutOfOrder);
            }
            Some(Message::Ack(_) | Message::KeepAlive) => {}
            other => panic!("not refused: {other:?}"),
        }
    }
    // Once a newer epoch writes the group, not even that.
    let newer = Hello { epoch: Epoch(2), ..hello() };
    drop(Sender::hello(&lab, &receiver, newer).await.unwrap());
    let mut replay = dial(&lab, &receiver).await;
    replay.write_all(&recorded).await.unwrap();
    let Some(Message::Error(refusal)) = receive(&mut replay).await else { panic!() };
    assert_eq!(refusal.code, RefusalCode::OldEpoch);
    receiver.stop();
    assert!(lab.contents(0).starts_with(CONTENT));
}

#[tokio::test]
async fn a_flipped_bit_in_any_field_on_the_wire_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, CONTENT)], &[Control::Heal]).await;
    sender.applied(1).await;
    drop(sender);
    let len = {
        let mut sender = Sender::connect(&lab, &receiver).await;
        sender.cut(&[(0, 0, b"something else")], &[]).bytes.len()
    };
    // Every byte of the header, and of the table and the payload behind it.
    for at in (0..HEADER_BYTES).step_by(3).chain(HEADER_BYTES..len) {
        let mut sender = Sender::connect(&lab, &receiver).await;
        assert_eq!(sender.welcome.number, 1, "byte {at} got through");
        let mut sealed = sender.cut(&[(0, 0, b"something else")], &[]);
        sealed.bytes[at] ^= 1 << (at % 8);
        sender.send(&Message::Batch(sealed.bytes)).await;
        let code = sender.refused().await.code;
        assert_eq!(code, RefusalCode::Damaged, "byte {at}");
    }
    receiver.stop();
    assert!(lab.contents(0).starts_with(CONTENT));
}
