//! A source past the page cache: what a client may rely on does not change.

use super::client::{Client, request_bytes};
use super::rig::{MIB, Rig};
use std::time::Duration;
use towline_block::{BLOCK_BYTES, VolumeId};
use towline_journal::format::Counter;
use towline_proxy::latency::Kind;
use towline_proxy::nbd::proto::{command, command_flag};

/// A fixed sequence of numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// The disk as its file holds it.
fn image(rig: &Rig) -> Vec<u8> {
    std::fs::read(rig.dir.path().join("disk0.img")).unwrap()
}

#[test]
fn pipelined_overlapping_changes_of_any_alignment_take_effect_in_the_order_they_came() {
    let rig = Rig::direct(&[MIB]);
    let expected = change_in_order(&rig);
    assert!(image(&rig) == expected);
}

/// What the disk must hold after overlapping changes that were sent without waiting.
pub fn change_in_order(rig: &Rig) -> Vec<u8> {
    let mut expected = vec![0u8; MIB as usize];
    let mut numbers = Numbers(7);
    for round in 0..20u8 {
        let (mut client, mut script) = (rig.simple(), Vec::new());
        for index in 0..100u64 {
            // A small window, so that most of them overlap.
            let offset = numbers.below(40_000);
            let len = 1 + numbers.below(9_000);
            let range = offset as usize..(offset + len) as usize;
            let fill = round.wrapping_mul(13).wrapping_add(index as u8);
            let kind = match index % 10 {
                3 => command::WRITE_ZEROES,
                7 => command::TRIM,
                _ => command::WRITE,
            };
            script.extend(request_bytes(kind, 0, index, offset, len as u32));
            if kind == command::WRITE {
                script.extend(vec![fill; len as usize]);
            }
            expected[range].fill(if kind == command::WRITE { fill } else { 0 });
        }
        client.send(&script);
        let mut cookies: Vec<_> = (0..100).map(|_| client.answer(0)).collect();
        assert!(cookies.iter().all(|answer| answer.error == 0));
        cookies.sort_by_key(|answer| answer.cookie);
        assert!(cookies.iter().enumerate().all(|(at, answer)| answer.cookie == at as u64));
        assert!(client.read(0, 60_000).unwrap() == expected[..60_000]);
    }
    let journal = rig.journal.as_ref().unwrap();
    assert_eq!(journal.get(Counter::Done), journal.get(Counter::Head), "every record is final");
    expected
}

#[test]
fn requests_of_the_largest_size_and_more_than_all_permits_are_answered() {
    let rig = Rig::direct(&[64 * MIB]);
    let mut client = rig.structured();
    let data: Vec<u8> = (0..32 * MIB).map(|at| (at / 4096) as u8 | 1).collect();
    assert_eq!(client.write(command_flag::FUA, 512, &data), 0);
    assert!(client.read(512, 32 << 20).unwrap() == data);
    let mut clients: Vec<Client> = (0..3).map(|_| rig.simple()).collect();
    for client in &mut clients {
        let script: Vec<u8> =
            (0..300).flat_map(|at| request_bytes(command::READ, 0, at, at * 4096, 512)).collect();
        client.send(&script);
    }
    for client in &mut clients {
        for _ in 0..300 {
            assert_eq!(client.answer(512).error, 0);
        }
    }
}

#[test]
fn a_client_that_reads_no_replies_stops_only_itself() {
    let rig = Rig::direct(&[64 * MIB]);
    let mut deaf = rig.simple();
    let script: Vec<u8> =
        (0..200).flat_map(|at| request_bytes(command::READ, 0, at, 0, 4 << 20)).collect();
    deaf.send(&script);
    rig.assert_serving();
    drop(deaf);
    rig.assert_serving();
    rig.until("its connection ends", |rig| rig.open_connections() == 0);
}

#[test]
fn a_hold_is_answered_under_reads_and_a_seal_covers_what_came_before() {
    let rig = Rig::direct(&[MIB]);
    let group = rig.server.group();
    let mut client = rig.simple();
    let mut script = request_bytes(command::WRITE, 0, 1, 100, 4);
    script.extend(b"last");
    client.send(&script);
    assert_eq!(client.answer(0).error, 0);
    group.hold(1, Duration::from_secs(60)).unwrap();
    assert_eq!(client.read(100, 4).unwrap(), b"last");
    group.seal(1).unwrap();
    assert_eq!(&image(&rig)[100..104], b"last");
}

#[test]
fn all_blocks_can_be_claimed_while_a_client_writes() {
    let rig = Rig::direct(&[4 * MIB]);
    let group = rig.server.group();
    let mut client = rig.simple();
    let script: Vec<u8> = (0..64u64)
        .flat_map(|at| {
            let mut one = request_bytes(command::WRITE, 0, at, at * BLOCK_BYTES, 4096);
            one.extend([1; 4096]);
            one
        })
        .collect();
    client.send(&script);
    let mut blocks = 0;
    while let [claim, ..] = &group.claim(VolumeId(0), 0, 7, 1).unwrap()[..] {
        blocks += claim.blocks;
    }
    assert_eq!(blocks, 4 * MIB / BLOCK_BYTES);
    for _ in 0..64 {
        assert_eq!(client.answer(0).error, 0);
    }
}

#[test]
fn an_orderly_stop_ends_what_is_at_the_source() {
    let rig = Rig::direct(&[MIB]);
    let mut client = rig.simple();
    assert_eq!(client.write(0, 5, b"kept"), 0);
    let Rig { dir, server, journal } = rig;
    server.stop().unwrap();
    let bytes = std::fs::read(dir.path().join("disk0.img")).unwrap();
    assert_eq!(&bytes[5..9], b"kept");
    let journal = journal.unwrap();
    assert_eq!(journal.get(Counter::Done), journal.get(Counter::Head));
}

#[test]
fn every_request_is_timed_once_with_its_kind() {
    let rig = Rig::direct(&[MIB]);
    let mut client = rig.simple();
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    assert_eq!(client.write(0, 100, &[1; 5000]), 0);
    assert_eq!(client.write(command_flag::FUA, 8192, &[1; 4096]), 0);
    assert_eq!(client.change(command::WRITE_ZEROES, 0, 0, 4096), 0);
    assert_eq!(client.read(0, 512).unwrap().len(), 512);
    assert_eq!(client.flush(), 0);
    let counts = |rig: &Rig| {
        Kind::ALL.map(|kind| rig.server.figures()[0].shadow.total(&[kind]).count).to_vec()
    };
    // Read, write, durable write, flush, zero.
    rig.until("all are counted", |rig| counts(rig) == [1, 2, 1, 1, 1]);
}
