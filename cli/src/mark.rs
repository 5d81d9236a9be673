//! `towline mark`: names the point at which a group is now.

use crate::exit::{Exit, unreachable, usage};
use crate::output;
use crate::target::NOW;
use crate::{config, view};
use anyhow::bail;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use towline_block::{GroupName, MarkName};
use towline_journal::inspect::GroupView;
use towline_journal::link::{Link, Reply, Request};

/// The proxy answers at once; a thread of its own does. Only a cutover's hold or seal can keep it
/// from that for longer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How often the target's position is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Args {
    group: GroupName,
    /// The mark's name; a name may be used again: the newest counts.
    #[arg(long)]
    name: MarkName,
    /// State directory of the group's proxy.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Wait so long until the target lists it.
    #[arg(long, value_name = "TIME", value_parser = config::span_arg)]
    wait: Option<Duration>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    group: String,
    mark: String,
    seq: u64,
    /// The target listed it when this was printed.
    at_target: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.name.as_str() == NOW {
        return Err(usage(format!(
            "{NOW} is no mark's name: a clone at {NOW} is one of this moment"
        )));
    }
    let dir = view::group_dir(&args.state, Some(&args.group))?;
    let seq = mark(&dir.proxy_socket(), &args.group, &args.name, ANSWER_WAIT)?;
    let deadline = Instant::now() + args.wait.unwrap_or_default();
    let has_it = || -> anyhow::Result<bool> { Ok(GroupView::open(&dir)?.is_applied(seq)) };
    let mut at_target = has_it()?;
    while !at_target && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
        at_target = has_it()?;
    }
    let (group, mark) = (args.group.to_string(), args.name.to_string());
    if args.json {
        output::json(&Report { group, mark, seq, at_target })?;
    } else {
        let there = if at_target { ", the target has it" } else { "" };
        output::text_line(&format!("{group}: mark {mark} is record {seq}{there}"))?;
    }
    if args.wait.is_some() && !at_target {
        eprintln!("towline: the target did not take it in time: it will come with the rest");
        return Ok(Exit::Unreachable);
    }
    Ok(Exit::Ok)
}

/// Asks the proxy for the mark; gives its record.
fn mark(socket: &Path, group: &GroupName, name: &MarkName, wait: Duration) -> anyhow::Result<u64> {
    let mut link = Link::connect(socket)?;
    link.set_timeout(Some(wait))?;
    let (reply, _) = link.call(&Request::Mark { name: name.clone() }).map_err(|error| {
        unreachable(format!(
            "the proxy of group {group} does not answer ({error}): it is stopped, hangs or is being \
             cut over; once it goes on it may still make the mark {name}"
        ))
    })?;
    match reply {
        Reply::Marked { seq } => Ok(seq),
        Reply::Refused(why) => bail!("{why}"),
        other => bail!("the proxy answered {other:?} to a mark: run the same release of both"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_proxy_that_says_nothing_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy.sock");
        let _stopped = UnixListener::bind(&socket).unwrap();
        let (group, name) = ("g".parse().unwrap(), "m".parse().unwrap());
        let error = mark(&socket, &group, &name, Duration::from_millis(100)).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        assert!(error.to_string().contains("the proxy of group g does not answer"), "{error}");
        assert!(ANSWER_WAIT <= Duration::from_secs(5), "{ANSWER_WAIT:?}");
    }
}
