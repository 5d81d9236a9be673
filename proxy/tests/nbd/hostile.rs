//! Clients that break rules or vanish. Each test ends with a server that serves.

use super::client::{Client, request_bytes};
use super::rig::{MIB, Rig};
use proptest::prelude::*;
use std::io::{ErrorKind, Write};
use std::time::Duration;
use towline_proxy::nbd::proto::{PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command};

#[test]
fn a_bad_magic_ends_the_connection() {
    let rig = Rig::plain(&[MIB]);
    let mut client = rig.simple();
    client.send(&[0x25, 0x60, 0x95, 0x14]);
    assert!(client.is_dropped());
    rig.assert_serving();
}

#[test]
fn a_payload_too_long_to_sit_through_ends_the_connection() {
    let rig = Rig::plain(&[MIB]);
    let mut client = rig.structured();
    client.send(&request_bytes(command::WRITE, 0, 1, 0, u32::MAX));
    assert!(client.is_dropped());
    rig.assert_serving();
}

#[test]
fn a_request_cut_anywhere_changes_nothing() {
    let rig = Rig::plain(&[MIB]);
    let mut script = request_bytes(command::WRITE, 0, 1, 0, 100);
    script.extend([7; 100]);
    for len in 0..script.len() {
        let mut client = rig.simple();
        client.send(&script[..len]);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_dropped());
    }
    assert_eq!(rig.simple().read(0, 100).unwrap(), [0; 100]);
    rig.assert_serving();
}

#[test]
fn a_client_that_vanishes_with_replies_pending_is_cleaned_up() {
    let rig = Rig::plain(&[64 * MIB]);
    for round in 0..20 {
        let mut client = rig.simple();
        let mut script = Vec::new();
        for cookie in 0..64 {
            script.extend(request_bytes(command::READ, 0, cookie, 0, 1 << 20));
            script.extend(request_bytes(command::FLUSH, 0, 1000 + cookie, 0, 0));
        }
        client.send(&script);
        if round % 2 == 0 {
            client.take::<100>();
        }
        drop(client);
    }
    rig.until("connections end", |rig| rig.open_connections() == 0);
    rig.assert_serving();
}

#[test]
fn a_client_that_does_not_read_stops_only_itself() {
    let rig = Rig::plain(&[64 * MIB]);
    let mut deaf = rig.simple();
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let requests: Vec<u8> = (0..100_000)
        .flat_map(|cookie| request_bytes(command::READ, 0, cookie, 0, 1 << 20))
        .collect();
    let mut taken = 0;
    let stopped = loop {
        assert!(taken < requests.len(), "the server takes requests without bound");
        match deaf.stream.write(&requests[taken..]) {
            Ok(n) => taken += n,
            Err(error) => break error,
        }
    };
    assert_eq!(stopped.kind(), ErrorKind::WouldBlock);
    rig.assert_serving();
    let whole = (taken / 28) as u64;
    let executed = rig.server.figures()[0].counters.reads.get();
    assert!(executed < whole, "requests wait: {executed} of {whole}");
    // Once it reads, it gets everything, in order.
    let mut seen = 0;
    while seen < 200.min(whole) {
        assert_eq!(deaf.answer(1 << 20).cookie, seen);
        seen += 1;
    }
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_client_that_does_not_read() {
    let rig = Rig::plain(&[64 * MIB]);
    let mut deaf = rig.simple();
    for cookie in 0..100 {
        deaf.send(&request_bytes(command::READ, 0, cookie, 0, 1 << 20));
    }
    rig.server.stop().unwrap();
}

#[test]
fn a_sender_that_reads_nothing_until_all_is_sent_gets_everything() {
    let rig = Rig::plain(&[MIB]);
    let mut client = rig.simple();
    let mut script = Vec::new();
    for cookie in 0..4000 {
        script.extend(request_bytes(command::WRITE, 0, cookie, 0, 512));
        script.extend([cookie as u8; 512]);
    }
    client.send(&script);
    for cookie in 0..4000 {
        assert_eq!(client.answer(0).cookie, cookie);
    }
}

#[test]
fn stalled_large_writes_leave_others_alone() {
    let rig = Rig::plain(&[64 * MIB]);
    let stalled: Vec<Client> = (0..20)
        .map(|cookie| {
            let mut client = rig.simple();
            client.send(&request_bytes(command::WRITE, 0, cookie, 0, PAYLOAD_BYTES_MAX));
            client.send(&[1; 1000]);
            client
        })
        .collect();
    rig.assert_serving();
    let mut other = rig.simple();
    assert_eq!(other.write(0, 0, &vec![2; 1 << 20]), 0);
    drop(stalled);
    rig.until("they are gone", |rig| rig.open_connections() == 1);
    assert_eq!(other.write(0, 0, &vec![3; PAYLOAD_BYTES_MAX as usize]), 0);
}

#[test]
fn a_busy_connection_does_not_starve_another() {
    let rig = Rig::plain(&[64 * MIB]);
    let busy = rig.simple();
    let mut writer = busy.stream.try_clone().unwrap();
    let mut reader = busy.stream.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let one = request_bytes(command::READ, 0, 1, 0, 1 << 20).repeat(1000);
        while writer.write_all(&one).is_ok() {}
    });
    let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut other = rig.simple();
    for _ in 0..50 {
        assert_eq!(other.write(0, 0, b"turn"), 0);
    }
    busy.stream.shutdown(std::net::Shutdown::Both).unwrap();
    flood.join().unwrap();
    let _ = drain.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_bytes_in_transmission_leave_a_server_that_serves(
        parts in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                (0u16..12, 0u16..40, any::<u64>(), 0u64..(2 * MIB), 0u32..100_000).prop_map(
                    |(command, flags, cookie, offset, len)| {
                        request_bytes(command, flags, cookie, offset, len)
                    }
                ),
                Just(REQUEST_MAGIC.to_be_bytes().to_vec()),
            ],
            0..12,
        ),
    ) {
        let rig = Rig::plain(&[MIB]);
        let mut client = rig.structured();
        // The server may hang up in the middle.
        let _ = client.stream.write_all(&parts.concat());
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        client.rest();
        rig.assert_serving();
    }
}
