//! Batches in order reach both targets; everything else is refused and changes nothing.

use crate::lab::{Lab, SIZES, Sender, at, dial, group, hello, name, receive};
use tokio::io::AsyncWriteExt;
use towline_block::{Epoch, Extent, Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Control, Encoder, GroupKey, KeyId, Method};
use towline_shipper::receiver::{Limits, ReceiveConfig, Receiver, ReceiverStatus, recover};
use towline_shipper::wire::{Message, RefusalCode, VolumeSize, write_message};
use towline_shipper::{ErrorKind, GroupUuid, SessionId};

#[tokio::test]
async fn batches_reach_both_volumes_and_heal_makes_a_point() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    assert_eq!((sender.welcome.number, sender.welcome.point), (0, None));
    assert!(sender.welcome.broken);

    sender.ship(&[(0, 0, b"first"), (1, SIZES[1] - 4, b"last")], &[Control::Resync]).await;
    let mut blocks = BatchBuilder::blocks(crate::lab::at(3), 1, 0);
    blocks.write(Seq::NONE, VolumeId(1), 0, &[7; 4096], towline_block::crc32c(&[7; 4096])).unwrap();
    blocks.zero(Seq::NONE, VolumeId(0), Extent::new(2, 3), false).unwrap();
    blocks.set_claims_upto(1);
    sender.claims_upto = 1;
    let sealed = blocks.encode(&sender.chain, 0);
    sender.chain.advance(&sealed);
    sender.send(&Message::Batch(sealed.bytes)).await;
    let ack = sender.acked(2).await;
    assert_eq!((ack.claims_upto, ack.point, ack.broken), (1, None, true));

    sender.ship(&[], &[Control::Heal]).await;
    let last = sender.ship(&[(0, 8192, b"after the point")], &[]).await;
    let ack = sender.applied(last).await;
    assert_eq!((ack.position, ack.point), (crate::lab::at(5), Some(crate::lab::at(5))));
    assert_eq!(ack.stream_bytes, sender.chain.stream_bytes);
    let (disk0, disk1) = (lab.contents(0), lab.contents(1));
    assert_eq!((disk0.len() as u64, disk1.len() as u64), (SIZES[0], SIZES[1]));
    assert_eq!(&disk0[..5], b"fi\0\0\0");
    assert_eq!(&disk0[8192..8207], b"after the point");
    assert_eq!(&disk1[..4096], &[7; 4096]);
    assert_eq!(&disk1[SIZES[1] as usize - 4..], b"last");
    let count =
        |name: &str| receiver.counters().snapshot().iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!((count("batches"), count("applied_batches")), (4, 4));
    receiver.stop();
}

#[tokio::test]
async fn a_new_connection_goes_on_where_the_target_durably_is() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"one")], &[Control::Heal]).await;
    let ack = sender.acked(1).await;
    drop(sender);
    let mut again = Sender::connect(&lab, &receiver).await;
    assert_eq!((again.welcome.number, again.welcome.position), (1, ack.position));
    assert_eq!(again.welcome.point, Some(ack.position));
    again.ship(&[(0, 0, b"two")], &[]).await;
    again.applied(2).await;
    let chain = again.chain.clone();
    drop(again);
    receiver.stop();

    let receiver = lab.start();
    let third = Sender::connect(&lab, &receiver).await;
    assert_eq!((third.chain.number, third.chain.hash), (2, chain.hash));
    assert_eq!(third.chain.stream_bytes, chain.stream_bytes);
    assert_eq!(&lab.contents(0)[..3], b"two");
    receiver.stop();
    assert_eq!(recover(&lab.state_dir(), &lab.keys).unwrap().unwrap().number, 2);
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert_eq!((status.durable.number, status.state.applied.number), (2, 2));
}

#[tokio::test]
async fn a_new_session_ends_the_older_one() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut old = Sender::connect(&lab, &receiver).await;
    old.ship(&[(0, 0, b"old")], &[]).await;
    old.acked(1).await;
    let mut new = Sender::connect(&lab, &receiver).await;
    assert_eq!(new.welcome.number, 1);
    assert_eq!(old.refused().await.code, RefusalCode::Superseded);
    new.ship(&[(0, 0, b"new")], &[]).await;
    new.applied(2).await;
    assert_eq!(&lab.contents(0)[..3], b"new");
    receiver.stop();
}

#[tokio::test]
async fn the_same_session_on_a_new_connection_replaces_the_older_connection() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mine = hello();
    let mut first = Sender::hello(&lab, &receiver, mine.clone()).await.unwrap();
    let mut second = Sender::hello(&lab, &receiver, mine).await.unwrap();
    assert_eq!(first.refused().await.code, RefusalCode::Superseded);
    second.ship(&[(0, 0, b"second")], &[]).await;
    second.applied(1).await;
    receiver.stop();
}

#[tokio::test]
async fn a_connection_lost_inside_a_batch_leaves_nothing_of_it() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"whole")], &[]).await;
    sender.acked(1).await;
    let chain = sender.chain.clone();
    let torn = sender.cut(&[(0, 0, &[9; 100_000])], &[]);
    let mut frame = Vec::new();
    write_message(&mut frame, &Message::Batch(torn.bytes.clone())).await.unwrap();
    sender.stream().write_all(&frame[..60_000]).await.unwrap();
    drop(sender);
    let mut again = Sender::connect(&lab, &receiver).await;
    assert_eq!((again.chain.number, again.chain.hash), (1, chain.hash));
    again.ship(&[(0, 0, b"again")], &[]).await;
    again.applied(2).await;
    assert_eq!(&lab.contents(0)[..6], b"again\0");
    receiver.stop();
}

/// Ships one good batch, then what `forge` makes, which must be refused with
/// `code`, leave the target as it was and not keep the shipper from going on.
async fn refuses(code: RefusalCode, forge: impl FnOnce(&mut Sender) -> Vec<u8>) {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"good"), (1, 0, b"good")], &[Control::Heal]).await;
    sender.applied(1).await;
    let forged = forge(&mut sender);
    sender.send(&Message::Batch(forged)).await;
    let refusal = sender.refused().await;
    assert_eq!(refusal.code, code, "{}", refusal.message);

    let mut again = Sender::connect(&lab, &receiver).await;
    assert_eq!(again.welcome.number, 1);
    let number = again.ship(&[(1, 0, b"next")], &[]).await;
    again.applied(number).await;
    assert_eq!((&lab.contents(0)[..5], &lab.contents(1)[..5]), (&b"good\0"[..], &b"next\0"[..]));
    receiver.stop();
}

#[tokio::test]
async fn a_replayed_batch_is_refused() {
    refuses(RefusalCode::OutOfOrder, |sender| {
        sender.chain.number = 0;
        sender.chain.stream_bytes = 0;
        sender.chain.hash = towline_shipper::BatchHash::NONE;
        sender.next_seq = 1;
        sender.cut(&[(0, 0, b"again")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_that_skips_one_is_refused() {
    refuses(RefusalCode::OutOfOrder, |sender| {
        sender.cut(&[(0, 0, b"skipped")], &[]);
        sender.cut(&[(0, 0, b"early")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_after_another_predecessor_is_refused() {
    refuses(RefusalCode::OutOfOrder, |sender| {
        sender.chain.hash.0[5] ^= 1;
        sender.cut(&[(0, 0, b"fork")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_that_leaves_out_a_record_is_refused() {
    refuses(RefusalCode::OutOfOrder, |sender| {
        sender.next_seq += 1;
        sender.cut(&[(0, 0, b"hole")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_that_miscounts_the_stream_is_refused() {
    refuses(RefusalCode::OutOfOrder, |sender| {
        sender.chain.stream_bytes += 1;
        sender.cut(&[(0, 0, b"count")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_of_another_session_is_refused() {
    refuses(RefusalCode::Protocol, |sender| {
        sender.chain.session = SessionId::random();
        sender.cut(&[(0, 0, b"else")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_of_another_group_is_refused() {
    refuses(RefusalCode::WrongGroup, |sender| {
        sender.chain.group = GroupUuid([8; 16]);
        sender.cut(&[(0, 0, b"else")], &[]).bytes
    })
    .await;
}

#[tokio::test]
async fn a_corrupted_batch_is_refused() {
    refuses(RefusalCode::Damaged, |sender| {
        let mut bytes = sender.cut(&[(0, 0, b"broken")], &[]).bytes;
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    })
    .await;
}

#[tokio::test]
async fn a_batch_that_reaches_outside_a_volume_is_refused() {
    refuses(RefusalCode::Damaged, |sender| {
        sender.cut(&[(0, 0, b"inside"), (1, SIZES[1] - 3, b"outside")], &[]).bytes
    })
    .await;
    refuses(RefusalCode::Damaged, |sender| sender.cut(&[(2, 0, b"no volume")], &[]).bytes).await;
}

/// A HELLO that is not like the first one.
async fn refuses_hello(
    code: RefusalCode,
    says: &str,
    change: impl FnOnce(&mut towline_shipper::wire::Hello),
) {
    let lab = Lab::new();
    let receiver = lab.start();
    drop(Sender::connect(&lab, &receiver).await);
    let mut other = hello();
    change(&mut other);
    let refusal = Sender::hello(&lab, &receiver, other).await.err().expect("not refused");
    assert_eq!(refusal.code, code, "{}", refusal.message);
    assert!(refusal.message.contains(says), "{} lacks {says}", refusal.message);
    Sender::connect(&lab, &receiver).await;
    receiver.stop();
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_with_a_sentence() {
    refuses_hello(RefusalCode::WrongGroup, "own state directory", |h| h.group = group("crm")).await;
    refuses_hello(RefusalCode::WrongGroup, "0808", |h| h.group_uuid = GroupUuid([8; 16])).await;
    refuses_hello(RefusalCode::SizeMismatch, "1048577", |h| h.volumes[0].size_bytes += 1).await;
    refuses_hello(RefusalCode::UnknownVolume, "disk1, disk0", |h| h.volumes.swap(0, 1)).await;
    refuses_hello(RefusalCode::UnknownVolume, "cannot change", |h| h.volumes.truncate(1)).await;
    refuses_hello(RefusalCode::Incompatible, "protocol 2", |h| h.version = 2).await;
    refuses_hello(RefusalCode::Protocol, "epochs", |h| h.epoch = Epoch(0)).await;
    refuses_hello(RefusalCode::Protocol, "each once", |h| {
        h.volumes[1] = h.volumes[0].clone();
    })
    .await;
}

#[tokio::test]
async fn an_older_epoch_is_refused_once_a_newer_one_spoke() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut newer = hello();
    newer.epoch = Epoch(3);
    drop(Sender::hello(&lab, &receiver, newer).await.unwrap());
    let refusal = Sender::hello(&lab, &receiver, hello()).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::OldEpoch);
    receiver.stop();
}

#[tokio::test]
async fn targets_must_exist_by_name_and_fit_by_size() {
    let lab = Lab::new();
    std::fs::write(lab.target(1), vec![0; 4096]).unwrap();
    let receiver = lab.start();
    let refusal = Sender::hello(&lab, &receiver, hello()).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::SizeMismatch);
    assert!(refusal.message.contains("4096") && refusal.message.contains("307712"), "{refusal:?}");
    let mut third = hello();
    third.volumes[1] = VolumeSize { name: name("disk2"), size_bytes: 512 };
    let refusal = Sender::hello(&lab, &receiver, third).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::UnknownVolume);
    assert!(refusal.message.contains("--target disk2=PATH"), "{refusal:?}");
    receiver.stop();
    assert!(
        ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().is_none(),
        "nothing was bound"
    );
}

#[tokio::test]
async fn a_receiver_for_one_group_takes_no_other() {
    let mut lab = Lab::new();
    lab.group = Some(group("crm"));
    let receiver = lab.start();
    let refusal = Sender::hello(&lab, &receiver, hello()).await.err().unwrap();
    assert_eq!(refusal.code, RefusalCode::WrongGroup);
    receiver.stop();
}

#[tokio::test]
async fn garbage_and_frames_out_of_turn_are_answered_and_harm_nobody() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut garbage = dial(&lab, &receiver).await;
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: receiver\r\n\r\n").await.unwrap();
    let Some(Message::Error(refusal)) = receive(&mut garbage).await else { panic!("no ERROR") };
    assert_eq!(refusal.code, RefusalCode::Protocol);
    assert_eq!(receive(&mut garbage).await, None);

    let mut early = dial(&lab, &receiver).await;
    write_message(&mut early, &Message::Batch(vec![0; 100])).await.unwrap();
    let Some(Message::Error(refusal)) = receive(&mut early).await else { panic!("no ERROR") };
    assert_eq!(refusal.code, RefusalCode::Protocol);

    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.send(&Message::KeepAlive).await;
    sender.send(&Message::Hello(hello())).await;
    assert_eq!(sender.refused().await.code, RefusalCode::Protocol);

    let mut cut_off = dial(&lab, &receiver).await;
    cut_off.write_all(b"TWLF").await.unwrap();
    drop(cut_off);
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, b"fine")], &[]).await;
    sender.applied(1).await;
    receiver.stop();
}

#[tokio::test]
async fn many_batches_share_syncs_and_a_small_staging_still_lets_all_through() {
    let mut lab = Lab::new();
    lab.limits = Limits { staging_bytes_max: 64 << 10, ..Limits::default() };
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    for index in 0..200u64 {
        let payload = [index as u8; 4096];
        sender
            .ship(&[(0, index % 64 * 4096, &payload), (1, index % 64 * 4096, &payload)], &[])
            .await;
    }
    sender.applied(200).await;
    for index in 136..200usize {
        let at = index % 64 * 4096;
        assert_eq!(lab.contents(0)[at..at + 4096], [index as u8; 4096]);
        assert_eq!(lab.contents(1)[at..at + 4096], [index as u8; 4096]);
    }
    receiver.stop();
    let status = ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap().unwrap();
    assert!(status.staged.segments <= 1, "applied segments are removed: {:?}", status.staged);
}

#[test]
fn two_receivers_do_not_share_a_directory() {
    let lab = Lab::new();
    let receiver = lab.start();
    let error = Receiver::start(lab.config()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    receiver.stop();
}

#[tokio::test]
async fn a_bound_receiver_starts_only_with_what_it_was_bound_to() {
    let lab = Lab::new();
    let receiver = lab.start();
    drop(Sender::connect(&lab, &receiver).await);
    receiver.stop();
    let refuses = |change: fn(&mut ReceiveConfig), says: &str| {
        let mut config = lab.config();
        change(&mut config);
        let error = Receiver::start(config).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(says), "{error}");
    };
    refuses(|config| config.group = Some(group("crm")), "holds group erp");
    refuses(|config| config.targets[1].1 = "/elsewhere".into(), "/elsewhere");
    std::fs::OpenOptions::new().write(true).open(lab.target(0)).unwrap().set_len(4096).unwrap();
    refuses(|_| {}, "put the right disk there");
    lab.start_with(|config| config.targets.clear()).err().unwrap();
    std::fs::OpenOptions::new().write(true).open(lab.target(0)).unwrap().set_len(SIZES[0]).unwrap();
    lab.start_with(|config| config.targets.clear()).unwrap().stop();
}

#[test]
fn a_state_of_a_newer_version_is_refused_and_left_alone() {
    let lab = Lab::new();
    let path = lab.state_dir().join("receive/state.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let newer = br#"{"version": 2, "what": "nobody knows"}"#;
    std::fs::write(&path, newer).unwrap();
    let error = Receiver::start(lab.config()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::TooNew);
    assert_eq!(std::fs::read(&path).unwrap(), newer);
    assert_eq!(
        ReceiverStatus::load(&lab.state_dir(), &lab.keys).unwrap_err().kind(),
        ErrorKind::TooNew
    );
}

#[test]
fn insecure_receivers_listen_on_loopback_only() {
    let lab = Lab::new();
    let mut config = lab.config();
    config.listen = Some("0.0.0.0:0".into());
    let error = Receiver::start(config).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised);
    assert!(error.to_string().contains("--pki"), "{error}");
}

#[tokio::test]
async fn comparisons_are_judged_in_stream_order_against_what_the_target_holds() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    sender.ship(&[(0, 0, &[1; 4096]), (0, 4096, &[2; 4096])], &[Control::Resync]).await;
    let digest = |byte: u8| *blake3::hash(&[byte; 4096]).as_bytes();
    let mut asked = BatchBuilder::blocks(crate::lab::at(3), 1, 0);
    asked.compare(VolumeId(0), Extent::new(0, 4096), &digest(1)).unwrap();
    asked.compare(VolumeId(0), Extent::new(4096, 4096), &digest(9)).unwrap();
    let sealed = asked.encode(&sender.chain, 0);
    sender.chain.advance(&sealed);
    sender.send(&Message::Batch(sealed.bytes)).await;
    // What comes behind the question does not change the answer.
    sender.ship(&[(0, 0, &[7; 4096])], &[]).await;
    let verdict = loop {
        match sender.answer().await.expect("the receiver stays") {
            Message::Compared(verdict) => break verdict,
            Message::Ack(_) | Message::KeepAlive => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((verdict.number, verdict.claim), (2, 1));
    let ranges: Vec<_> = verdict.differs.iter().map(|d| (d.volume, d.offset, d.len)).collect();
    assert_eq!(ranges, [(0, 4096, 4096)]);
    sender.applied(3).await;
    assert_eq!(&lab.contents(0)[..4096], &[7; 4096], "comparing changed nothing else");
    receiver.stop();
}

#[tokio::test]
async fn a_compressed_batch_is_applied_and_a_sealed_one_needs_its_key() {
    let lab = Lab::new();
    let receiver = lab.start();
    let mut sender = Sender::connect(&lab, &receiver).await;
    let content = b"the same words again ".repeat(2000);
    let batch = |first: u64| {
        let mut batch = BatchBuilder::records(at(first), 0);
        batch.write(Seq(first), VolumeId(0), 4096, &content, crc32c(&content)).unwrap();
        batch
    };
    for (number, method) in [(1, Method::Lz4), (2, Method::Zstd)] {
        let sealed = Encoder::new(method, None).encode(batch(number), &sender.chain, 0).unwrap();
        assert!(sealed.bytes.len() < content.len() / 2);
        sender.chain.advance(&sealed);
        sender.send(&Message::Batch(sealed.bytes)).await;
        sender.applied(number).await;
        assert_eq!(lab.contents(0)[4096..][..content.len()], content);
    }
    let key = GroupKey::new(KeyId([1; 16]), [1; 32]).unwrap();
    let sealed = Encoder::new(Method::None, Some(key)).encode(batch(3), &sender.chain, 0).unwrap();
    sender.send(&Message::Batch(sealed.bytes)).await;
    assert_eq!(sender.refused().await.code, RefusalCode::NoKey);
    receiver.stop();
}
