//! Durability "flush" and "write": what an acknowledgement waits for.

use super::rig::{MIB, Rig};
use tempfile::TempDir;
use towline_journal::format::Counter;
use towline_journal::spill::layout::SEGMENT_BYTES;
use towline_journal::{Durability, SpillOptions};
use towline_proxy::StartGate;

fn rig(durability: Durability) -> Rig {
    let spill = SpillOptions { bytes: Some(4 * SEGMENT_BYTES), durability, ..SpillOptions::OFF };
    let sizes = [8 * MIB, 8 * MIB];
    let rig = Rig::start_with(TempDir::new().unwrap(), &sizes, true, spill, |_| StartGate::Open);
    clean(&rig);
    rig
}

/// A new group is dirty all over, and what is dirty needs no record: takes it clean.
fn clean(rig: &Rig) {
    use towline_block::VolumeId;
    let journal = rig.journal.as_ref().unwrap();
    let attached = journal.attach(Default::default()).unwrap();
    for volume in [VolumeId(0), VolumeId(1)] {
        let claim = journal.claim(volume, 0, 1 << 20).unwrap();
        journal.ack(attached.start_seq, claim.id);
    }
    journal.heal().unwrap();
}

#[test]
fn an_answered_flush_has_its_records_on_disk() {
    let rig = rig(Durability::Flush);
    let journal = rig.journal.as_ref().unwrap();
    let mut client = rig.simple();
    for round in 0..20u64 {
        assert_eq!(client.write(0, round * 8192, &[round as u8 | 1; 5000]), 0);
        let written = journal.get(Counter::Done);
        assert_eq!(client.flush(), 0);
        assert!(journal.durable_seq() >= written, "flush {round}");
    }
    assert!(journal.get(Counter::SpillPayloadBytes) >= 20 * 5000);
    let late: u64 = rig.server.figures().iter().map(|f| f.counters.undurable.get()).sum();
    assert_eq!(late, 0);
}

#[test]
fn on_one_disk_the_source_s_flush_is_the_spill_s() {
    let rig = rig(Durability::Flush);
    let journal = rig.journal.as_ref().unwrap();
    if !journal.is_flushed_with(towline_block::VolumeId(0)) {
        return println!("skipped: temporary files are not on ext4 here");
    }
    let mut client = rig.simple();
    let flushed = |client: &mut crate::client::Client, round: u64| {
        assert_eq!(client.write(0, round * 8192, &[round as u8 | 1; 5000]), 0);
        let written = journal.get(Counter::Done);
        assert_eq!(client.flush(), 0);
        assert!(journal.durable_seq() >= written, "flush {round}");
    };
    flushed(&mut client, 0);
    let syncs = journal.get(Counter::SpillSyncs);
    (1..40).for_each(|round| flushed(&mut client, round));
    assert_eq!(journal.get(Counter::SpillSyncs), syncs);
}

/// Whoever is not strict is answered at once: the disk is known to be faulty.
#[test]
fn a_strict_flush_is_answered_when_the_spill_works_again_and_not_before() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("g")).unwrap();
    std::fs::write(dir.path().join("g/spill"), b"in the way").unwrap();
    let spill = SpillOptions {
        bytes: Some(4 * SEGMENT_BYTES),
        durability: Durability::Flush,
        strict: true,
        ..SpillOptions::OFF
    };
    let rig = Rig::start_with(dir, &[8 * MIB, 8 * MIB], true, spill, |_| StartGate::Open);
    clean(&rig);
    let journal = rig.journal.as_ref().unwrap();
    rig.until("the fault is seen", |_| !journal.can_persist());
    let mut client = rig.simple();
    assert_eq!(client.write(0, 0, &[7; 4096]), 0);
    let written = journal.get(Counter::Head);
    std::thread::scope(|scope| {
        let flush = scope.spawn(move || client.flush());
        rig.until("the flush is asked for", |_| journal.get(Counter::Head) > written);
        assert!(!flush.is_finished() && journal.durable_seq() < written);
        std::fs::remove_file(rig.dir.path().join("g/spill")).unwrap();
        assert_eq!(flush.join().unwrap(), 0);
        assert!(journal.durable_seq() >= written);
    });
    let late: u64 = rig.server.figures().iter().map(|f| f.counters.undurable.get()).sum();
    assert_eq!(late, 0);
}

#[test]
fn an_answered_write_has_its_record_on_disk() {
    let rig = rig(Durability::Write);
    let journal = rig.journal.as_ref().unwrap();
    let mut client = rig.simple();
    for round in 0..20u64 {
        assert_eq!(client.write(0, round * 8192, &[round as u8 | 1; 5000]), 0);
        assert!(journal.durable_seq() >= journal.get(Counter::Done), "write {round}");
    }
    assert_eq!(client.flush(), 0);
}

#[test]
fn with_durability_process_a_flush_puts_nothing_on_disk() {
    let rig = rig(Durability::Process);
    let mut client = rig.simple();
    for round in 0..20u64 {
        assert_eq!(client.write(0, round * 8192, &[round as u8 | 1; 5000]), 0);
        assert_eq!(client.flush(), 0);
    }
    assert_eq!(rig.journal.as_ref().unwrap().get(Counter::SpillWrittenBytes), 0);
}

#[test]
fn a_spill_that_cannot_be_written_holds_no_flush() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("g")).unwrap();
    std::fs::write(dir.path().join("g/spill"), b"in the way").unwrap();
    let spill = SpillOptions {
        bytes: Some(4 * SEGMENT_BYTES),
        durability: Durability::Write,
        ..SpillOptions::OFF
    };
    let rig = Rig::start_with(dir, &[8 * MIB, 8 * MIB], true, spill, |_| StartGate::Open);
    clean(&rig);
    let journal = rig.journal.as_ref().unwrap();
    rig.until("the fault is seen", |_| !journal.can_persist());
    let mut client = rig.simple();
    for round in 0..50u64 {
        assert_eq!(client.write(0, round * 8192, &[7; 4096]), 0);
        assert_eq!(client.flush(), 0);
    }
    // And comes back by itself.
    std::fs::remove_file(rig.dir.path().join("g/spill")).unwrap();
    rig.until("the spill works", |_| {
        assert_eq!(client.flush(), 0);
        journal.can_persist()
    });
    assert_eq!(client.write(0, 0, &[8; 4096]), 0);
    assert_eq!(client.flush(), 0);
    assert!(journal.durable_seq() + 1 >= journal.get(Counter::Done));
}
