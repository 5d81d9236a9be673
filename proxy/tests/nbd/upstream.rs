//! Another NBD server as the source, also one that dies, lies or stalls.

use super::asynchronous::change_in_order;
use super::client::{Client, PATIENCE, request_bytes};
use super::rig::{MIB, Rig};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use towline_block::upstream::{Address, ExportReader};
use towline_block::{Access, BLOCK_BYTES, Extent, FileDisk, NbdUri, VolumeId};
use towline_journal::Durable;
use towline_journal::format::Counter;
use towline_journal::link::{LINK_VERSION, Link, Reply, Request};
use towline_proxy::nbd::proto::{command, command_flag};
use towline_proxy::{ExportConfig, LinkServer, ListenAddr, Server, StartGate};

/// An honest server over `disk.img` in a folder, without a journal.
fn server_in(dir: &Path) -> Server {
    let access = Access::Own { wait: PATIENCE };
    let disk = Arc::new(FileDisk::open_or_create(&dir.join("disk.img"), MIB, access).unwrap());
    let export = ExportConfig { name: "up".parse().unwrap(), disk, journaled: None };
    let address = ListenAddr::Unix(dir.join("up.sock"));
    Server::start(vec![export], &[address], &StartGate::Open).unwrap()
}

fn uri_in(dir: &Path) -> NbdUri {
    NbdUri { address: Address::Unix(dir.join("up.sock")), export: "up".to_owned() }
}

fn image_in(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("disk.img")).unwrap()
}

/// All blocks acknowledged by a target: what is dirty afterwards came later.
fn heal(rig: &Rig) {
    let journal = rig.journal.as_ref().unwrap();
    let mut last = 0;
    while let [claim, ..] = &rig.server.group().claim(VolumeId(0), 0, 64, 1).unwrap()[..] {
        last = claim.id;
    }
    journal.ack(journal.get(Counter::Head), last);
    assert!(journal.heal().is_some());
}

/// The dirty blocks, in order.
fn dirty(rig: &Rig) -> Vec<u64> {
    let mut blocks = Vec::new();
    while let [claim, ..] = &rig.server.group().claim(VolumeId(0), 0, 64, 1).unwrap()[..] {
        blocks.extend(claim.first_block..claim.first_block + claim.blocks);
    }
    blocks.sort_unstable();
    blocks
}

#[test]
fn pipelined_overlapping_changes_take_effect_upstream_in_the_order_they_came() {
    let dir = TempDir::new().unwrap();
    let _server = server_in(dir.path());
    let rig = Rig::over(&[uri_in(dir.path())]);
    let expected = change_in_order(&rig);
    assert!(image_in(dir.path()) == expected);
}

#[test]
fn flushes_and_fua_reach_the_server_and_a_stop_flushes_it() {
    let dir = TempDir::new().unwrap();
    let server = server_in(dir.path());
    let rig = Rig::over(&[uri_in(dir.path())]);
    let mut client = rig.simple();
    let syncs = || server.figures()[0].counters.syncs.get();
    assert_eq!(client.write(0, 0, &[1; 512]), 0);
    assert_eq!(syncs(), 0);
    assert_eq!(client.write(command_flag::FUA, 512, &[1; 512]), 0);
    assert_eq!(syncs(), 1, "written through, without a flush of its own");
    client.send(&request_bytes(command::FLUSH, 0, 9, 0, 0));
    assert_eq!(client.answer(0).error, 0);
    assert_eq!(syncs(), 2);
    drop(client);
    rig.server.stop().unwrap();
    assert_eq!(syncs(), 3);
}

#[test]
fn the_shipper_reads_through_the_volumes_own_connection() {
    let dir = TempDir::new().unwrap();
    let server = server_in(dir.path());
    let rig = Rig::over(&[uri_in(dir.path())]);
    assert_eq!(rig.simple().write(0, 70_000, &[7; 100]), 0);
    let path = rig.dir.path().join("proxy.sock");
    let journal = rig.journal.clone().unwrap();
    let _link = LinkServer::start(&path, rig.server.group(), journal).unwrap();
    let mut link = Link::connect(&path).unwrap();
    let target = Durable { epoch: 0, incarnation: 0, seq: 0, claims: 0 };
    let attach = Request::Attach { version: LINK_VERSION, target };
    let (reply, mut passed) = link.call(&attach).unwrap();
    assert!(matches!(reply, Reply::Attached { .. }), "{reply:?}");
    let mut reader = ExportReader::new(passed.remove(1), MIB).unwrap();
    let extents: Vec<_> = Extent::new(0, MIB).pieces(BLOCK_BYTES).collect();
    let read = reader.read(&extents).unwrap();
    let joined: Vec<u8> = read.iter().flat_map(|block| block.as_slice().to_vec()).collect();
    assert!(joined == image_in(dir.path()));
    assert_eq!(server.figures()[0].counters.connections.get(), 1);
}

#[test]
fn a_server_that_comes_back_answers_what_waited_and_what_was_in_flight() {
    let dir = TempDir::new().unwrap();
    let server = server_in(dir.path());
    let rig = Rig::over(&[uri_in(dir.path())]);
    heal(&rig);
    let mut client = rig.simple();
    assert_eq!(client.write(0, 0, b"before"), 0);
    server.stop().unwrap();
    let counters = rig.server.figures()[0].counters.clone();
    rig.until("the loss is seen", |_| counters.upstream_losses.get() == 1);
    let mut script = request_bytes(command::WRITE, 0, 1, BLOCK_BYTES, 6);
    script.extend(b"during");
    script.extend(request_bytes(command::READ, 0, 2, 0, 6));
    script.extend(request_bytes(command::FLUSH, 0, 3, 0, 0));
    client.send(&script);
    let _server = server_in(dir.path());
    for _ in 0..3 {
        let answer = client.answer(0);
        if answer.cookie == 2 {
            assert_eq!(client.take::<6>(), *b"before");
        }
        assert_eq!(answer.error, 0);
    }
    assert_eq!(image_in(dir.path())[BLOCK_BYTES as usize..][..6], *b"during");
    // Nothing was in flight when the connection went: the journal has it all.
    assert_eq!(dirty(&rig), [0u64; 0]);
    drop((client, rig));
}

/// Accepts one client, answers its handshake as [`server_in`] would, without structured
/// replies.
fn accept(listener: &UnixListener) -> UnixStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            bytes.extend(number.to_be_bytes());
        }
        [bytes, data.to_vec()].concat()
    };
    let mut asked = [0; 4 + 16 + 16 + 10];
    stream.read_exact(&mut asked[..20]).unwrap();
    stream.write_all(&reply(8, (1 << 31) + 1, &[])).unwrap();
    stream.read_exact(&mut asked[..26]).unwrap();
    let flags: u16 = 0b0_0110_1101;
    let export = [&[0, 0][..], &MIB.to_be_bytes(), &flags.to_be_bytes()].concat();
    stream.write_all(&reply(7, 3, &export)).unwrap();
    stream.write_all(&reply(7, 1, &[])).unwrap();
    stream
}

/// A write and a read are at a server that says this and goes; then an honest one comes.
fn survive(last_words: impl Fn(&mut UnixStream)) {
    let dir = TempDir::new().unwrap();
    drop(server_in(dir.path()));
    let socket = dir.path().join("up.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut liar = None;
    let rig = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(&listener));
        let rig = Rig::over(&[uri_in(dir.path())]);
        liar = Some(accepting.join().unwrap());
        rig
    });
    let mut liar = liar.unwrap();
    let mut client = rig.simple();
    // The walker reads the source no more than anyone: the claims alone are taken.
    heal(&rig);
    let mut script = request_bytes(command::WRITE, 0, 1, 3 * BLOCK_BYTES - 2, 4);
    script.extend(b"kept");
    script.extend(request_bytes(command::WRITE, 0, 2, 7 * BLOCK_BYTES, 4));
    script.extend(b"kept");
    script.extend(request_bytes(command::READ, 0, 3, 0, 512));
    client.send(&script);
    let mut received = [0; 28 + 4 + 28 + 4 + 28];
    liar.read_exact(&mut received).unwrap();
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    last_words(&mut liar);
    drop(liar);
    let _server = server_in(dir.path());
    for _ in 0..3 {
        let answer = client.answer(0);
        if answer.cookie == 3 {
            client.take_vec(512);
        }
        assert_eq!(answer.error, 0, "{answer:?}");
    }
    assert_eq!(&image_in(dir.path())[3 * BLOCK_BYTES as usize - 2..][..4], b"kept");
    let journal = rig.journal.as_ref().unwrap();
    assert_eq!(journal.get(Counter::Done), journal.get(Counter::Head), "every record is final");
    assert_eq!(dirty(&rig), [2, 3, 7], "exactly what was in flight (R9)");
    rig.assert_serving();
    // Before the server, which is flushed at the end.
    drop((client, rig));
}

#[test]
fn changes_in_flight_at_a_lost_connection_are_asked_again_and_their_blocks_dirty() {
    survive(|_| {});
}

#[test]
fn garbage_and_a_half_answer_are_a_lost_connection() {
    survive(|server| server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap());
    survive(|server| {
        let mut half = 0x6744_6698u32.to_be_bytes().to_vec();
        half.extend([0; 4]);
        half.extend(4u64.to_be_bytes());
        half.extend([1; 100]);
        server.write_all(&half).unwrap();
    });
}

#[test]
fn a_failed_write_upstream_fails_the_guests_and_dirties_its_blocks() {
    let dir = TempDir::new().unwrap();
    drop(server_in(dir.path()));
    let listener = UnixListener::bind(dir.path().join("up.sock")).unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let mut server = accept(&listener);
            let mut request = [0; 28 + 4];
            server.read_exact(&mut request).unwrap();
            let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
            reply.extend(28u32.to_be_bytes());
            reply.extend(&request[8..16]);
            server.write_all(&reply).unwrap();
            server
        });
        let rig = Rig::over(&[uri_in(dir.path())]);
        heal(&rig);
        let mut client = rig.simple();
        assert_eq!(client.write(0, 0, b"fail"), 28);
        assert_eq!(dirty(&rig), [0]);
        drop((client, serving.join().unwrap()));
        drop(rig.server);
    });
}

#[test]
fn exports_that_cannot_be_served_faithfully_are_refused() {
    let dir = TempDir::new().unwrap();
    assert!(towline_block::Upstream::open(uri_in(dir.path())).is_err());
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0; MIB as usize]).unwrap();
    let disk = Arc::new(FileDisk::open(&path, Access::Read).unwrap());
    let export = ExportConfig { name: "up".parse().unwrap(), disk, journaled: None };
    let address = ListenAddr::Unix(dir.path().join("up.sock"));
    let _server = Server::start(vec![export], &[address], &StartGate::Open).unwrap();
    let error = towline_block::Upstream::open(uri_in(dir.path())).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    let other = NbdUri { export: "other".to_owned(), ..uri_in(dir.path()) };
    let error = towline_block::Upstream::open(other).unwrap_err();
    assert!(error.to_string().contains("no such export"), "{error}");
}

#[test]
fn many_clients_of_a_server_that_is_killed_and_started_again_lose_nothing() {
    let dir = TempDir::new().unwrap();
    let mut server = Some(server_in(dir.path()));
    let rig = Rig::over(&[uri_in(dir.path())]);
    let (written, writes) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4u64)
            .map(|number| {
                let mut client: Client = rig.simple();
                let written = written.clone();
                scope.spawn(move || {
                    for round in 0..100u64 {
                        let at = (number * 64 + round % 64) * 4096;
                        assert_eq!(client.write(0, at, &[round as u8 + 1; 4096]), 0);
                        written.send(()).unwrap();
                        assert_eq!(client.read(at, 4096).unwrap(), [round as u8 + 1; 4096]);
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            // Of 400 writes 100 before each end: every one is in the middle of them.
            (0..100).for_each(|_| writes.recv().unwrap());
            // A server's end takes its connections with it.
            server.take().unwrap().stop().unwrap();
            server = Some(server_in(dir.path()));
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}
