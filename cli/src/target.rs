//! `towline target`: the marks of a receiver, the way back to one, and clones.

mod clone;

pub use clone::NOW;

use crate::config;
use crate::exit::{Exit, unreachable, usage};
use crate::output;
use crate::target_view;
use crate::when;
use serde::Serialize;
use std::path::{Path, PathBuf};
use towline_block::size::format_size;
use towline_shipper::batch::Keyring;
use towline_shipper::receiver::marks::{list, unix_ns};
use towline_shipper::receiver::{Layout, ListedMark, Mark, MarkKind, ReceiverStatus, rewind};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the points that the target can be brought back to, oldest first.
    ListMarks(Where),
    /// Bring the target's disks back to a mark. The receiver must not run.
    Rewind {
        #[command(flatten)]
        at: Where,
        /// A mark's name or #number, or a moment: the last mark before it
        /// (2026-03-01T12:00:00Z, or -10m: so long ago).
        #[arg(long, value_name = "MARK", allow_hyphen_values = true)]
        to: String,
        /// Keys of sealed batches that were staged and not applied.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Serve the target at a mark as disks that can be written, while replication goes on. What is
    /// written is seen by the clone alone and gone at its end.
    Clone(clone::Args),
}

#[derive(Debug, clap::Args)]
struct Where {
    /// State directory of the receiver.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    group: String,
    marks: Vec<Line>,
    /// Disk that all of them take.
    bytes: u64,
}

#[derive(Serialize)]
struct Line {
    mark: String,
    kind: &'static str,
    time: String,
    unix_ns: u64,
    number: u64,
    epoch: u32,
    incarnation: u32,
    seq: u64,
    /// Overwritten between it and the next mark.
    bytes: u64,
}

#[derive(Serialize)]
struct Rewound {
    group: String,
    mark: String,
    number: u64,
    epoch: u32,
    incarnation: u32,
    seq: u64,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        Command::ListMarks(at) => list_marks(at),
        Command::Clone(args) => clone::run(args),
        Command::Rewind { at, to, key } => {
            go_back(at, to, &config::keys(key.as_deref(), &at.state)?)
        }
    }
}

fn load(state: &Path, keys: &Keyring) -> anyhow::Result<(ReceiverStatus, Vec<ListedMark>)> {
    let Some(found) = ReceiverStatus::load(state, keys)? else {
        let groups = target_view::all(state, keys)?.len();
        if groups > 1 || groups == 1 && !Layout::of(state).dir.is_dir() {
            return Err(usage(format!(
                "{} holds the folders of {groups} groups: give the folder of the one that is meant",
                state.display()
            )));
        }
        return Err(unreachable(format!("no group was ever received in {}", state.display())));
    };
    let marks = list(state, &found.state)?;
    Ok((found, marks))
}

fn list_marks(at: &Where) -> anyhow::Result<Exit> {
    let (found, marks) = load(&at.state, &Keyring::default())?;
    let lines: Vec<Line> = marks.iter().map(line).collect();
    let bytes = lines.iter().map(|line| line.bytes).sum();
    if at.json {
        let group = found.state.group.to_string();
        output::json(&Listing { group, marks: lines, bytes })?;
        return Ok(Exit::Ok);
    }
    if lines.is_empty() {
        output::text_line(
            "no marks: name one at the source (towline mark), or receive --mark-every TIME",
        )?;
        return Ok(Exit::Ok);
    }
    let width = lines.iter().map(|line| line.mark.len()).max().unwrap_or(0);
    for line in &lines {
        let (mark, kind, time) = (&line.mark, line.kind, &line.time);
        let size = format_size(line.bytes);
        output::text_line(&format!("{mark:width$}  {kind:8}  {time}  seq {}  {size}", line.seq))?;
    }
    output::text_line(&format!("{} marks, {}", lines.len(), format_size(bytes)))?;
    Ok(Exit::Ok)
}

fn line(listed: &ListedMark) -> Line {
    let Mark { kind, unix_ns, stream } = &listed.mark;
    let position = stream.position;
    Line {
        mark: listed.mark.to_string(),
        kind: match kind {
            MarkKind::Point => "point",
            MarkKind::Periodic => "periodic",
            MarkKind::Named(_) => "named",
        },
        time: when::format(*unix_ns),
        unix_ns: *unix_ns,
        number: stream.number,
        epoch: position.epoch.0,
        incarnation: position.incarnation.0,
        seq: position.seq.0,
        bytes: listed.bytes,
    }
}

fn go_back(at: &Where, to: &str, keys: &Keyring) -> anyhow::Result<Exit> {
    let (found, marks) = load(&at.state, keys)?;
    let marks: Vec<Mark> = marks.into_iter().map(|listed| listed.mark).collect();
    let number = choose(&marks, to, unix_ns())?;
    let mark = rewind(&at.state, number, keys)?;
    let position = mark.stream.position;
    let rewound = Rewound {
        group: found.state.group.to_string(),
        mark: mark.to_string(),
        number,
        epoch: position.epoch.0,
        incarnation: position.incarnation.0,
        seq: position.seq.0,
    };
    match at.json {
        true => output::json(&rewound)?,
        false => output::text_line(&format!(
            "{}: the target stands at mark {} ({}, {position}); start the receiver to go on from there",
            rewound.group,
            rewound.mark,
            when::format(mark.unix_ns),
        ))?,
    }
    Ok(Exit::Ok)
}

/// The batch of the mark that `to` means: the newest of that name, its number, or the last
/// one at or before a moment.
fn choose(marks: &[Mark], to: &str, now_ns: u64) -> anyhow::Result<u64> {
    let named = |mark: &&Mark| matches!(&mark.kind, MarkKind::Named(name) if name.as_str() == to);
    if let Some(mark) = marks.iter().rev().find(named) {
        return Ok(mark.stream.number);
    }
    if let Some(number) = to.strip_prefix('#').and_then(|digits| digits.parse::<u64>().ok()) {
        if marks.iter().any(|mark| mark.stream.number == number) {
            return Ok(number);
        }
        return Err(usage(format!("no mark {to}: `towline target list-marks` shows them")));
    }
    let Ok(moment) = when::parse(to, now_ns) else {
        return Err(usage(format!(
            "no mark is named {to:?} and it is no moment: `towline target list-marks` shows the marks; \
             write a moment as 2026-03-01T12:00:00Z or -10m"
        )));
    };
    let before = marks.iter().rev().find(|mark| mark.unix_ns <= moment);
    before.map(|mark| mark.stream.number).ok_or_else(|| {
        let oldest = marks.first().map_or_else(
            || "there is no mark; a target that has taken over keeps none".to_owned(),
            |oldest| format!("the oldest mark is of {}", when::format(oldest.unix_ns)),
        );
        usage(format!("no mark is as old as {}: {oldest}", when::format(moment)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_shipper::receiver::Stream;

    fn mark(number: u64, unix_ns: u64, name: Option<&str>) -> Mark {
        let kind = name.map_or(MarkKind::Periodic, |name| MarkKind::Named(name.parse().unwrap()));
        Mark { kind, unix_ns, stream: Stream { number, ..Stream::default() } }
    }

    #[test]
    fn a_mark_is_chosen_by_name_number_or_moment() {
        let second = 1_000_000_000;
        let marks = [
            mark(3, 10 * second, Some("before-patch")),
            mark(5, 20 * second, None),
            mark(7, 30 * second, Some("before-patch")),
        ];
        let now = 40 * second;
        for (to, number) in [("before-patch", 7), ("#3", 3), ("#5", 5), ("-15s", 5), ("-10s", 7)] {
            assert_eq!(choose(&marks, to, now).unwrap(), number, "{to}");
        }
        for (to, says) in
            [("#4", "no mark #4"), ("other", "no mark is named"), ("-1m", "as old as")]
        {
            let error = choose(&marks, to, now).unwrap_err();
            assert_eq!(crate::exit::exit_of(&error), Exit::Usage, "{to}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
