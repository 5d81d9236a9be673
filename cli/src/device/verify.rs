//! `towline device verify`.

use super::{Counting, DamagedPack, SetArgs};
use crate::exit::Exit;
use crate::output;
use crate::table;
use serde::Serialize;
use std::path::PathBuf;
use towline_block::size::format_size;
use towline_shipper::batch::keyfile;
use towline_shipper::device::{Checked, DeviceSet, PackState, verify};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    set: SetArgs,
    /// Open sealed batches, too; without it their hashes are checked.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    group: String,
    set: String,
    signed: bool,
    sealed: bool,
    finished: bool,
    epoch: u32,
    seq: u64,
    packs: usize,
    bytes: u64,
    missing: Vec<usize>,
    damaged: Vec<DamagedPack>,
    volumes_bytes: u64,
    /// Blocks that the whole packs hold.
    covered_bytes: u64,
    /// Blocks that come over the network if no more packs are found; null: all are compared.
    lacking_bytes: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let set = args.set.open()?;
    let keys = args.key.as_deref().map(keyfile::load).transpose()?;
    let counting = Counting::start("verify", set.manifest.bytes());
    let checked = verify(&set, keys.as_ref(), args.set.jobs as usize, &counting.done);
    drop(counting);
    let report = report(args, &set, &checked);
    if args.json {
        output::json(&report)?;
    } else {
        tell(&report)?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

fn report(args: &Args, set: &DeviceSet, checked: &Checked) -> Report {
    let manifest = &set.manifest;
    let numbered = || checked.packs.iter().enumerate().map(|(index, pack)| (index + 1, pack));
    Report {
        ok: checked.is_whole() && manifest.finished,
        group: manifest.group.to_string(),
        set: manifest.set.to_string(),
        signed: args.set.pki.is_some(),
        sealed: manifest.key.is_some(),
        finished: manifest.finished,
        epoch: manifest.epoch.0,
        seq: manifest.after().position.seq.0,
        packs: manifest.packs.len(),
        bytes: manifest.bytes(),
        missing: numbered()
            .filter(|(_, pack)| **pack == PackState::Missing)
            .map(|(number, _)| number)
            .collect(),
        damaged: numbered()
            .filter_map(|(pack, state)| match state {
                PackState::Damaged(why) => Some(DamagedPack { pack, why: why.clone() }),
                _ => None,
            })
            .collect(),
        volumes_bytes: set.sizes().iter().sum(),
        covered_bytes: checked.covered.bytes(),
        lacking_bytes: checked.lacking.as_ref().map(|lacking| lacking.bytes()),
    }
}

fn tell(report: &Report) -> anyhow::Result<()> {
    for damaged in &report.damaged {
        output::text_line(&format!("pack {} is damaged: {}", damaged.pack, damaged.why))?;
    }
    if !report.missing.is_empty() {
        output::text_line(&format!(
            "not on these devices: packs {}",
            table::numbers(&report.missing)
        ))?;
    }
    let lacking = match report.lacking_bytes {
        Some(0) => "nothing is lacking".into(),
        Some(bytes) => format!("{} are lacking", format_size(bytes)),
        None => "what is lacking is not known, since maps are lost".into(),
    };
    output::text_line(&format!(
        "{}: {} of {} packs are whole, {} of {} covered; {lacking}{}",
        report.group,
        report.packs - report.missing.len() - report.damaged.len(),
        report.packs,
        format_size(report.covered_bytes),
        format_size(report.volumes_bytes),
        if report.finished { "" } else { "; the export is not finished" }
    ))
}
