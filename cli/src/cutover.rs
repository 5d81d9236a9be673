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
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_block::size::format_size;
use towline_control::CutoverReport;
use towline_control::report::ReportOutcome;
use towline_shipper::source::taken_over;

/// A line of the control socket; longer ones are not ours.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// The shipper says something every second: one that is silent for so long does not answer.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long after the longest pause the end is waited for, once the guest may be held: the
/// receiver's decision may need a new connection.
const DECISION_MARGIN: Duration = Duration::from_secs(30);
/// What the shipper does while no guest is held; in every other phase one may be.
const PHASES_BEFORE_HOLD: [&str; 2] = ["asked", "catching up"];

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
    Unreachable(String),
}

/// How long the shipper is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For its next word, before the guest is held.
    silence: Duration,
    /// For the end, from when the guest may be held.
    decision: Duration,
}

impl Patience {
    fn of(max_pause_ms: u64) -> Patience {
        let decision = Duration::from_millis(max_pause_ms) + DECISION_MARGIN;
        Patience { silence: SILENCE_MAX, decision }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let dir = view::group_dir(&args.state, Some(&args.group))?;
    let mut shown = String::new();
    let patience = Patience::of(args.max_pause);
    let answer = ask(&dir.ship_socket(), &args.group, args.max_pause, patience, |step| {
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

/// Asks over the shipper's socket; `tell` gets each step as it happens. The socket stays open
/// in both directions to the end: closing it takes the request back.
fn ask(
    socket: &Path,
    group: &GroupName,
    max_pause_ms: u64,
    patience: Patience,
    mut tell: impl FnMut(String),
) -> anyhow::Result<CutoverReport> {
    let stream = UnixStream::connect(socket).map_err(|e| {
        unreachable(format!(
            "the shipper of group {group} does not answer at {} ({e}): start `towline ship` for \
             this group, wait until status says live, and try again; nothing was changed",
            socket.display()
        ))
    })?;
    let request = serde_json::to_string(&Request { cutover: Ask { max_pause_ms } })?;
    writeln!(&stream, "{request}").context("cannot ask the shipper")?;
    let mut lines = BufReader::new(&stream);
    // From when the guest may be held, giving up is no matter of silence any more.
    let mut decided_by: Option<Instant> = None;
    loop {
        let wait = match decided_by {
            None => patience.silence,
            Some(until) => until.saturating_duration_since(Instant::now()),
        };
        if wait.is_zero() {
            return Err(undecided(group));
        }
        stream.set_read_timeout(Some(wait)).context("cannot wait for the shipper")?;
        let line = match read_line(&mut lines) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ended(group)),
            Err(e) if is_silence(&e) && decided_by.is_some() => return Err(undecided(group)),
            Err(e) if is_silence(&e) => return Err(silent(group)),
            Err(e) => return Err(e).context("the shipper's answer cannot be read"),
        };
        match serde_json::from_str(&line)
            .context("the shipper's answer is not understood: are both of one version?")?
        {
            Answer::Progress { phase, backlog_bytes } => {
                if !PHASES_BEFORE_HOLD.contains(&phase.as_str()) {
                    decided_by.get_or_insert_with(|| Instant::now() + patience.decision);
                }
                tell(describe_step(&phase, backlog_bytes));
            }
            Answer::Done(report) => return Ok(report),
            Answer::Refused(reason) => bail!("the shipper refused the cutover: {reason}"),
            Answer::Unreachable(reason) => return Err(unreachable(reason)),
        }
    }
}

fn silent(group: &GroupName) -> anyhow::Error {
    unreachable(format!(
        "the shipper of group {group} does not answer: it is stopped or hangs; the guest is at the \
         source, and the shipper drops the request when it goes on"
    ))
}

fn undecided(group: &GroupName) -> anyhow::Error {
    unreachable(format!(
        "the shipper of group {group} did not say in time how the cutover ends: it may still go \
         on, to either side; `towline status {group}` shows where the group stands"
    ))
}

fn ended(group: &GroupName) -> anyhow::Error {
    unreachable(format!(
        "the shipper of group {group} ended during the cutover: `towline status {group}` shows \
         where the group stands; before the receiver has decided, a restarted shipper takes it \
         back to the source"
    ))
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn read_line(from: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    std::io::Read::take(&mut *from, LINE_BYTES_MAX).read_line(&mut line)?;
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

    const PATIENCE: Patience =
        Patience { silence: Duration::from_secs(20), decision: Duration::from_secs(20) };

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
        let report = ask(&socket, &group, 500, PATIENCE, |step| steps.push(step)).unwrap();
        assert_eq!((report.outcome, report.cut_seq), (ReportOutcome::Promoted, Some(7)));
        assert_eq!(steps, ["cutover: draining, 2.00 KiB to go"]);
        assert_eq!(served.join().unwrap(), "{\"cutover\":{\"max_pause_ms\":500}}\n");
        assert!(describe(&report).contains("forecast 20 ms"));
    }

    #[test]
    fn a_shipper_that_is_not_there_or_dies_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let group = "g".parse().unwrap();
        let error = ask(&dir.path().join("none"), &group, 1, PATIENCE, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        let (socket, served) =
            answer(dir.path(), "{\"progress\":{\"phase\":\"x\",\"backlog_bytes\":0}}\n");
        let error = ask(&socket, &group, 1, PATIENCE, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        served.join().unwrap();
    }
    /// A shipper that says `lines`, and then nothing until its client leaves.
    fn fall_silent(dir: &Path, lines: &'static str) -> (PathBuf, std::thread::JoinHandle<()>) {
        let socket = dir.join("ship.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            (&stream).write_all(lines.as_bytes()).unwrap();
            std::io::copy(&mut &stream, &mut std::io::sink()).unwrap();
        });
        (socket, served)
    }

    const SOON: Duration = Duration::from_millis(100);

    #[test]
    fn a_shipper_that_says_nothing_does_not_answer() {
        for lines in ["", "{\"progress\":{\"phase\":\"asked\",\"backlog_bytes\":0}}\n"] {
            let dir = tempfile::tempdir().unwrap();
            let (socket, served) = fall_silent(dir.path(), lines);
            let patience = Patience { silence: SOON, ..PATIENCE };
            let error = ask(&socket, &"g".parse().unwrap(), 1, patience, |_| ()).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Unreachable);
            assert!(
                error.to_string().contains("the shipper of group g does not answer"),
                "{error}"
            );
            served.join().expect("the client left");
        }
    }

    #[test]
    fn once_the_guest_is_held_silence_is_borne_and_the_end_is_said_to_be_open() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"progress\":{\"phase\":\"holding\",\"backlog_bytes\":0}}\n";
        let (socket, served) = fall_silent(dir.path(), lines);
        let patience = Patience { silence: SOON, decision: 5 * SOON };
        let began = Instant::now();
        let error = ask(&socket, &"g".parse().unwrap(), 1, patience, |_| ()).unwrap_err();
        assert!(began.elapsed() >= 5 * SOON, "{:?}", began.elapsed());
        assert_eq!(exit_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("may still go on"), "{error}");
        served.join().unwrap();
    }

    #[test]
    fn a_proxy_that_does_not_answer_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, served) = answer(
            dir.path(),
            "{\"unreachable\":\"the proxy of group g does not answer: nothing was begun\"}\n",
        );
        let error = ask(&socket, &"g".parse().unwrap(), 1, PATIENCE, |_| ()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        served.join().unwrap();
    }
}
