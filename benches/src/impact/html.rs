//! placeholder
use super::report::ImpactReport;
pub fn page(_: &ImpactReport) -> String { String::new() }
