//! `towline device import`.

use super::{Counting, DamagedPack, SetArgs};
use crate::config::{self, Disk};
use crate::exit::Exit;
use crate::output;
use crate::table;
use serde::Serialize;
use std::path::PathBuf;
use towline_block::size::format_size;
use towline_shipper::device::{ImportConfig, Imported, import};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    set: SetArgs,
    /// State directory of the receiver, which does not run.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where a volume goes, as for `towline receive`.
    #[arg(long = "target", value_name = "NAME=PATH", required = true)]
    targets: Vec<Disk>,
    /// Keys of sealed packs.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Nothing more comes: what is missing or damaged is sent over the network.
    #[arg(long)]
    without_missing: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    group: String,
    /// The receiver can be started.
    ready: bool,
    /// An earlier call had done it.
    already: bool,
    packs: usize,
    imported: usize,
    missing: Vec<usize>,
    damaged: Vec<DamagedPack>,
    /// What comes over the network because it is lost; null: not known yet, or all is
    /// compared, or an earlier call said it.
    lacking_bytes: Option<u64>,
    has_point: bool,
    epoch: u32,
    seq: u64,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let trust = args.set.trust()?;
    crate::prerequisite::check()?;
    let total = args.set.open()?.manifest.bytes();
    let keys = config::keys(args.key.as_deref(), &args.state)?;
    let config = ImportConfig {
        devices: args.set.devices,
        group: args.set.group,
        trust,
        state_dir: args.state,
        targets: args.targets.into_iter().map(|target| (target.name, target.path)).collect(),
        keys,
        jobs: args.set.jobs as usize,
        without_missing: args.without_missing,
    };
    let counting = Counting::start("import", total);
    let imported = import(&config, &counting.done)?;
    drop(counting);
    let ready = imported.stands.is_some();
    match args.json {
        true => output::json(&report(&imported))?,
        false => tell(&imported)?,
    }
    Ok(if ready { Exit::Ok } else { Exit::Failed })
}

fn report(imported: &Imported) -> Report {
    let stands = imported.stands.as_ref();
    let position = stands.map(|stands| stands.after.position).unwrap_or_default();
    let damaged = imported.damaged.iter().map(|(pack, why)| (*pack, why.clone()));
    Report {
        group: imported.group.to_string(),
        ready: stands.is_some(),
        already: imported.already,
        packs: imported.packs,
        imported: imported.done,
        missing: imported.missing.clone(),
        damaged: damaged.map(|(pack, why)| DamagedPack { pack, why }).collect(),
        lacking_bytes: stands.and_then(|stands| stands.lacking_bytes),
        has_point: stands.is_some_and(|stands| stands.after.whole),
        epoch: position.epoch.0,
        seq: position.seq.0,
    }
}

fn tell(imported: &Imported) -> anyhow::Result<()> {
    for (pack, why) in &imported.damaged {
        output::text_line(&format!("pack {pack} is damaged: {why}"))?;
    }
    if !imported.missing.is_empty() {
        output::text_line(&format!(
            "not on these devices: packs {}",
            table::numbers(&imported.missing)
        ))?;
    }
    let (group, done, packs) = (&imported.group, imported.done, imported.packs);
    let text = match &imported.stands {
        None => format!(
            "{group}: {done} of {packs} packs are imported. Bring the others and call this again with \
             their folders; if nothing more comes, add --without-missing: the network sends what is lost"
        ),
        Some(stands) if imported.already => format!(
            "{group}: already imported, nothing is left to do. Start the receiver on this state \
             directory and these targets, then the shipper: it goes on at seq {}",
            stands.after.position.seq.0
        ),
        Some(stands) => {
            let lost = match stands.lacking_bytes {
                Some(0) => "nothing is lost".into(),
                Some(bytes) => format!("{} are lost and come over the network", format_size(bytes)),
                None => "what is lost is not known: everything is compared over the network".into(),
            };
            format!(
                "{group}: {done} of {packs} packs are imported, {lost}. Start the receiver on this \
                 state directory and these targets, then the shipper: it goes on at seq {}",
                stands.after.position.seq.0
            )
        }
    };
    output::text_line(&text)
}
