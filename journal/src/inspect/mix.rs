//! What the records are: kinds, sizes, alignments.

use super::GroupView;
use crate::format::{Control, Kind};
use crate::record::Record;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Alignments beyond this one say nothing about a workload.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// How many records of one kind, and the bytes they touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindCount {
    pub kind: &'static str,
    pub records: u64,
    pub bytes: u64,
}

/// One bar of a histogram; `upto_bytes` is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub upto_bytes: u64,
    pub records: u64,
    pub bytes: u64,
}

/// Kinds of all records, sizes and alignments of writes and zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    pub records: u64,
    pub kinds: Vec<KindCount>,
    /// A write is in the first bucket that is not smaller than it.
    pub sizes: Vec<Bucket>,
    /// By the largest power of two that divides offset and length.
    pub alignments: Vec<Bucket>,
    /// Begin of the first and of the last record, Unix nanoseconds.
    pub first_ns: u64,
    pub last_ns: u64,
}

/// Counts records into a [`Mix`].
#[derive(Default)]
pub(super) struct Counting {
    records: u64,
    kinds: BTreeMap<&'static str, (u64, u64)>,
    sizes: BTreeMap<u64, (u64, u64)>,
    alignments: BTreeMap<u64, (u64, u64)>,
    times: Option<(u64, u64)>,
}

impl Counting {
    pub fn add(&mut self, record: &Record) {
        let len = record.extent.len;
        self.records += 1;
        let (first, last) = self.times.unwrap_or((u64::MAX, 0));
        self.times = Some((first.min(record.unix_ns), last.max(record.unix_ns)));
        count(&mut self.kinds, kind_name(record), len);
        if is_written(record) {
            count(&mut self.sizes, len.next_power_of_two(), len);
            let bits = (record.extent.offset | len | ALIGNMENT_MAX).trailing_zeros();
            count(&mut self.alignments, 1 << bits, len);
        }
    }

    pub fn end(self) -> Mix {
        let kinds = self.kinds.into_iter();
        let (first_ns, last_ns) = self.times.unwrap_or_default();
        Mix {
            records: self.records,
            kinds: kinds
                .map(|(kind, (records, bytes))| KindCount { kind, records, bytes })
                .collect(),
            sizes: buckets(self.sizes),
            alignments: buckets(self.alignments),
            first_ns,
            last_ns,
        }
    }
}

fn count<K: Ord>(into: &mut BTreeMap<K, (u64, u64)>, key: K, bytes: u64) {
    let entry = into.entry(key).or_default();
    entry.0 += 1;
    entry.1 = entry.1.saturating_add(bytes);
}

fn buckets(counts: BTreeMap<u64, (u64, u64)>) -> Vec<Bucket> {
    let bucket = |(upto_bytes, (records, bytes))| Bucket { upto_bytes, records, bytes };
    counts.into_iter().map(bucket).collect()
}

/// Whether the record is a guest's data: a write, or zeroes written.
pub(super) fn is_written(record: &Record) -> bool {
    matches!(record.kind, Kind::Write | Kind::Zero)
}

/// The word for a record's kind; control records by what they say.
pub fn kind_name(record: &Record) -> &'static str {
    match (record.kind, record.control) {
        (Kind::Void, _) => "void",
        (Kind::Write, _) => "write",
        (Kind::Zero, _) => "zero",
        (Kind::Trim, _) => "trim",
        (Kind::Barrier, _) => "barrier",
        (Kind::Mark, _) => "mark",
        (Kind::Control, Some(Control::Resync)) => "resync",
        (Kind::Control, Some(Control::Break)) => "break",
        (Kind::Control, Some(Control::Heal)) => "heal",
        (Kind::Control, Some(Control::Seal)) => "seal",
        (Kind::Control, None) => "control",
    }
}

impl GroupView {
    /// The mix of the records of a range that the ring shows.
    pub fn mix(&self, range: RangeInclusive<u64>) -> Mix {
        let mut counting = Counting::default();
        self.records(range).for_each(|record| counting.add(&record));
        counting.end()
    }
}
