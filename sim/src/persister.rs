//! What the proxy knows of the spill in memory, and its thread, which writes records there.
//! It writes whatever it may, at any time: the ladder's thresholds are `tests/ladder.rs`.

use crate::disk::{BLOCKS, BlockSet};
use crate::proxy::Life;
use crate::ring::Ring;
use crate::spill::{FILES, Found, SPAN_RECORDS_MAX, SPANS, Span};
use crate::world::World;
use std::collections::VecDeque;
use towline_journal::resume::History;

/// What a kill takes away.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Segments of this ring with records that the target lacks.
    pub live: VecDeque<Segment>,
    /// What the incarnation before left, while that counts.
    pub past: Vec<Segment>,
    pub history: Option<History>,
    /// The segment being filled: its file, serial, next place.
    current: Option<(usize, u64, usize)>,
    next_serial: u64,
    step: Step,
    /// A flush of the source makes records up to here durable.
    pub flushable: u64,
}

#[derive(Clone, Debug)]
pub struct Segment {
    file: usize,
    serial: u64,
    first: u64,
    last: u64,
    touched: BlockSet,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// The injected fault: it is counted and not written.
    Write(usize, usize, Span),
    /// A span is written and not counted.
    Count(u64),
    Free,
}

impl Segment {
    fn of(found: &Found) -> Segment {
        let first = found.runs.first().map_or(0, |run| run.first);
        let Found { file, serial, touched, .. } = *found;
        Segment { file, serial, first, last: found.last(), touched }
    }
}

impl Index {
    /// Frees segments whose records the target has, but the one that is being filled.
    pub fn release(&mut self, acked: u64) {
        let current = self.current.map(|(_, serial, _)| serial);
        while self.live.front().is_some_and(|s| s.last <= acked && Some(s.serial) != current) {
            self.live.pop_front();
        }
    }

    /// The segment that holds a record: its last record, and what it touches.
    pub fn damage_at(&self, seq: u64) -> Option<(u64, BlockSet)> {
        let segment = self.live.iter().find(|s| (s.first..=s.last).contains(&seq))?;
        Some((segment.last, segment.touched))
    }

    /// What live segments touch that hold records above `acked`.
    pub fn touched_above(&self, acked: u64) -> BlockSet {
        union(self.live.iter().filter(|segment| segment.last > acked))
    }

    /// What the history's segments touch that hold records from `seq` on.
    pub fn past_touches(&self, seq: u64) -> BlockSet {
        union(self.past.iter().filter(|segment| segment.last >= seq))
    }

    /// The target has passed the history, or will never need it.
    pub fn end_history(&mut self) {
        self.history = None;
        self.past.clear();
    }
}

fn union<'a>(segments: impl Iterator<Item = &'a Segment>) -> BlockSet {
    let mut set = [false; BLOCKS];
    for segment in segments {
        (0..BLOCKS).for_each(|block| set[block] |= segment.touched[block]);
    }
    set
}

impl World {
    /// At the end of a start: what the files hold for this ring, and for the one before.
    pub fn open_spill(&mut self) {
        if self.config.spill.is_none() {
            return;
        }
        let ring = self.ring.as_ref().expect("a start has a ring");
        let is_new = ring.acked == 0 && ring.acked_claims == 0;
        let mut found = self.spill.scan();
        found.sort_by_key(|found| found.serial);
        let mut index = Index {
            next_serial: found.last().map_or(1, |found| found.serial + 1),
            ..Index::default()
        };
        let of = |inc: u32| found.iter().filter(move |found| found.inc == inc);
        let needed = of(ring.inc).filter(|found| found.last() > ring.acked);
        index.live = needed.map(Segment::of).collect();
        if let Some(inc) = self.state.history.filter(|_| is_new) {
            if self.rules.history_kept_until_passed {
                index.past = of(inc).map(Segment::of).collect();
            }
            let runs = self.spill.runs(inc);
            index.history = Some(History { incarnation: inc, runs });
        }
        self.proxy.index = index;
        if !self.rules.spill_loss_outlives_kill {
            self.ring_mut().spill_lost = 0;
        }
    }

    /// Whether every record above `acked` that the spill is said to hold is there.
    pub fn spill_covers(&self) -> bool {
        let Some(ring) = &self.ring else { return true };
        let covers = |run: &towline_journal::spill::Run| {
            run.first <= ring.acked + 1 && run.last >= ring.spilled
        };
        ring.spilled <= ring.acked || self.spill.runs(ring.inc).iter().any(covers)
    }

    fn unsynced(&self) -> bool {
        let eager = self.config.spill.is_some_and(|spill| spill.is_eager());
        let is_behind =
            |r: &Ring| r.spilled > r.spill_durable.max(r.acked) && r.acked >= r.spill_lost;
        eager && self.ring.as_ref().is_some_and(is_behind)
    }

    /// Records that may be written now.
    fn unspilled(&self) -> Option<(u64, u64)> {
        let ring = self.ring.as_ref()?;
        let first = ring.acked.max(ring.spilled) + 1;
        let last = if self.rules.spill_final_only { ring.watermark() } else { ring.head };
        let last = last.min(first + SPAN_RECORDS_MAX as u64 - 1);
        (first <= last).then_some((first, last))
    }

    /// A file that holds nothing needed.
    fn free_file(&self) -> Option<usize> {
        let index = &self.proxy.index;
        let acked = self.ring.as_ref().map_or(0, |ring| ring.acked);
        let kept = self.rules.segment_kept_until_acked;
        let live = || index.live.iter().filter(move |s| s.last > acked).skip(usize::from(!kept));
        let needed = |file: usize| live().chain(&index.past).any(|s| s.file == file);
        let current = index.current.filter(|(.., place)| *place < SPANS).map(|(file, ..)| file);
        (0..FILES).find(|file| Some(*file) != current && !needed(*file))
    }

    /// The spill has room: waiting for it makes sense.
    pub fn can_persist(&self) -> bool {
        let has_place = self.proxy.index.current.is_some_and(|(.., place)| place < SPANS);
        has_place || self.free_file().is_some()
    }

    pub fn persister_is_ready(&self) -> bool {
        if self.proxy.life != Life::Serving || self.config.spill.is_none() {
            return false;
        }
        let lock_free = self.proxy.lock.is_none() || !self.rules.slots_freed_under_lock;
        match self.proxy.index.step {
            Step::Count(_) => lock_free,
            Step::Free | Step::Write(..) => true,
            Step::Idle => self.unsynced() || (self.unspilled().is_some() && self.can_persist()),
        }
    }

    pub fn step_persister(&mut self) {
        let step = self.proxy.index.step.clone();
        self.note(|| format!("spill: {step:?}"));
        self.proxy.index.step = match step {
            Step::Idle if self.unsynced() && self.prefers_sync() => self.sync_spill(),
            Step::Idle => self.write_span(),
            Step::Count(last) => {
                let ring = self.ring_mut();
                ring.spilled = ring.spilled.max(last);
                self.proxy.index.flushable = last;
                Step::Free
            }
            Step::Write(file, place, span) => {
                self.spill.write(file, place, span);
                Step::Idle
            }
            Step::Free => {
                self.ring_mut().free_tail();
                Step::Idle
            }
        };
    }

    fn prefers_sync(&mut self) -> bool {
        let can_write = self.unspilled().is_some() && self.can_persist();
        !can_write || self.rng.chance(50)
    }

    fn sync_spill(&mut self) -> Step {
        let spilled = self.ring_mut().spilled;
        let percent = self.config.fail_spill_sync;
        if self.faulty && percent > 0 && self.rng.chance(percent) {
            self.note(|| "the spill's sync FAILS".into());
            self.spill.fail_sync();
            if self.rules.failed_spill_sync_loses {
                self.ring_mut().spill_lost = spilled;
                self.proxy.index.current = None;
            }
            return Step::Idle;
        }
        if self.rules.spill_durable_is_synced {
            self.spill.sync();
        }
        self.spill_flushed(spilled);
        Step::Idle
    }

    /// A sync that covers records up to `covered` has succeeded.
    pub fn spill_flushed(&mut self, covered: u64) {
        let ring = self.ring_mut();
        if ring.acked >= ring.spill_lost {
            ring.spill_durable = ring.spill_durable.max(covered);
        }
    }

    fn write_span(&mut self) -> Step {
        let Some((first, last)) = self.unspilled() else { return Step::Idle };
        let current = self.proxy.index.current.filter(|(.., place)| *place < SPANS);
        let (file, serial, place) = match current {
            Some(current) => current,
            None => {
                self.proxy.index.current = None;
                let acked = self.ring_mut().acked;
                self.proxy.index.release(acked);
                let Some(file) = self.free_file() else { return Step::Idle };
                self.proxy.index.next_serial += 1;
                (file, self.proxy.index.next_serial - 1, 0)
            }
        };
        let ring = self.ring.as_ref().expect("a serving proxy has a ring");
        let records: Vec<_> = (first..=last).map_while(|seq| ring.slot(seq).cloned()).collect();
        if records.is_empty() {
            return Step::Idle;
        }
        let span = Span { inc: ring.inc, serial, records, sound: true };
        let last = span.last();
        let mut touched = [false; BLOCKS];
        for slot in &span.records {
            let blocks = slot.kind.blocks();
            (0..BLOCKS).for_each(|block| touched[block] |= blocks[block]);
        }
        let (first, index) = (span.first(), &mut self.proxy.index);
        let late = (!self.rules.spilled_follows_span).then(|| span.clone());
        if late.is_none() {
            self.spill.write(file, place, span);
        }
        index.current = Some((file, serial, place + 1));
        match index.live.back_mut().filter(|segment| segment.serial == serial) {
            Some(segment) => {
                segment.last = last;
                (0..BLOCKS).for_each(|block| segment.touched[block] |= touched[block]);
            }
            None => index.live.push_back(Segment { file, serial, first, last, touched }),
        }
        let Some(span) = late else { return Step::Count(last) };
        let ring = self.ring_mut();
        ring.spilled = last;
        ring.free_tail();
        Step::Write(file, place, span)
    }
}
