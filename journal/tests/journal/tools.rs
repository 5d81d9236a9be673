//! What tools see of a group whose oldest records are on disk, whole and damaged.

use crate::harness::{End, Lab, SIZE};
use crate::spill::{lab, write_mib};
use std::fs::File;
use std::os::unix::fs::FileExt;
use towline_journal::SlotState;
use towline_journal::format::{Counter, SLOT_BYTES, commit_word};
use towline_journal::inspect::{Finding, GroupView};

/// Each of 64 KiB; six rings full.
const MIB: u64 = 24;
const PAYLOAD_BYTES: u64 = 65_536;

/// Spilled but for the last record.
fn filled() -> Lab {
    let lab = lab(4);
    write_mib(&lab, MIB);
    let _ = lab.write(0, 0, &[9; PAYLOAD_BYTES as usize], End::Done);
    lab
}

fn view(lab: &Lab) -> GroupView {
    GroupView::open(&lab.group_dir()).unwrap()
}

fn segment(lab: &Lab) -> File {
    let path = lab.group_dir().spill_path().join("00000.seg");
    File::options().read(true).write(true).open(path).unwrap()
}

/// Where the slot of a record lies in the only segment.
fn slot_at(lab: &Lab, seq: u64) -> u64 {
    let bytes = std::fs::read(lab.group_dir().spill_path().join("00000.seg")).unwrap();
    let word = commit_word(seq, SlotState::Done).to_le_bytes();
    let at = bytes.chunks_exact(8).position(|chunk| *chunk == word);
    at.expect("the record is in the segment") as u64 * 8
}

fn flip(lab: &Lab, at: u64) {
    let (file, mut byte) = (segment(lab), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

/// First record that the target lacks, and the last one.
fn lacked(lab: &Lab) -> (u64, u64) {
    let journal = lab.journal();
    (journal.get(Counter::Acked) + 1, journal.get(Counter::Head))
}

fn faults(lab: &Lab) -> Vec<u64> {
    let errors = view(lab).verify().errors;
    assert!(errors.iter().all(|finding| finding.kind == "spill"), "{errors:?}");
    errors.iter().map(|finding| finding.seq).collect()
}

#[test]
fn every_record_of_ring_and_spill_is_checked_and_counted_once() {
    let lab = filled();
    let (first, last) = lacked(&lab);
    let view = view(&lab);
    for found in [view.verify(), view.verify_all()] {
        assert_eq!(found.errors, []);
        let of_lacked = last - found.first_seq.max(first) + 1;
        assert_eq!(of_lacked, MIB * 16 + 1);
        assert_eq!((found.records, found.last_seq), (last - found.first_seq + 1, last));
        assert!(found.bytes >= (MIB * 16 + 1) * PAYLOAD_BYTES, "{found:?}");
    }
    assert_eq!(view.verify().bytes, (MIB * 16 + 1) * PAYLOAD_BYTES);
    let stat = view.stat(view.pending(), 3);
    assert_eq!(stat.mix.records, MIB * 16 + 1);
    let written: u64 = stat.volumes.iter().map(|volume| volume.written_bytes).sum();
    assert_eq!(written, (MIB * 16 + 1) * PAYLOAD_BYTES);
}

#[test]
fn damage_in_the_spill_is_told_of_exactly_the_records_that_are_lost() {
    let lab = filled();
    let (first, last) = lacked(&lab);
    let (payload, header) = (first + 20, first + 60);
    flip(&lab, slot_at(&lab, payload) + SLOT_BYTES + 999);
    assert_eq!(faults(&lab), [payload]);
    flip(&lab, slot_at(&lab, header) + 16);
    let lost = faults(&lab);
    let rest: Vec<u64> = (header..=*lost.last().unwrap()).collect();
    assert_eq!(lost, [vec![payload], rest].concat(), "the rest of its span");
    assert!(lost.len() < 20, "{lost:?}");
    // The ring's slots still tell which bytes of the volume are concerned.
    let found = view(&lab).verify();
    assert_eq!(
        found.errors[0],
        Finding { kind: "spill", seq: payload, offset: 20 * 37_000 % (SIZE - PAYLOAD_BYTES) }
    );
    lab.forget_spilled();
    let found = view(&lab).verify();
    assert_eq!(found.errors[0], Finding { kind: "spill", seq: payload, offset: 0 });
    assert_eq!(found.records, last - first + 1 - lost.len() as u64);
    let stat = view(&lab).stat(first..=last, 3);
    assert_eq!(stat.mix.records, last - first + 1 - (lost.len() as u64 - 1), "its header is sound");
}

#[test]
fn a_record_that_the_ring_still_has_needs_no_spill() {
    let lab = filled();
    let (_, last) = lacked(&lab);
    let journal = lab.journal();
    assert_eq!(journal.get(Counter::Spilled), last - 1);
    flip(&lab, slot_at(&lab, last - 1) + SLOT_BYTES);
    assert_eq!(faults(&lab), [0; 0]);
}
