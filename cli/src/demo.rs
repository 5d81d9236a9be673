//! `towline demo`: the whole way of a disk on this machine, with real processes,
//! real faults and a verdict.
//!
//! Owns everything it starts: processes, mounts, loop devices and files are taken
//! down on every way out, a signal included.

mod checks;
mod guest_fs;
mod guests;
mod image;
mod lab;
mod ledger;
mod plan;
mod process;
mod relay;
mod sampler;
mod summary;
mod timeline;
mod tools;

use crate::config::size_arg;
use crate::exit::{Exit, exit_of, sentence, usage};
use crate::output;
use crate::signals::{Again, Stop};
use anyhow::Context;
use std::path::PathBuf;
use std::time::Duration;
use summary::DemoReport;

/// Below this the faults would come faster than a small machine recovers.
const SECONDS_MIN: u64 = 10;

/// A small disk has no room for an ext4 journal and files.
const SIZE_MIN_BYTES: u64 = 32 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Move a copy of this raw disk image instead of a built file system.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Size of each disk that is built.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size_arg)]
    size: u64,
    /// How long the guest works while things are broken.
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Keep the demo's folder with disks and logs.
    #[arg(long)]
    keep: bool,
    /// Where the demo's folder is made; disks need about eight times --size there.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    crate::prerequisite::check()?;
    if args.seconds < SECONDS_MIN {
        return Err(usage(format!(
            "--seconds {} is too short: take at least {SECONDS_MIN}",
            args.seconds
        )));
    }
    if args.size < SIZE_MIN_BYTES || !args.size.is_multiple_of(4096) {
        return Err(usage("--size is too small or odd: take at least 32M, in multiples of 4K"));
    }
    let stop = Stop::listen(Again::ChangesNothing)?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut scratch = tempfile::Builder::new()
        .prefix("towline-demo-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
    scratch.disable_cleanup(args.keep);
    let settings = timeline::Settings {
        image: args.image.clone(),
        size_bytes: args.size,
        workload: Duration::from_secs(args.seconds),
    };
    let told = timeline::run(&settings, scratch.path(), &stop);
    if args.keep {
        eprintln!("disks and logs are kept in {}", scratch.path().display());
    }
    let (report, text) = told.or_else(|error| {
        if exit_of(&error) != Exit::Failed || !args.json {
            return Err(error);
        }
        // Whoever reads the object has to find the verdict there.
        let why = sentence(&error);
        eprintln!("towline: {why}");
        Ok((DemoReport::broken_off(why), String::new()))
    })?;
    if args.json {
        output::json(&report)?;
    } else {
        output::text_line(&text)?;
    }
    Ok(if report.verdict == "pass" { Exit::Ok } else { Exit::Failed })
}
