//! Cutovers: hold, seal, promotion, and the journal under the guest's changes.

use super::client::{Client, request_bytes};
use super::rig::{MIB, Rig};
use std::time::{Duration, Instant};
use towline_block::VolumeId;
use towline_journal::RingReader;
use towline_journal::format::{Counter, Kind};
use towline_journal::state::Promoted;
use towline_proxy::latency;
use towline_proxy::nbd::proto::{command, command_flag};
use towline_proxy::{ErrorKind, StartGate};

const LONG: Duration = Duration::from_secs(600);
const ESHUTDOWN: u32 = 108;

fn promoted() -> Promoted {
    Promoted { epoch: 2, exports: vec!["nbd://target:10809/disk0".to_owned()] }
}

/// Whether a reply is there within a time in which one would come if it could.
fn has_reply(client: &Client) -> bool {
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let got = socket2::SockRef::from(&client.stream).peek(&mut byte);
    client.stream.set_read_timeout(Some(super::client::PATIENCE)).unwrap();
    matches!(got, Ok(1))
}

/// Makes the target have everything, so that changes become records.
fn heal(rig: &Rig) {
    let (group, journal) = (rig.server.group(), rig.journal.as_ref().unwrap());
    let mut last = 0;
    for volume in 0..journal.sources().len() {
        while let [claim, ..] = &group.claim(VolumeId(volume as u16), 0, 16, 1).unwrap()[..] {
            last = claim.id;
        }
    }
    journal.ack(journal.get(Counter::Head), last);
    journal.heal().unwrap();
}

#[test]
fn a_hold_lets_reads_pass_and_changes_wait_until_it_is_released() {
    let rig = Rig::journaled(&[MIB, MIB]);
    let group = rig.server.group();
    let mut waiting = rig.simple();
    group.hold(1, LONG).unwrap();
    assert_eq!(rig.simple().read(0, 4).unwrap(), [0; 4]);
    let mut script = request_bytes(command::READ, 0, 1, 0, 4);
    script.extend(request_bytes(command::WRITE, 0, 2, 0, 4));
    script.extend(b"held");
    waiting.send(&script);
    assert_eq!(waiting.answer(4).cookie, 1);
    assert!(!has_reply(&waiting));
    assert_eq!(rig.simple().read(0, 4).unwrap(), [0; 4]);
    group.release(1).unwrap();
    assert_eq!(waiting.answer(0).cookie, 2);
    assert_eq!(rig.simple().read(0, 4).unwrap(), b"held");
}

#[test]
fn a_hold_lifts_itself_at_its_deadline() {
    let rig = Rig::journaled(&[MIB, MIB]);
    let group = rig.server.group();
    let mut client = Client::simple(&rig.socket(), "disk1");
    let begun = Instant::now();
    let max = Duration::from_millis(300);
    group.hold(1, max).unwrap();
    assert_eq!(client.write(0, 0, b"later"), 0);
    assert!(begun.elapsed() >= max);
    assert_eq!(group.seal(1).unwrap_err().kind(), ErrorKind::Lapsed);
    assert_eq!(rig.simple().write(0, 0, b"open"), 0);
}

#[test]
fn a_hold_is_answered_when_flushes_in_flight_are_done() {
    let rig = Rig::journaled(&[16 * MIB]);
    heal(&rig);
    let (group, journal) = (rig.server.group(), rig.journal.as_ref().unwrap());
    let mut client = rig.simple();
    for attempt in 0..20 {
        client.request(command::WRITE, command_flag::FUA, 0, 4096, &[1; 4096]);
        let head = group.hold(attempt, LONG).unwrap();
        assert_eq!(journal.get(Counter::Done), head.0);
        group.release(attempt).unwrap();
        assert_eq!(client.answer(0).error, 0);
    }
}

#[test]
fn a_second_attempt_is_refused_while_the_first_holds() {
    let rig = Rig::journaled(&[MIB]);
    let group = rig.server.group();
    group.hold(1, LONG).unwrap();
    assert_eq!(group.hold(2, LONG).unwrap_err().kind(), ErrorKind::Busy);
    group.release(2).unwrap();
    group.seal(1).unwrap();
    assert_eq!(group.hold(2, LONG).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_seal_waits_and_a_promotion_refuses_with_its_sentence() {
    let rig = Rig::journaled(&[MIB, MIB]);
    let group = rig.server.group();
    let (mut structured, mut simple) = (rig.structured(), rig.simple());
    group.hold(1, LONG).unwrap();
    let seal = group.seal(1).unwrap();
    assert_eq!(seal, group.seal(1).unwrap());
    structured.request(command::WRITE, 0, 0, 4, b"late");
    simple.request(command::FLUSH, 0, 0, 0, &[]);
    assert!(!has_reply(&structured) && !has_reply(&simple));
    group.commit(1, promoted()).unwrap();
    let answer = structured.answer(0);
    assert_eq!(answer.error, ESHUTDOWN);
    assert!(answer.text.contains("nbd://target:10809/disk0"), "{}", answer.text);
    assert_eq!(simple.answer(0).error, ESHUTDOWN);
    let mut other = Client::structured(&rig.socket(), "disk1");
    assert_eq!(other.write(0, 0, &[1; 70_000]), ESHUTDOWN);
    assert_eq!(other.change(command::TRIM, 0, 0, 512), ESHUTDOWN);
    assert_eq!(other.read(0, 4).unwrap(), [0; 4]);
}

#[test]
fn an_unseal_lets_waiting_changes_through() {
    let rig = Rig::journaled(&[MIB]);
    let group = rig.server.group();
    let mut client = rig.simple();
    group.hold(1, LONG).unwrap();
    group.seal(1).unwrap();
    client.request(command::WRITE, 0, 0, 4, b"late");
    group.unseal(1).unwrap();
    assert_eq!(client.answer(0).error, 0);
    assert_eq!(rig.journal.as_ref().unwrap().sealed(), None);
}

#[test]
fn a_client_that_hangs_up_at_the_gate_is_noticed_and_its_change_dropped() {
    let rig = Rig::journaled(&[MIB]);
    let group = rig.server.group();
    group.hold(1, LONG).unwrap();
    let mut client = rig.simple();
    client.request(command::WRITE, 0, 0, 4, b"gone");
    assert!(!has_reply(&client));
    drop(client);
    rig.until("it is gone", |rig| rig.open_connections() == 0);
    group.release(1).unwrap();
    assert_eq!(rig.simple().read(0, 4).unwrap(), [0; 4]);
}

#[test]
fn a_seal_and_a_promotion_outlive_the_server() {
    let rig = Rig::journaled(&[MIB]);
    let gate = |journal: Option<&towline_journal::Journal>| {
        StartGate::of_seal(journal.and_then(|journal| journal.sealed()).as_ref())
    };
    let restart = |rig: Rig| {
        rig.server.stop().unwrap();
        drop(rig.journal);
        Rig::start_in(rig.dir, &[MIB], true, gate)
    };
    rig.server.group().hold(7, LONG).unwrap();
    rig.server.group().seal(7).unwrap();
    let rig = restart(rig);
    assert_eq!(rig.simple().write(0, 0, b"x"), ESHUTDOWN);
    rig.server.group().commit(7, promoted()).unwrap();
    let rig = restart(rig);
    let mut client = rig.structured();
    client.request(command::WRITE, 0, 0, 1, b"x");
    assert!(client.answer(0).text.contains("nbd://target:10809/disk0"));
}

#[test]
fn a_seal_that_outlived_the_server_can_be_lifted() {
    let rig = Rig::journaled(&[MIB]);
    rig.server.group().hold(7, LONG).unwrap();
    rig.server.group().seal(7).unwrap();
    rig.server.stop().unwrap();
    drop(rig.journal);
    let rig = Rig::start_in(rig.dir, &[MIB], true, |journal| {
        StartGate::of_seal(journal.and_then(|journal| journal.sealed()).as_ref())
    });
    assert_eq!(rig.server.group().unseal(8).unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(rig.simple().flush(), ESHUTDOWN);
    rig.server.group().unseal(7).unwrap();
    rig.assert_serving();
}

#[test]
fn a_stop_drops_what_waits_at_the_gate_unanswered() {
    let rig = Rig::journaled(&[MIB]);
    rig.server.group().hold(1, LONG).unwrap();
    let mut client = rig.simple();
    client.request(command::WRITE, 0, 0, 4, b"none");
    assert!(!has_reply(&client));
    rig.server.stop().unwrap();
    assert!(client.is_dropped());
}

#[test]
fn every_change_is_a_record_once_the_target_has_everything() {
    let rig = Rig::journaled(&[512 * MIB, MIB]);
    heal(&rig);
    let journal = rig.journal.as_ref().unwrap();
    let ring = RingReader::open(journal.ring_file()).unwrap();
    let from = ring.get(Counter::Head) + 1;
    let mut client = rig.simple();
    assert_eq!(client.write(0, 512, b"some data"), 0);
    assert_eq!(client.write(0, 8192, &[0; 4096]), 0);
    assert_eq!(client.change(command::TRIM, 0, MIB, 300 << 20), 0);
    assert_eq!(client.flush(), 0);
    let mut other = Client::simple(&rig.socket(), "disk1");
    assert_eq!(other.change(command::WRITE_ZEROES, 0, 0, 512), 0);
    assert_eq!(ring.done_seq(), ring.get(Counter::Head));
    let records: Vec<_> = (from..=ring.done_seq())
        .map(|seq| {
            let record = ring.read(seq, &mut Vec::new()).unwrap();
            (record.kind, record.volume.0, record.extent.offset, record.extent.len)
        })
        .collect();
    let piece = 128 << 20;
    assert_eq!(
        records,
        [
            (Kind::Write, 0, 512, 9),
            (Kind::Zero, 0, 8192, 4096),
            (Kind::Trim, 0, MIB, piece),
            (Kind::Trim, 0, MIB + piece, piece),
            (Kind::Trim, 0, MIB + 2 * piece, 44 << 20),
            (Kind::Barrier, 0, 0, 0),
            (Kind::Zero, 1, 0, 512),
        ]
    );
}

#[test]
fn a_ring_that_is_full_never_fails_or_stops_a_guest() {
    let rig = Rig::journaled(&[64 * MIB]);
    heal(&rig);
    let mut client = rig.simple();
    for index in 0..64u64 {
        assert_eq!(client.write(0, index * MIB, &vec![index as u8 + 1; 1 << 20]), 0);
        assert_eq!(client.flush(), 0);
    }
    let journal = rig.journal.as_ref().unwrap();
    assert!(journal.get(Counter::DirtyBlocks) > 0, "8 MiB of ring, 64 MiB written");
    assert_eq!(client.read(63 * MIB, 1).unwrap(), [64]);
}

#[test]
fn added_latency_and_counts_are_published() {
    let rig = Rig::journaled(&[MIB]);
    let mut client = rig.simple();
    for _ in 0..100 {
        assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    }
    rig.until("all are counted", |rig| {
        rig.server.figures()[0].shadow.total(&[latency::Kind::Write]).count == 100
    });
    let figures = &rig.server.figures()[0];
    let latency = figures.shadow.last(&[latency::Kind::Write]);
    assert!(latency.p50_us > 0.0 && latency.p50_us <= latency.p99_us, "{latency:?}");
    assert_eq!(figures.counters.writes.get(), 100);
    assert_eq!(figures.counters.written_bytes.get(), 409_600);
}
