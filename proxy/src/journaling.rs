//! What the proxy needs of a journal, as the proxy sees it.
//!
//! A trait so that the data path can be proved against a journal that records
//! every call, and one that fails; the real one is `towline-journal`.

use towline_block::{BlockRange, Epoch, Extent, Position, Seq, VolumeId};

/// A change about to reach the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// Reads back zero afterwards; `trim` when the guest only gave it up.
    Zero {
        extent: Extent,
        trim: bool,
    },
    /// Everything before is durable in the source once this is done.
    Barrier,
}

/// Names a record between begin and finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// A record holds the change; finish it.
    Record(Ticket),
    /// The change map holds it; nothing to finish.
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
}

/// Blocks handed to the shipper's walker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub id: u64,
    pub blocks: BlockRange,
    pub granted_at: Seq,
}

/// A cutover attempt.
pub type Attempt = u64;

/// The group's journal, shared by all volume threads.
pub trait Journaling: Send + Sync {
    /// Journals the change, or makes its blocks dirty. Never fails, never waits.
    fn begin(&self, volume: VolumeId, change: &Change<'_>) -> Begun;
    /// The source operation ended.
    fn finish(&self, ticket: Ticket, outcome: Outcome);
    /// Hands out dirty blocks. Only on the volume's thread.
    fn claim(&self, volume: VolumeId, from_block: u64, blocks_max: u64) -> Option<Claim>;
    /// All blocks become dirty. Only on the volume's thread.
    fn resync_volume(&self, volume: VolumeId);
    /// Sequence number of the newest record.
    fn head(&self) -> Seq;
    /// Ends the group's history here, durably. All sources are flushed.
    fn seal(&self, attempt: Attempt) -> std::io::Result<Position>;
    /// Takes a seal back, durably.
    fn unseal(&self, attempt: Attempt) -> std::io::Result<()>;
    /// The group is served elsewhere from this epoch on, durably.
    fn commit(&self, epoch: Epoch, exports: &[String]) -> std::io::Result<()>;
}
