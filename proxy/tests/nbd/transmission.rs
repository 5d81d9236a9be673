//! Requests and replies of well-behaved clients.

use super::client::{Client, request_bytes};
use super::rig::{MIB, Rig};
use std::collections::BTreeMap;
use std::net::Shutdown;
use towline_block::{Access, FileDisk};
use towline_proxy::nbd::proto::{PAYLOAD_BYTES_MAX, allocation, command, command_flag};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn what_is_written_is_read_in_both_reply_styles() {
    let rig = Rig::plain(&[4 * MIB]);
    for mut client in [rig.simple(), rig.structured()] {
        let data = pattern(100_000, 1 + u8::from(client.structured));
        assert_eq!(client.write(0, 4096, &data), 0);
        assert_eq!(client.read(4096, 100_000).unwrap(), data);
        assert_eq!(client.write(command_flag::FUA, 7, b"unaligned"), 0);
        assert_eq!(client.read(6, 11).unwrap(), b"\0unaligned\0");
        assert_eq!(client.change(command::WRITE_ZEROES, command_flag::NO_HOLE, 8, 3), 0);
        assert_eq!(client.read(7, 9).unwrap(), b"u\0\0\0igned");
        assert_eq!(client.change(command::TRIM, command_flag::FUA, 0, 8192), 0);
        assert_eq!(client.read(0, 8192).unwrap(), vec![0; 8192]);
        assert_eq!(client.flush(), 0);
        assert_eq!(client.read(0, 0).unwrap(), b"");
        assert_eq!(client.write(0, 0, &[]), 0);
    }
}

#[test]
fn errors_are_the_protocols_and_the_connection_goes_on() {
    let rig = Rig::plain(&[MIB]);
    for mut client in [rig.simple(), rig.structured()] {
        assert_eq!(client.read(MIB - 1, 2).unwrap_err().error, EINVAL);
        assert_eq!(client.read(u64::MAX, 512).unwrap_err().error, EINVAL);
        assert_eq!(client.write(0, MIB - 1, &[1, 2]), ENOSPC);
        assert_eq!(client.write(1 << 14, 0, &pattern(70_000, 1)), EINVAL);
        assert_eq!(client.change(command::WRITE_ZEROES, 0, MIB, 1), ENOSPC);
        assert_eq!(client.change(command::TRIM, 0, MIB, 1), EINVAL);
        assert_eq!(client.change(99, 0, 0, 0), EINVAL);
        assert_eq!(client.read(0, 512).unwrap(), vec![0; 512]);
        let structured = client.structured;
        let text = client.read(MIB, 1).unwrap_err().text;
        assert_eq!(structured, text.contains("past the end"), "{text:?}");
    }
}

#[test]
fn the_largest_payload_passes_and_a_larger_one_is_drained_and_refused() {
    let rig = Rig::plain(&[128 * MIB]);
    let mut client = rig.structured();
    let data = pattern(PAYLOAD_BYTES_MAX as usize, 3);
    assert_eq!(client.write(0, 1, &data), 0);
    assert!(client.read(1, PAYLOAD_BYTES_MAX).unwrap() == data);
    let larger = vec![1; PAYLOAD_BYTES_MAX as usize + 1];
    assert_eq!(client.write(0, 0, &larger), EINVAL);
    assert_eq!(client.read(0, PAYLOAD_BYTES_MAX + 1).unwrap_err().error, EINVAL);
    assert!(client.read(1, PAYLOAD_BYTES_MAX).unwrap() == data);
}

#[test]
fn a_failed_read_has_an_error_and_no_data() {
    let rig = Rig::plain(&[MIB]);
    let file = std::fs::File::options().write(true).open(rig.dir.path().join("disk0.img"));
    file.unwrap().set_len(4096).unwrap();
    for mut client in [rig.simple(), rig.structured()] {
        assert_eq!(client.read(0, 8192).unwrap_err().error, 5);
        assert_eq!(client.read(0, 4096).unwrap(), vec![0; 4096]);
    }
}

#[test]
fn pipelined_requests_are_each_answered_once_and_in_effect_in_order() {
    let rig = Rig::plain(&[4 * MIB]);
    let mut client = rig.simple();
    let (mut script, mut expected) = (Vec::new(), BTreeMap::new());
    for round in 0..500u64 {
        let data = pattern(512, round as u8);
        let offset = round % 7 * 512;
        script.extend(request_bytes(command::WRITE, 0, 3 * round, offset, 512));
        script.extend(&data);
        script.extend(request_bytes(command::READ, 0, 3 * round + 1, offset, 512));
        script.extend(request_bytes(command::FLUSH, 0, 3 * round + 2, 0, 0));
        expected.insert(3 * round, vec![]);
        expected.insert(3 * round + 1, data);
        expected.insert(3 * round + 2, vec![]);
    }
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &script));
    while !expected.is_empty() {
        let head = client.take::<16>();
        assert_eq!(head[4..8], [0; 4]);
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        let data = expected.remove(&cookie).expect("each cookie once");
        assert!(client.take_vec(data.len()) == data, "cookie {cookie}");
    }
    sender.join().unwrap().unwrap();
    let counters = &rig.server.figures()[0].counters;
    assert_eq!(counters.flushes.get(), 500);
    assert!(counters.syncs.get() < 500, "flushes of a batch share a sync");
}

#[test]
fn flushes_that_end_behind_a_full_output_are_answered() {
    let rig = Rig::plain(&[64 * MIB]);
    let mut client = rig.simple();
    let mut script = request_bytes(command::READ, 0, 0, 0, PAYLOAD_BYTES_MAX);
    for cookie in 1..=200 {
        script.extend(request_bytes(command::WRITE, command_flag::FUA, cookie, 0, 1));
        script.push(1);
    }
    script.extend(request_bytes(command::READ, 0, 201, 0, PAYLOAD_BYTES_MAX));
    client.send(&script);
    rig.until("both reads are done", |rig| {
        let counters = &rig.server.figures()[0].counters;
        counters.reads.get() == 2 && counters.syncs.get() > 0
    });
    let mut cookies = Vec::new();
    for _ in 0..202 {
        let head = client.take::<16>();
        assert_eq!(head[4..8], [0; 4]);
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        if cookie == 0 || cookie == 201 {
            client.take_vec(PAYLOAD_BYTES_MAX as usize);
        }
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..=201).collect::<Vec<_>>());
}

#[test]
fn requests_may_come_byte_by_byte() {
    let rig = Rig::plain(&[MIB]);
    let mut client = rig.simple();
    let mut script = request_bytes(command::WRITE, 0, 1, 100, 5);
    script.extend(b"bytes");
    script.extend(request_bytes(command::READ, 0, 2, 100, 5));
    for byte in script {
        client.send(&[byte]);
    }
    assert_eq!(client.answer(0).cookie, 1);
    assert_eq!(client.answer(5).payload, b"bytes");
}

#[test]
fn block_status_tells_holes_within_the_range_asked_for() {
    let rig = Rig::plain(&[4 * MIB]);
    let mut client = rig.structured();
    assert_eq!(client.write(0, MIB, &pattern(MIB as usize, 1)), 0);
    let (hole, data) = (allocation::HOLE_ZERO, allocation::DATA);
    let mib = MIB as u32;
    let all = [(mib, hole), (mib, data), (2 * mib, hole)];
    assert_eq!(client.status(0, 0, 4 * mib).unwrap(), all);
    assert_eq!(client.status(command_flag::REQ_ONE, 0, 4 * mib).unwrap(), all[..1]);
    assert_eq!(client.status(0, MIB + 512, 1024).unwrap(), [(1024, data)]);
    assert_eq!(client.status(0, 0, 0), Err(EINVAL));
    assert_eq!(client.status(0, MIB, 4 * mib), Err(EINVAL));
    let mut plain = rig.simple();
    assert_eq!(plain.change(command::BLOCK_STATUS, 0, 0, 4096), EINVAL);
}

#[test]
fn a_flush_on_one_connection_covers_writes_answered_on_another() {
    let rig = Rig::plain(&[MIB]);
    let (mut writer, mut flusher, mut reader) = (rig.simple(), rig.simple(), rig.structured());
    for round in 0..20u8 {
        let data = pattern(4096, round);
        assert_eq!(writer.write(0, 4096, &data), 0);
        let before = rig.server.figures()[0].counters.syncs.get();
        assert_eq!(flusher.flush(), 0);
        assert!(rig.server.figures()[0].counters.syncs.get() > before);
        assert_eq!(reader.read(4096, 4096).unwrap(), data);
    }
}

#[test]
fn volumes_are_separate_and_the_first_is_the_default() {
    let rig = Rig::plain(&[MIB, 2 * MIB]);
    let mut first = Client::simple(&rig.socket(), "disk0");
    let mut second = Client::simple(&rig.socket(), "disk1");
    assert_eq!(first.write(0, 0, b"first"), 0);
    assert_eq!(second.write(0, 0, b"other"), 0);
    assert_eq!(rig.simple().read(0, 5).unwrap(), b"first");
    assert_eq!(second.read(2 * MIB - 1, 1).unwrap(), [0]);
}

#[test]
fn a_read_only_disk_refuses_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    std::fs::write(&path, [5; 4096]).unwrap();
    let disk = FileDisk::open(&path, Access::Read).unwrap();
    let export = towline_proxy::ExportConfig {
        name: "ro".parse().unwrap(),
        disk: std::sync::Arc::new(disk),
        journaled: None,
    };
    let socket = dir.path().join("s");
    let address = towline_proxy::ListenAddr::Unix(socket.clone());
    let gate = towline_proxy::StartGate::Open;
    let server = towline_proxy::Server::start(vec![export], &[address], &gate).unwrap();
    let mut client = Client::simple(&socket, "ro");
    assert_eq!(client.write(0, 0, b"x"), 1);
    assert_eq!(client.change(command::TRIM, 0, 0, 512), 1);
    assert_eq!(client.flush(), 0);
    assert_eq!(client.read(0, 1).unwrap(), [5]);
    server.stop().unwrap();
}

#[test]
fn replies_still_due_come_before_the_end() {
    let rig = Rig::plain(&[4 * MIB]);
    for half_close in [false, true] {
        let mut client = rig.simple();
        let mut script = Vec::new();
        for cookie in 0..50 {
            script.extend(request_bytes(command::WRITE, command_flag::FUA, cookie, 0, 512));
            script.extend([1; 512]);
        }
        client.send(&script);
        match half_close {
            true => client.stream.shutdown(Shutdown::Write).unwrap(),
            false => client.disconnect(),
        }
        assert_eq!(client.rest().len(), 50 * 16);
    }
    rig.until("connections end", |rig| rig.open_connections() == 0);
}

#[test]
fn an_orderly_stop_answers_what_was_received() {
    let rig = Rig::plain(&[4 * MIB]);
    let mut client = rig.simple();
    assert_eq!(client.flush(), 0, "the volume's thread has the connection");
    let mut script = Vec::new();
    for cookie in 0..100 {
        script.extend(request_bytes(command::WRITE, 0, cookie, cookie * 512, 512));
        script.extend([9; 512]);
    }
    client.send(&script);
    let Rig { server, dir, .. } = rig;
    server.stop().unwrap();
    assert_eq!(client.rest().len(), 100 * 16);
    let content = std::fs::read(dir.path().join("disk0.img")).unwrap();
    assert!(content[..51200].iter().all(|byte| *byte == 9));
    assert!(!dir.path().join("nbd.sock").exists());
}

#[test]
fn tcp_serves_under_the_port_it_tells() {
    let rig = Rig::plain(&[MIB]);
    let path = rig.dir.path().join("t.img");
    let disk = FileDisk::open_or_create(&path, MIB, Access::Read);
    let export = towline_proxy::ExportConfig {
        name: "t".parse().unwrap(),
        disk: std::sync::Arc::new(disk.unwrap()),
        journaled: None,
    };
    let gate = towline_proxy::StartGate::Open;
    let address = "127.0.0.1:0".parse().unwrap();
    let server = towline_proxy::Server::start(vec![export], &[address], &gate).unwrap();
    let mut stream = std::net::TcpStream::connect(&server.addresses()[0]).unwrap();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
}
