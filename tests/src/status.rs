//! What `towline status --json` says of a group.

use serde_json::Value;

/// One group's entry.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    #[track_caller]
    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {}", self.0))
    }

    /// `baseline`, `live`, `map`, `resync`, `cutover`, `sealed`, `promoted`.
    #[track_caller]
    pub fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_else(|| panic!("no state in {}", self.0))
    }

    pub fn resent_bytes(&self) -> u64 {
        self.number("resent_bytes")
    }

    pub fn map_set_bytes(&self) -> u64 {
        self.number("map_set_bytes")
    }

    pub fn ring_used_bytes(&self) -> u64 {
        self.number("ring_used_bytes")
    }

    pub fn head_seq(&self) -> u64 {
        self.number("head_seq")
    }

    pub fn acked_seq(&self) -> u64 {
        self.number("acked_seq")
    }

    /// Everything journaled is durable at the target and the map is clean. Holds
    /// for good only while the guest rests.
    pub fn is_drained(&self) -> bool {
        self.state() == "live" && self.map_set_bytes() == 0 && self.acked_seq() >= self.head_seq()
    }
}
