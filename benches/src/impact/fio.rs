//! fio's nbd engine as a second client: what others would measure with.
//!
//! Its JSON is preceded by a line of text; `json+` has all latency bins, of `lat`
//! (submission to completion: a part of the sending happens in submission).

use super::child::Process;
use super::plan::Job;
use crate::load::{Cpus, Kind, Outcome, Tally};
use crate::nbd_client::NbdUri;
use anyhow::{Context, bail};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Beyond its run time, for starting and reporting.
const SPARE: Duration = Duration::from_secs(30);

pub(super) struct Run<'a> {
    pub uri: &'a NbdUri,
    pub job: &'a Job,
    pub span_bytes: u64,
    pub seconds: f64,
    pub seed: u64,
    pub cpus: Option<&'a Cpus>,
    /// For output and log.
    pub dir: &'a Path,
}

/// Runs fio; `stop` asks for an early end.
pub(super) fn run(run: &Run<'_>, stop: impl Fn() -> bool) -> anyhow::Result<Outcome> {
    let output = run.dir.join("fio.json");
    let words = arguments(run, &output);
    let log = run.dir.join("fio.log");
    let mut fio = Process::start("fio", &words, run.cpus, &log)?;
    let patience = Duration::from_secs_f64(run.seconds) + SPARE;
    let whole = |text: &str| text.trim_end().ends_with('}');
    let mut text = String::new();
    fio.wait_until("its end", patience, || {
        if stop() {
            bail!("stopped");
        }
        text = std::fs::read_to_string(&output).unwrap_or_default();
        Ok(whole(&text))
    })
    .or_else(|error| {
        // It may have written the end between two looks.
        text = std::fs::read_to_string(&output).unwrap_or_default();
        if whole(&text) { Ok(()) } else { Err(error) }
    })?;
    drop(fio);
    // Fails only when it is gone.
    let _ = std::fs::remove_file(&output);
    parse(&text)
}

fn arguments(run: &Run<'_>, output: &Path) -> Vec<String> {
    let workload = &run.job.workload;
    let order = if workload.sequential { "" } else { "rand" };
    let direction = match workload.read_percent {
        0 => format!("{order}write"),
        100 => format!("{order}read"),
        _ => format!("{order}rw"),
    };
    let mut words = vec![
        "fio".into(),
        "--name=cell".into(),
        "--ioengine=nbd".into(),
        format!("--uri={}", run.uri),
        format!("--rw={direction}"),
        format!("--bs={}", workload.request_bytes),
        format!("--iodepth={}", workload.depth),
        format!("--size={}", run.span_bytes),
        "--time_based".into(),
        format!("--runtime={}ms", (run.seconds * 1000.0).round() as u64),
        format!("--randseed={}", run.seed),
        "--lat_percentiles=1".into(),
        "--clat_percentiles=0".into(),
        "--output-format=json+".into(),
        format!("--output={}", output.display()),
    ];
    if let Some(every) = workload.flush_every {
        words.push(format!("--fsync={every}"));
    }
    if !workload.read_percent.is_multiple_of(100) {
        words.push(format!("--rwmixread={}", workload.read_percent));
    }
    words
}

/// What fio counted.
fn parse(text: &str) -> anyhow::Result<Outcome> {
    let json = text.find('{').map(|at| &text[at..]).context("fio wrote no JSON")?;
    let value: Value = serde_json::from_str(json).context("fio's JSON")?;
    let job = &value["jobs"][0];
    let error = job["error"].as_i64().unwrap_or(0);
    if error != 0 {
        bail!("fio ended with error {error}");
    }
    let mut tally = Tally::default();
    let mut seconds: f64 = 0.0;
    for (key, kind) in [("read", Kind::Read), ("write", Kind::Write), ("sync", Kind::Flush)] {
        let part = &job[key];
        seconds = seconds.max(part["runtime"].as_f64().unwrap_or(0.0) / 1000.0);
        let bins = part["lat_ns"]["bins"].as_object().into_iter().flatten();
        for (ns, count) in bins {
            let ns: u64 = ns.parse().with_context(|| format!("fio's bin {ns:?}"))?;
            tally.record_many(kind, ns, count.as_u64().context("fio's count")?);
        }
    }
    if seconds <= 0.0 || tally.count() == 0 {
        bail!("fio counted nothing");
    }
    Ok(Outcome { seconds, tally })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_before_the_json_and_bins_of_three_kinds_are_read() {
        let text = r#"fio: connected to NBD server
        {"jobs": [{"error": 0,
          "write": {"runtime": 500, "lat_ns": {"bins": {"10000": 90, "50000": 10}}},
          "read": {"runtime": 0, "lat_ns": {"min": 0}},
          "sync": {"lat_ns": {"bins": {"200000": 5}}}}]}"#;
        let outcome = parse(text).unwrap();
        assert_eq!(outcome.seconds, 0.5);
        assert_eq!(outcome.tally.of(Kind::Write).len(), 100);
        assert_eq!(outcome.tally.of(Kind::Flush).len(), 5);
        let p95 = outcome.tally.of(Kind::Write).value_at_quantile(0.95);
        assert!(p95.abs_diff(50_000) < 100, "{p95}");
    }

    #[test]
    fn an_error_and_an_empty_run_are_no_results() {
        assert!(parse("nothing").is_err());
        assert!(parse(r#"{"jobs": [{"error": 5}]}"#).is_err());
        assert!(parse(r#"{"jobs": [{"error": 0}]}"#).is_err());
    }
}
