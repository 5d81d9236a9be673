//! Segments of the spill after a kill before any of the persister's writes and syncs, and
//! after a power cut there, which loses the ring and any sectors that were not synced: the
//! next start serves, a record that was answered for as durable reaches the target from the
//! disk, and the target ends up identical.

use crate::crash::{Crash, Disk, Fault, Image, must_fail, put_back, sources, take, watch_each};
use crate::harness::{End, Lab, SIZE, VOLUMES};
use crate::sparse::Sparse;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use towline_block::BLOCK_BYTES;
use towline_journal::format::{Counter, RING_BYTES_MIN, SLOT_BYTES};
use towline_journal::spill::layout::{
    SEGMENT_BYTES, SPAN_ALIGN, SPAN_BYTES_MAX, SPANS_END, TRAILER_MAGIC,
};
use towline_journal::{AttachPolicy, Durability, SpillOptions};

const LIMIT: Duration = Duration::from_secs(20);
/// Four sectors with its header.
const PAYLOAD_BYTES: usize = 1700;

/// Of the images of a power cut so many are tried; each is a start and a drain.
const IMAGES_MAX: usize = 60;

/// What is true at a crash.
#[derive(Clone, Default)]
struct Known {
    /// Records up to here were answered for as durable.
    answered: u64,
    sources: Vec<Vec<u8>>,
}

fn lab(durability: Durability, size: u64) -> Lab {
    let mut lab = Lab::with_size(RING_BYTES_MIN, size);
    lab.attach = AttachPolicy::Trust;
    let bytes = Some(2 * SEGMENT_BYTES);
    lab.spill = SpillOptions { bytes, durability, ..SpillOptions::OFF };
    lab.open();
    lab.drain();
    lab.remember();
    lab
}

fn write(lab: &mut Lab, round: u64) {
    let (volume, offset) = ((round % 2) as usize, 5_000 + round * 9_000);
    let _ = lab.write(volume, offset, &[round as u8 + 1; PAYLOAD_BYTES], End::Done);
    lab.remember();
}

/// Not yet: nobody crashes.
const UNSEEN: u64 = u64::MAX;

/// Runs a step; each crash with what was true before it, once `answered` says something.
fn watch(
    lab: &mut Lab,
    disk: Disk,
    answered: &Arc<AtomicU64>,
    step: impl FnOnce(&mut Lab),
) -> (Vec<(Known, Crash)>, Disk) {
    let paths: Vec<PathBuf> = (0..VOLUMES).map(|volume| lab.source_path(volume)).collect();
    let answered = Arc::clone(answered);
    let known = move || {
        let answered = Some(answered.load(SeqCst)).filter(|seq| *seq != UNSEEN)?;
        let sources = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        Some(Known { answered, sources })
    };
    watch_each(lab, disk, known, step)
}

/// The power goes on each image, with the sources of that moment, or with what they held
/// before; the target gets from the disk what was answered for.
fn survive_cuts(lab: &mut Lab, crashes: &[(Known, Crash)], synced: &[Vec<u8>]) {
    let root = lab.dir.path().to_owned();
    let (now, target, spill) = (take(&root), lab.target.clone(), lab.spill.clone());
    // Nothing is written by those that only have to come back.
    lab.spill = SpillOptions::OFF;
    lab.journal = None;
    let all: Vec<(&Known, &Image)> = crashes
        .iter()
        .flat_map(|(k, crash)| crash.power_cuts.iter().map(move |i| (k, i)))
        .collect();
    assert!(all.len() > 20, "{} images", all.len());
    // Every so many of them, the last ones always.
    let stride = all.len().div_ceil(IMAGES_MAX);
    for (index, (known, image)) in all.iter().rev().step_by(stride).enumerate() {
        // A source that was flushed has everything; one that was not may have nothing.
        let sources = if index % 3 == 2 { synced } else { &known.sources };
        start(lab, image, sources);
        lab.target = target.clone();
        let before = lab.from_history;
        let report = lab.open();
        lab.drain();
        lab.assert_identical();
        let shipped = lab.from_history - before;
        let needed = known.answered.saturating_sub(target.durable.seq);
        assert!(shipped >= needed, "{shipped} of {needed} records came back: {report:?}");
        lab.journal = None;
    }
    put_back(&root, &now);
    (lab.target, lab.spill) = (target, spill);
}

fn start(lab: &Lab, image: &Image, sources: &[Vec<u8>]) {
    put_back(lab.dir.path(), image);
    for (volume, bytes) in sources.iter().enumerate() {
        fs::write(lab.source_path(volume), bytes).unwrap();
    }
}

/// Every process dies, the ring stays: nothing is compared, and nothing is lost.
fn survive_kills(lab: &mut Lab, crashes: &[(Known, Crash)]) {
    let root = lab.dir.path().to_owned();
    let (now, target, spill) = (take(&root), lab.target.clone(), lab.spill.clone());
    lab.spill = SpillOptions::OFF;
    lab.journal = None;
    // A write under way becomes what the source holds, so its record says something else.
    let history = std::mem::take(&mut lab.history);
    for (known, crash) in crashes {
        start(lab, &crash.kill, &known.sources);
        lab.target = target.clone();
        let report = lab.open();
        assert!(!report.restarted && !report.spill_lost, "{report:?}");
        lab.drain();
        lab.assert_identical();
        lab.journal = None;
    }
    put_back(&root, &now);
    (lab.target, lab.spill, lab.history) = (target, spill, history);
}

/// Durability "flush": a span for each record, a sync for each, and at the end two spans
/// that nobody has synced yet.
fn durable_spill(fault: Fault) {
    let mut lab = lab(Durability::Flush, SIZE);
    lab.cool();
    let synced = sources(&lab);
    lab.journal = None;
    let disk = Disk::new(fault, &take(lab.dir.path()));
    let answered = Arc::new(AtomicU64::new(0));
    let (crashes, disk) = watch(&mut lab, disk, &answered, |lab| {
        lab.open();
        for round in 0..4 {
            write(lab, round);
            let (journal, head) = (lab.journal(), lab.journal().get(Counter::Head));
            if round < 3 {
                journal.persist(head);
                assert!(journal.wait_durable(head, LIMIT));
                answered.store(head, SeqCst);
            } else {
                assert!(journal.wait_spilled(head, LIMIT));
            }
        }
    });
    drop(disk);
    survive_kills(&mut lab, &crashes);
    survive_cuts(&mut lab, &crashes, &synced);
}

#[test]
fn a_durable_spill_survives_a_crash_at_any_write_and_any_sector() {
    durable_spill(Fault::None);
}

#[test]
fn a_spill_whose_syncs_do_nothing_is_found() {
    must_fail("records came back", || durable_spill(Fault::SegmentSync));
}

/// Durability "process" syncs nothing. Its second process writes where the first one's
/// records still stand.
#[test]
fn a_spill_that_is_never_synced_survives_a_crash_at_any_write_and_any_sector() {
    let mut lab = lab(Durability::Process, SIZE);
    let spill_all = |lab: &Lab| {
        let (journal, head) = (lab.journal(), lab.journal().get(Counter::Head));
        journal.persist(head);
        assert!(journal.wait_spilled(head, LIMIT));
    };
    let answered = Arc::new(AtomicU64::new(0));
    lab.journal = None;
    let disk = Disk::new(Fault::None, &take(lab.dir.path()));
    let (_, disk) = watch(&mut lab, disk, &answered, |lab| {
        lab.open();
        for round in 0..2 {
            write(lab, round);
            spill_all(lab);
        }
    });
    // All of it is at the target, and cold.
    lab.drain();
    lab.cool();
    lab.remember();
    let synced = sources(&lab);
    lab.journal = None;
    let (crashes, _) = watch(&mut lab, disk, &answered, |lab| {
        lab.open();
        for round in 3..5 {
            write(lab, round);
            spill_all(lab);
        }
    });
    survive_kills(&mut lab, &crashes);
    survive_cuts(&mut lab, &crashes, &synced);
}

// --- a segment that gets full

/// Every second block of the volumes is written, so that the trailer has too many ranges for
/// one sector: it can be torn.
const RANGES: u64 = 32;
const FULL_VOLUME_BYTES: u64 = RANGES * BLOCK_BYTES;
/// A span of two sectors.
const SMALL_PAYLOAD_BYTES: usize = 700;
/// A segment takes another span up to here.
const LAST_SPAN_AT: u64 = SPANS_END - SPAN_BYTES_MAX;

/// One record, mostly zeroes.
fn write_block(lab: &Lab, round: u64, bytes: usize) {
    let (volume, block) = ((round % 2) as usize, round / 2 * 2 % RANGES);
    let mut data = vec![0; bytes];
    (data[0], data[bytes - 1]) = (round as u8 | 1, 7);
    let _ = lab.write(volume, block * BLOCK_BYTES, &data, End::Done);
}

fn make_durable(lab: &Lab) {
    let (journal, head) = (lab.journal(), lab.journal().get(Counter::Head));
    journal.persist(head);
    assert!(journal.wait_durable(head, LIMIT));
}

/// Fills the current segment, durably, until exactly one more span finds room.
fn fill_segment(lab: &Lab) {
    let journal = lab.journal();
    let before = journal.get(Counter::SpillWrittenBytes);
    let big = (SLOT_BYTES + BLOCK_BYTES).next_multiple_of(SPAN_ALIGN) + SPAN_ALIGN;
    let mut round = 0;
    loop {
        let room = LAST_SPAN_AT - (journal.get(Counter::SpillWrittenBytes) - before);
        let (records, bytes) = match room {
            0 => return make_durable(lab),
            room if room >= 8 * big => (8, BLOCK_BYTES as usize),
            room if room >= big => (1, BLOCK_BYTES as usize),
            _ => (1, SMALL_PAYLOAD_BYTES),
        };
        for _ in 0..records {
            write_block(lab, round, bytes);
            round += 1;
        }
        assert!(journal.wait_spilled(journal.get(Counter::Head), LIMIT));
    }
}

/// The segment's last span, its trailer and the next segment's first span are on their way to
/// the disk together.
fn full_segment(fault: Fault) {
    let mut lab = lab(Durability::Flush, FULL_VOLUME_BYTES);
    lab.spill.bytes = Some(4 * SEGMENT_BYTES);
    lab.journal = None;
    let disk = Disk::new(fault, &take(lab.dir.path()));
    let answered = Arc::new(AtomicU64::new(UNSEEN));
    let mut synced = Vec::new();
    let (crashes, _) = watch(&mut lab, disk, &answered, |lab| {
        lab.open();
        fill_segment(lab);
        lab.remember();
        lab.drain();
        lab.cool();
        lab.remember();
        synced = sources(lab);
        answered.store(lab.journal().get(Counter::Head), SeqCst);
        let spill = |lab: &mut Lab, round| {
            write_block(lab, round, SMALL_PAYLOAD_BYTES);
            lab.remember();
            let journal = lab.journal();
            assert!(journal.wait_spilled(journal.get(Counter::Head), LIMIT));
        };
        spill(lab, 3);
        spill(lab, 8);
        make_durable(lab);
        answered.store(lab.journal().get(Counter::Head), SeqCst);
        spill(lab, 13);
    });
    let segment = lab.group_dir().spill_path();
    let trailers = |image: &Image| {
        let is_full = |content: &Sparse| content.get(SPANS_END as usize, 8) == TRAILER_MAGIC;
        image
            .iter()
            .filter(|(path, content)| path.starts_with(&segment) && is_full(content))
            .count()
    };
    let (first, last) = (&crashes[0].1, &crashes[crashes.len() - 1].1);
    assert_eq!((trailers(&first.kill), trailers(&last.kill)), (0, 1));
    let torn = |(_, crash): &(Known, Crash)| {
        let cuts = &crash.power_cuts;
        cuts.iter().any(|image| trailers(image) == 1) && cuts.iter().any(|i| trailers(i) == 0)
    };
    assert!(crashes.iter().any(torn), "the trailer was unsynced for a while");
    survive_kills(&mut lab, &crashes);
    survive_cuts(&mut lab, &crashes, &synced);
}

#[test]
fn a_segment_that_gets_full_survives_a_crash_at_any_write_and_any_sector() {
    full_segment(Fault::None);
}

#[test]
fn a_full_segment_whose_syncs_do_nothing_is_found() {
    must_fail("records came back", || full_segment(Fault::SegmentSync));
}
