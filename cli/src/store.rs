//! `towline store`: what is done to a store itself.

use crate::config;
use crate::exit::Exit;
use crate::output;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use towline_block::size::format_size;
use towline_block::{GroupName, MarkName};
use towline_journal::unix_now_ns;
use towline_shipper::batch::keyfile;
use towline_shipper::store::{
    Compacted, Compaction, GRACE_DEFAULT, HISTORY_DEFAULT, StoreUrl, compact_at,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Fold what later changes have overwritten into a new base, and give back what older bases
    /// replaced. Shippers and receivers go on meanwhile.
    Compact(CompactArgs),
}

#[derive(Debug, clap::Args)]
struct CompactArgs {
    /// file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(value_name = "STORE-URL")]
    url: StoreUrl,
    #[arg(long)]
    group: GroupName,
    /// Keep every change and mark younger than this; by default a day. 0s: fold all there is.
    #[arg(long, value_name = "TIME", value_parser = span_or_zero)]
    keep_history: Option<Duration>,
    /// What a base replaces stays for so long after it was made, for who is reading it; by default
    /// a day. Longer than a hydration takes.
    #[arg(long, value_name = "TIME", value_parser = span_or_zero)]
    grace: Option<Duration>,
    /// A mark older than the kept history may go; else it stays, with all after it. Repeatable.
    #[arg(long = "drop-mark", value_name = "NAME")]
    drop_marks: Vec<MarkName>,
    /// Keys of sealed batches: the base is sealed with the newest.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// For clap: a span of time, or none at all.
fn span_or_zero(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => config::span_arg(text),
    }
}

#[derive(Serialize)]
struct Report {
    group: String,
    /// Generation of the base that was made; null: none.
    base: Option<u32>,
    base_bytes: Option<u64>,
    /// The last batch in it.
    base_batch: Option<u64>,
    /// Another compaction made that generation meanwhile.
    other_was_faster: bool,
    /// The mark that keeps older changes from being folded.
    held_by: Option<String>,
    folded_objects: u64,
    removed_parts: u64,
    freed_bytes: u64,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let Command::Compact(args) = args.command;
    let plan = Compaction {
        keys: args.key.as_deref().map(keyfile::load).transpose()?.unwrap_or_default(),
        history: args.keep_history.unwrap_or(HISTORY_DEFAULT),
        grace: args.grace.unwrap_or(GRACE_DEFAULT),
        drop_marks: args.drop_marks.iter().map(ToString::to_string).collect(),
        now_unix_ns: unix_now_ns(),
    };
    let compacted = compact_at(&args.url, &args.group, &plan)?;
    let report = report(&args.group, &compacted);
    if args.json {
        output::json(&report)?;
    } else {
        output::text_line(&text(&report))?;
    }
    Ok(Exit::Ok)
}

fn report(group: &GroupName, compacted: &Compacted) -> Report {
    let made = compacted.made.as_ref();
    Report {
        group: group.to_string(),
        base: made.map(|base| base.generation),
        base_bytes: made.map(|base| base.bytes),
        base_batch: made.map(|base| base.after.number),
        other_was_faster: compacted.other_was_faster,
        held_by: compacted.held_by.clone(),
        folded_objects: compacted.folded,
        removed_parts: compacted.removed_parts,
        freed_bytes: compacted.freed_bytes,
    }
}

fn text(report: &Report) -> String {
    let base = match (report.base, report.base_bytes, report.base_batch) {
        (Some(base), Some(bytes), Some(batch)) => {
            format!("base {base} of {} has all up to batch {batch}", format_size(bytes))
        }
        _ if report.other_was_faster => "another compaction made the base meanwhile".into(),
        _ => "nothing to fold".into(),
    };
    let held = report.held_by.as_ref().map(|mark| format!(" (mark {mark} keeps what is older)"));
    format!(
        "{}: {base}{}; {} given back",
        report.group,
        held.unwrap_or_default(),
        format_size(report.freed_bytes)
    )
}
