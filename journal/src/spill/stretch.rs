//! What records of a segment are in bytes and time: for the figures of what still waits
//! there. A segment is filled over several uses of the spill; what the target took from
//! memory between two of them is in no segment, and was written by nobody at the pace of
//! what is. So a segment is told in stretches, and estimated only within one. Pure; no I/O.

use super::index::SpanFigures;
use super::layout::SPAN_BYTES_MAX;
use super::runs::Run;

/// A stretch goes on so long at most: how wrong an age within it can be, but where a single
/// span took longer.
const STRETCH_NS_MAX: u64 = 1_000_000_000;

/// Consecutive records, begun one after the other at about the same pace.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    first_seq: u64,
    last_seq: u64,
    bytes: u64,
    /// Times of its first and its last record.
    first_ns: u64,
    last_ns: u64,
}

/// Those of one segment, in the order of their records.
#[derive(Clone, Debug, Default)]
pub struct Stretches(Vec<Stretch>);

impl Stretches {
    /// Of a segment of which no more is known.
    pub fn of_runs(runs: &[Run], bytes: u64, first_ns: u64, last_ns: u64) -> Stretches {
        let count = |run: &Run| (run.last - run.first).saturating_add(1);
        let all = runs.iter().fold(0, |sum: u64, run| sum.saturating_add(count(run)));
        let ns = last_ns.saturating_sub(first_ns);
        let mut before = 0;
        let stretch = |run: &Run| {
            let begun_ns = first_ns.saturating_add(share(ns, before, all));
            before += count(run);
            Stretch {
                first_seq: run.first,
                last_seq: run.last,
                bytes: share(bytes, count(run), all),
                first_ns: begun_ns,
                last_ns: first_ns.saturating_add(share(ns, before, all)),
            }
        };
        Stretches(runs.iter().map(stretch).collect())
    }

    pub fn push(&mut self, span: &SpanFigures<'_>) {
        let goes_on = |last: &&mut Stretch| {
            last.last_seq.checked_add(1) == Some(span.first_seq)
                && last.bytes + span.bytes <= SPAN_BYTES_MAX
                && span.last_ns.saturating_sub(last.first_ns) <= STRETCH_NS_MAX
        };
        match self.0.last_mut().filter(goes_on) {
            Some(last) => {
                (last.last_seq, last.last_ns) = (span.last_seq, span.last_ns);
                last.bytes += span.bytes;
            }
            None => self.0.push(Stretch {
                first_seq: span.first_seq,
                last_seq: span.last_seq,
                bytes: span.bytes,
                first_ns: span.unix_ns,
                last_ns: span.last_ns,
            }),
        }
    }

    /// Bytes that hold records above `acked`.
    pub fn bytes_above(&self, acked: u64) -> u64 {
        self.above(acked).iter().map(|stretch| stretch.bytes_above(acked)).sum()
    }

    /// Time of the oldest record above `acked`.
    pub fn oldest_ns_above(&self, acked: u64) -> Option<u64> {
        self.above(acked).first().map(|stretch| stretch.oldest_ns_above(acked))
    }

    fn above(&self, acked: u64) -> &[Stretch] {
        &self.0[self.0.partition_point(|stretch| stretch.last_seq <= acked)..]
    }
}

impl Stretch {
    fn count(&self) -> u64 {
        (self.last_seq - self.first_seq).saturating_add(1)
    }

    /// Its records up to `acked`.
    fn passed(&self, acked: u64) -> u64 {
        acked.saturating_add(1).saturating_sub(self.first_seq).min(self.count())
    }

    fn bytes_above(&self, acked: u64) -> u64 {
        share(self.bytes, self.count() - self.passed(acked), self.count())
    }

    fn oldest_ns_above(&self, acked: u64) -> u64 {
        let ns = self.last_ns.saturating_sub(self.first_ns);
        self.first_ns.saturating_add(share(ns, self.passed(acked), self.count() - 1))
    }
}

/// `part` of `all` of `whole`.
fn share(whole: u64, part: u64, all: u64) -> u64 {
    (u128::from(whole) * u128::from(part.min(all)) / u128::from(all.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn span(first_seq: u64, last_seq: u64, bytes: u64, ms: (u64, u64)) -> SpanFigures<'static> {
        let (unix_ns, last_ns) = (ms.0 * MS, ms.1 * MS);
        SpanFigures { first_seq, last_seq, bytes, unix_ns, last_ns, touched: &[] }
    }

    fn told(stretches: &Stretches, acked: u64) -> (u64, Option<u64>) {
        let oldest_ns = stretches.oldest_ns_above(acked);
        (stretches.bytes_above(acked), oldest_ns.map(|ns| ns / MS))
    }

    #[test]
    fn what_lies_between_two_uses_is_neither_bytes_nor_time() {
        let mut stretches = Stretches::default();
        assert_eq!(told(&stretches, 0), (0, None));
        stretches.push(&span(11, 20, 40_000, (1_000, 1_900)));
        stretches.push(&span(1_001, 1_010, 80_000, (60_000, 60_900)));
        stretches.push(&span(1_011, 1_020, 80_000, (90_000, 90_900)));
        assert_eq!(stretches.0.len(), 3, "the third goes on with the second, but much later");
        for (acked, is) in [
            (0, (200_000, Some(1_000))),
            (10, (200_000, Some(1_000))),
            (15, (180_000, Some(1_500))),
            (20, (160_000, Some(60_000))),
            (1_000, (160_000, Some(60_000))),
            (1_009, (88_000, Some(60_900))),
            (1_010, (80_000, Some(90_000))),
            (1_020, (0, None)),
            (u64::MAX, (0, None)),
        ] {
            assert_eq!(told(&stretches, acked), is, "{acked}");
        }
    }

    #[test]
    fn small_spans_one_after_the_other_are_one_stretch_up_to_a_second_and_a_large_span() {
        let mut stretches = Stretches::default();
        for seq in 1..=100 {
            stretches.push(&span(seq, seq, 4096, (seq * 100, seq * 100)));
        }
        assert_eq!(stretches.0.len(), 10);
        assert_eq!(told(&stretches, 34), (66 * 4096, Some(3_500)));
        let mut stretches = Stretches::default();
        for seq in 1..=100 {
            stretches.push(&span(seq, seq, SPAN_BYTES_MAX / 2, (seq, seq)));
        }
        assert_eq!(stretches.0.len(), 50);
    }

    #[test]
    fn where_only_runs_are_known_bytes_and_time_are_shared_out_among_their_records() {
        let runs = [Run { first: 1, last: 10 }, Run { first: 91, last: 120 }];
        let stretches = Stretches::of_runs(&runs, 4_000, 1_000 * MS, 5_000 * MS);
        assert_eq!(told(&stretches, 0), (4_000, Some(1_000)));
        assert_eq!(told(&stretches, 10), (3_000, Some(2_000)));
        assert_eq!(told(&stretches, 119), (100, Some(5_000)));
        let absurd = [Run { first: 0, last: u64::MAX }];
        assert_eq!(told(&Stretches::of_runs(&absurd, 4_000, 0, 0), u64::MAX), (0, None));
    }
}
