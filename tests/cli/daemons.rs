//! Daemons: ready, metrics, an orderly end.

use crate::DISK_BYTES;
use std::io::{Read, Write};
use std::net::TcpStream;
use towline_tests::relay::free_port;
use towline_tests::rig::Process;
use towline_tests::{Daemon, PATIENCE, Rig, args};

#[test]
fn every_daemon_ends_in_order_on_sigterm() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    for which in [Process::Ship, Process::Receive, Process::Proxy] {
        rig.terminate(which);
    }
    rig.assert_identical();
}

#[test]
fn an_orderly_stop_and_start_resumes_without_a_second_baseline() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.prefill();
    rig.start_all();
    rig.wait_drained();
    let before = rig.relay.forwarded_bytes();
    for which in [Process::Ship, Process::Receive, Process::Proxy] {
        rig.terminate(which);
    }
    rig.start_all();
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    rig.wait_drained();
    let moved = rig.relay.forwarded_bytes() - before;
    // The disk is half full: a scan would move 8 MiB.
    assert!(moved < DISK_BYTES / 8, "{moved} bytes moved for a write of 4 KiB");
    rig.settle_target();
    rig.assert_identical();
}

fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn every_daemon_serves_metrics_with_our_names() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let ports = [free_port(), free_port(), free_port()];
    let with_metrics = |mut all: Vec<std::ffi::OsString>, port: u16| {
        all.extend(args!["--metrics", format!("127.0.0.1:{port}")]);
        all
    };
    rig.proxy = Some(Daemon::ready(&with_metrics(rig.proxy_args(), ports[0])));
    rig.receive = Some(Daemon::ready(&with_metrics(rig.receive_args(), ports[1])));
    rig.ship = Some(Daemon::ready(&with_metrics(rig.ship_args(), ports[2])));
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    rig.wait_drained();
    for port in ports {
        let answer = metrics(port);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let samples = answer.lines().filter(|line| line.starts_with("towline_")).count();
        assert!(samples > 0, "no metric of ours: {answer}");
    }
}

#[test]
fn nbd_is_served_on_tcp_beside_the_socket() {
    let mut rig = Rig::new(1, DISK_BYTES);
    let port = free_port();
    let mut all = rig.proxy_args();
    all.extend(args!["--nbd", format!("127.0.0.1:{port}")]);
    rig.proxy = Some(Daemon::ready(&all));
    rig.client("disk0").write(4096, b"both").unwrap();
    let uri = towline_bench::nbd_client::NbdUri::tcp("127.0.0.1", port, "disk0");
    let options = towline_bench::nbd_client::Options::default();
    let mut client = towline_bench::nbd_client::Client::connect(&uri, options).unwrap();
    assert_eq!(client.read(4096, 4).unwrap(), b"both");
}
