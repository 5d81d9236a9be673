//! The spill's segment files on the state disk: what a kill keeps, what a power loss and a
//! bad disk leave, and what a scan makes of it. `persister.rs` writes them.

use crate::disk::{BLOCKS, BlockSet};
use crate::ring::Slot;
use crate::rng::Rng;
use towline_journal::spill::Run;

/// Segment files. Few, so that the spill is full in most runs.
pub const FILES: usize = 3;
/// Spans a segment.
pub const SPANS: usize = 2;
/// Records a span carries at most.
pub const SPAN_RECORDS_MAX: usize = 2;

/// Consecutive records, written in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Incarnation of their ring.
    pub inc: u32,
    /// Of this use of the segment.
    pub serial: u64,
    pub records: Vec<Slot>,
    /// Its payloads pass their checksums. (A header that does not is no span.)
    pub sound: bool,
}

impl Span {
    pub fn first(&self) -> u64 {
        self.records.first().map_or(0, |slot| slot.seq)
    }

    pub fn last(&self) -> u64 {
        self.records.last().map_or(0, |slot| slot.seq)
    }
}

type Places = [Option<Span>; SPANS];

#[derive(Clone, Debug, Default)]
struct File {
    now: Places,
    synced: Places,
    /// The kernel tried to write it, failed, and will not try again.
    given_up: [bool; SPANS],
}

/// `spill/`.
#[derive(Clone, Debug, Default)]
pub struct Spill {
    files: [File; FILES],
}

/// What a scan of the headers finds of one segment.
#[derive(Clone, Debug)]
pub struct Found {
    pub file: usize,
    pub inc: u32,
    pub serial: u64,
    pub runs: Vec<Run>,
    pub touched: BlockSet,
}

impl Found {
    pub fn last(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.last)
    }

    pub fn holds(&self, seq: u64) -> bool {
        self.runs.iter().any(|run| run.holds(seq))
    }
}

/// What reading a record comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Record(Slot),
    Damaged,
    Missing,
}

impl Spill {
    pub fn write(&mut self, file: usize, place: usize, span: Span) {
        let file = &mut self.files[file];
        file.now[place] = Some(span);
        file.given_up[place] = false;
    }

    /// What a sync that begins now makes durable.
    pub fn issue_sync(&self) -> Spill {
        self.clone()
    }

    /// It has ended.
    pub fn end_sync(&mut self, issued: &Spill) {
        for (file, issued) in self.files.iter_mut().zip(&issued.files) {
            for place in (0..SPANS).filter(|place| !issued.given_up[*place]) {
                // What another sync has made durable meanwhile is newer.
                if file.synced[place] == issued.synced[place] {
                    file.synced[place] = issued.now[place].clone();
                }
            }
        }
    }

    pub fn sync(&mut self) {
        let issued = self.issue_sync();
        self.end_sync(&issued);
    }

    /// A sync fails: what was not written yet never will be, though it can still be read.
    pub fn fail_sync(&mut self) {
        for file in &mut self.files {
            for place in 0..SPANS {
                file.given_up[place] |= file.now[place] != file.synced[place];
            }
        }
    }

    /// Of spans that were not synced any part is there.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for file in &mut self.files {
            for place in 0..SPANS {
                if file.now[place] != file.synced[place] {
                    lose(&mut file.now[place], file.synced[place].as_ref(), rng);
                }
            }
            file.synced = file.now.clone();
            file.given_up = [false; SPANS];
        }
    }

    /// The disk has changed a span behind everybody's back, if there is one.
    pub fn damage(&mut self, rng: &mut Rng) -> bool {
        let (file, place) = (rng.below(FILES), rng.below(SPANS));
        let header = rng.chance(20);
        let File { now, synced, .. } = &mut self.files[file];
        let is_there = now[place].is_some();
        for copy in [&mut now[place], &mut synced[place]] {
            match copy {
                Some(_) if header => *copy = None,
                Some(span) => span.sound = false,
                None => {}
            }
        }
        is_there
    }

    /// What headers tell, of all rings.
    pub fn scan(&self) -> Vec<Found> {
        let found = |(file, places): (usize, &File)| scan_file(file, &places.now);
        self.files.iter().enumerate().filter_map(found).collect()
    }

    /// Runs of records of one ring, joined.
    pub fn runs(&self, inc: u32) -> Vec<Run> {
        let of_ring = self.scan().into_iter().filter(|found| found.inc == inc);
        joined(of_ring.flat_map(|found| found.runs).collect())
    }

    pub fn read(&self, inc: u32, seq: u64, checked: bool) -> Read {
        read(self.scan(), inc, seq, |file, place| self.files[file].now[place].as_ref(), checked)
    }

    /// The same of what a power loss now would leave for certain.
    pub fn has_synced(&self, inc: u32, seq: u64) -> bool {
        let found = |(file, places): (usize, &File)| scan_file(file, &places.synced);
        let scan = self.files.iter().enumerate().filter_map(found).collect();
        let span = |file: usize, place: usize| self.files[file].synced[place].as_ref();
        matches!(read(scan, inc, seq, span, true), Read::Record(_))
    }
}

fn lose(now: &mut Option<Span>, synced: Option<&Span>, rng: &mut Rng) {
    match rng.below(4) {
        0 => {}
        1 => *now = synced.cloned(),
        2 => *now = None,
        _ => {
            if let Some(span) = now {
                span.sound = false;
            }
        }
    }
}

/// The spans of one use: the serial of the first, numbers that rise.
fn scan_file(file: usize, places: &Places) -> Option<Found> {
    let first = places[0].as_ref()?;
    let (inc, serial) = (first.inc, first.serial);
    let mut found = Found { file, inc, serial, runs: Vec::new(), touched: [false; BLOCKS] };
    for span in places.iter().map_while(Option::as_ref) {
        let goes_on = span.inc == inc && span.serial == serial && span.first() > found.last();
        if !goes_on {
            break;
        }
        found.runs.push(Run { first: span.first(), last: span.last() });
        for slot in &span.records {
            let blocks = slot.kind.blocks();
            (0..BLOCKS).for_each(|block| found.touched[block] |= blocks[block]);
        }
    }
    Some(found)
}

fn read<'a>(
    scan: Vec<Found>,
    inc: u32,
    seq: u64,
    span: impl Fn(usize, usize) -> Option<&'a Span>,
    checked: bool,
) -> Read {
    let holds = scan.into_iter().filter(|found| found.inc == inc && found.holds(seq));
    let Some(newest) = holds.max_by_key(|found| found.serial) else { return Read::Missing };
    let spans = (0..SPANS).filter_map(|place| span(newest.file, place));
    let of_use = spans.filter(|span| span.serial == newest.serial);
    let mut records = of_use.filter(|span| (span.first()..=span.last()).contains(&seq));
    match records.next() {
        Some(span) if span.sound || !checked => {
            let at = (seq - span.first()) as usize;
            let mut slot = span.records[at].clone();
            if !span.sound {
                slot.kind.spoil();
            }
            Read::Record(slot)
        }
        Some(_) => Read::Damaged,
        None => Read::Missing,
    }
}

/// Joins what overlaps or adjoins; the result is ordered and has gaps.
fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.first <= last.last + 1 => last.last = last.last.max(run.last),
            _ => joined.push(run),
        }
    }
    joined
}
