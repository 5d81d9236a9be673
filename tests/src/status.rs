//! What `towline status --json` says of a group.

use serde_json::Value;
use std::time::{Duration, Instant};

/// How often a status is asked for: it is a file's content, there is nothing to wait on.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);

/// One group's entry.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// Asks until the status is as wanted; `ask` has none while the group is not there yet.
    #[track_caller]
    pub fn wait(
        timeout: Duration,
        what: &str,
        ask: impl Fn() -> Option<Status>,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let deadline = Instant::now() + timeout;
        loop {
            let status = ask();
            if let Some(status) = status.clone().filter(&wanted) {
                return status;
            }
            let after = timeout.as_secs();
            assert!(Instant::now() < deadline, "not {what} after {after} s: {status:?}");
            std::thread::sleep(STATUS_INTERVAL);
        }
    }

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
