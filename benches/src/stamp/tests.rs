//! The guest against a server in memory: what it says it did is what the disk
//! shows, through hang-ups, refusals and a move to another server; and a server
//! that loses writes is found out.

use super::*;
use crate::check;
use crate::memory_server::MemoryServer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

const SIZE: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn server(dir: &Path, name: &str) -> MemoryServer {
    MemoryServer::start(&dir.join(name), SIZE, true)
}

fn volume(number: u32, source: &MemoryServer, target: Option<&MemoryServer>) -> GuestVolume {
    GuestVolume {
        history: VolumeHistory::new(number, &format!("disk{number}"), SIZE as u64),
        source: source.uri.clone(),
        target: target.map(|server| server.uri.clone()),
    }
}

fn image(dir: &Path, server: &MemoryServer) -> PathBuf {
    let path = dir.join("image");
    std::fs::write(&path, &*server.disk.lock().unwrap()).unwrap();
    path
}

#[test]
fn the_disk_shows_what_the_guest_says_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), "s");
    let plan = Plan { pattern: Pattern::Zipf(0.9), ..Plan::default() };
    let guest = Guest::start(&plan, Arc::default(), vec![volume(0, &server, None)]).unwrap();
    assert!(guest.wait_for_acks(3000, PATIENCE));
    let latency = guest.write_latency_us();
    let progress = guest.progress();
    let history = guest.stop();
    assert_eq!((progress.io_errors, progress.bad_reads, progress.refused), (0, 0, 0));
    assert!(progress.checked_reads > 0 && !history.volumes[0].flushes.is_empty());
    assert!(latency.len() >= 3000);
    let image = image(dir.path(), &server);
    let report = check::acknowledged(&history.volumes[0], &image).unwrap();
    assert!(report.is_good() && report.stamped_blocks > 100, "{report}");
    assert!(check::prefix(&history, &[&image]).unwrap().report.is_good());
}

#[test]
fn hang_ups_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), "s");
    server.faults.hang_up_every.store(97, SeqCst);
    let guest =
        Guest::start(&Plan::default(), Arc::default(), vec![volume(0, &server, None)]).unwrap();
    assert!(guest.wait_for_acks(3000, PATIENCE));
    let progress = guest.progress();
    let history = guest.stop();
    assert!(progress.connects > 5 && progress.bad_reads == 0, "{progress:?}");
    assert!(history.volumes[0].ops.iter().any(|op| op.outcome == Outcome::Unknown));
    let report = check::acknowledged(&history.volumes[0], &image(dir.path(), &server)).unwrap();
    assert!(report.is_good(), "{report}");
}

#[test]
fn a_server_that_loses_writes_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), "s");
    let plan = Plan { read_share: 0.5, ..Plan::default() };
    let guest = Guest::start(&plan, Arc::default(), vec![volume(0, &server, None)]).unwrap();
    assert!(guest.wait_for_acks(500, PATIENCE));
    // From now on it acknowledges and throws away.
    server.faults.lose_every.store(1, SeqCst);
    assert!(guest.wait_for_acks(500, PATIENCE));
    assert!(guest.progress().bad_reads > 0, "the guest itself reads back what it wrote");
    let history = guest.stop();
    let report = check::acknowledged(&history.volumes[0], &image(dir.path(), &server)).unwrap();
    assert!(report.has(check::Fault::Lost) || report.has(check::Fault::Stale), "{report}");
}

#[test]
fn a_guest_refused_by_the_source_goes_on_at_the_target_and_knows_its_pause() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (server(dir.path(), "source"), server(dir.path(), "target"));
    target.faults.refuse_errno.store(libc::ESHUTDOWN as u32, SeqCst);
    let volumes = vec![volume(0, &source, Some(&target))];
    let guest = Guest::start(&Plan::default(), Arc::default(), volumes).unwrap();
    assert!(guest.wait_for_acks(500, PATIENCE));
    assert_eq!(guest.cutover_pause(), None);
    guest.hold();
    let at_hold = guest.progress().acked_writes;
    assert_eq!(guest.progress().acked_writes, at_hold);
    source.faults.refuse_errno.store(libc::ESHUTDOWN as u32, SeqCst);
    guest.go_on();
    // Both refuse for a while: the guest asks by turns.
    while guest.progress().refused < 10 {
        std::thread::yield_now();
    }
    *target.disk.lock().unwrap() = source.disk.lock().unwrap().clone();
    target.faults.refuse_errno.store(0, SeqCst);
    assert!(guest.wait_for_target(PATIENCE));
    assert!(guest.wait_for_acks(500, PATIENCE));
    assert!(guest.cutover_pause().unwrap() > Duration::ZERO);
    let history = guest.stop();
    let report = check::acknowledged(&history.volumes[0], &image(dir.path(), &target)).unwrap();
    assert!(report.is_good(), "{report}");
    assert!(history.volumes[0].ops.iter().any(|op| op.outcome == Outcome::Refused));
}

#[test]
fn a_prefilled_image_is_part_of_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(SIZE as u64 + 700).unwrap();
    let order = Arc::new(Order::default());
    let history = VolumeHistory::prefilled(0, "disk0", &path, &order).unwrap();
    let report = check::acknowledged(&history, &path).unwrap();
    assert!(report.is_good() && report.stamped_blocks == 512, "{report}");
    let server = server(dir.path(), "s");
    *server.disk.lock().unwrap() = std::fs::read(&path).unwrap()[..SIZE].to_vec();
    let volume = GuestVolume { history, source: server.uri.clone(), target: None };
    let plan = Plan { read_share: 0.8, ..Plan::default() };
    let guest = Guest::start(&plan, order, vec![volume]).unwrap();
    assert!(guest.wait_for_acks(200, PATIENCE));
    assert_eq!(guest.progress().bad_reads, 0, "{:?}", guest.progress());
    let history = guest.stop();
    let report = check::acknowledged(&history.volumes[0], &image(dir.path(), &server)).unwrap();
    assert!(report.is_good(), "{report}");
}

#[test]
fn a_rate_is_kept_and_an_unusable_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), "s");
    let plan = Plan { rate_per_s: Some(200.0), queue_depth: 4, ..Plan::default() };
    let started = std::time::Instant::now();
    let guest = Guest::start(&plan, Arc::default(), vec![volume(0, &server, None)]).unwrap();
    assert!(guest.wait_for_acks(60, PATIENCE));
    assert!(started.elapsed() > Duration::from_millis(200), "60 writes at 200 a second");
    drop(guest);
    let plan = Plan { queue_depth: 0, ..Plan::default() };
    let error = Guest::start(&plan, Arc::default(), Vec::new()).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
}
