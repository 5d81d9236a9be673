//! Many power cuts of a real guest: `scripts/powercut`.
//!
//! A line a cut on standard error, one JSON object on standard output; exit status 1 when
//! anything was found. A life in which something was found keeps its folder.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use towline_tests::machine;
use towline_tests::powercut::{Cut, Durability, Life, Outcome, Phase, plan};
use towline_tests::volatile::Flushes;

const USAGE: &str = "usage: scripts/powercut [--cuts N] [--seed S] [--mode process|flush|write] \
                     [--dir DIR] [--life N] [--phases baseline,steady,...]";

struct Args {
    cuts: usize,
    seed: u64,
    only: Option<Durability>,
    dir: PathBuf,
    /// Only this one of the plan's lives.
    life: Option<usize>,
    /// One life with these phases, in place of the plan.
    phases: Vec<Phase>,
}

fn main() -> Result<ExitCode> {
    let args = parse(std::env::args().skip(1))?;
    if let Some(reason) = machine::unavailable() {
        bail!("cannot boot a guest: {reason}");
    }
    std::fs::create_dir_all(&args.dir)?;
    let from = Instant::now();
    let mut outcomes = Vec::new();
    let lives = match args.phases.is_empty() {
        true => plan::lives(args.seed, args.cuts, args.only),
        false => vec![plan::of_phases(args.seed, &args.phases, args.only)],
    };
    for (number, cuts) in lives.iter().enumerate() {
        if args.life.is_none_or(|only| only == number) {
            live(number, cuts, &args.dir, &mut outcomes);
        }
    }
    let summary = summary(&args, &outcomes, from.elapsed().as_secs_f64());
    println!("{summary:#}");
    let failed = outcomes.iter().any(|outcome| !outcome.findings.is_empty());
    Ok(if failed || outcomes.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
    let dir = std::env::temp_dir().join(format!("towline-powercut-{}", std::process::id()));
    let mut args = Args { cuts: 50, seed: 1, only: None, dir, life: None, phases: Vec::new() };
    while let Some(word) = words.next() {
        let Some(value) = words.next() else { bail!("{word} needs a value; {USAGE}") };
        match word.as_str() {
            "--cuts" => args.cuts = value.parse()?,
            "--seed" => args.seed = value.parse()?,
            "--dir" => args.dir = value.into(),
            "--phases" => args.phases = phases(&value)?,
            "--life" => args.life = Some(value.parse()?),
            "--mode" => {
                let named = Durability::ALL.into_iter().find(|mode| mode.name() == value);
                let Some(mode) = named else { bail!("no mode {value}; {USAGE}") };
                args.only = Some(mode);
            }
            _ => bail!("unknown option {word}; {USAGE}"),
        }
    }
    Ok(args)
}

fn phases(words: &str) -> Result<Vec<Phase>> {
    let phase = |word: &str| {
        let found = Phase::ALL.into_iter().find(|phase| phase.name() == word);
        found.ok_or_else(|| anyhow::anyhow!("no phase {word}; {USAGE}"))
    };
    words.split(',').map(phase).collect()
}

/// One life: stops at the first finding, for what comes after would follow from it.
fn live(number: usize, cuts: &[Cut], root: &Path, outcomes: &mut Vec<Outcome>) {
    let dir = root.join(format!("life{number}"));
    let mut own: Vec<Outcome> = Vec::new();
    let mut told = 0;
    let mut life = match Life::new(number, &dir, Flushes::Kept) {
        Ok(life) => life,
        Err(error) => {
            eprintln!("life {number} does not begin: {error:?}");
            outcomes.push(Outcome::failed(number, &cuts[0], format!("{error:?}")));
            return;
        }
    };
    for cut in cuts {
        let made = life.cut(cut, own.last_mut());
        let before = own.len();
        match made {
            Ok(outcome) => own.push(outcome),
            Err(error) => {
                let known = own.last().is_some_and(|last| !last.findings.is_empty());
                if !known {
                    own.push(Outcome::failed(number, cut, format!("{error:?}")));
                }
            }
        }
        tell(&own[..before], &mut told, outcomes.len());
        if own.iter().any(|outcome| !outcome.findings.is_empty()) {
            break;
        }
    }
    let good = own.iter().all(|outcome| outcome.findings.is_empty());
    if let (true, Some(last)) = (good, own.last_mut())
        && let Err(error) = life.finish(last)
        && last.findings.is_empty()
    {
        last.findings.push(format!("{error:?}"));
    }
    tell(&own, &mut told, outcomes.len());
    if own.iter().any(|outcome| !outcome.findings.is_empty()) {
        let kept = life.keep_disk();
        eprintln!("evidence: {} {kept:?}", dir.display());
    } else {
        drop(life);
        let _ = std::fs::remove_dir_all(&dir);
    }
    outcomes.append(&mut own);
}

/// A cut is told when its recovery is known.
fn tell(own: &[Outcome], told: &mut usize, before: usize) {
    for outcome in &own[*told..] {
        eprintln!("{}", outcome.line(before + *told));
        for finding in &outcome.findings {
            eprintln!("    {finding}");
        }
        *told += 1;
    }
}

fn summary(args: &Args, outcomes: &[Outcome], elapsed_s: f64) -> Value {
    let mut by = BTreeMap::<String, u64>::new();
    for outcome in outcomes {
        for key in [outcome.cut.phase.name(), outcome.cut.durability.name()] {
            *by.entry(key.into()).or_default() += 1;
        }
    }
    let sum = |of: &dyn Fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let recovered = outcomes.iter().filter_map(|outcome| outcome.recovery);
    json!({
        "schema": 1,
        "verdict": if sum(&|o| o.findings.len() as u64) == 0 { "pass" } else { "fail" },
        "seed": args.seed,
        "cuts": outcomes.len(),
        "cuts_by": by,
        "findings": sum(&|o| o.findings.len() as u64),
        "acked_writes": sum(&|o| o.acked),
        "flushes": sum(&|o| o.flushes),
        "disk_blocks_cached": sum(&|o| o.disk.atoms),
        "disk_blocks_lost": sum(&|o| o.disk.lost),
        "unflushed_blocks_lost": sum(&|o| o.unflushed_lost),
        "recoveries_compared_in_full": recovered.clone().filter(|r| r.whole_s.is_some()).count(),
        "recoveries_below_everything": outcomes.iter().filter(|o| {
            o.recovery.is_some() && o.hot_bytes < o.total_bytes
        }).count(),
        "recoveries_with_history": recovered.clone().filter(|r| r.history_bytes > 0).count(),
        "serving_s_max": recovered.map(|r| r.serving_s).fold(0.0, f64::max),
        "elapsed_s": elapsed_s,
        "outcomes": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
    })
}
