//! The judges of this theme, judged: on images that a real run left behind they
//! pass, and with one fault injected they fail.

use crate::{DISK_BYTES, plan};
use std::os::unix::fs::FileExt;
use std::path::Path;
use towline_bench::check::{self, Fault};
use towline_bench::stamp::{History, Kind, Op, STAMP_BYTES, Seen, Stamp, VolumeHistory, read};
use towline_tests::{PATIENCE, Rig, Side};

#[test]
fn injected_faults_in_a_real_targets_images_are_found() {
    let mut rig = Rig::new(2, DISK_BYTES);
    let prefilled = rig.prefill();
    rig.start_all();
    let guest = rig.guest_knowing(&plan(31), prefilled);
    rig.wait_live();
    assert!(guest.wait_for_acks(300, PATIENCE));
    guest.hold();
    rig.wait_drained();
    // What the second disk was at an earlier moment.
    let earlier = rig.path("earlier.img");
    std::fs::copy(rig.source("disk1"), &earlier).unwrap();
    guest.go_on();
    assert!(guest.wait_for_acks(1000, PATIENCE));
    let history = guest.stop();
    rig.wait_drained();
    rig.settle_target();
    rig.assert_acknowledged(&history, Side::Target);
    rig.assert_prefix(&history, Side::Target);
    rig.assert_identical();

    let volume = &history.volumes[0];
    let image = rig.target("disk0");
    let (block, under) = overwritten(volume, &image);
    let good = read_block(&image, block);
    let stale = stamped(volume, under.id, block);
    let torn = [&good[..STAMP_BYTES / 2], &stale[STAMP_BYTES / 2..]].concat();
    let lost = vec![0; STAMP_BYTES];
    for (fault, bytes) in [(Fault::Lost, lost), (Fault::Stale, stale), (Fault::Torn, torn)] {
        write_block(&image, block, &bytes);
        let report = check::acknowledged(volume, &image).unwrap();
        assert!(report.has(fault) && report.violation_count == 1, "{fault:?}: {report}");
        let first = check::identical(&rig.source("disk0"), &image).unwrap().first_difference;
        assert_eq!(first.map(|at| at / STAMP_BYTES as u64), Some(block));
    }
    write_block(&image, block, &good);
    // Each disk by itself is a moment of the history; together they are none.
    std::fs::copy(&earlier, rig.target("disk1")).unwrap();
    let target = [rig.target("disk0"), rig.target("disk1")];
    let alone = History { volumes: vec![history.volumes[1].clone()] };
    assert!(check::prefix(&alone, &[&target[1]]).unwrap().report.is_good());
    let together = check::prefix(&history, &[&target[0], &target[1]]).unwrap();
    assert!(together.report.has(Fault::Reordered), "{}", together.report);
}

/// A block that shows an acknowledged write under which an older one is known.
fn overwritten(volume: &VolumeHistory, image: &Path) -> (u64, Op) {
    for block in 0..volume.block_count {
        let writers: Vec<&Op> =
            volume.acked_ops().filter(|op| op.blocks().contains(&block)).collect();
        let [.., under, last] = writers.as_slice() else { continue };
        let shown = read(&read_block(image, block));
        let shows_last = matches!(shown, Seen::Stamp(stamp) if stamp.id == last.id);
        if shows_last && under.kind == Kind::Write {
            return (block, **under);
        }
    }
    panic!("no block was written twice");
}

fn stamped(volume: &VolumeHistory, id: u64, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; STAMP_BYTES];
    Stamp { id, volume: volume.volume, block }.fill(&mut bytes);
    bytes
}

fn read_block(image: &Path, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; STAMP_BYTES];
    let file = std::fs::File::open(image).unwrap();
    file.read_exact_at(&mut bytes, block * STAMP_BYTES as u64).unwrap();
    bytes
}

fn write_block(image: &Path, block: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(bytes, block * STAMP_BYTES as u64).unwrap();
}
