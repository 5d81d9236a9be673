//! What is claimed of blocks that were changed in part past the journal.

use super::harness::*;
use towline_block::{BLOCK_BYTES, Extent, VolumeId};
use towline_journal::{Claim, Resync};

const PART: u64 = 4096;
const FIRST: VolumeId = VolumeId(0);

/// A group whose target has everything, and whose ring has no slot left.
fn full() -> Lab {
    let mut lab = Lab::new(towline_journal::format::RING_BYTES_MIN);
    lab.open();
    lab.drain();
    lab.fill();
    lab
}

fn claim(lab: &Lab) -> Option<Claim> {
    lab.journal().claim(FIRST, 0, u64::MAX)
}

fn write(lab: &mut Lab, offset: u64, len: usize) {
    let _ = lab.write(0, offset, &vec![9; len], End::Done);
    lab.remember();
}

#[test]
fn parts_gather_until_they_are_claimed() {
    let mut lab = full();
    write(&mut lab, 3 * PART, 1);
    write(&mut lab, BLOCK_BYTES - 1, 2);
    write(&mut lab, 5 * PART + 7, 5000);
    let taken = claim(&lab).unwrap();
    assert_eq!((taken.first_block, taken.blocks), (0, 2));
    assert_eq!(taken.parts, [0b1000_0000_0110_1000, 1]);
    assert_eq!(claim(&lab), None);
    // Again since: of this the next claim tells, and of nothing else.
    write(&mut lab, 0, 1);
    assert_eq!(claim(&lab), None);
    lab.journal().ack(0, taken.id);
    assert_eq!(claim(&lab).unwrap().parts, [1]);
}

#[test]
fn a_target_that_gets_no_more_than_the_parts_is_identical() {
    let mut lab = full();
    for at in 0..BLOCKS {
        write(&mut lab, at * BLOCK_BYTES + (at * 3 % 15) * PART + 100, 5000);
    }
    lab.drain();
    lab.assert_identical();
    // And the two that found no slot first.
    assert_eq!(lab.shipped_parts as u64, BLOCKS + 2);
}

#[test]
fn a_claim_that_reverts_gives_its_parts_back() {
    let mut lab = full();
    write(&mut lab, 0, 1);
    assert_eq!(claim(&lab).unwrap().parts, [1]);
    write(&mut lab, PART, 1);
    let attached = lab.journal().attach(lab.target.durable).unwrap();
    assert_eq!(attached.resync, None);
    assert_eq!(claim(&lab).unwrap().parts, [0b11]);
}

#[test]
fn what_else_makes_a_block_dirty_makes_all_of_it_dirty() {
    let mut lab = full();
    write(&mut lab, 0, 1);
    lab.journal().target_lacks(&[(0, 0, 1)]);
    assert_eq!(claim(&lab).unwrap().parts_of(0), 0);
    // A part of a block that is dirty as a whole is nothing new; the claim is not given back yet.
    let mut lab = full();
    write(&mut lab, 0, 1);
    lab.journal().resync_all(Resync::Send);
    write(&mut lab, PART, 1);
    assert!(claim(&lab).unwrap().parts.is_empty());
}

#[test]
fn a_killed_proxy_leaves_whole_blocks_and_a_stop_too() {
    for stops in [false, true] {
        let mut lab = full();
        write(&mut lab, 0, 1);
        if stops {
            lab.journal().stop().unwrap();
        }
        lab.open();
        lab.journal().attach(lab.target.durable).unwrap();
        let taken = claim(&lab).unwrap();
        assert_eq!((taken.parts_of(0), taken.parts.len()), (0, 0), "stopped: {stops}");
        lab.drain();
        lab.assert_identical();
    }
}

#[test]
fn zeroes_count_as_writes_do_and_compared_blocks_go_whole() {
    let lab = full();
    let _ = lab.zero(0, Extent::new(PART, 2 * PART), End::Done);
    assert_eq!(claim(&lab).unwrap().parts, [0b110]);
    let mut lab = full();
    write(&mut lab, 0, 1);
    lab.journal().resync_all(Resync::Compare);
    let taken = claim(&lab).unwrap();
    assert!(taken.compare && taken.parts.is_empty());
}
