//! Rebuilding a volume's content up to a record: whether the ring holds everything
//! that is needed for it, and the changes in order.
//!
//! A copy of the volume as of any moment from just before `from` to record `to`
//! becomes its content at `to`, if every change between is in the journal: records
//! say what bytes are, so that applying one twice does no harm.

use super::GroupView;
use super::mix::kind_name;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Control, Counter, Kind, SlotState};
use crate::record::Record;
use std::ops::RangeInclusive;
use towline_block::{Extent, VolumeId};

/// Gaps that are told one by one; the rest is counted.
pub const GAPS_MAX: usize = 20;

/// A record that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub seq: u64,
    pub why: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    pub first: Vec<Gap>,
    pub count: u64,
}

impl Gaps {
    fn add(&mut self, seq: u64, why: impl Into<String>) {
        self.count += 1;
        if self.first.len() < GAPS_MAX {
            self.first.push(Gap { seq, why: why.into() });
        }
    }
}

/// What [`GroupView::replay`] handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub records: u64,
    pub bytes: u64,
}

impl GroupView {
    /// What keeps the records of `range` from being every change of `volume` in it.
    pub fn gaps(&self, range: RangeInclusive<u64>, volume: VolumeId) -> Gaps {
        let mut gaps = Gaps::default();
        let (from, to) = (*range.start(), *range.end());
        if from > to {
            return gaps;
        }
        let marks = self.marks();
        let present = self.present();
        if to > marks.head {
            gaps.add(to, format!("the journal ends at record {}", marks.head));
            return gaps;
        }
        if from < *present.start() {
            let oldest = present.start();
            gaps.add(from, format!("its slot was reused: the ring begins at record {oldest}"));
            return gaps;
        }
        if !self.whole_before(from) {
            gaps.add(from, "changes before it went past the journal, and may still do");
        }
        for seq in range {
            match self.read(seq) {
                Some(Ok(record)) => {
                    if let Some(why) = self.unusable(&record, volume, to) {
                        gaps.add(seq, why);
                    }
                }
                Some(Err(fault)) => gaps.add(seq, fault_sentence(fault)),
                None => gaps.add(seq, "there is no ring"),
            }
        }
        gaps
    }

    /// Hands every change of `volume` in `range` to `apply`, in order: its bytes, or
    /// `None` for zeroes.
    ///
    /// # Errors
    /// When a record is gone or damaged by now, or `apply` fails.
    pub fn replay(
        &self,
        range: RangeInclusive<u64>,
        volume: VolumeId,
        mut apply: impl FnMut(Extent, Option<&[u8]>) -> Result<()>,
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        for seq in range {
            let gone = || {
                Error::new(
                    ErrorKind::Refused,
                    format!("record {seq} is not in the ring any more: the target has it now"),
                )
            };
            let record = self.record(seq).ok_or_else(gone)?;
            if record.volume != volume {
                continue;
            }
            match record.kind {
                Kind::Write => {
                    let payload = self.payload(&record).ok_or_else(gone)?;
                    apply(record.extent, Some(&payload))?;
                }
                Kind::Zero | Kind::Trim => apply(record.extent, None)?,
                _ => continue,
            }
            applied.records += 1;
            applied.bytes += record.extent.len;
        }
        Ok(applied)
    }

    fn unusable(&self, record: &Record, volume: VolumeId, to: u64) -> Option<String> {
        let past = matches!(record.control, Some(Control::Break | Control::Resync));
        if record.kind == Kind::Control && past {
            // What follows it may be missing; what precedes it is all there.
            let name = kind_name(record).to_uppercase();
            return (record.seq < to)
                .then(|| format!("from here on changes went past the journal ({name})"));
        }
        if !matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim) || record.volume != volume
        {
            return None;
        }
        match record.state {
            SlotState::Failed => Some("it failed: what the source holds there is not known".into()),
            SlotState::Done => {
                self.payload(record).is_none().then(|| "its payload is damaged or gone".into())
            }
            _ => Some("its outcome is open: the proxy has not finished it".into()),
        }
    }

    /// Whether every change was journaled just before record `seq`: by the nearest
    /// control record before it, else by the first one from it on.
    fn whole_before(&self, seq: u64) -> bool {
        let mut whole = None;
        for (control, record) in self.controls(self.present()) {
            let before = record.seq < seq;
            match control {
                Control::Heal if before => whole = Some(true),
                Control::Break | Control::Resync if before => whole = Some(false),
                Control::Break if whole.is_none() => whole = Some(true),
                Control::Heal | Control::Resync if whole.is_none() => whole = Some(false),
                _ => {}
            }
        }
        whole.unwrap_or_else(|| self.get(Counter::Whole) == 1)
    }
}

fn fault_sentence(fault: super::SlotFault) -> String {
    use super::SlotFault;
    match fault {
        SlotFault::OtherRecord { .. } => "it is not in the ring".into(),
        SlotFault::HeaderChecksum => "its header fails its checksum".into(),
        SlotFault::Field(field) => format!("its field {field} has a value nobody writes"),
    }
}
