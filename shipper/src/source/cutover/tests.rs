use super::*;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

const ATTEMPT: Attempt = Attempt(7);

fn group_dir(dir: &tempfile::TempDir) -> GroupDir {
    let group = GroupDir::of(dir.path(), &"g".parse().unwrap());
    group.create().unwrap();
    group
}

/// An attempt that was started, with its client's end.
fn started(pause: Duration) -> (Running, UnixStream) {
    let (client, served) = UnixStream::pair().unwrap();
    let (caller, _) = Caller::new(Arc::new(served));
    let (machine, _) = Cutover::start(Duration::ZERO, ATTEMPT, pause);
    (Running::new(machine, Some(caller), None, 1), client)
}

fn step(running: &mut Running) -> Vec<Action> {
    let event = running.next_event().unwrap();
    running.machine.step(Duration::ZERO, event)
}

fn is_release(actions: &[Action]) -> bool {
    matches!(actions, [Action::Release { .. }, Action::Finish(Outcome::Aborted { .. })])
}

#[test]
fn a_caller_that_hangs_up_before_the_seal_aborts() {
    let (mut running, client) = started(Duration::from_secs(9));
    running.events.push_back(Event::Held(towline_block::Seq(1)));
    assert!(matches!(step(&mut running)[..], [Action::DrainCheck { .. }]));
    running.events.push_back(Event::Drained);
    drop(client);
    let actions = step(&mut running);
    assert!(is_release(&actions), "{actions:?}");
}

#[test]
fn a_caller_that_hangs_up_while_the_proxy_holds_aborts() {
    let (mut running, client) = started(Duration::from_secs(9));
    running.events.push_back(Event::Held(towline_block::Seq(1)));
    drop(client);
    let actions = step(&mut running);
    assert!(is_release(&actions), "{actions:?}");
}

#[test]
fn a_caller_that_hangs_up_after_the_seal_changes_nothing() {
    let (mut running, client) = started(Duration::from_secs(9));
    let position = Position::new(
        towline_block::Epoch(1),
        towline_block::Incarnation(1),
        towline_block::Seq(1),
    );
    running.events.push_back(Event::Held(position.seq));
    running.events.push_back(Event::Drained);
    step(&mut running);
    assert!(matches!(step(&mut running)[..], [Action::Seal { .. }]));
    drop(client);
    running.events.push_back(Event::Sealed(position));
    assert!(matches!(step(&mut running)[..], [Action::SendPromote { .. }]));
    assert_eq!(running.next_event(), None);
}

/// As a proxy that was stopped, and goes on after the shipper has given up.
#[test]
fn a_hold_without_an_answer_is_taken_back_on_its_own_link() {
    let dir = tempfile::tempdir().unwrap();
    let group = group_dir(&dir);
    let listener = UnixListener::bind(group.proxy_socket()).unwrap();
    let (mut running, _client) = started(Duration::from_millis(10));
    let event = running.hold(ATTEMPT, Duration::from_millis(10), &group);
    assert!(matches!(event, Event::HoldFailed(_)), "{event:?}");
    let mut link = Link::new(listener.accept().unwrap().0);
    let (first, _) = link.receive::<Request>().unwrap().unwrap();
    assert_eq!(first, Request::Hold { attempt: 7, max_ms: 10 });
    link.send(&Reply::Held { seq: 1 }, &[]).expect("the link is open");
    let (second, _) = link.receive::<Request>().unwrap().unwrap();
    assert_eq!(second, Request::Release { attempt: 7 });
}

#[test]
fn a_proxy_that_does_not_answer_is_found_out_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let group = group_dir(&dir);
    let _listener = UnixListener::bind(group.proxy_socket()).unwrap();
    let began = Instant::now();
    assert!(probe(&group).is_err());
    assert!(began.elapsed() < LINK_ANSWER_MAX, "{:?}", began.elapsed());
}
