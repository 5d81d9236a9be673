//! The demo's verdict. Nothing here asks Towline: images are read as files and
//! judged by what the guest knows.
//!
//! "Identical at the cutover point" means: the source, frozen by the seal, and the
//! target differ in no block, except in those that the guest wrote at the target
//! afterwards. On a stamped volume these are the blocks of writes issued after the
//! newest write that the source holds; the mounted volume is copied before its
//! guest goes on, so there is no exception at all.

use super::guest_fs;
use super::guests::{Done, LEDGER_FOLDER};
use super::image;
use super::ledger;
use super::plan::{FS, FsRole, Plan, Volume};
use anyhow::{Context, ensure};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use towline_bench::check;
use towline_bench::stamp::{STAMP_BYTES, Seen, VolumeHistory, read};

/// Bytes read at a time: whole stamped blocks.
const PIECE_BYTES: usize = 256 * STAMP_BYTES;

/// What a check says: it held, did not (why), or there was nothing to check (why).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Holds(String),
    Fails(String),
    Absent(String),
}

impl Verdict {
    pub fn of(result: anyhow::Result<String>) -> Verdict {
        match result {
            Ok(detail) => Verdict::Holds(detail),
            Err(error) => Verdict::Fails(crate::exit::sentence(&error)),
        }
    }

    pub fn is_failure(&self) -> bool {
        matches!(self, Verdict::Fails(_))
    }
}

/// Everything the verdict rests on.
pub struct Findings {
    pub acked_on_target: Verdict,
    pub identical_at_cut: Verdict,
    pub fsck: Verdict,
    pub lost_writes: u64,
    pub verified_bytes: u64,
}

/// The mounted or idle volume, as it was at the cutover point.
pub struct FsAtCut<'a> {
    /// A copy of the target's volume, taken before its guest went on.
    pub copy: &'a Path,
    /// Transactions whose commit had returned by then.
    pub committed: u64,
}

/// Judges the volumes after the guest has ended.
pub fn judge(
    plan: &Plan,
    role: &FsRole,
    done: &Done,
    at_cut: Option<&FsAtCut<'_>>,
) -> anyhow::Result<Findings> {
    let mut verified_bytes = 0;
    let mut same = Vec::new();
    let mut acked = check::Report::default();
    for history in &done.history.volumes {
        let volume = plan.find(&history.name)?;
        same.push(identical_but_later_writes(history, volume));
        acked.add(check::acknowledged(history, &volume.target)?);
        verified_bytes += volume.size_bytes;
    }
    let mut database = Ok(0);
    let mut fsck = Verdict::Absent("no ext file system is on these volumes".into());
    if let Some(at_cut) = at_cut {
        let volume = plan.find(FS)?;
        same.push(identical(&volume.source, at_cut.copy).map(|()| volume.size_bytes));
        verified_bytes += volume.size_bytes;
        if plan.fs_is_ext {
            fsck = Verdict::of(check_file_system(plan, at_cut.copy));
        }
        if *role == FsRole::Mounted {
            database = check_database(plan, at_cut);
        }
    }
    let same: anyhow::Result<Vec<u64>> = same.into_iter().collect();
    let lost_writes = acked.violation_count;
    Ok(Findings {
        acked_on_target: Verdict::of(acked_verdict(&acked, database, role)),
        identical_at_cut: Verdict::of(same.map(|sizes| {
            let bytes = sizes.iter().sum();
            format!("{} compared", towline_block::size::format_size(bytes))
        })),
        fsck,
        lost_writes,
        verified_bytes,
    })
}

fn acked_verdict(
    acked: &check::Report,
    database: anyhow::Result<u64>,
    role: &FsRole,
) -> anyhow::Result<String> {
    ensure!(acked.is_good(), "{acked}");
    let last = database.context("the database in the copy taken at the cut")?;
    let mut text = format!("{} stamped writes, prefilled ones included", acked.acked_writes);
    if *role == FsRole::Mounted {
        text.push_str(&format!(", {last} database transactions"));
    }
    Ok(text)
}

fn identical(source: &Path, target: &Path) -> anyhow::Result<()> {
    let compared = check::identical(source, target)?;
    ensure!(compared.is_good(), "{} and {}: {compared}", source.display(), target.display());
    Ok(())
}

/// Compares a stamped volume whose guest went on at the target.
fn identical_but_later_writes(history: &VolumeHistory, volume: &Volume) -> anyhow::Result<u64> {
    let newest = newest_stamp(&volume.source)?;
    let later: HashSet<u64> =
        history.ops.iter().filter(|op| op.id > newest).flat_map(|op| op.blocks()).collect();
    let mut block = 0;
    for_each_pair(&volume.source, &volume.target, |source, target| {
        ensure!(
            source == target || later.contains(&block),
            "volume {} differs in block {block}: {:?} at the source, {:?} at the target",
            history.name,
            seen(source),
            seen(target)
        );
        block += 1;
        Ok(())
    })?;
    Ok(volume.size_bytes)
}

/// The id of the newest write that an image holds.
fn newest_stamp(image: &Path) -> anyhow::Result<u64> {
    let mut newest = 0;
    for_each_pair(image, image, |block, _| {
        if let Some(Seen::Stamp(stamp)) = seen(block) {
            newest = newest.max(stamp.id);
        }
        Ok(())
    })?;
    Ok(newest)
}

/// What a block shows; a tail shorter than a block shows nothing.
fn seen(block: &[u8]) -> Option<Seen> {
    (block.len() == STAMP_BYTES).then(|| read(block))
}

/// Calls `see` with each block of two images of one size, in order.
fn for_each_pair(
    one: &Path,
    other: &Path,
    mut see: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut left, mut right) = (open(one)?, open(other)?);
    let mut rest = left.metadata()?.len();
    ensure!(
        rest == right.metadata()?.len(),
        "{} and {} differ in size",
        one.display(),
        other.display()
    );
    let (mut a, mut b) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    while rest > 0 {
        let len = rest.min(PIECE_BYTES as u64) as usize;
        left.read_exact(&mut a[..len])?;
        right.read_exact(&mut b[..len])?;
        for (left, right) in a[..len].chunks(STAMP_BYTES).zip(b[..len].chunks(STAMP_BYTES)) {
            see(left, right)?;
        }
        rest -= len as u64;
    }
    Ok(())
}

/// fsck of a copy of the copy: replaying the journal changes it.
fn check_file_system(plan: &Plan, at_cut: &Path) -> anyhow::Result<String> {
    let copy = plan.dir.join("scratch/fsck.raw");
    image::copy(at_cut, &copy)?;
    image::fsck(&copy)?;
    std::fs::remove_file(&copy)?;
    Ok("e2fsck: journal replayed, clean".into())
}

/// Looks into the database as it was at the cut. The copy is changed by the
/// replay of the file system's journal.
fn check_database(plan: &Plan, at_cut: &FsAtCut<'_>) -> anyhow::Result<u64> {
    let copy = plan.dir.join("scratch/database.raw");
    image::copy(at_cut.copy, &copy)?;
    let last = guest_fs::look_inside(&copy, &plan.dir.join("scratch/look"), |root| {
        ledger::verify(&root.join(LEDGER_FOLDER), at_cut.committed)
    });
    std::fs::remove_file(&copy)?;
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use towline_bench::stamp::{Kind, Op, Order, Outcome, Stamp};

    /// A volume whose source and target hold the same stamped blocks, and one
    /// later write at the target.
    fn volume(dir: &Path) -> (VolumeHistory, Volume) {
        let source = dir.join("source.raw");
        File::create(&source).unwrap().set_len(1 << 20).unwrap();
        let order = Order::default();
        let mut history = VolumeHistory::prefilled(0, "stamp", &source, &order).unwrap();
        let target = dir.join("target.raw");
        std::fs::copy(&source, &target).unwrap();
        let id = order.tick();
        write(&target, Stamp { id, volume: 0, block: 3 });
        history.ops.push(Op {
            id,
            kind: Kind::Write,
            first_block: 3,
            block_count: 1,
            fua: false,
            outcome: Outcome::Acked(order.tick()),
        });
        (history, Volume { name: "stamp", source, target, size_bytes: 1 << 20 })
    }

    fn write(image: &Path, stamp: Stamp) {
        let mut block = vec![0; STAMP_BYTES];
        stamp.fill(&mut block);
        let file = File::options().write(true).open(image).unwrap();
        file.write_all_at(&block, stamp.block * STAMP_BYTES as u64).unwrap();
    }

    #[test]
    fn writes_after_the_cut_are_the_only_difference_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (history, volume) = volume(dir.path());
        identical_but_later_writes(&history, &volume).unwrap();
        let file = File::options().write(true).open(&volume.target).unwrap();
        file.write_all_at(&[1], 5 * STAMP_BYTES as u64 + 7).unwrap();
        let error = identical_but_later_writes(&history, &volume).unwrap_err().to_string();
        assert!(error.contains("block 5"), "{error}");
    }

    #[test]
    fn a_write_that_only_the_source_has_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, volume) = volume(dir.path());
        let id = history.ops.last().unwrap().id + 10;
        write(&volume.source, Stamp { id, volume: 0, block: 9 });
        history.ops.push(Op {
            id,
            kind: Kind::Write,
            first_block: 9,
            block_count: 1,
            fua: false,
            outcome: Outcome::Acked(id + 1),
        });
        assert!(identical_but_later_writes(&history, &volume).is_err());
    }

    #[test]
    fn images_of_different_sizes_are_not_identical() {
        let dir = tempfile::tempdir().unwrap();
        let (history, volume) = volume(dir.path());
        File::options().write(true).open(&volume.target).unwrap().set_len(1 << 19).unwrap();
        assert!(identical_but_later_writes(&history, &volume).is_err());
        assert!(identical(&volume.source, &volume.target).is_err());
    }
}
