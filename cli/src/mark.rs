//! `towline mark`: names the point at which a group is now.

use crate::exit::{Exit, usage};
use crate::output;
use crate::target::NOW;
use crate::{config, view};
use anyhow::bail;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use towline_block::{GroupName, MarkName};
use towline_journal::inspect::GroupView;
use towline_journal::link::{Link, Reply, Request};

/// The proxy answers at once; a thread of its own does.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
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
    /// Wait so long until the target durably has it.
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
    /// The target durably had it when this was printed.
    at_target: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.name.as_str() == NOW {
        return Err(usage(format!(
            "{NOW} is no mark's name: a clone at {NOW} is one of this moment"
        )));
    }
    let dir = view::group_dir(&args.state, Some(&args.group))?;
    let mut link = Link::connect(&dir.proxy_socket())?;
    link.set_timeout(Some(ANSWER_WAIT))?;
    let seq = match link.call(&Request::Mark { name: args.name.clone() })?.0 {
        Reply::Marked { seq } => seq,
        Reply::Refused(why) => bail!("{why}"),
        other => bail!("the proxy answered {other:?} to a mark: run the same release of both"),
    };
    let deadline = Instant::now() + args.wait.unwrap_or_default();
    let has_it = || -> anyhow::Result<bool> { Ok(GroupView::open(&dir)?.marks().acked >= seq) };
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
