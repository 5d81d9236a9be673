//! What must hold when the power is gone: read from the disk it left, on the host.

use super::hot;
use super::image;
use super::target::Target;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use towline_bench::check;
use towline_bench::stamp::History;

/// What a volatile disk holds after a cut.
pub struct Remains {
    /// Copies of the sources, as the guest's kernel will find them.
    pub sources: Vec<PathBuf>,
    /// Blocks of acknowledged, unflushed writes that are gone.
    pub unflushed_lost: u64,
    /// Of the activity map; all there is when it cannot be read.
    pub hot_bytes: u64,
    pub findings: Vec<String>,
}

/// Takes the sources out of the disk's image and judges them: nothing flushed is lost,
/// nothing torn, nothing that was never written.
pub fn source(image: &Path, dir: &Path, group: &str, history: &History) -> Result<Remains> {
    let mut findings: Vec<String> = image::replay(image)?.into_iter().collect();
    let mut sources = Vec::new();
    let mut unflushed_lost = 0;
    for volume in &history.volumes {
        let copy = dir.join(format!("source-{}.img", volume.name));
        let there = image::copy_out(image, &format!("/{}.img", volume.name), &copy)?;
        if !there {
            findings.push(format!("the source of {} is gone", volume.name));
            continue;
        }
        let flushed = check::flushed(volume, &copy)?;
        if !flushed.is_good() {
            findings.push(format!("source after the cut: {flushed}"));
        }
        unflushed_lost += check::acknowledged(volume, &copy)?.violation_count;
        sources.push(copy);
    }
    let sizes: Vec<u64> = sources
        .iter()
        .map(|source| std::fs::metadata(source).map(|meta| meta.len()))
        .collect::<std::io::Result<_>>()?;
    let total = sizes.iter().sum();
    let map = dir.join("activity.map");
    let hot_bytes = match image::copy_out(image, &format!("/state/{group}/activity.map"), &map)? {
        true => hot::hot_bytes(&std::fs::read(&map)?, &sizes, 0).unwrap_or_else(|error| {
            eprintln!("the activity map cannot be read: {error:?}");
            total
        }),
        false => {
            eprintln!("there is no activity map");
            total
        }
    };
    Ok(Remains { sources, unflushed_lost, hot_bytes, findings })
}

/// Brings the target up alone and judges it: at a point of one of the `histories`, or
/// able to go back to one. Gives its state and what is wrong.
pub fn target(
    target: &mut Target,
    kill: bool,
    had_point: bool,
    histories: &[&History],
    dir: &Path,
) -> Result<(String, Vec<String>)> {
    let status = target.settle(kill)?;
    let state = status["state"].as_str().unwrap_or("unbound").to_owned();
    let mut findings = Vec::new();
    let images = match state.as_str() {
        "unbound" | "baseline" if had_point => {
            findings.push(format!("the target had a point and has none: {status}"));
            return Ok((state, findings));
        }
        "unbound" | "baseline" => return Ok((state, findings)),
        "live" => target.images(),
        "resync" => target.rehearse_rollback(&dir.join("rollback"))?,
        _ => {
            findings.push(format!("the target is {state}: {status}"));
            return Ok((state, findings));
        }
    };
    let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
    let mut reports = Vec::new();
    for history in histories {
        let prefix = check::prefix(history, &images)?;
        if prefix.report.is_good() {
            return Ok((state, findings));
        }
        reports.push(prefix.report.to_string());
    }
    findings.push(format!("the target ({state}) is at no point: {}", reports.join("; or: ")));
    Ok((state, findings))
}

/// Two sets of images read the same; else what differs first.
pub fn same(what: &str, ones: &[PathBuf], others: &[PathBuf]) -> Result<Option<String>> {
    for (one, other) in ones.iter().zip(others) {
        let comparison = check::identical(one, other).context("cannot compare")?;
        if !comparison.is_good() {
            return Ok(Some(format!("{what}: {comparison} ({})", other.display())));
        }
    }
    Ok(None)
}
