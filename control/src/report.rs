//! The answer of `towline cutover --json`; its keys are fixed by the project's interfaces.

use crate::Outcome;
use serde::{Deserialize, Serialize};

/// Version of the object's meaning.
pub const CUTOVER_REPORT_SCHEMA: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportOutcome {
    Promoted,
    Aborted,
}

/// What a cutover came to. Travels from the shipper to the command line unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverReport {
    pub schema: u32,
    pub group: String,
    pub outcome: ReportOutcome,
    /// Why it was aborted; empty after a promotion.
    pub reason: String,
    /// From asking for the hold to the receiver's decision, or to the release.
    pub pause_ms: u64,
    /// What was forecast before the hold; null when no rate was known.
    pub forecast_pause_ms: Option<u64>,
    /// Last record that the target has at the cut; null if the group was never held.
    pub cut_seq: Option<u64>,
    /// The epoch that may write now.
    pub epoch: u32,
    /// Where the target serves the volumes; empty when aborted.
    pub exports: Vec<String>,
}

/// What the report adds to the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportContext {
    pub group: String,
    pub pause_ms: u64,
    pub forecast_pause_ms: Option<u64>,
    pub cut_seq: Option<u64>,
    /// Epoch of the source; stays if the attempt was aborted.
    pub source_epoch: u32,
}

impl CutoverReport {
    pub fn new(context: ReportContext, outcome: Outcome) -> CutoverReport {
        let (outcome, reason, epoch, exports) = match outcome {
            Outcome::Promoted { epoch, exports } => {
                (ReportOutcome::Promoted, String::new(), epoch.0, exports)
            }
            Outcome::Aborted { reason } => {
                (ReportOutcome::Aborted, reason, context.source_epoch, Vec::new())
            }
        };
        CutoverReport {
            schema: CUTOVER_REPORT_SCHEMA,
            group: context.group,
            outcome,
            reason,
            pause_ms: context.pause_ms,
            forecast_pause_ms: context.forecast_pause_ms,
            cut_seq: context.cut_seq,
            epoch,
            exports,
        }
    }

    /// The process's exit code: 0 promoted, 1 aborted.
    pub fn exit_code(&self) -> u8 {
        match self.outcome {
            ReportOutcome::Promoted => 0,
            ReportOutcome::Aborted => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_block::Epoch;

    fn context() -> ReportContext {
        ReportContext {
            group: "g".into(),
            pause_ms: 12,
            forecast_pause_ms: Some(15),
            cut_seq: Some(7),
            source_epoch: 1,
        }
    }

    #[test]
    fn a_promotion_names_the_new_epoch_and_its_exports() {
        let exports = vec!["nbd://h/disk0".to_string()];
        let report = CutoverReport::new(
            context(),
            Outcome::Promoted { epoch: Epoch(2), exports: exports.clone() },
        );
        assert_eq!((report.epoch, report.exit_code(), &report.exports), (2, 0, &exports));
        assert!(report.reason.is_empty());
    }

    #[test]
    fn an_abort_keeps_the_epoch_and_says_why() {
        let report = CutoverReport::new(context(), Outcome::Aborted { reason: "late".into() });
        assert_eq!((report.epoch, report.exit_code(), report.reason.as_str()), (1, 1, "late"));
        assert!(report.exports.is_empty());
    }
}
