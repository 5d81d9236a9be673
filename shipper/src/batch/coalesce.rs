//! What survives when later operations of a batch overwrite earlier ones.
//!
//! Pure: ranges in, pieces out. Never looks across a fence: what has no range (a mark,
//! a control record) keeps everything before it as it was when it was passed.

use std::collections::BinaryHeap;

/// One operation of a table, as far as overwriting goes. The later in the slice, the
/// later in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Bytes `start..end` of a volume. Only a write can be `cut`: a zero or trim stays one
    /// operation while anything of it is left, since it costs the same whole.
    Range {
        volume: u16,
        start: u64,
        end: u64,
        cut: bool,
    },
    Fence,
}

/// What is left of operation `row`: all of it, or one of several pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece {
    pub row: usize,
    pub start: u64,
    pub end: u64,
}

/// The pieces that are left, by row, then by place. `None`: nothing is overwritten.
pub(crate) fn survivors(spans: &[Span]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut overlaps = false;
    let mut from = 0;
    for section in spans.split_inclusive(|span| *span == Span::Fence) {
        overlaps |= sweep(section, from, &mut pieces);
        from += section.len();
    }
    if !overlaps {
        return None;
    }
    pieces.sort_unstable();
    pieces.dedup();
    Some(pieces)
}

/// Sweeps one section from the lowest byte to the highest; at each place the latest row
/// that covers it wins. Answers whether anything overlapped.
fn sweep(section: &[Span], from: usize, pieces: &mut Vec<Piece>) -> bool {
    let mut ranges: Vec<_> = section
        .iter()
        .enumerate()
        .filter_map(|(at, span)| match *span {
            Span::Range { volume, start, end, .. } => Some((volume, start, end, from + at)),
            Span::Fence => None,
        })
        .collect();
    ranges.sort_unstable();
    let overlaps = ranges.windows(2).any(|pair| match *pair {
        [(volume, _, end, _), (next, start, ..)] => volume == next && start < end,
        _ => false,
    });
    let whole = |row: usize| match section[row - from] {
        Span::Range { start, end, cut: false, .. } => Some((start, end)),
        _ => None,
    };
    let mut push = |row: usize, start: u64, end: u64| {
        let (start, end) = whole(row).unwrap_or((start, end));
        match pieces.last_mut() {
            Some(last) if last.row == row && last.end == start => last.end = end,
            _ => pieces.push(Piece { row, start, end }),
        }
    };
    for (at, span) in section.iter().enumerate() {
        if *span == Span::Fence {
            push(from + at, 0, 0);
        }
    }
    // Rows that cover the place, the latest on top; rows that ended are dropped when seen.
    let mut covering: BinaryHeap<(usize, u64)> = BinaryHeap::new();
    let mut next = ranges.into_iter().peekable();
    while let Some(&(volume, first, ..)) = next.peek() {
        let mut place = first;
        loop {
            while let Some((_, _, end, row)) =
                next.next_if(|range| range.0 == volume && range.1 <= place)
            {
                covering.push((row, end));
            }
            while covering.peek().is_some_and(|(_, end)| *end <= place) {
                covering.pop();
            }
            let Some(&(row, end)) = covering.peek() else { break };
            let upto = match next.peek() {
                Some(&(other, start, ..)) if other == volume => end.min(start),
                _ => end,
            };
            push(row, place, upto);
            place = upto;
        }
    }
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(start: u64, end: u64) -> Span {
        Span::Range { volume: 0, start, end, cut: true }
    }

    fn left(spans: &[Span]) -> Vec<(usize, u64, u64)> {
        let pieces = survivors(spans).expect("something overlaps");
        pieces.into_iter().map(|piece| (piece.row, piece.start, piece.end)).collect()
    }

    #[test]
    fn nothing_is_moved_where_nothing_overlaps() {
        let other = Span::Range { volume: 1, start: 0, end: 8, cut: true };
        assert_eq!(survivors(&[write(8, 16), write(0, 8), other, write(16, 20)]), None);
        assert_eq!(survivors(&[]), None);
    }

    #[test]
    fn the_last_writer_of_a_byte_wins() {
        assert_eq!(left(&[write(0, 8), write(0, 8)]), [(1, 0, 8)]);
        assert_eq!(left(&[write(0, 8), write(4, 12)]), [(0, 0, 4), (1, 4, 12)]);
        assert_eq!(left(&[write(0, 12), write(4, 8)]), [(0, 0, 4), (0, 8, 12), (1, 4, 8)]);
        assert_eq!(left(&[write(4, 8), write(0, 12)]), [(1, 0, 12)]);
    }

    #[test]
    fn a_zero_is_dropped_whole_or_kept_whole() {
        let zero = Span::Range { volume: 0, start: 0, end: 100, cut: false };
        assert_eq!(left(&[write(0, 8), zero, write(40, 48)]), [(1, 0, 100), (2, 40, 48)]);
        assert_eq!(left(&[zero, write(0, 100)]), [(1, 0, 100)]);
    }

    #[test]
    fn nothing_is_coalesced_across_a_fence() {
        assert_eq!(survivors(&[write(0, 8), Span::Fence, write(0, 8)]), None);
        assert_eq!(
            left(&[write(0, 8), write(0, 8), Span::Fence, write(0, 8)]),
            [(1, 0, 8), (2, 0, 0), (3, 0, 8)]
        );
    }

    /// What a small volume holds after rows were applied in order.
    fn applied(rows: impl Iterator<Item = (usize, u16, u64, u64)>) -> [[usize; 64]; 2] {
        let mut disk = [[usize::MAX; 64]; 2];
        for (row, volume, start, end) in rows {
            disk[usize::from(volume)][start as usize..end as usize].fill(row);
        }
        disk
    }

    proptest! {
        #[test]
        fn the_disk_is_the_same_with_and_without_coalescing(
            ranges in prop::collection::vec((0u16..2, 0u64..60, 1u64..32, any::<bool>(), 0u8..10), 0..30),
        ) {
            let spans: Vec<_> = ranges.iter().map(|&(volume, start, len, cut, fence)| match fence {
                0 => Span::Fence,
                _ => Span::Range { volume, start, end: (start + len).min(64), cut },
            }).collect();
            let range = |row: usize| match spans[row] {
                Span::Range { volume, start, end, .. } => Some((row, volume, start, end)),
                Span::Fence => None,
            };
            let Some(pieces) = survivors(&spans) else { return Ok(()) };
            // Also at every fence: what was passed there is what it was.
            for upto in 0..=spans.len() {
                if upto < spans.len() && spans[upto] != Span::Fence {
                    continue;
                }
                let plain = applied((0..upto).filter_map(range));
                let kept = pieces.iter().filter(|piece| piece.row < upto);
                let coalesced = applied(kept.filter_map(|piece| {
                    range(piece.row).map(|(row, volume, ..)| (row, volume, piece.start, piece.end))
                }));
                prop_assert_eq!(plain, coalesced);
            }
            // Nothing is shipped twice: pieces of writes in a section do not overlap.
            for (at, one) in pieces.iter().enumerate() {
                for two in &pieces[at + 1..] {
                    let cut = |row: usize| matches!(spans[row], Span::Range { cut: true, .. });
                    let fenced = spans[one.row..two.row].contains(&Span::Fence);
                    let (Some(a), Some(b)) = (range(one.row), range(two.row)) else { continue };
                    let apart = a.1 != b.1 || one.end <= two.start || two.end <= one.start;
                    prop_assert!(apart || fenced || !cut(one.row) || !cut(two.row));
                }
            }
        }
    }
}
