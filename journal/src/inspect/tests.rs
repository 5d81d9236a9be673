//! A ring made by hand, looked at whole and with damage of every kind.

use super::*;
use crate::format::*;
use crate::ring::RingSpec;
use crate::state::{Hex16, RingPlace, STATE_VERSION, VolumeState};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use towline_block::{BLOCK_BYTES, Extent, VolumeId, crc32c};

const SECOND: u64 = 1_000_000_000;
const VOLUME_BYTES: u64 = 8 * BLOCK_BYTES + 512;

struct Lab {
    dir: tempfile::TempDir,
    ring: Ring,
    seq: u64,
    payload_head: u64,
}

impl Lab {
    /// A group with two volumes, whole since record 2.
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lab")).unwrap();
        let ring_path = dir.path().join("lab/towline-lab-1.ring");
        let spec = RingSpec {
            group_name: "lab".into(),
            group_uuid: [1; 16],
            ring_id: [2; 16],
            boot_id: [3; 16],
            epoch: 1,
            incarnation: 1,
            base_incarnation: 0,
            base_seq: 0,
            base_claims: 0,
            payload_bytes: RING_BYTES_MIN,
            created_unix_ns: SECOND,
            volumes: vec![("a".into(), VOLUME_BYTES), ("b".into(), VOLUME_BYTES)],
        };
        let (ring, _) = Ring::create(&ring_path, &spec).unwrap();
        let volume = |name: &str| VolumeState {
            name: name.parse().unwrap(),
            path: dir.path().join(name),
            size_bytes: VOLUME_BYTES,
            identity: serde_json::from_value(identity()).unwrap(),
            exports: Vec::new(),
        };
        let state = GroupState {
            version: STATE_VERSION,
            group: "lab".parse().unwrap(),
            group_uuid: Hex16([1; 16]),
            epoch: 1,
            incarnation: 1,
            ring: RingPlace { path: ring_path, id: Hex16([2; 16]), boot_id: Hex16([3; 16]) },
            volumes: vec![volume("a"), volume("b")],
            seal: None,
            stopped: None,
            history: None,
            spill: None,
        };
        let mut lab = Lab { dir, ring, seq: 0, payload_head: 0 };
        lab.group_dir().store(&state).unwrap();
        lab.control(Control::Resync);
        lab.control(Control::Heal);
        lab.ring.set(Counter::Whole, 1);
        lab
    }

    fn group_dir(&self) -> GroupDir {
        GroupDir::of(self.dir.path(), &"lab".parse().unwrap())
    }

    fn ring_path(&self) -> PathBuf {
        self.dir.path().join("lab/towline-lab-1.ring")
    }

    fn view(&self) -> GroupView {
        GroupView::open(&self.group_dir()).unwrap()
    }

    fn publish(&mut self, mut slot: Slot, state: SlotState) -> u64 {
        self.seq += 1;
        self.ring.publish(self.seq, &mut slot, state);
        self.ring.set(Counter::Head, self.seq);
        self.ring.set(Counter::Done, self.seq);
        self.seq
    }

    fn control(&mut self, control: Control) -> u64 {
        let mut slot = Slot::new(Kind::Control, VolumeId(0), Extent::new(0, 0), SECOND);
        slot.control = (control as u32).into();
        self.publish(slot, SlotState::Done)
    }

    fn write(&mut self, volume: u16, offset: u64, bytes: &[u8], state: SlotState) -> u64 {
        self.ring.write_payload(self.payload_head, bytes);
        let extent = Extent::new(offset, bytes.len() as u64);
        let mut slot = Slot::new(Kind::Write, VolumeId(volume), extent, SECOND * (self.seq + 1));
        slot.payload_position = self.payload_head.into();
        slot.payload_crc = crc32c(bytes).into();
        self.payload_head += extent.len.next_multiple_of(PAYLOAD_ALIGN);
        self.ring.set(Counter::PayloadHead, self.payload_head);
        self.publish(slot, state)
    }

    fn zero(&mut self, volume: u16, extent: Extent) -> u64 {
        let slot = Slot::new(Kind::Zero, VolumeId(volume), extent, SECOND * (self.seq + 1));
        self.publish(slot, SlotState::Done)
    }

    fn patch(&self, offset: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.ring_path()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn slot_offset(&self, seq: u64) -> u64 {
        SLOTS_OFFSET + seq % self.ring.slots() * SLOT_BYTES
    }

    fn faults(&self) -> Vec<(&'static str, u64)> {
        self.view().verify().errors.iter().map(|e| (e.kind, e.seq)).collect()
    }
}

fn identity() -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(4096).unwrap();
    let disk = towline_block::FileDisk::open(&path, towline_block::Access::Read).unwrap();
    serde_json::to_value(disk.identity().unwrap()).unwrap()
}

/// Everything a tool asks of a group; must end, whatever the files hold.
fn ask_everything(view: &GroupView) {
    let _ = (
        view.fill(),
        view.controls(view.present()),
        view.mix(view.present()),
        view.stat(view.present(), 5),
    );
    let found = view.verify_all();
    assert!(found.errors.len() <= FINDINGS_MAX);
    let _ = (view.verify(), view.ring_used_bytes(), view.marks());
    for volume in 0..3u16 {
        let _ = view.changes(usize::from(volume), 100);
        let pending = view.pending();
        let _ = view.gaps(pending.clone(), VolumeId(volume));
        let _ = view.gaps(0..=u64::MAX, VolumeId(volume));
        let _ = view.replay(pending, VolumeId(volume), |_, _| Ok(()));
    }
}

#[test]
fn a_whole_ring_is_found_beside_its_state_and_has_no_fault() {
    let mut lab = Lab::new();
    lab.write(0, 0, &[7; 4096], SlotState::Done);
    lab.zero(1, Extent::new(4096, 8192));
    let view = lab.view();
    assert_eq!(view.marks(), Marks { head: 4, done: 4, acked: 0, spilled: 0, sound: true });
    let found = view.verify();
    assert_eq!((found.records, found.bytes, found.first_seq, found.last_seq), (4, 4096, 1, 4));
    assert_eq!(found.errors, []);
    assert_eq!(view.state.ring.path, lab.ring_path());
    ask_everything(&view);
}

#[test]
fn every_damage_is_named_with_its_record() {
    let mut lab = Lab::new();
    for n in 0..6u8 {
        lab.write(0, u64::from(n) * 8192, &[n + 1; 4096], SlotState::Done);
    }
    assert_eq!(lab.faults(), []);
    // Records 3 to 8; the payload of record 4 is the second.
    let payload = lab.ring.superblock.payload_offset.get();
    lab.patch(payload + 4096 + 17, &[0xff]);
    assert_eq!(lab.faults(), [("payload_checksum", 4)]);
    lab.patch(lab.slot_offset(5) + 16, &[0xff]);
    assert_eq!(lab.faults(), [("payload_checksum", 4), ("header_checksum", 5)]);
    lab.patch(lab.slot_offset(6), &[0; 8]);
    let three = [("payload_checksum", 4), ("header_checksum", 5), ("missing", 6)];
    assert_eq!(lab.faults(), three);
    // A record whose payload lies where an earlier one's does.
    lab.payload_head = 0;
    lab.write(0, 0, &[9; 64], SlotState::Done);
    assert!(lab.faults().contains(&("order", 9)), "{:?}", lab.faults());
    ask_everything(&lab.view());
}

#[test]
fn counters_that_contradict_each_other_are_a_fault_and_the_slots_are_believed() {
    let mut lab = Lab::new();
    lab.write(0, 0, &[1; 512], SlotState::Done);
    for (counter, value) in [
        (Counter::Head, u64::MAX),
        (Counter::Head, 1 << 50),
        (Counter::Acked, u64::MAX),
        (Counter::Done, u64::MAX),
        (Counter::Done, 1 << 61),
    ] {
        let before = lab.ring.get(counter);
        lab.ring.set(counter, value);
        let view = lab.view();
        let marks = view.marks();
        assert!(!marks.sound && marks.head == 3, "{counter:?} {value}: {marks:?}");
        assert_eq!(view.verify().errors[0].kind, "counters", "{counter:?}");
        assert_eq!(view.verify().records, 3, "{counter:?}");
        ask_everything(&view);
        lab.ring.set(counter, before);
    }
}

#[test]
fn a_head_that_was_not_moved_over_a_published_control_record_is_no_fault() {
    let mut lab = Lab::new();
    lab.write(0, 0, &[1; 512], SlotState::Done);
    // Killed between the publication and the head; another thread saw it done.
    lab.control(Control::Break);
    lab.ring.set(Counter::Head, 3);
    assert_eq!(lab.view().marks(), Marks { head: 4, done: 4, acked: 0, spilled: 0, sound: true });
    assert_eq!(lab.faults(), []);
    // Numbers given whose owner died before it published them.
    lab.ring.set(Counter::Head, 7);
    assert_eq!(lab.faults(), []);
    assert_eq!(lab.view().pending(), 1..=7);
}

#[test]
fn no_flipped_byte_makes_a_look_fail_or_last() {
    let mut lab = Lab::new();
    for n in 0..40u8 {
        lab.write(u16::from(n % 2), u64::from(n) * 4096, &[n + 1; 4096], SlotState::Done);
    }
    let (slots_end, maps) = (lab.slot_offset(lab.seq + 1), lab.ring.superblock.maps_offset.get());
    let payload = lab.ring.superblock.payload_offset.get();
    let file_bytes = lab.ring.superblock.file_bytes.get();
    let areas = [
        0..160,
        PAGE_BYTES..PAGE_BYTES + 256,
        COUNTERS_OFFSET..COUNTERS_OFFSET + 21 * 64,
        SLOTS_OFFSET..slots_end,
        payload..payload + 40 * 4096,
        maps..file_bytes,
    ];
    let whole = std::fs::read(lab.ring_path()).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..300 {
        let area = areas[round % areas.len()].clone();
        let at = random.random_range(area);
        let flipped = whole[at as usize] ^ random.random_range(1..=255u8);
        lab.patch(at, &[flipped]);
        ask_everything(&lab.view());
        lab.patch(at, &whole[at as usize..=at as usize]);
    }
    // And a file that is all noise behind a sound superblock and volume table.
    let noise: Vec<u8> = (0..file_bytes - COUNTERS_OFFSET).map(|_| random.random()).collect();
    lab.patch(COUNTERS_OFFSET, &noise);
    let view = lab.view();
    assert!(view.has_ring() && !view.verify().errors.is_empty());
    ask_everything(&view);
}

#[test]
fn a_file_that_is_no_whole_ring_is_told_of_and_not_mapped() {
    let lab = Lab::new();
    let whole = std::fs::read(lab.ring_path()).unwrap();
    for len in [0, 1, 4095, 4096, 12_288, 16_384, 20_000, whole.len() - 1] {
        std::fs::write(lab.dir.path().join("cut"), &whole[..len]).unwrap();
        let cut = lab.dir.path().join("cut");
        let view = GroupView::open_with(&lab.group_dir(), Some(&cut)).unwrap();
        assert!(!view.has_ring() && view.ring_error.is_some(), "{len}");
        assert_eq!(view.verify().errors[0].kind, "ring");
        ask_everything(&view);
    }
    let missing = GroupView::open_with(&lab.group_dir(), Some(&lab.dir.path().join("no"))).unwrap();
    let kind = missing.ring_error.map(|e| e.kind());
    assert_eq!(kind, Some(crate::ErrorKind::Missing));
}

#[test]
fn a_damaged_page_of_the_shipper_does_not_hide_the_journal() {
    let lab = Lab::new();
    std::fs::write(lab.group_dir().progress_path(), "short").unwrap();
    assert!(lab.view().has_ring() && lab.view().progress.is_none());
}

#[test]
fn a_replay_needs_every_record_whole_and_says_which_is_not() {
    let mut lab = Lab::new();
    let a = VolumeId(0);
    lab.write(0, 0, &[1; 512], SlotState::Done);
    lab.write(1, 0, &[2; 512], SlotState::Failed);
    lab.zero(0, Extent::new(512, 512));
    lab.write(0, 1024, &[3; 512], SlotState::Done);
    let gaps = |lab: &Lab, from: u64, to: u64| {
        let gaps = lab.view().gaps(from..=to, a);
        gaps.first.iter().map(|gap| gap.seq).collect::<Vec<_>>()
    };
    // Whole only behind the HEAL, record 2; a failure of another volume is none.
    assert_eq!(gaps(&lab, 3, 6), [0; 0]);
    assert_eq!(gaps(&lab, 2, 6), [2]);
    assert_eq!(gaps(&lab, 3, 7), [7]);
    let mut seen = Vec::new();
    let applied = lab.view().replay(3..=6, a, |extent, bytes| {
        seen.push((extent.offset, bytes.map(|b| b[0])));
        Ok(())
    });
    assert_eq!(applied.unwrap(), Applied { records: 3, bytes: 1536 });
    assert_eq!(seen, [(0, Some(1)), (512, None), (1024, Some(3))]);
    // A failure, then a BREAK: up to the BREAK itself all but the failure is known.
    lab.write(0, 2048, &[4; 512], SlotState::Failed);
    assert_eq!(gaps(&lab, 3, 7), [7]);
    lab.control(Control::Break);
    assert_eq!(gaps(&lab, 3, 8), [7]);
    lab.write(0, 0, &[5; 512], SlotState::Done);
    assert_eq!(gaps(&lab, 3, 9), [7, 8]);
    assert_eq!(gaps(&lab, 9, 9), [9]);
    let payload = lab.ring.superblock.payload_offset.get();
    lab.patch(payload, &[0xee]);
    assert_eq!(gaps(&lab, 3, 6), [3]);
}

#[test]
fn the_map_shows_bits_and_undrained_records_cell_by_cell() {
    let mut lab = Lab::new();
    let words = |volume: usize| {
        let entry = &lab.ring.volumes[volume];
        [entry.dirty_offset.get(), entry.claimed_offset.get(), entry.suspect_offset.get()]
    };
    let [dirty, claimed, suspect] = words(0);
    // Bits beyond the volume's nine blocks do not count.
    lab.ring.word(dirty).store(0b1000_0000_0000_0000 | 0b11, Ordering::Release);
    lab.ring.word(claimed).store(0b110, Ordering::Release);
    lab.ring.word(suspect).store(0b1, Ordering::Release);
    lab.write(0, 8 * BLOCK_BYTES, &[1; 512], SlotState::Done);
    lab.write(1, 0, &[1; 512], SlotState::Done);
    let map = lab.view().changes(0, 100);
    assert!(!map.activity_known);
    assert_eq!((map.cell_blocks, map.cells.len()), (1, 9));
    let total =
        Cell { blocks: 9, journaled: 1, dirty: 2, claimed: 2, suspect: 1, pending: 4, hot: 0 };
    assert_eq!(map.total, total);
    assert_eq!(
        map.cells[1],
        Cell { blocks: 1, dirty: 1, claimed: 1, pending: 1, ..Cell::default() }
    );
    let path = lab.group_dir().activity_path();
    let sizes = [VOLUME_BYTES; 2];
    let (base, all) = (crate::activity::Base::default(), crate::activity::Hot::All);
    crate::activity::Activity::create(&path, [1; 16], 1, base, &sizes, &all).unwrap();
    let hot = lab.view().changes(0, 100);
    assert_eq!((hot.activity_known, hot.total), (true, Cell { hot: 9, ..total }));
    std::fs::write(&path, "short").unwrap();
    let coarse = lab.view().changes(0, 2);
    assert_eq!((coarse.cell_blocks, coarse.cells.len(), coarse.total), (5, 2, total));
    assert_eq!(coarse.cells[1].blocks, 4);
    assert_eq!(lab.view().changes(1, 4).total.journaled, 1);
    assert_eq!(
        lab.view().changes(7, 4),
        VolumeChanges { cell_blocks: 1, ..VolumeChanges::default() }
    );
}
