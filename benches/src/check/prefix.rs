//! The images of all volumes together are one moment of the guest's history.
//!
//! A set of writes is such a moment if with each write it holds all writes that
//! were acknowledged before that one was issued, and each acknowledged write whole.
//! The checker builds the smallest such set that contains what the images show:
//! each block shows a write (or zero); that write and all acknowledged ones under
//! it are present; what was acknowledged before the latest present write was issued
//! is present too. A block must show a write not older than any present one. Where
//! a zero block may be the work of several zeroings, the oldest that satisfies the
//! rest is taken, so the set stays smallest and a failure is certain.
//!
//! Writes with unknown outcome may be there or not, block by block.

use super::acknowledged::{find_writer, refused};
use super::report::{Fault, Report};
use super::scan::{ops_by_block, scan};
use crate::error::{Error, ErrorKind, Result};
use crate::stamp::{History, Kind, Op, Seen, VolumeHistory};
use std::path::Path;

/// The verdict, and where in the history the images are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub report: Report,
    /// Place of issue of the latest write present; 0 when none is.
    pub position: u64,
    /// Acknowledged writes that are not part of it: how old the state is.
    pub missing_acked: u64,
}

/// Checks the images of all volumes of a group, in the order of the history.
pub fn prefix(history: &History, images: &[&Path]) -> Result<Prefix> {
    if images.len() != history.volumes.len() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} images for {} volumes", images.len(), history.volumes.len()),
        ));
    }
    let mut report = Report::default();
    let mut volumes = Vec::new();
    for (volume, image) in history.volumes.iter().zip(images) {
        volumes.push(Volume::read(volume, image, &mut report)?);
    }
    let mut closure = Closure::new(volumes);
    closure.seed();
    closure.close(&mut report);
    let acked = history.volumes.iter().map(|v| v.acked_ops().count() as u64).sum::<u64>();
    report.acked_writes = acked;
    Ok(Prefix { report, position: closure.position, missing_acked: acked - closure.present_count })
}

/// What a block can be taken to show: ids of writes that leave it as it is seen,
/// rising, and the one taken. Empty for damaged blocks, which are reported already.
#[derive(Default)]
struct Shown {
    candidates: Vec<u64>,
    taken: usize,
}

impl Shown {
    fn id(&self) -> u64 {
        self.candidates.get(self.taken).copied().unwrap_or(0)
    }

    /// Takes the oldest candidate that is not older than `id`; false if none is left.
    fn raise(&mut self, id: u64) -> bool {
        match self.candidates[self.taken..].iter().position(|candidate| *candidate >= id) {
            Some(steps) => {
                self.taken += steps;
                true
            }
            None => false,
        }
    }
}

struct Volume<'a> {
    history: &'a VolumeHistory,
    by_block: Vec<Vec<u32>>,
    shown: Vec<Shown>,
    present: Vec<bool>,
}

impl<'a> Volume<'a> {
    fn read(history: &'a VolumeHistory, image: &Path, report: &mut Report) -> Result<Volume<'a>> {
        let by_block = ops_by_block(history);
        let mut shown = Vec::with_capacity(by_block.len());
        scan(history, image, |block, seen| {
            report.checked_blocks += 1;
            report.stamped_blocks += u64::from(matches!(seen, Seen::Stamp(_)));
            let ops = by_block[block as usize].iter().map(|index| &history.ops[*index as usize]);
            let candidates = match seen {
                Seen::Torn => {
                    report.violate(Fault::Torn, &history.name, block, || "no stamp".into());
                    Vec::new()
                }
                Seen::Zero => std::iter::once(0)
                    .chain(ops.filter(|op| op.kind == Kind::Zero && !refused(op)).map(|op| op.id))
                    .collect(),
                Seen::Stamp(_) => match find_writer(history, block, seen, ops) {
                    Ok(writer) => writer.map(|op| op.id).into_iter().collect(),
                    Err((fault, detail)) => {
                        report.violate(fault, &history.name, block, || detail);
                        Vec::new()
                    }
                },
            };
            shown.push(Shown { candidates, taken: 0 });
        })?;
        let present = vec![false; history.ops.len()];
        Ok(Volume { history, by_block, shown, present })
    }
}

/// Why a write must be present.
#[derive(Clone, Copy)]
enum Reason {
    /// A block of it shows it, or something written over it.
    Block(u64),
    /// It was acknowledged before the write issued here.
    Before(u64),
}

/// The smallest legal set of writes around what the images show.
struct Closure<'a> {
    volumes: Vec<Volume<'a>>,
    /// All acknowledged writes by place of acknowledgement: (place, volume, op).
    acked: Vec<(u64, usize, u32)>,
    acked_passed: usize,
    queue: Vec<(usize, u32, Reason)>,
    position: u64,
    present_count: u64,
}

impl<'a> Closure<'a> {
    fn new(volumes: Vec<Volume<'a>>) -> Closure<'a> {
        let mut acked = Vec::new();
        for (number, volume) in volumes.iter().enumerate() {
            for (index, op) in volume.history.ops.iter().enumerate() {
                acked.extend(op.acked_at().map(|at| (at, number, index as u32)));
            }
        }
        acked.sort_unstable();
        Closure {
            volumes,
            acked,
            acked_passed: 0,
            queue: Vec::new(),
            position: 0,
            present_count: 0,
        }
    }

    fn seed(&mut self) {
        for number in 0..self.volumes.len() {
            for block in 0..self.volumes[number].shown.len() {
                self.taken(number, block as u64);
            }
        }
    }

    /// A block shows another write than before: it and those under it are present.
    fn taken(&mut self, number: usize, block: u64) {
        let volume = &mut self.volumes[number];
        let id = volume.shown[block as usize].id();
        self.position = self.position.max(id);
        for index in &volume.by_block[block as usize] {
            let op = &volume.history.ops[*index as usize];
            if op.id > id {
                break;
            }
            if op.acked_at().is_some() && !volume.present[*index as usize] {
                volume.present[*index as usize] = true;
                self.queue.push((number, *index, Reason::Block(block)));
            }
        }
    }

    fn close(&mut self, report: &mut Report) {
        loop {
            while let Some((number, index, reason)) = self.queue.pop() {
                self.present_count += 1;
                self.require(number, index, reason, report);
            }
            // All that was acknowledged before the latest present write was issued.
            let Some(&(at, number, index)) = self.acked.get(self.acked_passed) else { return };
            if at > self.position {
                return;
            }
            self.acked_passed += 1;
            let present = &mut self.volumes[number].present[index as usize];
            if !*present {
                *present = true;
                self.queue.push((number, index, Reason::Before(self.position)));
            }
        }
    }

    /// Each block of a present write must show it or a later one.
    fn require(&mut self, number: usize, index: u32, reason: Reason, report: &mut Report) {
        let history = self.volumes[number].history;
        let op: Op = history.ops[index as usize];
        for block in op.blocks() {
            let shown = &mut self.volumes[number].shown[block as usize];
            if shown.candidates.is_empty() || shown.id() >= op.id {
                continue;
            }
            if shown.raise(op.id) {
                self.taken(number, block);
                continue;
            }
            let id = shown.id();
            match reason {
                Reason::Block(seen_at) => {
                    report.violate(Fault::Partial, &history.name, block, || {
                        format!(
                            "write {} is in block {seen_at} but not here, which shows {id}",
                            op.id
                        )
                    })
                }
                Reason::Before(later) => {
                    report.violate(Fault::Reordered, &history.name, block, || {
                        format!(
                            "write {} was acknowledged before write {later} was issued, which is \
                             present; this block shows {id}",
                            op.id
                        )
                    });
                }
            }
        }
    }
}
