//! Every block holds the last write that had to survive, or one issued after it.

use super::report::{Fault, Report};
use super::scan::{ops_by_block, scan};
use crate::error::Result;
use crate::stamp::{Kind, Op, Outcome, Seen, VolumeHistory};
use std::path::Path;

/// Checks one volume's image against every acknowledged write. The history must be
/// complete: a guest that still runs acknowledges writes that the image will only later
/// hold.
pub fn acknowledged(history: &VolumeHistory, image: &Path) -> Result<Report> {
    check(history, image, "acknowledged", |op| op.acked_at().is_some())
}

/// Checks one volume's image after a power cut: against writes acknowledged as FUA, or
/// before a flush was issued that was acknowledged. What came later may be there or not,
/// block by block.
pub fn flushed(history: &VolumeHistory, image: &Path) -> Result<Report> {
    let flushed_up_to = history.flushed_up_to();
    check(history, image, "durable", |op| {
        op.acked_at().is_some_and(|at| op.fua || at < flushed_up_to)
    })
}

fn check(
    history: &VolumeHistory,
    image: &Path,
    promise: &str,
    must_survive: impl Fn(&Op) -> bool,
) -> Result<Report> {
    let by_block = ops_by_block(history);
    let mut report = Report {
        acked_writes: history.ops.iter().filter(|op| must_survive(op)).count() as u64,
        ..Report::default()
    };
    scan(history, image, |block, seen| {
        report.checked_blocks += 1;
        report.stamped_blocks += u64::from(matches!(seen, Seen::Stamp(_)));
        let ops = by_block[block as usize].iter().map(|index| &history.ops[*index as usize]);
        let last = ops.clone().rev().find(|op| must_survive(op));
        if let Err((fault, detail)) = judge(history, block, seen, ops, (promise, last)) {
            report.violate(fault, &history.name, block, || detail);
        }
    })?;
    Ok(report)
}

fn judge<'a>(
    history: &VolumeHistory,
    block: u64,
    seen: Seen,
    ops: impl DoubleEndedIterator<Item = &'a Op> + Clone,
    (promise, last): (&str, Option<&Op>),
) -> std::result::Result<(), (Fault, String)> {
    let last_id = last.map_or(0, |op| op.id);
    match seen {
        Seen::Torn => Err((Fault::Torn, format!("last {promise} write {last_id}"))),
        Seen::Zero => {
            let zeroed_since =
                ops.clone().any(|op| op.id > last_id && op.kind == Kind::Zero && !refused(op));
            match last {
                Some(op) if op.kind == Kind::Write && !zeroed_since => {
                    Err((Fault::Lost, format!("zero, but write {} is {promise}", op.id)))
                }
                _ => Ok(()),
            }
        }
        Seen::Stamp(stamp) => {
            find_writer(history, block, seen, ops)?;
            if stamp.id >= last_id {
                return Ok(());
            }
            Err((Fault::Stale, format!("write {}, but {last_id} is {promise}", stamp.id)))
        }
    }
}

/// The write that a stamp names, or what is wrong with the stamp.
pub(super) fn find_writer<'a>(
    history: &VolumeHistory,
    block: u64,
    seen: Seen,
    mut ops: impl Iterator<Item = &'a Op>,
) -> std::result::Result<Option<&'a Op>, (Fault, String)> {
    let Seen::Stamp(stamp) = seen else { return Ok(None) };
    if stamp.volume != history.volume || stamp.block != block {
        let detail = format!("write {} of volume {} block {}", stamp.id, stamp.volume, stamp.block);
        return Err((Fault::Foreign, detail));
    }
    match ops.find(|op| op.id == stamp.id && op.kind == Kind::Write) {
        None => Err((Fault::Foreign, format!("write {}, which was never issued", stamp.id))),
        Some(op) if refused(op) => {
            Err((Fault::Refused, format!("write {}, which the server refused", stamp.id)))
        }
        Some(op) => Ok(Some(op)),
    }
}

pub(super) fn refused(op: &Op) -> bool {
    op.outcome == Outcome::Refused
}
