//! The objects that `--json` prints: keys and units are pinned by the product's
//! interfaces, so this file changes only by addition.
//!
//! Sizes are bytes; suffixes carry the unit. `null` means "not known yet".

use serde::{Serialize, Serializer};
use towline_journal::spill::{Rung, Step};

/// In place of a number that only the ring tells while there is none: `null` in JSON.
pub const NOT_KNOWN: u64 = u64::MAX;

#[derive(Clone, Debug, Serialize)]
pub struct StatusReport {
    pub groups: Vec<GroupStatus>,
}

/// One group at its source, or at a receiver (`role`).
#[derive(Clone, Debug, Default, Serialize)]
pub struct GroupStatus {
    pub group: String,
    /// `source` or `target`: whose state directory was read.
    pub role: &'static str,
    /// `baseline|live|spill|map|resync|cutover|sealed|promoted`
    pub state: String,
    pub epoch: u32,
    pub incarnation: u32,
    #[serde(serialize_with = "or_null")]
    pub head_seq: u64,
    #[serde(serialize_with = "or_null")]
    pub done_seq: u64,
    #[serde(serialize_with = "or_null")]
    pub durable_seq: u64,
    #[serde(serialize_with = "or_null")]
    pub acked_seq: u64,
    pub point_seq: Option<u64>,
    #[serde(serialize_with = "or_null")]
    pub lag_bytes: u64,
    /// NaN, `null` in JSON: not known.
    pub lag_s: f64,
    pub ring_bytes: u64,
    #[serde(serialize_with = "or_null")]
    pub ring_used_bytes: u64,
    #[serde(serialize_with = "or_null")]
    pub spill_used_bytes: u64,
    pub spill_bytes: u64,
    /// On disk of a ring that was lost: shipped before anything else.
    pub history_bytes: u64,
    /// Payload written to the spill since the ring was made; none in the steady state.
    pub spill_written_bytes: u64,
    pub disk_written: DiskWritten,
    /// Steps between ring, spill and change map since the ring was made.
    pub ladder_steps: u64,
    /// The last of them, also of the rings before, oldest first.
    pub ladder: Vec<LadderStep>,
    #[serde(serialize_with = "or_null")]
    pub map_set_bytes: u64,
    /// The part of `map_set_bytes` that is compared with the target before it is sent.
    pub map_suspect_bytes: u64,
    /// What travels, or did, on transport devices; null: nothing.
    pub device: Option<DeviceStatus>,
    /// What a target lacks of packs that were lost.
    pub lacking_bytes: u64,
    /// Target: what is staged is sealed, so that only what is applied is known without its key.
    pub key_needed: bool,
    pub baseline: Baseline,
    pub resent_bytes: u64,
    pub sent_bytes: u64,
    pub shipping: Shipping,
    pub rate: Rate,
    pub added_write_us: Percentiles,
    pub added_read_us: Percentiles,
    pub added_flush_us: Percentiles,
    pub volumes: Vec<VolumeStatus>,
    pub processes: Vec<ProcessStatus>,
    pub last_error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over so")]
fn or_null<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    Some(*value).filter(|value| *value != NOT_KNOWN).serialize(serializer)
}

/// A group's export onto transport devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceStatus {
    /// `exporting|travelling|imported`
    pub state: &'static str,
    pub packs: usize,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Baseline {
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub rate_bytes_per_s: Option<f64>,
    pub eta_s: Option<f64>,
}

/// What holds shipping back; `null`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    pub bytes_per_s: Option<u64>,
    pub ops_per_s: Option<u64>,
    /// Of all groups of the shipper together.
    pub link_bytes_per_s: Option<u64>,
    pub link_ops_per_s: Option<u64>,
    /// In words.
    pub why: Option<String>,
}

/// What coalescing and compressing made of what was shipped, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shipping {
    pub payload_bytes: u64,
    /// Overwritten within its batch, so not shipped.
    pub coalesced_bytes: u64,
    /// What the rest was stored as.
    pub stored_bytes: u64,
    /// Time of a core.
    pub encode_s: f64,
}

impl Shipping {
    /// How many times smaller the stored data is; `None` before there is any.
    pub fn ratio(&self) -> Option<f64> {
        let kept = self.payload_bytes.saturating_sub(self.coalesced_bytes);
        (self.stored_bytes > 0).then(|| kept as f64 / self.stored_bytes as f64)
    }
}

/// What the journal has written to disk since the ring was made, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskWritten {
    /// Payload in the spill: none in the steady state of durability "process".
    pub payload_bytes: u64,
    /// Around it: headers and padding of the spill.
    pub spill_header_bytes: u64,
    /// Zeroes in segments that are made for durability "flush" and "write".
    pub spill_fill_bytes: u64,
    pub activity_map_bytes: u64,
    /// Change maps saved at an orderly stop.
    pub change_map_bytes: u64,
    /// `state.json` and `ladder.json`.
    pub state_bytes: u64,
}

/// A step between ring, spill and change map.
#[derive(Clone, Debug, Serialize)]
pub struct LadderStep {
    pub time: String,
    /// `ring`, `spill` or `map`.
    pub from: Rung,
    pub to: Rung,
    /// Of the ring, then.
    pub fill_percent: u64,
    pub reason: String,
}

impl From<Step> for LadderStep {
    fn from(step: Step) -> LadderStep {
        let Step { unix_ns, from, to, fill_percent, reason } = step;
        LadderStep { time: crate::when::format(unix_ns), from, to, fill_percent, reason }
    }
}

impl LadderStep {
    /// For people.
    pub fn describe(&self) -> String {
        format!("{}, ring {} % full: {}", self.time, self.fill_percent, self.reason)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    pub name: String,
    pub size_bytes: u64,
    pub exports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessStatus {
    /// `proxy`, `ship` or `receive`.
    pub process: &'static str,
    pub alive: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    pub group: String,
    pub epoch: u32,
    pub incarnation: u32,
    /// `None`, as the others: without the ring it is not known.
    pub head_seq: Option<u64>,
    pub done_seq: Option<u64>,
    pub durable_seq: Option<u64>,
    pub acked_seq: Option<u64>,
    pub state: String,
    pub volumes: Vec<VolumeStatus>,
    pub records: Option<u64>,
    pub oldest_age_s: Option<f64>,
    pub ring_file: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    pub group: String,
    pub ok: bool,
    pub records: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// The first 1000 of them.
    pub errors: Vec<VerifyError>,
    /// Beyond those.
    pub more_errors: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct VerifyError {
    pub kind: String,
    pub seq: u64,
    pub offset: u64,
}
