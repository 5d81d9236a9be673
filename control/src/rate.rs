//! How fast a group may be shipped: what the operator said, by the hour where wanted,
//! and what the governor allows; the least counts.
//!
//! | windows of the plan | governor | in force |
//! |---|---|---|
//! | none has begun | no limit | the base limit; [`Why::Base`], or [`Why::Nothing`] where that is none |
//! | one or more have begun | no limit | the first of them in the plan's order; [`Why::Window`] |
//! | any | a limit | of bytes and of operations each the least; [`Why::Governor`] where it is its |

mod bucket;
mod limit;
mod overlay;
mod window;

pub use bucket::{BURST_S, Bucket};
pub use limit::Limit;
pub use overlay::{Overlay, Setting};
pub use window::{WINDOW_BYTES_MAX, Window};

use serde::{Deserialize, Serialize};

/// Least bytes a second that can be asked for: a piece of a batch leaves every second. With less
/// both ends of a connection would take it for dead. Who wants to pause stops the shipper.
pub const BYTES_PER_S_MIN: u64 = 1 << 10;

/// Windows of a plan: every hour of a week its own, and then some.
pub const WINDOWS_MAX: usize = 256;

/// What the operator wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Where no window has begun.
    pub base: Limit,
    pub windows: Vec<Window>,
}

/// The reason for a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Nothing,
    Base,
    /// Which of the plan's.
    Window(usize),
    Governor,
}

/// The limit that counts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    pub limit: Limit,
    pub why: Why,
}

impl Plan {
    /// What counts at a moment, of UTC.
    pub fn in_force(&self, governor: Limit, unix_s: u64) -> InForce {
        let begun = self.windows.iter().position(|window| window.holds(unix_s));
        let (planned, reason) = match begun.and_then(|at| Some((at, self.windows.get(at)?))) {
            Some((at, window)) => (window.limit, Why::Window(at)),
            None if self.base == Limit::NONE => (Limit::NONE, Why::Nothing),
            None => (self.base, Why::Base),
        };
        let limit = planned.least(governor);
        let why = if limit == planned { reason } else { Why::Governor };
        InForce { limit, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Monday, 00:00 UTC.
    const MONDAY: u64 = 1_772_409_600;
    const HOUR: u64 = 3600;

    fn bytes(limit: u64) -> Limit {
        Limit { bytes_per_s: Some(limit), ops_per_s: None }
    }

    fn plan() -> Plan {
        let windows = ["mon-fri 08:00-18:00 20M", "daily 17:00-20:00 none 500ops"];
        let windows = windows.map(|text| text.parse().unwrap()).to_vec();
        Plan { base: bytes(100 << 20), windows }
    }

    #[test]
    fn every_row_of_the_table() {
        let plan = plan();
        let at = |hour: u64| plan.in_force(Limit::NONE, MONDAY + hour * HOUR);
        assert_eq!(at(7), InForce { limit: bytes(100 << 20), why: Why::Base });
        assert_eq!(at(8), InForce { limit: bytes(20 << 20), why: Why::Window(0) });
        assert_eq!(at(17).why, Why::Window(0), "the first in the plan's order");
        let evening = at(18);
        assert_eq!((evening.limit.bytes_per_s, evening.why), (None, Why::Window(1)));
        let none = Plan::default().in_force(Limit::NONE, MONDAY);
        assert_eq!(none, InForce { limit: Limit::NONE, why: Why::Nothing });

        let governed = |limit, hour: u64| plan.in_force(limit, MONDAY + hour * HOUR);
        assert_eq!(governed(bytes(30 << 20), 7).why, Why::Governor);
        assert_eq!(governed(bytes(30 << 20), 8).why, Why::Window(0), "stricter anyway");
        let both = governed(Limit { bytes_per_s: Some(1 << 20), ops_per_s: Some(9999) }, 18);
        assert_eq!(both.why, Why::Governor);
        assert_eq!(both.limit, Limit { bytes_per_s: Some(1 << 20), ops_per_s: Some(500) });
    }

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let plan = plan();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        assert_eq!(serde_json::from_str::<Plan>("{}").unwrap(), Plan::default());
    }
}
