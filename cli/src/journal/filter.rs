//! Which records are meant: by kind, volume, number and time.

use super::volume_of;
use crate::exit::usage;
use crate::when;
use std::ops::RangeInclusive;
use std::str::FromStr;
use towline_block::VolumeId;
use towline_journal::inspect::{GroupView, kind_name};
use towline_journal::{Record, unix_now_ns};

const KINDS: [&str; 10] =
    ["write", "zero", "trim", "barrier", "mark", "void", "resync", "break", "heal", "seal"];

#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Only this volume's records.
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,
    /// Only records of these kinds, separated by commas: write, zero, trim, barrier, mark,
    /// void, control, or a control record's own name: resync, break, heal, seal.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Range {
    /// Only these numbers, ends included: A..B, A.., ..B or A.
    #[arg(long, value_name = "A..B")]
    seq: Option<SeqRange>,
    /// Only records begun at or after this moment: RFC 3339, or how long ago (-5m).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only records begun at or before this moment.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// Also records that the target has already, while the ring still holds them.
    #[arg(long)]
    pub all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRange {
    from: u64,
    to: u64,
}

impl FromStr for SeqRange {
    type Err = String;

    fn from_str(text: &str) -> Result<SeqRange, String> {
        let bad = || format!("{text:?} is no range of records: write A..B, A.., ..B or A");
        let number = |text: &str, open: u64| match text {
            "" => Ok(open),
            digits => digits.parse().map_err(|_| bad()),
        };
        let (from, to) = match text.split_once("..") {
            Some((from, to)) => (number(from, 0)?, number(to, u64::MAX)?),
            None => (text.parse().map_err(|_| bad())?, text.parse().map_err(|_| bad())?),
        };
        if from > to {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(SeqRange { from, to })
    }
}

/// A selection made ready for a group.
#[derive(Default)]
pub struct Filter {
    volume: Option<VolumeId>,
    kinds: Vec<String>,
    since_ns: u64,
    until_ns: Option<u64>,
}

impl Filter {
    pub fn new(view: &GroupView, selection: &Selection) -> anyhow::Result<Filter> {
        for kind in &selection.kind {
            if !KINDS.contains(&kind.as_str()) && kind != "control" {
                return Err(usage(format!(
                    "{kind:?} is no kind of record: there are {}, and control",
                    KINDS.join(", ")
                )));
            }
        }
        let volume = selection.volume.as_ref().map(|name| volume_of(view, name)).transpose()?;
        Ok(Filter { volume, kinds: selection.kind.clone(), ..Filter::default() })
    }

    pub fn within(mut self, range: &Range) -> anyhow::Result<Filter> {
        let now = unix_now_ns();
        if let Some(since) = &range.since {
            self.since_ns = when::parse(since, now)?;
        }
        self.until_ns = range.until.as_ref().map(|text| when::parse(text, now)).transpose()?;
        Ok(self)
    }

    /// Everything passes.
    pub fn is_open(&self) -> bool {
        self.volume.is_none()
            && self.kinds.is_empty()
            && self.since_ns == 0
            && self.until_ns.is_none()
    }

    pub fn passes(&self, record: &Record) -> bool {
        let kind = kind_name(record);
        let of_kind =
            |wanted: &String| wanted == kind || wanted == "control" && record.control.is_some();
        let touches = !matches!(kind, "resync" | "break" | "heal" | "seal" | "control" | "void");
        self.volume.is_none_or(|volume| touches && record.volume == volume)
            && (self.kinds.is_empty() || self.kinds.iter().any(of_kind))
            && record.unix_ns >= self.since_ns
            && self.until_ns.is_none_or(|until| record.unix_ns <= until)
    }
}

impl Range {
    /// The numbers to look at.
    pub fn numbers(&self, view: &GroupView) -> RangeInclusive<u64> {
        let range = if self.all { view.present() } else { view.pending() };
        match self.seq {
            Some(seq) => seq.from.max(*range.start())..=seq.to.min(*range.end()),
            None => range,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_numbers_read_as_written() {
        for (text, from, to) in
            [("3..9", 3, 9), ("3..", 3, u64::MAX), ("..9", 0, 9), ("7", 7, 7), ("..", 0, u64::MAX)]
        {
            assert_eq!(text.parse(), Ok(SeqRange { from, to }), "{text}");
        }
        for bad in ["", "a", "9..3", "-1..2", "1...2", "1..2..3"] {
            assert!(bad.parse::<SeqRange>().is_err(), "{bad}");
        }
    }
}
