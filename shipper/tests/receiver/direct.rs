//! Before the first point batches are applied without being staged; an acknowledgement
//! means that they are on the targets' disks.

use crate::faults::start_faulty;
use crate::lab::{Lab, Sender, at};
use towline_block::{Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Control, Encoder, Method};
use towline_shipper::receiver::Receiver;
use towline_shipper::wire::Message;

fn count(receiver: &Receiver, name: &str) -> u64 {
    receiver.counters().snapshot().iter().find(|(n, _)| *n == name).unwrap().1
}

#[tokio::test]
async fn staging_begins_with_the_first_point() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    for number in 1..=20u64 {
        sender.ship(&[(0, number * 4096, &[number as u8; 4096])], &[]).await;
    }
    let ack = sender.acked(20).await;
    assert_eq!((ack.applied, ack.point), (20, None));
    assert_eq!(count(&receiver, "batches"), 20);
    let stage = lab.state_dir().join("receive/stage");
    assert_eq!(std::fs::read_dir(&stage).unwrap().count(), 0, "nothing is staged");
    // What follows at once waits until the point is on the disks.
    sender.ship(&[], &[Control::Heal]).await;
    sender.ship(&[(0, 4096, b"after")], &[]).await;
    let ack = sender.applied(22).await;
    assert_eq!(ack.point.map(|point| point.seq), Some(Seq(22)));
    assert_eq!(count(&receiver, "stage_syncs"), 1);
    assert_eq!(std::fs::read_dir(&stage).unwrap().count(), 1);
    receiver.stop();
    let receiver = lab.start();
    assert_eq!(Sender::connect(&lab, &receiver).await.welcome.number, 22);
    assert!(lab.contents(0)[4096..].starts_with(b"after"));
    assert_eq!(lab.contents(0)[20 * 4096..][..4096], [20; 4096]);
    receiver.stop();
}

#[tokio::test]
async fn a_new_session_gets_what_is_applied_and_nothing_that_was_on_its_way() {
    let lab = Lab::new();
    let (receiver, faults) = start_faulty(&lab);
    let mut old = Sender::connect(&lab, &receiver).await;
    old.ship(&[(0, 0, b"first")], &[]).await;
    old.acked(1).await;
    faults.set(lab.target(1), 5);
    old.ship(&[(0, 0, b"older"), (1, 0, b"older")], &[]).await;
    old.ship(&[(0, 8192, b"older")], &[]).await;
    let mut new = Sender::connect(&lab, &receiver).await;
    assert_eq!(new.welcome.number, 1);
    faults.clear();
    // Cut anew, and not the same: what was half applied is overwritten.
    new.ship(&[(0, 0, b"newer"), (1, 0, b"newer")], &[Control::Heal]).await;
    new.applied(2).await;
    for index in 0..2 {
        assert!(lab.contents(index).starts_with(b"newer"));
    }
    assert_eq!(lab.contents(0)[8192..8197], [0; 5], "what nobody acknowledged did not happen");
    receiver.stop();
}

#[tokio::test]
async fn a_failing_target_holds_the_baseline_and_it_goes_on_by_itself() {
    let lab = Lab::new();
    let (receiver, faults) = start_faulty(&lab);
    let mut sender = Sender::connect(&lab, &receiver).await;
    faults.set(lab.target(0), 5);
    // More than the receiver opens at once: small on the wire, a megabyte each when open.
    let mut encoder = Encoder::new(Method::Lz4, None);
    for number in 1..=40u64 {
        let mut batch = BatchBuilder::records(at(number), 0);
        let content = vec![number as u8; 1 << 20];
        batch.write(Seq(number), VolumeId(0), 0, &content, crc32c(&content)).unwrap();
        let sealed = encoder.encode(batch, &sender.chain, 0).unwrap();
        sender.chain.advance(&sealed);
        sender.send(&Message::Batch(sealed.bytes)).await;
    }
    while count(&receiver, "storage_errors") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&receiver, "batches"), 0, "nothing is acknowledged that is not there");
    faults.clear();
    sender.applied(40).await;
    assert_eq!(lab.contents(0), vec![40; 1 << 20]);
    receiver.stop();
}
