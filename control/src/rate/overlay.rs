//! What an operator changed while shipping runs, over what the shipper was started with.

use super::{Plan, Window};
use serde::{Deserialize, Serialize};

/// A limit that was set by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    NoLimit,
    PerS(u64),
}

impl Setting {
    pub fn limit(self) -> Option<u64> {
        match self {
            Setting::NoLimit => None,
            Setting::PerS(rate) => Some(rate),
        }
    }
}

/// What is not here stays as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overlay {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Setting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<Setting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<Window>>,
}

impl Plan {
    pub fn with(&self, overlay: &Overlay) -> Plan {
        let mut plan = self.clone();
        if let Some(bytes) = overlay.bytes {
            plan.base.bytes_per_s = bytes.limit();
        }
        if let Some(ops) = overlay.ops {
            plan.base.ops_per_s = ops.limit();
        }
        if let Some(windows) = &overlay.windows {
            plan.windows = windows.clone();
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limit;
    use super::*;

    #[test]
    fn what_was_not_changed_stays_as_configured() {
        let window: Window = "daily 00:00-01:00 1M".parse().unwrap();
        let base = Limit { bytes_per_s: Some(7), ops_per_s: Some(8) };
        let plan = Plan { base, windows: vec![window.clone()] };
        assert_eq!(plan.with(&Overlay::default()), plan);
        let lifted = Overlay { bytes: Some(Setting::NoLimit), ..Overlay::default() };
        assert_eq!(plan.with(&lifted).base, Limit { bytes_per_s: None, ops_per_s: Some(8) });
        assert_eq!(plan.with(&lifted).windows, plan.windows);
        let slow = Overlay { ops: Some(Setting::PerS(3)), windows: Some(Vec::new()), bytes: None };
        let with = plan.with(&slow);
        assert_eq!(with.base, Limit { bytes_per_s: Some(7), ops_per_s: Some(3) });
        assert!(with.windows.is_empty());
        for overlay in [lifted, slow, Overlay { windows: Some(vec![window]), ..Overlay::default() }]
        {
            let json = serde_json::to_string(&overlay).unwrap();
            assert_eq!(serde_json::from_str::<Overlay>(&json).unwrap(), overlay, "{json}");
        }
    }
}
