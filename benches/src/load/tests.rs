//! The load generator against servers in memory, stalled ones among them.

use super::open::Pace;
use super::replies::Replies;
use super::*;
use crate::memory_server::MemoryServer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SIZE: usize = 4 << 20;

fn plan(server: &MemoryServer, workload: Workload) -> Plan {
    Plan {
        uri: server.uri.clone(),
        workload,
        span: 0..SIZE as u64,
        warm: Duration::from_millis(20),
        measured: Duration::from_millis(100),
        seed: 1,
        cpus: None,
    }
}

fn server(dir: &tempfile::TempDir) -> MemoryServer {
    MemoryServer::start(&dir.path().join("s"), SIZE, false)
}

#[test]
fn every_shape_of_workload_runs_and_is_counted_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let base = Workload::random_write(4096, 8);
    for (workload, kinds) in [
        (base.clone(), vec![Kind::Write]),
        (Workload::random_read(65536, 4), vec![Kind::Read]),
        (Workload { read_percent: 50, ..base.clone() }, vec![Kind::Read, Kind::Write]),
        (Workload { flush_every: Some(4), ..base.clone() }, vec![Kind::Write, Kind::Flush]),
        (Workload { connections: 3, ..base.clone() }, vec![Kind::Write]),
        (
            Workload { request_bytes: 1 << 20, sequential: true, depth: 4, ..base.clone() },
            vec![Kind::Write],
        ),
        (Workload { rate_per_s: Some(2000.0), ..base.clone() }, vec![Kind::Write]),
    ] {
        let mut edges = Vec::new();
        let outcome = run(&plan(&server, workload.clone()), |edge| edges.push(edge), || false)
            .unwrap_or_else(|e| panic!("{workload:?}: {e}"));
        assert_eq!(edges, [Edge::Begin, Edge::End]);
        for kind in Kind::ALL {
            let counted = !outcome.tally.of(kind).is_empty();
            assert_eq!(counted, kinds.contains(&kind), "{workload:?} {kind:?}");
        }
    }
}

#[test]
fn four_writes_a_flush_are_four_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let workload = Workload { flush_every: Some(4), ..Workload::random_write(4096, 2) };
    let outcome = run(&plan(&server(&dir), workload), |_| {}, || false).unwrap();
    let [writes, flushes] = [Kind::Write, Kind::Flush].map(|kind| outcome.tally.of(kind).len());
    assert!(writes.abs_diff(4 * flushes) <= 4, "{writes} writes, {flushes} flushes");
}

/// Half of the window the server answers nothing. A closed loop sees one slow request;
/// an open loop knows that half of all requests had to wait.
#[test]
fn an_open_loop_does_not_hide_the_requests_that_waited_for_a_stalled_server() {
    const STALL: Duration = Duration::from_millis(250);
    let p80_ms = |rate_per_s| {
        let dir = tempfile::tempdir().unwrap();
        let server = server(&dir);
        let workload = Workload { rate_per_s, ..Workload::random_write(4096, 1) };
        let mut plan = plan(&server, workload);
        plan.measured = 2 * STALL;
        let faults = Arc::clone(&server.faults);
        let hold = move || {
            faults.hold.store(true, Ordering::SeqCst);
            std::thread::sleep(STALL);
            faults.hold.store(false, Ordering::SeqCst);
        };
        let mut stall = None;
        let begun = |edge| {
            if edge == Edge::Begin {
                stall = Some(std::thread::spawn(hold.clone()));
            }
        };
        let outcome = run(&plan, begun, || false).unwrap();
        stall.unwrap().join().unwrap();
        outcome.tally.of(Kind::Write).value_at_quantile(0.8) as f64 / 1e6
    };
    let (closed, open) = (p80_ms(None), p80_ms(Some(1000.0)));
    // Evenly due over the stall, the slowest 20 of a hundred waited over 150 ms.
    assert!(open > 100.0, "open loop: p80 {open} ms");
    assert!(closed < open / 4.0, "closed loop: p80 {closed} ms, open {open} ms");
}

#[test]
fn connections_of_an_open_loop_share_the_rate_evenly() {
    let paces: Vec<Pace> = (0..2).map(|number| Pace::new(100, 1e6, 2, number)).collect();
    let due: Vec<u64> = (0..3).flat_map(|k| paces.iter().map(move |pace| pace.due_ns(k))).collect();
    assert_eq!(due, [100, 1100, 2100, 3100, 4100, 5100]);
}

#[test]
fn replies_are_found_however_the_stream_is_cut() {
    let reply = |cookie: u64| {
        let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(cookie.to_be_bytes());
        bytes
    };
    // Cookies below 2 are reads of 5 bytes.
    let payload_of = |cookie: u64| Some(if cookie < 2 { 5 } else { 0 });
    let mut stream = Vec::new();
    for cookie in [0, 7, 1, 9] {
        stream.extend(reply(cookie));
        stream.resize(stream.len() + payload_of(cookie).unwrap(), 0xee);
    }
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let (mut replies, mut done) = (Replies::default(), Vec::new());
            for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                replies.feed(part, payload_of, |cookie| done.push(cookie)).unwrap();
            }
            assert_eq!(done, [0, 7, 1, 9], "cut at {first} and {second}");
        }
    }
}

#[test]
fn what_is_no_reply_and_what_was_not_asked_end_the_run() {
    let feed = |bytes: &[u8]| Replies::default().feed(bytes, |_| None, |_| {}).unwrap_err().kind();
    let mut reply = [0; 16];
    assert_eq!(feed(&reply), crate::ErrorKind::Protocol);
    reply[..4].copy_from_slice(&0x6744_6698_u32.to_be_bytes());
    assert_eq!(feed(&reply), crate::ErrorKind::Protocol, "not in flight");
    reply[7] = 28;
    assert_eq!(feed(&reply), crate::ErrorKind::Reply(28));
}

#[test]
fn an_error_reply_ends_the_run_and_not_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    server.faults.refuse_errno.store(5, Ordering::SeqCst);
    let error = run(&plan(&server, Workload::random_write(4096, 4)), |_| {}, || false).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Reply(5));
}

#[test]
fn a_run_ends_early_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let mut plan = plan(&server, Workload::random_write(4096, 1));
    plan.measured = Duration::from_secs(3600);
    let asked = AtomicU64::new(0);
    let stop = || asked.fetch_add(1, Ordering::SeqCst) > 3;
    assert_eq!(run(&plan, |_| {}, stop).unwrap_err().kind(), crate::ErrorKind::TimedOut);
}

#[test]
fn tallies_of_clients_and_rounds_add_up() {
    let (mut all, mut one) = (Tally::default(), Tally::default());
    for ns in 1..=1000 {
        one.record(Kind::Write, ns * 1000);
    }
    all.merge(&one);
    all.merge(&one);
    assert_eq!(all.count(), 2000);
    let (merged, single) = (all.of(Kind::Write), one.of(Kind::Write));
    assert_eq!(merged.value_at_quantile(0.99), single.value_at_quantile(0.99));
    all.clear();
    assert_eq!(all.count(), 0);
}
