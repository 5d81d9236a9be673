//! The loop by hand: faults that no real disk here shows on demand.

use super::super::core::Waiter;
use super::*;
use crate::engine::command::{Command, Mailbox, NewConnection, mailbox};
use crate::engine::execute::TURN_BYTES;
use crate::latency::{Kind, Timing};
use crate::nbd::errno::Errno;
use crate::nbd::proto::{REQUEST_FRAME_BYTES, REQUEST_MAGIC, command, command_flag};
use crate::nbd::reply::simple;
use crate::nbd::request::Terms;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use towline_block::{Access, FileDisk};

mod cached;

struct Bench {
    engine: Engine,
    client: UnixStream,
    mailbox: Mailbox,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::Own { wait: Duration::ZERO };
    let disk = FileDisk::open_or_create(&dir.path().join("d"), 1 << 20, access).unwrap();
    let (mailbox, inbox) = mailbox().unwrap();
    let volume = Volume::new("d".parse().unwrap(), Arc::new(disk), None);
    let (shadow, counters) = (Arc::default(), Arc::default());
    let policy = LatencyPolicy::Frugal;
    let setup = Setup {
        volume,
        gate: Gate::Open,
        inbox,
        mailbox: mailbox.clone(),
        wake: Default::default(),
        shadow,
        counters,
        policy,
    };
    let mut engine = Engine::new(setup).unwrap();
    let client = client(&mut engine, &[]);
    client.set_nonblocking(false).unwrap();
    Bench { engine, client, mailbox, _dir: dir }
}

fn flush_timing() -> Timing {
    Timing::new(Kind::Flush, 0, Instant::now(), Duration::ZERO)
}

fn request(command: u16, flags: u16, cookie: u64, len: u32) -> Vec<u8> {
    request_at(command, flags, cookie, 0, len)
}

fn request_at(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(vec![0; if command == command::WRITE { len as usize } else { 0 }]);
    bytes
}

impl Bench {
    /// Rounds until so many bytes of replies are there.
    fn replies(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut seen = 0;
        self.client.set_nonblocking(true).unwrap();
        while seen < len {
            match self.client.read(&mut bytes[seen..]) {
                Ok(0) => panic!("closed after {seen} bytes"),
                Ok(n) => seen += n,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    self.engine.round(&mut Vec::new()).unwrap();
                }
            }
        }
        bytes
    }
}

/// One more client, which has sent this before it is read for the first time.
fn client(engine: &mut Engine, sent: &[u8]) -> UnixStream {
    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(sent).unwrap();
    client.set_nonblocking(true).unwrap();
    let terms =
        Terms { size_bytes: 1 << 20, read_only: false, structured: false, allocation: false };
    let new = NewConnection { fd: server.into(), terms, permit: Box::new(()) };
    engine.obey(Command::Connect(new)).unwrap();
    client
}

#[test]
fn after_a_failed_flush_no_flush_succeeds_and_writes_go_on() {
    let mut bench = bench();
    let key = bench.engine.connections.keys().next().unwrap();
    // A flush in flight whose fdatasync fails.
    let timing = flush_timing();
    bench.engine.connections.get_mut(key).unwrap().syncs = 1;
    bench.engine.core.syncs.join(Waiter::Reply { key, cookie: 1, timing });
    assert!(bench.engine.core.syncs.start());
    bench.engine.synced(Err(io::Error::from_raw_os_error(libc::EIO))).unwrap();
    bench.client.write_all(&request(command::FLUSH, 0, 2, 0)).unwrap();
    bench.client.write_all(&request(command::WRITE, command_flag::FUA, 3, 512)).unwrap();
    bench.client.write_all(&request(command::WRITE, 0, 4, 512)).unwrap();
    let failed = |cookie| simple(cookie, Some(Errno::Io));
    let expected = [failed(1), failed(2), failed(3), simple(4, None)].concat();
    assert_eq!(bench.replies(expected.len()), expected);
    let error = {
        bench.engine.stop();
        bench.engine.run().unwrap_err()
    };
    assert_eq!(error.kind(), ErrorKind::Storage);
}

#[test]
fn a_flush_answered_after_its_connection_closed_reaches_nobody() {
    let mut bench = bench();
    let key = bench.engine.connections.keys().next().unwrap();
    // With a second client a worker flushes.
    let _other = client(&mut bench.engine, &[]);
    bench.client.write_all(&request(command::WRITE, command_flag::FUA, 1, 512)).unwrap();
    while bench.engine.core.syncs.is_idle() {
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    drop(bench.client);
    // Whatever ends first, the sync or the connection: the slot's next tenant sees
    // none of it.
    while bench.engine.connections.get_mut(key).is_some() {
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    let (mut client, server) = UnixStream::pair().unwrap();
    let terms =
        Terms { size_bytes: 1 << 20, read_only: false, structured: false, allocation: false };
    let new = NewConnection { fd: server.into(), terms, permit: Box::new(()) };
    bench.engine.obey(Command::Connect(new)).unwrap();
    let timing = flush_timing();
    bench.engine.core.syncs.join(Waiter::Reply { key, cookie: 1, timing });
    while !bench.engine.core.syncs.is_idle() {
        bench.engine.start_sync().unwrap();
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    client.write_all(&request(command::FLUSH, 0, 9, 0)).unwrap();
    let mut second = Bench { client, ..bench };
    assert_eq!(second.replies(16), simple(9, None));
}

#[test]
fn a_thread_whose_askers_are_all_gone_ends() {
    let bench = bench();
    drop(bench.mailbox);
    bench.engine.run().unwrap();
}

#[test]
fn every_request_is_timed_once_and_a_flush_without_its_fdatasync() {
    let mut bench = bench();
    let mut bytes = Vec::new();
    for (index, (command, flags, len)) in [
        (command::WRITE, 0, 4096),
        (command::WRITE, command_flag::FUA, 8192),
        (command::FLUSH, 0, 0),
        (command::TRIM, 0, 4096),
        (command::WRITE_ZEROES, command_flag::FUA, 4096),
    ]
    .into_iter()
    .enumerate()
    {
        bytes.extend(request(command, flags, index as u64, len));
    }
    bench.client.write_all(&bytes).unwrap();
    let begun = Instant::now();
    bench.replies(5 * 16);
    let shadow = &bench.engine.core.shadow;
    let whole = begun.elapsed().as_secs_f64();
    for (kind, count) in [(Kind::Write, 1), (Kind::Fua, 1), (Kind::Flush, 1), (Kind::Zero, 2)] {
        let added = shadow.total(&[kind]);
        assert_eq!(added.count, count, "{kind:?}");
        assert!(added.sum_s < whole * count as f64, "{kind:?}: {added:?} of {whole}");
    }
    let key = bench.engine.connections.keys().next().unwrap();
    assert!(bench.engine.connections.get_mut(key).unwrap().timings.is_empty());
    // A flush that came, and whose fdatasync was issued, ten seconds ago: all of it the
    // source's.
    let long = Duration::from_secs(10);
    let timing = Timing::new(Kind::Flush, 0, Instant::now() - long, Duration::ZERO);
    bench.engine.core.syncs.join(Waiter::Reply { key, cookie: 9, timing });
    bench.engine.connections.get_mut(key).unwrap().syncs = 1;
    bench.engine.start_sync().unwrap();
    bench.engine.core.sync_begun = timing.received();
    bench.replies(16);
    let flushes = bench.engine.core.shadow.total(&[Kind::Flush]);
    assert!(flushes.count == 2 && flushes.sum_s < long.as_secs_f64(), "{flushes:?}");
}

#[test]
fn a_reader_is_answered_between_two_pieces_of_a_large_write() {
    let mut bench = bench();
    let writer = bench.engine.connections.keys().next().unwrap();
    // As received, to the last byte.
    let mut bytes = request(command::WRITE, 0, 1, 1 << 20);
    bytes[REQUEST_FRAME_BYTES..].fill(7);
    let connection = bench.engine.connections.get_mut(writer).unwrap();
    assert!(connection.input.make_room(bytes.len(), &mut bench.engine.core.memory));
    for part in bytes.chunks(TURN_BYTES) {
        connection.input.space()[..part.len()].copy_from_slice(part);
        connection.input.fill(part.len());
    }
    let mut reader = client(&mut bench.engine, &request(command::READ, 0, 2, 4096));
    let mut reply = [0; 16 + 4096];
    while reader.read(&mut reply).is_err() {
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    let progress = bench.engine.connections.get_mut(writer).unwrap().progress;
    assert!(progress > 0 && progress < 1 << 20, "{progress} bytes were written first");
    assert_eq!(bench.replies(16), simple(1, None));
    assert!(std::fs::read(bench._dir.path().join("d")).unwrap() == [7; 1 << 20]);
}

#[test]
fn the_flush_of_a_client_alone_needs_no_worker_and_that_of_two_does() {
    let mut bench = bench();
    bench.client.write_all(&request(command::WRITE, 0, 1, 512)).unwrap();
    assert_eq!(bench.replies(16), simple(1, None));
    bench.client.write_all(&request(command::FLUSH, 0, 2, 0)).unwrap();
    // The round that takes the request ends with its flush made.
    while bench.engine.core.counters.syncs.get() == 0 {
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    assert!(bench.engine.core.syncs.is_idle());
    assert_eq!(bench.replies(16), simple(2, None));
    let _second = client(&mut bench.engine, &[]);
    bench.client.write_all(&request(command::FLUSH, 0, 3, 0)).unwrap();
    while bench.engine.core.counters.syncs.get() == 1 {
        bench.engine.round(&mut Vec::new()).unwrap();
    }
    assert!(!bench.engine.core.syncs.is_idle());
    assert_eq!(bench.replies(16), simple(3, None));
}

#[test]
fn a_reader_of_the_proxys_own_is_no_client_whose_core_is_shared() {
    let mut bench = bench();
    assert!(bench.engine.core.clients.is_empty());
    let init = rustix::thread::Pid::INIT;
    bench.engine.core.seat_joined(Some(init));
    bench.engine.core.seat_joined(Some(init));
    bench.engine.core.seat_left(Some(init));
    assert_eq!(bench.engine.core.clients, [init]);
    bench.engine.core.seat_left(None);
    assert_eq!(bench.engine.core.clients, [init]);
}
