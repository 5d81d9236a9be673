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
    /// Why it was aborted. Promoted: why the target does not serve yet; empty if it does.
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
    /// The group had been promoted before; nothing was done now.
    #[serde(default)]
    pub already_promoted: bool,
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
    /// Why a target that has taken over does not serve yet, if so.
    pub problem: Option<String>,
}

impl CutoverReport {
    pub fn new(context: ReportContext, outcome: Outcome) -> CutoverReport {
        let (outcome, reason, epoch, exports) = match outcome {
            Outcome::Promoted { epoch, exports } => {
                (ReportOutcome::Promoted, context.problem.unwrap_or_default(), epoch.0, exports)
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
            already_promoted: false,
        }
    }

    /// Of a group that was promoted before it was asked for.
    pub fn already(group: String, epoch: u32, exports: Vec<String>) -> CutoverReport {
        CutoverReport {
            schema: CUTOVER_REPORT_SCHEMA,
            group,
            outcome: ReportOutcome::Promoted,
            reason: String::new(),
            pause_ms: 0,
            forecast_pause_ms: None,
            cut_seq: None,
            epoch,
            exports,
            already_promoted: true,
        }
    }

    /// Whether the guest has its disks at the target.
    pub fn is_success(&self) -> bool {
        self.outcome == ReportOutcome::Promoted && self.reason.is_empty()
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
            problem: None,
        }
    }

    #[test]
    fn a_promotion_names_the_new_epoch_and_its_exports() {
        let exports = vec!["nbd://h/disk0".to_string()];
        let report = CutoverReport::new(
            context(),
            Outcome::Promoted { epoch: Epoch(2), exports: exports.clone() },
        );
        assert_eq!((report.epoch, report.is_success(), &report.exports), (2, true, &exports));
        assert!(report.reason.is_empty());
    }

    #[test]
    fn an_abort_keeps_the_epoch_and_says_why() {
        let report = CutoverReport::new(context(), Outcome::Aborted { reason: "late".into() });
        let told = (report.epoch, report.is_success(), report.reason.as_str());
        assert_eq!(told, (1, false, "late"));
        assert!(report.exports.is_empty());
    }

    #[test]
    fn a_target_that_took_over_and_does_not_serve_is_no_success() {
        let context = ReportContext { problem: Some("port in use".into()), ..context() };
        let outcome = Outcome::Promoted { epoch: Epoch(2), exports: Vec::new() };
        let report = CutoverReport::new(context, outcome);
        assert_eq!(report.outcome, ReportOutcome::Promoted);
        assert_eq!((report.is_success(), report.reason.as_str()), (false, "port in use"));
    }
}
