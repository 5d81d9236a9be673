//! A journal on the model's memory, for `tests/loom.rs` (`--cfg loom`). Everything
//! but its opening is the product's own code.

use crate::activity::{Activity, Base, Hot};
use crate::append::{AppendLock, Cursor};
use crate::format::{Counter, PAYLOAD_ALIGN, SlotState, commit_parts};
use crate::journal::Journal;
use crate::map::{Bits, PartMap, VolumeMap};
use crate::reader::RingReader;
use crate::ring::{Ring, RingSpec};
use crate::spill::HEAL_WAIT_MAX;
use crate::state::*;
pub use crate::sys::model::{Fault, set_fault};
use crate::sys::sync::{Mutex, Ordering};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use towline_block::{BLOCK_BYTES, BlockRange, VolumeId};

/// Bytes of one write in the model: its payload is one cache line.
pub const WRITE_BYTES: u64 = PAYLOAD_ALIGN;
/// Volumes of the model, one block each.
pub const VOLUMES: usize = 2;

/// What the model begins with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub slots: u64,
    /// Writes whose payloads fit at a time.
    pub payloads: u64,
    pub whole: bool,
}

impl Journal {
    pub fn model(start: Start) -> (Journal, RingReader) {
        let volumes = || (0..VOLUMES).map(|index| (format!("v{index}"), BLOCK_BYTES));
        let spec = RingSpec {
            group_name: "model".into(),
            group_uuid: [1; 16],
            ring_id: [2; 16],
            boot_id: [0; 16],
            epoch: 1,
            incarnation: 1,
            base_incarnation: 0,
            base_seq: 0,
            base_claims: 0,
            payload_bytes: start.payloads * WRITE_BYTES,
            created_unix_ns: 0,
            volumes: volumes().collect(),
        };
        let (ring, readers) = Ring::model(&spec, start.slots, start.payloads * WRITE_BYTES);
        ring.set(Counter::NextClaim, 1);
        ring.set(Counter::Whole, u64::from(start.whole));
        let file = || File::open("/dev/null").expect("every system has it");
        let journal = Journal {
            group: "model".parse().expect("a name"),
            dir: GroupDir::of(Path::new("/nonexistent"), &"model".parse().expect("a name")),
            ring: Arc::new(ring),
            activity: activity(),
            cooler: None,
            settling: Mutex::new(None),
            ring_file: file(),
            cursor: Arc::new(AppendLock::new(Cursor {
                next_seq: 1,
                payload_head: 0,
                payload_tail: 0,
                freed_seq: 0,
                whole: start.whole,
                wake_payload: u64::MAX,
                wake_seq: u64::MAX,
            })),
            spill: None,
            flushed_with: Vec::new(),
            history: Mutex::new(None),
            persister: None,
            rung_watch: None,
            claims: Mutex::new(BTreeMap::new()),
            parts: (0..VOLUMES).map(|_| PartMap::new()).collect(),
            // The ladder never holds a HEAL back: what is searched is who comes first.
            heal_asked_ns: AtomicU64::new(1),
            state: Mutex::new(GroupState {
                version: STATE_VERSION,
                group: "model".parse().expect("a name"),
                group_uuid: Hex16([1; 16]),
                epoch: 1,
                incarnation: 1,
                ring: RingPlace {
                    path: PathBuf::new(),
                    id: Hex16([2; 16]),
                    boot_id: Hex16([0; 16]),
                },
                volumes: Vec::new(),
                seal: None,
                stopped: None,
                history: None,
                spill: None,
            }),
            sources: Vec::new(),
            clock: || 1 + HEAL_WAIT_MAX.as_nanos() as u64,
            _lock: file(),
        };
        (journal, RingReader::model(readers))
    }
}

/// One map for all executions, everything hot: it never waits, and is not modelled.
fn activity() -> Arc<Activity> {
    static ALL_HOT: OnceLock<Arc<Activity>> = OnceLock::new();
    let make = || {
        let path = std::env::temp_dir().join(format!("towline-model-{}", std::process::id()));
        let sizes = [BLOCK_BYTES; VOLUMES];
        let map = Activity::create(&path, [1; 16], 1, Base::default(), &sizes, &Hot::All);
        std::fs::remove_file(&path).expect("it was just made");
        Arc::new(map.expect("room for a page"))
    };
    ALL_HOT.get_or_init(make).clone()
}

impl RingReader {
    /// Whether the volume's block is dirty.
    pub fn is_dirty(&self, volume: VolumeId) -> bool {
        VolumeMap::new(self.model_ring(), volume).all_set(Bits::Dirty, BlockRange::new(0, 1))
    }

    /// State of record `seq`, if its slot holds it.
    pub fn slot_state(&self, seq: u64) -> Option<SlotState> {
        let (found, state) = commit_parts(self.model_ring().commit(seq).load(Ordering::Acquire));
        (found == seq).then_some(state)
    }
}
