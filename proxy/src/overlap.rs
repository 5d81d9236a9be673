//! Which operations of a volume may be in flight to an asynchronous source together.
//!
//! | earlier, not ended | later, overlapping | the later one |
//! |---|---|---|
//! | read | read | runs beside it |
//! | read | change | waits |
//! | change | read | waits |
//! | change | change | waits |
//!
//! *Earlier* counts what waits itself: nothing overtakes, so nothing starves. What does
//! not overlap never waits. A flat array in the order of arrival: of at most
//! [`OPERATIONS_MAX`] entries, a scan costs less than any tree.

use towline_block::Extent;

/// Operations of one volume at the source or waiting for it. NVMe drives and RAID arrays
/// are saturated at 32 to 128; more would only queue there.
pub const OPERATIONS_MAX: usize = 128;
/// Their bytes: two requests of the largest size, 32 MiB, with room for their edges.
pub const OPERATION_BYTES_MAX: u64 = 65 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Read,
    Change,
}

/// The operation's number: rises with its arrival.
pub type Arrival = u64;

#[derive(Debug)]
struct Entry {
    arrival: Arrival,
    extent: Extent,
    used: Use,
    bytes: u64,
    slot: usize,
    running: bool,
}

impl Entry {
    fn conflicts(&self, extent: Extent, used: Use) -> bool {
        (self.used == Use::Change || used == Use::Change) && self.extent.overlaps(extent)
    }
}

#[derive(Debug, Default)]
pub struct Overlaps {
    /// In the order of arrival.
    entries: Vec<Entry>,
    next: Arrival,
    bytes: u64,
}

impl Overlaps {
    /// Whether there is a permit for one more operation with so many bytes.
    pub fn admits(&self, bytes: u64) -> bool {
        self.entries.len() < OPERATIONS_MAX && self.bytes + bytes <= OPERATION_BYTES_MAX
    }

    pub fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a change has not ended.
    pub fn has_changes(&self) -> bool {
        self.entries.iter().any(|entry| entry.used == Use::Change)
    }

    /// Whether an operation that has not ended conflicts with this use of the range.
    pub fn meets(&self, extent: Extent, used: Use) -> bool {
        self.entries.iter().any(|entry| entry.conflicts(extent, used))
    }

    /// Takes a permit. True: it may run at once; else [`Overlaps::leave`] tells when.
    ///
    /// # Panics
    /// Without a permit.
    pub fn enter(&mut self, slot: usize, extent: Extent, used: Use, bytes: u64) -> (Arrival, bool) {
        assert!(self.admits(bytes), "an operation without a permit");
        let running = !self.meets(extent, used);
        let arrival = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.entries.push(Entry { arrival, extent, used, bytes, slot, running });
        (arrival, running)
    }

    /// An operation that ran has ended. Appends the slots of those that may run now, in
    /// the order of their arrival.
    pub fn leave(&mut self, arrival: Arrival, runnable: &mut Vec<usize>) {
        let at = self.entries.iter().position(|entry| entry.arrival == arrival);
        let gone = self.entries.remove(at.expect("an operation ends once"));
        assert!(gone.running, "an operation ended that did not run");
        self.bytes -= gone.bytes;
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.running || !entry.extent.overlaps(gone.extent) {
                continue;
            }
            let (extent, used) = (entry.extent, entry.used);
            if !self.entries[..index].iter().any(|earlier| earlier.conflicts(extent, used)) {
                self.entries[index].running = true;
                runnable.push(self.entries[index].slot);
            }
        }
    }

    /// What arrives from now on has at least this number.
    pub fn mark(&self) -> Arrival {
        self.next
    }

    /// Whether a change of the range that arrived before `mark` has not ended (R3).
    pub fn changes_before(&self, mark: Arrival, range: Extent) -> bool {
        let is_such = |entry: &Entry| entry.arrival < mark && entry.conflicts(range, Use::Read);
        self.entries.iter().any(is_such)
    }
}

#[cfg(test)]
mod tests;
