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
use towline_block::size::format_size;
use towline_control::CutoverReport;
use towline_control::report::ReportOutcome;
use towline_shipper::source::taken_over;

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
    Progress { phase: String, backlog_bytes: u64 },
    Done(CutoverReport),
    Refused(String),
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let dir = view::group_dir(&args.state, Some(&args.group))?;
    let mut shown = String::new();
    let answer = ask(&dir.ship_socket(), &args.group, args.max_pause, |step| {
        if step != shown {
            eprintln!("{step}");
            shown = step;
        }
    });
    // Once it is promoted no shipper needs to run.
    let report = answer.or_else(|error| taken_over(&dir, None).ok_or(error))?;
    if args.json {
        // The report carries its own schema: it comes from the shipper as it is.
        output::text_line(&serde_json::to_string(&report)?)?;
    } else {
        output::text_line(&describe(&report))?;
    }
    Ok(if report.is_success() { Exit::Ok } else { Exit::Failed })
}

/// Asks over the shipper's socket; `tell` gets each step as it happens.
fn ask(
    socket: &Path,
    group: &GroupName,
    max_pause_ms: u64,
    mut tell: impl FnMut(String),
) -> anyhow::Result<CutoverReport> {
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
            Answer::Progress { phase, backlog_bytes } => tell(describe_step(&phase, backlog_bytes)),
            Answer::Done(report) => return Ok(report),
            Answer::Refused(reason) => bail!("the shipper refused the cutover: {reason}"),
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

fn describe_step(phase: &str, backlog_bytes: u64) -> String {
    match backlog_bytes {
        0 => format!("cutover: {phase}"),
        bytes => format!("cutover: {phase}, {} to go", format_size(bytes)),
    }
}

fn describe(report: &CutoverReport) -> String {
    let mut lines = Table::default();
    let ms = |ms: u64| table::duration(ms as f64 / 1000.0);
    if !report.reason.is_empty() {
        lines.row("reason", report.reason.clone());
    }
    if !report.already_promoted {
        let forecast = report.forecast_pause_ms.map_or_else(|| "none".into(), ms);
        lines.row("pause", format!("{} (forecast {forecast})", ms(report.pause_ms)));
    }
    if let Some(seq) = report.cut_seq {
        lines.row("cut", format!("seq {seq}"));
    }
    lines.row("epoch", report.epoch.to_string());
    for export in &report.exports {
        lines.row("export", export.clone());
    }
    let headline = match report.outcome {
        ReportOutcome::Promoted if report.already_promoted => {
            "the target was promoted before; nothing was done now"
        }
        ReportOutcome::Promoted => "the target is promoted; the source refuses writes from now on",
        ReportOutcome::Aborted => "aborted; the guest goes on at the source",
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
            "{\"progress\":{\"phase\":\"draining\",\"backlog_bytes\":2048}}\n\
             {\"done\":{\"schema\":1,\"group\":\"g\",\"outcome\":\"promoted\",\"reason\":\"\",\"pause_ms\":12,\"forecast_pause_ms\":20,\"cut_seq\":7,\"epoch\":2,\
             \"exports\":[\"nbd://h/x\"]}}\n",
        );
        let mut steps = Vec::new();
        let group = "g".parse().unwrap();
        let report = ask(&socket, &group, 500, |step| steps.push(step)).unwrap();
        assert_eq!((report.outcome, report.cut_seq), (ReportOutcome::Promoted, Some(7)));
        assert_eq!(steps, ["cutover: draining, 2.00 KiB to go"]);
        assert_eq!(served.join().unwrap(), "{\"cutover\":{\"max_pause_ms\":500}}\n");
        assert!(describe(&report).contains("forecast 20 ms"));
    }

    #[test]
    fn a_shipper_that_is_not_there_or_dies_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let group = "g".parse().unwrap();
        let error = ask(&dir.path().join("none"), &group, 1, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        let (socket, served) =
            answer(dir.path(), "{\"progress\":{\"phase\":\"x\",\"backlog_bytes\":0}}\n");
        let error = ask(&socket, &group, 1, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        served.join().unwrap();
    }
}
