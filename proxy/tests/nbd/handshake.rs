//! Haggling over a real socket.

use super::client::{Client, go, option_bytes, request_bytes};
use super::rig::{MIB, Rig};
use std::net::Shutdown;
use towline_proxy::nbd::handshake::{OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX};
use towline_proxy::nbd::proto::{command, option, option_reply};

#[test]
fn unknown_client_flags_end_the_connection() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::connect(&rig.socket());
    client.take::<18>();
    client.send(&[0, 0, 0, 7]);
    assert!(client.is_dropped());
    assert_eq!(rig.server.refused(), 1);
    rig.assert_serving();
}

#[test]
fn garbage_for_an_option_ends_the_connection() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::greeted(&rig.socket());
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.is_dropped());
    rig.assert_serving();
}

#[test]
fn a_handshake_cut_anywhere_costs_nothing() {
    let rig = Rig::plain(&[MIB]);
    let mut script = 3u32.to_be_bytes().to_vec();
    script.extend(option_bytes(option::STRUCTURED_REPLY, &[]));
    script.extend(option_bytes(option::GO, &go("disk0")));
    script.extend(request_bytes(command::READ, 0, 1, 0, 512));
    for len in 0..script.len() {
        let mut client = Client::connect(&rig.socket());
        client.send(&script[..len]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.rest();
    }
    rig.until("connections end", |rig| rig.open_connections() == 0);
    rig.assert_serving();
}

#[test]
fn a_handshake_byte_by_byte_is_understood() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::connect(&rig.socket());
    client.take::<18>();
    let mut script = 3u32.to_be_bytes().to_vec();
    script.extend(option_bytes(option::EXPORT_NAME, b"disk0"));
    for byte in script {
        client.send(&[byte]);
    }
    assert_eq!(client.take::<8>(), MIB.to_be_bytes());
    client.take::<2>();
    assert_eq!(client.read(0, 4).unwrap(), [0; 4]);
}

#[test]
fn requests_sent_right_behind_export_name_are_not_lost() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::greeted(&rig.socket());
    let mut script = option_bytes(option::EXPORT_NAME, b"");
    script.extend(request_bytes(command::READ, 0, 9, 0, 16));
    client.send(&script);
    client.take::<10>();
    assert_eq!(client.answer(16).cookie, 9);
}

#[test]
fn an_unknown_export_is_told_where_the_option_can() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::greeted(&rig.socket());
    assert_eq!(client.option(option::GO, &go("none"))[0].0, option_reply::ERR_UNKNOWN);
    assert_eq!(client.option(77, b"data of whatever")[0].0, option_reply::ERR_UNSUP);
    assert_eq!(client.option(option::GO, &go("disk0")).last().unwrap().0, option_reply::ACK);
    let mut client = Client::greeted(&rig.socket());
    client.send(&option_bytes(option::EXPORT_NAME, b"none"));
    assert!(client.is_dropped());
}

#[test]
fn abort_is_acknowledged_and_closed() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::greeted(&rig.socket());
    assert_eq!(client.option(option::ABORT, &[]), [(option_reply::ACK, vec![])]);
    assert!(client.is_dropped());
}

#[test]
fn long_options_are_skipped_and_absurd_ones_end_the_connection() {
    let rig = Rig::plain(&[MIB]);
    let mut client = Client::greeted(&rig.socket());
    let long = vec![0; OPTION_BYTES_MAX as usize + 1];
    assert_eq!(client.option(option::GO, &long)[0].0, option_reply::ERR_TOO_BIG);
    assert_eq!(client.option(option::LIST, &[]).len(), 2);
    let mut head = option_bytes(option::GO, &[]);
    head[12..].copy_from_slice(&(OPTION_SKIP_BYTES_MAX + 1).to_be_bytes());
    client.send(&head);
    assert!(client.is_dropped());
}

#[test]
fn a_volume_takes_so_many_connections_and_then_again() {
    let rig = Rig::plain(&[MIB]);
    let mut clients: Vec<Client> = Vec::new();
    let mut refused = loop {
        let mut client = Client::greeted(&rig.socket());
        if client.option(option::GO, &go("")).last().unwrap().0 != option_reply::ACK {
            break client;
        }
        clients.push(client);
        assert!(clients.len() < 1000, "no limit");
    };
    assert_eq!(refused.option(option::GO, &go(""))[0].0, option_reply::ERR_POLICY);
    assert_eq!(rig.open_connections(), clients.len());
    clients.pop();
    rig.until("one has left", |rig| rig.open_connections() == clients.len());
    assert_eq!(refused.option(option::GO, &go("")).last().unwrap().0, option_reply::ACK);
}
