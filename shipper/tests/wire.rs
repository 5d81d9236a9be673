//! Frames and messages: what is sent arrives, what is hostile is refused.

use proptest::prelude::*;
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_shipper::ids::KeyId;
use towline_shipper::wire::{
    Abort, Ack, Decision, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Hello, JSON_BYTES_MAX,
    Message, Outcome, PROTOCOL, Promote, Promoted, Refusal, RefusalCode, VOLUMES_MAX, VolumeSize,
    Welcome, read_message, write_message,
};
use towline_shipper::{BatchHash, ErrorKind, GroupUuid, SessionId};
use zerocopy::IntoBytes;

fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(2), Seq(seq))
}

fn largest_hello() -> Hello {
    let volume =
        |n| VolumeSize { name: format!("{n:0>63}").parse().unwrap(), size_bytes: u64::MAX };
    Hello {
        version: PROTOCOL,
        group: "g".repeat(63).parse().unwrap(),
        group_uuid: GroupUuid([0xfe; 16]),
        session: SessionId([1; 16]),
        key: Some(KeyId([0xee; 16])),
        epoch: Epoch(u32::MAX),
        volumes: (0..VOLUMES_MAX).map(volume).collect(),
    }
}

fn all() -> Vec<Message> {
    let welcome = Welcome {
        version: PROTOCOL,
        batch_format: 2,
        number: u64::MAX - 1,
        hash: BatchHash([7; 32]),
        position: at(u64::MAX),
        claims_upto: 3,
        stream_bytes: 4,
        point: Some(at(1)),
        broken: true,
        lacks: 0,
        join: None,
        promoted: Some(Promoted {
            attempt: "a".into(),
            epoch: Epoch(2),
            position: at(9),
            exports: vec!["nbd://x".into()],
        }),
    };
    let decision = Decision {
        attempt: "a".into(),
        outcome: Outcome::Aborted,
        epoch: Epoch(2),
        exports: vec![],
        problem: Some("why".into()),
    };
    vec![
        Message::Hello(largest_hello()),
        Message::Welcome(welcome),
        Message::Batch(vec![3; 100_000]),
        Message::Ack(Ack { number: 1, point: Some(at(4)), ..Ack::default() }),
        Message::Promote(Promote { attempt: "a".into(), position: at(5), allow_rollback: true }),
        Message::Abort(Abort { attempt: "a".into() }),
        Message::Decision(decision),
        Message::KeepAlive,
        Message::Error(Refusal::new(RefusalCode::OutOfOrder, "what, where, what to do")),
    ]
}

async fn read(bytes: &[u8]) -> towline_shipper::Result<Option<Message>> {
    read_message(&mut &bytes[..]).await
}

#[tokio::test]
async fn every_message_arrives_as_it_was_sent() {
    let mut bytes = Vec::new();
    for message in all() {
        write_message(&mut bytes, &message).await.unwrap();
    }
    let mut rest = &bytes[..];
    for message in all() {
        assert_eq!(read_message(&mut rest).await.unwrap(), Some(message));
    }
    assert_eq!(read_message(&mut rest).await.unwrap(), None);
}

#[tokio::test]
async fn a_message_that_is_cut_off_anywhere_is_a_lost_connection() {
    for message in all() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &message).await.unwrap();
        for len in (1..bytes.len()).step_by(bytes.len() / 50 + 1) {
            let error = read(&bytes[..len]).await.expect_err("cut off");
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{len} bytes of {:?}", message.kind());
        }
    }
}

#[tokio::test]
async fn keys_of_a_newer_version_are_ignored_and_codes_are_taken_as_unknown() {
    let json = br#"{"code":"on_fire","message":"m","since":7}"#;
    let header = FrameHeader::new(FrameKind::Error, json.len() as u32);
    let message = read(&[header.as_bytes(), json].concat()).await.unwrap();
    assert_eq!(message, Some(Message::Error(Refusal::new(RefusalCode::Unknown, "m"))));
}

#[tokio::test]
async fn what_exceeds_a_frame_is_not_sent() {
    let refusal = Refusal::new(RefusalCode::Storage, "x".repeat(JSON_BYTES_MAX));
    let error = write_message(&mut Vec::new(), &Message::Error(refusal)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn bodies_that_are_no_messages_are_refused() {
    let nested = "[".repeat(60_000);
    for body in ["", "{}", "null", "{\"attempt\":5}", "\u{0}", nested.as_str()] {
        for kind in FrameKind::ALL {
            if matches!(kind, FrameKind::Batch | FrameKind::KeepAlive) {
                continue;
            }
            let header = FrameHeader::new(kind, body.len() as u32);
            let error = read(&[header.as_bytes(), body.as_bytes()].concat()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{kind:?}");
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert!(block_on(read(&bytes)).is_err());
    }

    #[test]
    fn garbage_behind_a_good_header_harms_nobody(
        kind in prop::sample::select(FrameKind::ALL.to_vec()),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = FrameHeader::new(kind, body.len() as u32);
        prop_assert_eq!(header.as_bytes().len(), FRAME_HEADER_BYTES);
        let _ = block_on(read(&[header.as_bytes(), &body].concat()));
    }
}
