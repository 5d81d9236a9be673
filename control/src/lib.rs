//! Decisions of Towline, as pure functions of what was observed.
//!
//! Owns the cutover state machine and the forecast of its pause. Opens no file or
//! socket, reads no clock, starts no thread: time and observations come in, actions
//! go out, so that every order of events can be tried in a test or in `sim`.

pub mod compress;
pub mod cutover;
pub mod forecast;
pub mod rate;
pub mod report;

pub use cutover::{Action, Attempt, Cutover, Decision, Event, Outcome, State};
pub use forecast::{PauseInput, forecast_pause_ms};
pub use report::{CutoverReport, ReportOutcome};
