//! The guest changes over from source to target, or goes on at the source; never both.

mod abort;
mod callers;
mod demo;
mod promote;
mod seal;

use std::time::{Duration, Instant};
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_bench::stamp::Plan;
use towline_tests::program::Finished;
use towline_tests::{Daemon, PATIENCE, Rig, args};

const DISK_BYTES: u64 = 16 << 20;

fn plan(seed: u64) -> Plan {
    Plan { seed, rate_per_s: Some(300.0), ..Plan::default() }
}

/// `towline cutover --json`, to its end.
#[track_caller]
fn cutover(rig: &Rig, max_pause: &str) -> Finished {
    rig.towline(cutover_args(rig, max_pause))
}

fn cutover_args(rig: &Rig, max_pause: &str) -> Vec<std::ffi::OsString> {
    args!["cutover", &rig.group, "--state", rig.state(), "--max-pause", max_pause, "--json"]
}

/// A cutover that runs beside the test.
struct Running(Daemon);

/// By then a group with nothing to go is held.
const HELD_WITHIN: Duration = Duration::from_secs(3);

impl Running {
    fn start(rig: &Rig, max_pause: &str) -> Running {
        Running(Daemon::start(&cutover_args(rig, max_pause)))
    }

    /// With the guest held and the network dead, so that the drain cannot end. A cutover holds
    /// nobody while much is still to go: then it is asked again, with nothing to go.
    #[track_caller]
    fn held_without_network(rig: &Rig, max_pause: &str) -> Running {
        let deadline = Instant::now() + PATIENCE;
        loop {
            rig.relay.set_black_hole(true);
            let mut asked = Running::start(rig, max_pause);
            if asked.0.line_within(HELD_WITHIN, |line| line.contains("hold")).is_some() {
                return asked;
            }
            assert!(Instant::now() < deadline, "never held: {}", asked.0);
            asked.kill();
            rig.relay.set_black_hole(false);
            rig.wait_live();
        }
    }

    #[track_caller]
    fn wait_step(&mut self, step: &str) {
        self.0.wait_for_line(|line| line.contains(step));
    }

    /// `kill -9` of the command.
    fn kill(self) {
        self.0.kill();
    }

    /// Its exit code, once it has ended by itself.
    #[track_caller]
    fn code(mut self) -> i32 {
        self.0.wait_for_end().code().unwrap_or(-1)
    }
}

/// A promotion with all that `INTERFACES` pins.
#[track_caller]
fn assert_promoted(rig: &Rig, finished: Finished) -> serde_json::Value {
    let report = finished.exits(0).json();
    assert_eq!(report["group"], rig.group.as_str(), "{report}");
    assert_eq!(report["outcome"], "promoted", "{report}");
    for key in ["pause_ms", "forecast_pause_ms"] {
        assert!(report[key].is_number(), "{key}: {report}");
    }
    for key in ["cut_seq", "epoch"] {
        assert!(report[key].is_u64(), "{key}: {report}");
    }
    let exports = report["exports"].as_array().map_or(0, Vec::len);
    assert!(exports > 0, "the guest must be told where to go: {report}");
    report
}

#[track_caller]
fn assert_aborted(rig: &Rig, finished: Finished) -> serde_json::Value {
    let report = finished.exits(1).json();
    assert_eq!(report["group"], rig.group.as_str(), "{report}");
    assert_eq!(report["outcome"], "aborted", "{report}");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(!reason.is_empty(), "an abort says why: {report}");
    report
}

/// A write at `uri` is refused as shut down, and the server says why.
#[track_caller]
fn assert_refuses_writes(uri: &NbdUri) {
    let options = Options { timeout: Duration::from_secs(10), structured: true };
    let mut client = match Client::connect(uri, options) {
        Ok(client) => client,
        // Not even offering the export is a refusal, too; it must say why.
        Err(error) => {
            assert_says_why(&error.to_string());
            return;
        }
    };
    match client.write(0, &[1; 4096]) {
        Ok(()) => panic!("{uri} takes writes after the cutover"),
        Err(error) => {
            assert_eq!(error.errno(), Some(libc::ESHUTDOWN as u32), "{error}");
            assert_says_why(&error.to_string());
        }
    }
}

#[track_caller]
fn assert_says_why(text: &str) {
    let text_lower = text.to_lowercase();
    let known = ["cutover", "cut over", "sealed", "promoted", "target", "moved"];
    assert!(known.iter().any(|word| text_lower.contains(word)), "no reason in: {text}");
}
