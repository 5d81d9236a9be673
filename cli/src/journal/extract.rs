//! `towline journal extract`: a volume's content up to a record, onto a copy.
//!
//! Everything is checked before the first byte is written. The base is only read,
//! the source is never opened, and the result is a new file or nothing.

use super::{Place, volume_of};
use crate::exit::{Exit, usage};
use crate::output;
use crate::table::count;
use anyhow::{Context, bail};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use towline_block::size::format_size;
use towline_block::{Extent, VolumeId, is_zero};
use towline_journal::inspect::{Applied, Gaps, GroupView};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// The last record whose change the result has.
    #[arg(long, value_name = "N")]
    to_seq: u64,
    /// The first record to apply; without it, the first that the target lacks. The base
    /// must be the volume as of just before it, or of any moment from there to --to-seq.
    #[arg(long, value_name = "N")]
    from_seq: Option<u64>,
    /// The volume to rebuild.
    #[arg(long, value_name = "NAME")]
    volume: String,
    /// An image of the volume, of its size; it is only read.
    #[arg(long, value_name = "IMAGE")]
    base: PathBuf,
    /// The file to make; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report {
    group: String,
    volume: String,
    /// `written` or `refused`.
    outcome: &'static str,
    from_seq: u64,
    to_seq: u64,
    size_bytes: u64,
    records_applied: u64,
    bytes_applied: u64,
    out: Option<PathBuf>,
    /// The records that are missing or cannot be used, the first of them.
    missing: Vec<MissingLine>,
    missing_count: u64,
}

#[derive(Serialize)]
struct MissingLine {
    seq: u64,
    reason: String,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_ring()?;
    let volume = volume_of(&view, &args.volume)?;
    let first_pending = view.marks().acked + 1;
    let from = args.from_seq.unwrap_or(first_pending);
    if from == 0 || args.to_seq.saturating_add(1) < from {
        return Err(usage(format!(
            "--to-seq {} lies before record {from}, from which on records are applied: give a base \
             from before it and --from-seq",
            args.to_seq
        )));
    }
    let size_bytes = view.volume_size_bytes(volume.index());
    let base = open_base(&view, volume, &args.base, size_bytes)?;
    let gaps = view.gaps(from..=args.to_seq, volume);
    let mut report = Report {
        group: view.state.group.to_string(),
        volume: args.volume.clone(),
        outcome: "refused",
        from_seq: from,
        to_seq: args.to_seq,
        size_bytes,
        records_applied: 0,
        bytes_applied: 0,
        out: None,
        missing: Vec::new(),
        missing_count: gaps.count,
    };
    if gaps.count > 0 {
        return refuse(args, report, &gaps);
    }
    let applied = write(args, &view, &base, volume, from, size_bytes)?;
    report.outcome = "written";
    report.records_applied = applied.records;
    report.bytes_applied = applied.bytes;
    report.out = Some(args.out.clone());
    if args.place.json {
        output::json(&report)?;
    } else {
        output::text_line(&format!(
            "{} holds volume {} as of record {}: {} of base, {} with {} on top",
            args.out.display(),
            report.volume,
            report.to_seq,
            format_size(size_bytes),
            count(applied.records, "record"),
            format_size(applied.bytes)
        ))?;
    }
    Ok(Exit::Ok)
}

fn refuse(args: &Args, mut report: Report, gaps: &Gaps) -> anyhow::Result<Exit> {
    let line =
        |gap: &towline_journal::inspect::Gap| MissingLine { seq: gap.seq, reason: gap.why.clone() };
    report.missing = gaps.first.iter().map(line).collect();
    if args.place.json {
        output::json(&report)?;
    }
    let mut what = format!(
        "volume {} cannot be rebuilt up to record {}; nothing was written",
        args.volume, args.to_seq
    );
    for gap in &gaps.first {
        what.push_str(&format!("\n  record {}: {}", gap.seq, gap.why));
    }
    let more = gaps.count - gaps.first.len() as u64;
    if more > 0 {
        what.push_str(&format!("\n  and {more} more"));
    }
    eprintln!("towline: {what}");
    Ok(Exit::Failed)
}

/// The base, read-only: of the volume's size, and not the source, which holds what
/// comes after the record.
fn open_base(
    view: &GroupView,
    volume: VolumeId,
    path: &Path,
    size_bytes: u64,
) -> anyhow::Result<File> {
    let shown = path.display();
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot open the base {shown}"))?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        bail!("the base {shown} is neither a file nor a block device");
    }
    let source = view.state.volumes.get(volume.index()).map(|v| std::fs::metadata(&v.path));
    if let Some(Ok(source)) = source
        && (source.dev(), source.ino()) == (metadata.dev(), metadata.ino())
    {
        bail!(
            "the base {shown} is the volume's source itself, which holds changes that come after: \
             give an image from before"
        );
    }
    let mut base = File::open(path).with_context(|| format!("cannot open the base {shown}"))?;
    let len = base.seek(SeekFrom::End(0)).with_context(|| format!("cannot size {shown}"))?;
    if len != size_bytes {
        bail!("the base {shown} has {len} bytes where the volume has {size_bytes}");
    }
    Ok(base)
}

fn write(
    args: &Args,
    view: &GroupView,
    base: &File,
    volume: VolumeId,
    from: u64,
    size_bytes: u64,
) -> anyhow::Result<Applied> {
    let shown = args.out.display();
    // A file that is there, be it source or base, is never opened for writing.
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.out)
        .with_context(|| format!("cannot make {shown}"))?;
    let written = fill(view, base, &out, volume, from..=args.to_seq, size_bytes);
    if written.is_err() {
        // Ours, and worth nothing; the error is told.
        let _ = std::fs::remove_file(&args.out);
    }
    written.with_context(|| format!("cannot rebuild the volume in {shown}"))
}

fn fill(
    view: &GroupView,
    base: &File,
    out: &File,
    volume: VolumeId,
    range: std::ops::RangeInclusive<u64>,
    size_bytes: u64,
) -> anyhow::Result<Applied> {
    out.set_len(size_bytes)?;
    copy(base, out, size_bytes)?;
    let io = |e| towline_journal::Error::io("cannot write the copy", e);
    let applied = view.replay(range, volume, |extent, payload| match payload {
        Some(bytes) => out.write_all_at(bytes, extent.offset).map_err(io),
        None => zero(out, extent).map_err(io),
    })?;
    out.sync_all()?;
    Ok(applied)
}

/// Copies what is not zero; the rest stays a hole.
fn copy(base: &File, out: &File, size_bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    for piece in Extent::new(0, size_bytes).pieces(COPY_BYTES as u64) {
        let bytes = &mut buffer[..piece.len as usize];
        base.read_exact_at(bytes, piece.offset)?;
        if !is_zero(bytes) {
            out.write_all_at(bytes, piece.offset)?;
        }
    }
    Ok(())
}

fn zero(out: &File, extent: Extent) -> std::io::Result<()> {
    let zeroes = vec![0; COPY_BYTES.min(extent.len as usize)];
    for piece in extent.pieces(COPY_BYTES as u64) {
        out.write_all_at(&zeroes[..piece.len as usize], piece.offset)?;
    }
    Ok(())
}
