//! A connection that is cut after every byte of a session, in either direction, with and
//! without TLS: nothing acknowledged is lost, the next connection goes on behind what is
//! durable, and in the end the targets are what was sent, once and in order.

use crate::lab::{Lab, SIZES, at, group, hello};
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, copy};
use tokio::net::{TcpListener, TcpStream};
use towline_block::{Seq, VolumeId, crc32c};
use towline_shipper::batch::{BatchBuilder, Chain, Encoder};
use towline_shipper::pki;
use towline_shipper::receiver::Receiver;
use towline_shipper::security::{Security, connect};
use towline_shipper::wire::{Hello, Message, read_message, write_message};

/// Batches of a session that is not cut.
const BATCHES: u64 = 2;
const BYTES: usize = 24;
/// Where batches write, one after the other, again and again: each place twice in a session.
const PLACES: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    ToReceiver,
    ToShipper,
}

/// A connection that ends after so many bytes of one way.
struct Cut {
    way: Way,
    after: u64,
}

/// What is known of the target: what it acknowledged, and the newest batch that it was ever sent.
#[derive(Default)]
struct Known {
    acked: u64,
    sent: u64,
}

/// Passes one connection on, up to the cut.
async fn relay(listener: &TcpListener, to: SocketAddr, cut: &Cut) {
    let (near, _) = listener.accept().await.unwrap();
    let far = TcpStream::connect(to).await.unwrap();
    let (near_read, mut near_write) = near.into_split();
    let (far_read, mut far_write) = far.into_split();
    let limit = |way| if way == cut.way { cut.after } else { u64::MAX };
    let (mut up, mut down) =
        (near_read.take(limit(Way::ToReceiver)), far_read.take(limit(Way::ToShipper)));
    // Either way's end is the end of the connection.
    tokio::select! {
        _ = copy(&mut up, &mut far_write) => {}
        _ = copy(&mut down, &mut near_write) => {}
    }
}

/// What batch `number` writes: the same whenever it is sent.
fn content(number: u64) -> (u64, [u8; BYTES]) {
    (number % PLACES * 512, [(number % 251) as u8 + 1; BYTES])
}

/// A session, to its end or until the connection is lost. True when all was acknowledged.
async fn session(lab: &Lab, address: &str, hello: &Hello, known: &mut Known) -> Option<()> {
    let mut stream = connect(&lab.security, address, &group("erp")).await.ok()?;
    write_message(&mut stream, &Message::Hello(hello.clone())).await.ok()?;
    let Message::Welcome(welcome) = read_message(&mut stream).await.ok()?? else {
        panic!("not welcome");
    };
    let found = welcome.number;
    assert!(found >= known.acked, "{} was acknowledged, {found} is here", known.acked);
    assert!(found <= known.sent, "{found} is here, {} was sent", known.sent);
    let (group, session) = (hello.group_uuid, hello.session);
    let (hash, stream_bytes) = (welcome.hash, welcome.stream_bytes);
    let mut chain = Chain { group, session, number: found, hash, stream_bytes };
    for number in found + 1..=found + BATCHES {
        let (offset, bytes) = content(number);
        let mut batch = BatchBuilder::records(at(number), welcome.claims_upto);
        batch.write(Seq(number), VolumeId(0), offset, &bytes, crc32c(&bytes)).unwrap();
        let sealed = Encoder::default().encode(batch, &chain, 0).unwrap();
        chain.advance(&sealed);
        known.sent = known.sent.max(number);
        write_message(&mut stream, &Message::Batch(sealed.bytes)).await.ok()?;
    }
    while known.acked < found + BATCHES {
        match read_message(&mut stream).await.ok()?? {
            Message::Ack(ack) => known.acked = known.acked.max(ack.number),
            Message::KeepAlive => {}
            other => panic!("expected ACK, got {other:?}"),
        }
    }
    Some(())
}

/// Cuts after each `stride`th byte, until a session is shorter than that. How many were cut.
async fn cut_everywhere(lab: &Lab, way: Way, stride: u64) -> u64 {
    let receiver: Receiver = lab.start();
    let to = receiver.address().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (hello, mut known) = (hello(), Known::default());
    let mut cut = Cut { way, after: 0 };
    loop {
        let passing = relay(&listener, to, &cut);
        let (done, ()) = tokio::join!(session(lab, &address, &hello, &mut known), passing);
        if done.is_some() {
            break;
        }
        cut.after += stride;
    }
    // And one that is not cut.
    session(lab, &to.to_string(), &hello, &mut known).await.expect("nothing is in its way");
    receiver.stop();
    let mut expected = vec![0; SIZES[0] as usize];
    for number in 1..=known.acked {
        let (offset, bytes) = content(number);
        expected[offset as usize..][..BYTES].copy_from_slice(&bytes);
    }
    assert!(lab.contents(0) == expected, "{way:?}: the target is not what was sent");
    cut.after / stride
}

/// In memory where there is one: thousands of batches are made durable.
fn lab() -> (tempfile::TempDir, Lab) {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.unwrap();
    let lab = Lab::at(dir.path().to_owned());
    (dir, lab)
}

fn stride(default: u64) -> u64 {
    let given = std::env::var("TOWLINE_CUT_STRIDE").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(default)
}

#[tokio::test]
async fn a_session_cut_at_every_byte_loses_nothing_acknowledged() {
    for way in [Way::ToReceiver, Way::ToShipper] {
        let (_dir, lab) = lab();
        let cuts = cut_everywhere(&lab, way, stride(1)).await;
        assert!(cuts * stride(1) > 300, "{way:?}: only {cuts} cuts");
    }
}

#[tokio::test]
async fn a_session_over_tls_cut_anywhere_loses_nothing_acknowledged() {
    for way in [Way::ToReceiver, Way::ToShipper] {
        let (_dir, mut lab) = lab();
        let pki = lab.path().join("pki");
        pki::init(&pki, false).unwrap();
        pki::issue_receiver(&pki, false).unwrap();
        pki::issue_group(&pki, &group("erp"), false).unwrap();
        lab.security = Security::Pki(pki);
        let cuts = cut_everywhere(&lab, way, stride(11)).await;
        assert!(cuts * stride(11) > 1000, "{way:?}: only {cuts} cuts");
    }
}
