//! A target that lacks blocks of lost packs: it says so, and believes no HEAL before it has
//! them.

use crate::lab::{Lab, Sender, at};
use towline_block::{Extent, Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Control, Encoder};
use towline_shipper::receiver::Layout;
use towline_shipper::wire::{Message, RefusalCode};

const BLOCK: usize = 64 << 10;

/// A receiver that has two batches and lacks blocks 3 and 4 of volume 0 and the last one of
/// volume 1.
async fn lab() -> Lab {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"first")], &[]).await;
    sender.ship(&[(1, 0, b"second")], &[]).await;
    sender.acked(2).await;
    receiver.stop();
    let lacking = r#"{"version":1,"runs":[[0,3,2],[1,4,1]]}"#;
    std::fs::write(Layout::of(&lab.state_dir()).lacking, lacking).unwrap();
    lab
}

async fn told(sender: &mut Sender) -> Vec<(u16, u64, u64)> {
    match sender.welcome.lacks {
        0 => Vec::new(),
        _ => match sender.answer().await {
            Some(Message::Lacks(lacks)) => lacks.runs.into_iter().map(Into::into).collect(),
            other => panic!("expected LACKS, got {other:?}"),
        },
    }
}

/// A batch of one claim that brings these ranges.
async fn bring(sender: &mut Sender, ranges: &[(u16, usize, usize)]) -> u64 {
    sender.claims_upto += 1;
    let claim = sender.claims_upto;
    let mut batch = BatchBuilder::blocks(at(sender.next_seq - 1), claim, claim);
    for (volume, offset, len) in ranges {
        let content = vec![7; *len];
        let crc = crc32c(&content);
        batch.write(Seq::NONE, VolumeId(*volume), *offset as u64, &content, crc).unwrap();
    }
    let sealed = Encoder::default().encode(batch, &sender.chain, 0).unwrap();
    sender.chain.advance(&sealed);
    sender.send(&Message::Batch(sealed.bytes)).await;
    sealed.number
}

#[tokio::test]
async fn a_heal_counts_only_once_nothing_is_lacking() {
    let lab = lab().await;
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert!(sender.welcome.broken);
    assert_eq!(told(&mut sender).await, [(0, 3, 2), (1, 4, 1)]);
    // From before the loss was known.
    sender.ship(&[], &[Control::Heal]).await;
    let refusal = sender.refused().await;
    assert_eq!(refusal.code, RefusalCode::OutOfOrder, "{}", refusal.message);
    assert!(sender.ack.point.is_none(), "{:?}", sender.ack);

    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!((sender.welcome.number, sender.welcome.point), (3, None));
    assert_eq!(told(&mut sender).await.len(), 2);
    sender.ship(&[], &[Control::Break]).await;
    // Half a block is none; the last one of volume 1 is short.
    bring(&mut sender, &[(0, 3 * BLOCK, BLOCK), (0, 4 * BLOCK, BLOCK / 2)]).await;
    bring(&mut sender, &[(1, 4 * BLOCK, 300 * 1024 + 512 - 4 * BLOCK)]).await;
    sender.acked(6).await;
    receiver.stop();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!(told(&mut sender).await, [(0, 4, 1)]);
    bring(&mut sender, &[(0, 4 * BLOCK, BLOCK)]).await;
    sender.ship(&[], &[Control::Heal]).await;
    let ack = sender.acked(8).await;
    assert!(ack.point.is_some() && !ack.broken, "{ack:?}");
    assert!(!Layout::of(&lab.state_dir()).lacking.exists());
    receiver.stop();
    let receiver = lab.start();
    assert_eq!(Sender::connect(&lab, &receiver).await.welcome.lacks, 0);
    receiver.stop();
}

#[tokio::test]
async fn what_was_on_its_way_and_got_lost_is_lacking_again() {
    let lab = lab().await;
    let (receiver, faults) = crate::faults::start_faulty(&lab);
    let mut sender = Sender::connect(&lab, &receiver).await;
    told(&mut sender).await;
    faults.set(lab.target(0), 5);
    bring(&mut sender, &[(0, 3 * BLOCK, 2 * BLOCK)]).await;
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!(told(&mut sender).await, [(0, 3, 2), (1, 4, 1)]);
    faults.clear();
    receiver.stop();
}

#[tokio::test]
async fn zeroes_and_comparisons_count_as_what_they_bring() {
    let lab = lab().await;
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    told(&mut sender).await;
    sender.claims_upto += 1;
    let claim = sender.claims_upto;
    let mut batch = BatchBuilder::blocks(at(sender.next_seq - 1), claim, claim);
    let zeroed = Extent::new(0, 4 * BLOCK as u64);
    batch.zero(Seq::NONE, VolumeId(0), zeroed, false).unwrap();
    let compared = Extent::new(4 * BLOCK as u64, BLOCK as u64);
    batch.compare(VolumeId(0), compared, &[0; 32]).unwrap();
    let sealed = Encoder::default().encode(batch, &sender.chain, 0).unwrap();
    sender.chain.advance(&sealed);
    sender.send(&Message::Batch(sealed.bytes)).await;
    // It comes once the batch is applied.
    let Some(Message::Compared(verdict)) = sender.answer().await else { panic!("no verdict") };
    assert_eq!(verdict.number, 3);
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!(told(&mut sender).await, [(0, 4, 1), (1, 4, 1)], "a comparison brings nothing");
    receiver.stop();
}
