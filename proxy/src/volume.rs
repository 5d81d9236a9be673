//! Executes one volume's valid requests: journal, source, journal.
//!
//! Lives on the volume's thread. Of a page-cache source it makes every operation inline:
//! no two of a volume are ever in flight together, so nothing here locks or waits.
//! Operations of an asynchronous source, and flushes, belong to the engine; it takes
//! their records here.

use crate::nbd::errno::Errno;
use crate::nbd::proto::allocation;
use crate::nbd::reply::Descriptor;
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::{Access, Backend, Disk, Extent, FileDisk, VolumeId, VolumeName};
use towline_journal::format::Counter;
use towline_journal::{Begun, Change, Claim, Durability, Journal, Outcome, Ticket};

/// A zero or trim is journaled and executed in pieces of at most this, so that no
/// single step holds the volume's thread for long.
pub const ZERO_PIECE_BYTES_MAX: u64 = 128 << 20;
/// Runs told in one answer to BLOCK_STATUS: each costs two seeks on the volume's
/// thread; a client asks again from where the answer ended.
pub const STATUS_RUNS_MAX: usize = 1024;

/// What goes on the wire of a failed operation; the cause is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: Errno,
    pub text: &'static str,
}

/// A volume's journal and its number there.
#[derive(Clone)]
pub struct Journaled {
    pub journal: Arc<Journal>,
    pub id: VolumeId,
}

pub struct Volume {
    name: VolumeName,
    disk: Arc<dyn Disk>,
    journaled: Option<Journaled>,
    /// Time spent in source operations since it was last taken.
    source: Duration,
}

impl Volume {
    pub fn new(name: VolumeName, disk: Arc<dyn Disk>, journaled: Option<Journaled>) -> Volume {
        Volume { name, disk, journaled, source: Duration::ZERO }
    }

    pub fn name(&self) -> &VolumeName {
        &self.name
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub fn is_read_only(&self) -> bool {
        self.disk.access() == Access::Read
    }

    /// What the source took since the last call.
    pub fn take_source_time(&mut self) -> Duration {
        std::mem::take(&mut self.source)
    }

    /// Reads what the page cache has, without waiting for the disk: false when that is needed.
    pub fn read_now(&mut self, into: &mut [u8], offset: u64) -> Result<bool, Failure> {
        let result = self.timed(|disk| disk.read_now(into, offset));
        result.map_err(|error| self.failed("read", offset, &error))
    }

    pub fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Failure> {
        if data.is_empty() {
            return Ok(());
        }
        // Data of zeroes alone is journaled as zeroes; the source gets it as it came.
        let begun = self.begin(|| Change::Write { offset, data });
        let result = self.timed(|disk| disk.write_at(data, offset));
        self.finish(begun, &result);
        result.map_err(|error| self.failed("write", offset, &error))
    }

    /// Makes the range read as zero. The caller cuts it into pieces.
    pub fn zero(&mut self, extent: Extent, keep_allocated: bool) -> Result<(), Failure> {
        self.make_zero(extent, keep_allocated, false)
    }

    /// Gives the range up; it reads as zero afterwards. The caller cuts it.
    pub fn trim(&mut self, extent: Extent) -> Result<(), Failure> {
        self.make_zero(extent, false, true)
    }

    fn make_zero(&mut self, extent: Extent, keep: bool, trim: bool) -> Result<(), Failure> {
        assert!(extent.len <= ZERO_PIECE_BYTES_MAX, "zeroing {} bytes in one step", extent.len);
        if extent.is_empty() {
            return Ok(());
        }
        let begun = self.begin(|| Change::Zero { extent, trim });
        let result = self.timed(|disk| disk.zero(extent, keep));
        self.finish(begun, &result);
        result.map_err(|error| self.failed("zero", extent.offset, &error))
    }

    /// Takes the sequence number of a barrier, before the flush is issued.
    pub fn begin_barrier(&self) -> Option<Ticket> {
        match self.begin(|| Change::Barrier) {
            Some(Begun::Record(ticket)) => Some(ticket),
            _ => None,
        }
    }

    pub fn durability(&self) -> Durability {
        self.journaled.as_ref().map_or(Durability::Process, |j| j.journal.durability())
    }

    /// The last record that a flush has to find on disk, all acknowledged before its barrier;
    /// 0 where nothing waits for the journal's disk.
    pub fn needed_before(&self, barrier: Option<&Ticket>) -> u64 {
        let Some(journal) = self.waited_for() else { return 0 };
        barrier.map_or_else(|| journal.get(Counter::Head), |ticket| ticket.first_seq() - 1)
    }

    /// Asks for all records up to `needed` on disk.
    pub fn persist_for_flush(&self, needed: u64) {
        let Some(journal) = self.waited_for() else { return };
        match self.is_flushed_with_journal() && journal.durability() == Durability::Flush {
            true => journal.persist_for_flush(needed),
            false => journal.persist(needed),
        }
    }

    /// Puts all records up to `needed` on disk, unless the journal's own thread has to.
    pub fn persist_here(&self, needed: u64) -> bool {
        self.waited_for().is_some_and(|journal| journal.persist_here(needed))
    }

    /// Asks for everything so far on disk; up to which record, 0 as above.
    pub fn persist(&self) -> u64 {
        let Some(journal) = self.waited_for() else { return 0 };
        let seq = journal.get(Counter::Head);
        journal.persist(seq);
        seq
    }

    fn waited_for(&self) -> Option<&Journal> {
        let journal = &self.journaled.as_ref()?.journal;
        (journal.durability() != Durability::Process).then_some(journal)
    }

    /// Whether a flush of the source is the spill's, too.
    pub fn is_flushed_with_journal(&self) -> bool {
        let Some(Journaled { journal, id }) = &self.journaled else { return false };
        journal.durability() != Durability::Process && journal.is_flushed_with(*id)
    }

    /// Whether a flush needs no other file's: nothing is waited for, or one flush is enough.
    pub fn is_flushed_alone(&self) -> bool {
        match self.durability() {
            Durability::Process => true,
            Durability::Flush => self.is_flushed_with_journal(),
            Durability::Write => false,
        }
    }

    /// Up to which record a flush of the source issued now is the spill's.
    pub fn flushable(&self) -> u64 {
        self.journaled.as_ref().map_or(0, |j| j.journal.flushable())
    }

    /// The flush of the source has ended; `covered` is [`Volume::flushable`] at its issue.
    pub fn flushed(&self, covered: u64, succeeded: bool) {
        if covered > 0
            && let Some(Journaled { journal, .. }) = &self.journaled
        {
            journal.flushed(covered, succeeded);
        }
    }

    /// Answers wait for the journal's disk without bound.
    pub fn is_strict(&self) -> bool {
        self.journaled.as_ref().is_some_and(|j| j.journal.is_strict())
    }

    /// Whether all records up to `needed` survive a power loss, or cannot be made to:
    /// then `unable` is called.
    pub fn is_durable(&self, needed: u64, unable: impl FnOnce()) -> bool {
        let Some(Journaled { journal, .. }) = &self.journaled else { return true };
        if needed == 0 || journal.durable_seq() >= needed {
            return true;
        }
        if journal.can_persist() || journal.is_strict() {
            return false;
        }
        unable();
        true
    }

    pub fn can_persist(&self) -> bool {
        self.journaled.as_ref().is_none_or(|j| j.journal.can_persist())
    }

    /// The flush that [`Volume::begin_barrier`] preceded has ended.
    pub fn finish_barrier(&self, ticket: Option<Ticket>, outcome: Outcome) {
        if let (Some(ticket), Some(journaled)) = (ticket, &self.journaled) {
            journaled.journal.finish(ticket, outcome);
        }
    }

    /// Data and holes from the start of `extent`, at most to its end. Never fails:
    /// what cannot be told is data.
    pub fn status(&self, extent: Extent, one: bool, runs: &mut Vec<Descriptor>) {
        runs.clear();
        let mut at = extent.offset;
        let runs_max = if one { 1 } else { STATUS_RUNS_MAX };
        while at < extent.end() && runs.len() < runs_max {
            let (is_data, end) = match self.disk.run_at(at) {
                Ok(run) => (run.is_data, run.end.clamp(at + 1, extent.end())),
                Err(_) => (true, extent.end()),
            };
            let status = if is_data { allocation::DATA } else { allocation::HOLE_ZERO };
            // The extent's length is a u32 on the wire, and so is every part of it.
            runs.push(Descriptor { len: (end - at) as u32, status });
            at = end;
        }
    }

    /// Runs of dirty blocks at or after a block, in order.
    pub fn claim(&self, mut from_block: u64, mut blocks_max: u64, runs_max: u32) -> Vec<Claim> {
        let Some(Journaled { journal, id }) = &self.journaled else { return Vec::new() };
        let mut claims = Vec::new();
        while blocks_max > 0
            && claims.len() < runs_max as usize
            && let Some(claim) = journal.claim(*id, from_block, blocks_max)
        {
            from_block = claim.range().end();
            blocks_max -= claim.blocks;
            claims.push(claim);
        }
        claims
    }

    pub fn begin<'a>(&self, change: impl FnOnce() -> Change<'a>) -> Option<Begun> {
        let Journaled { journal, id } = self.journaled.as_ref()?;
        Some(journal.begin(*id, &change()))
    }

    pub fn finish(&self, begun: Option<Begun>, result: &towline_block::Result<()>) {
        if let (Some(Begun::Record(ticket)), Some(journaled)) = (begun, &self.journaled) {
            let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Failed };
            journaled.journal.finish(ticket, outcome);
        }
    }

    /// Nobody knows whether a change was made: its blocks go to the change map.
    pub fn fail(&self, begun: Option<Begun>) {
        if let (Some(Begun::Record(ticket)), Some(journaled)) = (begun, &self.journaled) {
            journaled.journal.finish(ticket, Outcome::Failed);
        }
    }

    fn timed<T>(&mut self, operation: impl FnOnce(&FileDisk) -> T) -> T {
        let Backend::File(disk) = self.disk.backend() else {
            unreachable!("an upstream server is an asynchronous source");
        };
        let start = Instant::now();
        let result = operation(disk);
        self.source += start.elapsed();
        result
    }

    pub fn failed(&self, verb: &str, offset: u64, error: &towline_block::Error) -> Failure {
        tracing::error!(volume = %self.name, offset, %error, "source failed to {verb}");
        let text = match Errno::from(error) {
            Errno::NoSpace => "the volume's source has no room",
            _ => "the volume's source failed",
        };
        Failure { error: error.into(), text }
    }
}
