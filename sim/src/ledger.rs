//! What the guests know, and what was really written: the ground truth of the checks. No
//! modelled process reads it.

use crate::disk::{CELLS, CELLS_PER_VOLUME, Content};
use crate::ring::Pos;

/// What each cell may hold, judged by what its guest was told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    acked: Content,
    /// Values of requests that were sent after the acknowledged one and have no answer,
    /// or failed.
    maybe: [Vec<u32>; CELLS],
    flushed: Content,
    /// Values sent since the last acknowledged flush, acknowledged or not.
    since_flush: [Vec<u32>; CELLS],
}

impl Ledger {
    pub fn submitted(&mut self, values: &[(usize, u32)]) {
        for (cell, value) in values {
            push_new(&mut self.maybe[*cell], *value);
            push_new(&mut self.since_flush[*cell], *value);
        }
    }

    pub fn acked(&mut self, values: &[(usize, u32)]) {
        for (cell, value) in values {
            self.acked[*cell] = *value;
            self.maybe[*cell].clear();
        }
    }

    /// The guest of `volume` has one request at a time, so a flush covers all before it.
    pub fn flush_acked(&mut self, volume: usize) {
        for cell in volume * CELLS_PER_VOLUME..(volume + 1) * CELLS_PER_VOLUME {
            self.flushed[cell] = self.acked[cell];
            self.since_flush[cell] = self.maybe[cell].clone();
        }
    }

    /// The first cell whose content no guest could explain.
    pub fn lost(&self, content: &Content) -> Option<usize> {
        (0..CELLS).find(|c| {
            let value = content[*c];
            value != self.acked[*c] && !self.maybe[*c].contains(&value)
        })
    }

    /// The same after a power loss: only what an acknowledged flush covers is promised.
    pub fn lost_after_power_loss(&self, content: &Content) -> Option<usize> {
        (0..CELLS).find(|c| {
            let value = content[*c];
            value != self.flushed[*c] && !self.since_flush[*c].contains(&value)
        })
    }

    /// The guests have read what the power loss left.
    pub fn restart_from(&mut self, content: &Content) {
        *self = Ledger { acked: *content, flushed: *content, ..Ledger::default() };
    }
}

fn push_new(values: &mut Vec<u32>, value: u32) {
    if !values.contains(&value) {
        values.push(value);
    }
}

/// One cell that was written at the source.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Place in the group's order: its record's, or where the stream stood when an
    /// un-journaled write began.
    at: Pos,
    /// The record that first carried it; 0: none.
    record: u64,
    cell: usize,
    value: u32,
}

/// Place of writes whose record failed, until the BREAK behind it is known.
const AFTER_BREAK: u64 = u64::MAX;

/// Everything ever written at the source, in the order of time. Cells of one volume are
/// written by one thread, so order of time is order of the group for each of them.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: Vec<Entry>,
    /// Rises whenever the past is seen differently.
    pub version: u64,
}

impl History {
    pub fn wrote(&mut self, at: Pos, record: u64, cell: usize, value: u32) {
        self.entries.push(Entry { at, record, cell, value });
    }

    /// The record will be a tombstone: what it wrote counts from the BREAK on.
    pub fn failed(&mut self, record: Pos) {
        self.rekey(|e| e.at.inc == record.inc && e.record == record.seq, AFTER_BREAK);
    }

    pub fn broke(&mut self, at: Pos) {
        self.rekey(|e| e.at.inc == at.inc && e.at.seq == AFTER_BREAK, at.seq);
    }

    /// Recovery has put the source's content into the record.
    pub fn rewritten(&mut self, record: Pos) {
        self.rekey(|e| e.at.inc == record.inc && e.record == record.seq, record.seq);
    }

    fn rekey(&mut self, which: impl Fn(&Entry) -> bool, seq: u64) {
        for entry in self.entries.iter_mut().filter(|e| which(e)) {
            entry.at.seq = seq;
        }
        self.version += 1;
    }

    /// A power loss left this at the source; the incarnation after `inc` starts from it.
    pub fn restart_from(&mut self, inc: u32, content: &Content) {
        for (cell, value) in content.iter().enumerate() {
            self.wrote(Pos { inc: inc + 1, seq: 0 }, 0, cell, *value);
        }
        self.version += 1;
    }

    /// The source as of a point: the prefix of the history. Once with the parts of failed
    /// writes from their BREAK on, and once from their records on: a block that is read while
    /// such a write is under way carries what has happened so far, as after a power loss.
    pub fn at(&self, point: Pos) -> [Content; 2] {
        let mut contents = [[0; CELLS]; 2];
        for entry in &self.entries {
            let from_record = Pos { seq: entry.record, ..entry.at };
            if entry.at <= point {
                contents[0][entry.cell] = entry.value;
            }
            if entry.at <= point || (entry.record != 0 && from_record <= point) {
                contents[1][entry.cell] = entry.value;
            }
        }
        contents
    }
}
