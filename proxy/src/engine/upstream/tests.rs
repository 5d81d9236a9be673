//! The states of the link, with times from outside.

use super::super::command::mailbox;
use super::*;
use crate::{ExportConfig, ListenAddr, Server, StartGate};
use towline_block::upstream::{Address, NbdUri};
use towline_block::{Access, FileDisk};

struct Scene {
    _dir: tempfile::TempDir,
    server: Server,
    driver: Driver,
    link: Link,
    now: Instant,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::Own { wait: Duration::ZERO };
    let disk = FileDisk::open_or_create(&dir.path().join("d"), 1 << 20, access).unwrap();
    let export = ExportConfig { name: "d".parse().unwrap(), disk: Arc::new(disk), journaled: None };
    let socket = dir.path().join("s");
    let address = ListenAddr::Unix(socket.clone());
    let server = Server::start(vec![export], &[address], &StartGate::Open).unwrap();
    let uri = NbdUri { address: Address::Unix(socket), export: "d".to_owned() };
    let upstream = Upstream::open(uri).unwrap();
    let (mailbox, _inbox) = mailbox().unwrap();
    let (mut driver, now) = (Driver::new(8).unwrap(), Instant::now());
    let mut link = Link::start(&upstream, mailbox, &mut driver, now).unwrap();
    // No thread of its own brings a connection: the test does.
    link.backoff = None;
    Scene { _dir: dir, server, driver, link, now }
}

fn write() -> Io {
    Io::Write(0, Window::new(vec![1; 4], 0, 4))
}

#[test]
fn what_waits_for_a_server_fails_after_a_while_and_what_is_new_then_at_once() {
    let Scene { mut link, now, .. } = scene();
    link.ask(0, write(), false);
    assert_eq!(link.lose(now).unwrap(), [1]);
    link.ask(1, Io::Read(0, Window::new(vec![0; 4], 0, 4)), false);
    assert_eq!(link.deadline(), Some(now + WAIT_MAX));
    assert!(!link.expire(now + WAIT_MAX - Duration::from_nanos(1)));
    assert!(link.ended.is_empty());
    assert!(link.expire(now + WAIT_MAX));
    assert!(!link.expire(now + WAIT_MAX), "it begins once");
    link.ask_flush();
    assert_eq!(link.ended.iter().map(|ended| ended.id).collect::<Vec<_>>(), [1, 2, 0]);
    assert!(link.ended.iter().all(|ended| ended.result.is_err()));
}

#[test]
fn a_new_connection_is_asked_everything_and_an_answer_ends_the_outage() {
    let mut scene = scene();
    let (link, now) = (&mut scene.link, scene.now);
    link.ask(0, write(), false);
    link.lose(now).unwrap();
    link.ask_flush();
    let connection = link.connector.connect().unwrap();
    link.connected(connection, &mut scene.driver, now).unwrap();
    assert_eq!((link.parked.len(), link.deadline()), (0, None));
    // A server that takes connections and answers nothing ends no outage.
    assert_eq!(link.failing_since, Some(now));
    let mut answer = 0x668e_33efu32.to_be_bytes().to_vec();
    answer.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    link.received(&answer).unwrap();
    assert_eq!((link.ended.len(), link.failing_since), (1, None));
    assert!(link.received(b"garbage that is long enough").is_err());
    assert_eq!(
        link.lose(now).unwrap(),
        [0u32; 0],
        "the write was answered, the flush is no change"
    );
    drop(scene.server);
}

#[test]
fn a_connection_that_lasted_begins_a_new_outage() {
    let Scene { mut link, mut driver, now, server: _server, _dir } = scene();
    link.lose(now).unwrap();
    link.given_up = true;
    let connection = link.connector.connect().unwrap();
    link.connected(connection, &mut driver, now).unwrap();
    link.ask(0, write(), false);
    link.lose(now + STEADY).unwrap();
    assert_eq!((link.given_up, link.parked.len()), (false, 1));
    assert_eq!(link.failing_since, Some(now + STEADY));
}
