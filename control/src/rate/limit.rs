//! A limit of bytes and of operations a second.

use serde::{Deserialize, Serialize};

/// `None`: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    pub bytes_per_s: Option<u64>,
    /// Writes, zeroes and comparisons at the target.
    pub ops_per_s: Option<u64>,
}

impl Limit {
    pub const NONE: Limit = Limit { bytes_per_s: None, ops_per_s: None };

    /// What keeps both.
    pub fn least(self, other: Limit) -> Limit {
        let least = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (some, None) | (None, some) => some,
        };
        Limit {
            bytes_per_s: least(self.bytes_per_s, other.bytes_per_s),
            ops_per_s: least(self.ops_per_s, other.ops_per_s),
        }
    }
}
