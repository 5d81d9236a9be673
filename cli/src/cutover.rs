//! `towline cutover`: asks the group's shipper to move the guest to the target
//! and tells how it went.

use crate::exit::{Exit, unreachable, usage};
use crate::output;
use crate::table::{self, Table};
use crate::view;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use towline_block::GroupName;

/// A line of the control socket; longer ones are not ours.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    group: GroupName,
    /// State directory of the group's proxy and shipper.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Longest time in which the guest's writes may wait; past it the guest goes on
    /// at the source.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_pause)]
    max_pause: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Request {
    cutover: Ask,
}

#[derive(Serialize)]
struct Ask {
    max_pause_ms: u64,
}

/// What the shipper says on its control socket.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Progress(serde_json::Value),
    Done(Report),
    Error(String),
}

/// How a cutover ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub group: String,
    /// `promoted` or `aborted`.
    pub outcome: String,
    /// Why it was aborted; empty otherwise.
    #[serde(default)]
    pub reason: Option<String>,
    pub pause_ms: Option<f64>,
    pub forecast_pause_ms: Option<f64>,
    pub cut_seq: Option<u64>,
    pub epoch: u32,
    #[serde(default)]
    pub exports: Vec<String>,
}

impl Report {
    pub fn is_promoted(&self) -> bool {
        self.outcome == "promoted"
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let socket = view::group_dir(&args.state, Some(&args.group))?.ship_socket();
    let report = ask(&socket, &args.group, args.max_pause, |step| eprintln!("{step}"))?;
    if args.json {
        output::json(&report)?;
    } else {
        output::text_line(&describe(&report))?;
    }
    Ok(if report.is_promoted() { Exit::Ok } else { Exit::Failed })
}

/// Asks over the shipper's socket; `tell` gets each step as it happens.
fn ask(
    socket: &Path,
    group: &GroupName,
    max_pause_ms: u64,
    mut tell: impl FnMut(String),
) -> anyhow::Result<Report> {
    let mut stream = UnixStream::connect(socket).map_err(|e| {
        unreachable(format!(
            "the shipper of group {group} does not answer at {} ({e}): start `towline ship` for \
             this group, wait until status says live, and try again; nothing was changed",
            socket.display()
        ))
    })?;
    let request = serde_json::to_string(&Request { cutover: Ask { max_pause_ms } })?;
    writeln!(stream, "{request}").context("cannot ask the shipper")?;
    let mut lines = BufReader::new(stream);
    while let Some(line) = read_line(&mut lines)? {
        match serde_json::from_str(&line)
            .context("the shipper's answer is not understood: are both of one version?")?
        {
            Answer::Progress(step) => tell(describe_step(&step)),
            Answer::Done(report) => return Ok(report),
            Answer::Error(reason) => bail!("the shipper refused the cutover: {reason}"),
        }
    }
    Err(unreachable(format!(
        "the shipper of group {group} ended during the cutover: `towline status {group}` shows \
         where the group stands; before the receiver has decided, a restarted shipper takes it \
         back to the source"
    )))
}

fn read_line(from: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut line = String::new();
    std::io::Read::take(&mut *from, LINE_BYTES_MAX)
        .read_line(&mut line)
        .context("the shipper's answer cannot be read")?;
    Ok(if line.ends_with('\n') { Some(line) } else { None })
}

fn describe_step(step: &serde_json::Value) -> String {
    let Some(fields) = step.as_object() else { return format!("cutover: {step}") };
    let parts: Vec<String> = fields
        .iter()
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => format!("{key} {text}"),
            other => format!("{key} {other}"),
        })
        .collect();
    format!("cutover: {}", parts.join(", "))
}

fn describe(report: &Report) -> String {
    let mut lines = Table::default();
    let ms = |value: Option<f64>| {
        value.map_or_else(|| "unknown".into(), |ms| table::duration(ms / 1000.0))
    };
    if let Some(reason) = report.reason.as_deref().filter(|reason| !reason.is_empty()) {
        lines.row("reason", reason);
    }
    lines.row(
        "pause",
        format!("{} (forecast {})", ms(report.pause_ms), ms(report.forecast_pause_ms)),
    );
    if let Some(seq) = report.cut_seq {
        lines.row("cut", format!("seq {seq}"));
    }
    lines.row("epoch", report.epoch.to_string());
    for export in &report.exports {
        lines.row("export", export.clone());
    }
    let headline = if report.is_promoted() {
        "the target is promoted; the source refuses writes from now on"
    } else {
        "aborted; the guest goes on at the source"
    };
    format!("group {}: {headline}\n{}", report.group, lines.render(2))
}

/// `2s`, `500ms`, `1.5s`, `1m`; a bare number is seconds.
fn parse_pause(text: &str) -> Result<u64, String> {
    let (number, ms) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1e3)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60e3)
    } else {
        (text, 1e3)
    };
    let value: f64 = number.trim().parse().unwrap_or(f64::NAN);
    let millis = value * ms;
    if !(1.0..=3_600_000.0).contains(&millis) {
        return Err(usage(format!(
            "{text:?} is not usable as a pause: write a time from 1ms to 60m, such as 2s or 500ms"
        ))
        .to_string());
    }
    Ok(millis.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;
    use std::os::unix::net::UnixListener;

    #[test]
    fn pauses_read_as_written() {
        for (text, ms) in
            [("2s", 2000), ("500ms", 500), ("1.5s", 1500), ("1m", 60_000), ("3", 3000)]
        {
            assert_eq!(parse_pause(text), Ok(ms), "{text}");
        }
        for bad in ["", "s", "-1s", "0ms", "2h", "nan", "inf"] {
            assert!(parse_pause(bad).is_err(), "{bad}");
        }
    }

    /// A shipper that answers one request with `lines`, and returns the request.
    fn answer(dir: &Path, lines: &'static str) -> (PathBuf, std::thread::JoinHandle<String>) {
        let socket = dir.join("ship.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            (&stream).write_all(lines.as_bytes()).unwrap();
            request
        });
        (socket, served)
    }

    #[test]
    fn progress_is_told_and_the_report_returned() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, served) = answer(
            dir.path(),
            "{\"progress\":{\"step\":\"drain\"}}\n{\"done\":{\"group\":\"g\",\"outcome\":\"promoted\",\
             \"reason\":null,\"pause_ms\":12,\"forecast_pause_ms\":20,\"cut_seq\":7,\"epoch\":2,\
             \"exports\":[\"nbd://h/x\"]}}\n",
        );
        let mut steps = Vec::new();
        let group = "g".parse().unwrap();
        let report = ask(&socket, &group, 500, |step| steps.push(step)).unwrap();
        assert!(report.is_promoted() && report.cut_seq == Some(7));
        assert_eq!(steps, ["cutover: step drain"]);
        assert_eq!(served.join().unwrap(), "{\"cutover\":{\"max_pause_ms\":500}}\n");
        assert!(describe(&report).contains("forecast 20 ms"));
    }

    #[test]
    fn a_shipper_that_is_not_there_or_dies_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let group = "g".parse().unwrap();
        let error = ask(&dir.path().join("none"), &group, 1, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        let (socket, served) = answer(dir.path(), "{\"progress\":{}}\n");
        let error = ask(&socket, &group, 1, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        served.join().unwrap();
    }
}
