//! What a checker found.

use std::fmt;

/// Violations kept in words; all are counted.
const VIOLATIONS_KEPT_MAX: usize = 20;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing there, though a write was acknowledged.
    Lost,
    /// An older write than the last acknowledged one.
    Stale,
    /// Parts of several writes, or damage.
    Torn,
    /// A write that does not belong there: of another block or volume, never issued.
    Foreign,
    /// A write that the server said it had refused.
    Refused,
    /// Missing, though something that came after its acknowledgement is there.
    Reordered,
    /// Missing, though another block of the same acknowledged write is there.
    Partial,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub fault: Fault,
    pub volume: String,
    pub block: u64,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: volume {} block {}: {}", self.fault, self.volume, self.block, self.detail)
    }
}

/// The verdict over some blocks. Reports of several volumes add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub checked_blocks: u64,
    /// Blocks that hold a stamp.
    pub stamped_blocks: u64,
    /// Writes that had to be found.
    pub acked_writes: u64,
    pub violation_count: u64,
    /// The first of them.
    pub violations: Vec<Violation>,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.violation_count == 0
    }

    pub fn add(&mut self, other: Report) {
        self.checked_blocks += other.checked_blocks;
        self.stamped_blocks += other.stamped_blocks;
        self.acked_writes += other.acked_writes;
        self.violation_count += other.violation_count;
        self.violations.extend(other.violations);
        self.violations.truncate(VIOLATIONS_KEPT_MAX);
    }

    pub(super) fn violate(
        &mut self,
        fault: Fault,
        volume: &str,
        block: u64,
        detail: impl FnOnce() -> String,
    ) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_KEPT_MAX {
            let (volume, detail) = (volume.to_owned(), detail());
            self.violations.push(Violation { fault, volume, block, detail });
        }
    }

    /// Whether a fault of this kind is among those kept.
    pub fn has(&self, fault: Fault) -> bool {
        self.violations.iter().any(|violation| violation.fault == fault)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks checked ({} stamped) against {} acknowledged writes: {} violations",
            self.checked_blocks, self.stamped_blocks, self.acked_writes, self.violation_count
        )?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        Ok(())
    }
}
