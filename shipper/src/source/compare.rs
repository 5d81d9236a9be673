//! Suspect blocks under way: asked for, waiting for the target's verdict, being sent
//! where they differ (docs/design/0003). Claims are settled in order.

use crate::wire::Compared;
use std::collections::VecDeque;
use towline_block::{BLOCK_BYTES, Extent};
use towline_journal::Claim;

/// Claims compared at once: 8 x 4 MiB keep both disks busy over a round trip.
const CLAIMS_MAX: usize = 8;

#[derive(Default)]
pub(crate) struct Compares {
    claims: VecDeque<Asked>,
    /// The chunk that was read last waits for its batch number.
    unnumbered: bool,
}

struct Asked {
    claim: Claim,
    /// Batches whose verdict is still to come.
    open: Vec<u64>,
    /// The whole claim has been asked for.
    complete: bool,
    differing: VecDeque<Extent>,
}

impl Asked {
    fn is_answered(&self) -> bool {
        self.complete && self.open.is_empty()
    }
}

impl Compares {
    pub fn is_busy(&self) -> bool {
        !self.claims.is_empty()
    }

    pub fn are_enough(&self) -> bool {
        self.claims.len() >= CLAIMS_MAX
    }

    /// A chunk of a compare claim was read; `asks`: it holds comparisons.
    pub fn read(&mut self, claim: &Claim, asks: bool, is_last: bool) {
        let known = self.claims.back().is_some_and(|asked| asked.claim.id == claim.id);
        if !known {
            let (claim, open, differing) = (claim.clone(), Vec::new(), VecDeque::new());
            self.claims.push_back(Asked { claim, open, complete: false, differing });
        }
        if let Some(asked) = self.claims.back_mut() {
            asked.complete = is_last;
        }
        self.unnumbered = asks;
    }

    /// The chunk that was read last is batch `number`.
    pub fn shipped(&mut self, number: u64) {
        if std::mem::take(&mut self.unnumbered)
            && let Some(asked) = self.claims.back_mut()
        {
            asked.open.push(number);
        }
    }

    /// What the target says of one batch. Nonsense is as good as no answer.
    pub fn verdict(&mut self, verdict: &Compared) {
        let Some(asked) = self.claims.iter_mut().find(|asked| asked.claim.id == verdict.claim)
        else {
            return;
        };
        let Some(at) = asked.open.iter().position(|number| *number == verdict.number) else {
            return;
        };
        let blocks = asked.claim.range();
        let (first, end) = (blocks.first * BLOCK_BYTES, blocks.end() * BLOCK_BYTES);
        for range in &verdict.differs {
            let extent = Extent::new(range.offset, range.len);
            let is_ours = range.volume == asked.claim.volume.0
                && range.offset.is_multiple_of(BLOCK_BYTES)
                && (1..=BLOCK_BYTES).contains(&range.len)
                && first <= extent.offset
                && extent.end() <= end;
            if is_ours {
                asked.differing.push_back(extent);
            } else {
                tracing::warn!(?range, "the target names a range that was not compared");
            }
        }
        asked.open.swap_remove(at);
    }

    /// Takes claims off the front that turned out equal; the last one's id.
    pub fn pop_equal(&mut self) -> Option<u64> {
        let mut last = None;
        while let Some(front) = self.claims.front()
            && front.is_answered()
            && front.differing.is_empty()
        {
            last = Some(front.claim.id);
            self.claims.pop_front();
        }
        last
    }

    /// Blocks of the front claim that differ, when all of it was answered.
    pub fn front_differing(&self, count_max: usize) -> Option<(&Claim, Vec<Extent>)> {
        let front = self.claims.front().filter(|front| front.is_answered())?;
        Some((&front.claim, front.differing.iter().take(count_max).copied().collect()))
    }

    /// So many of them are in the stream; the claim's id if those were the last.
    pub fn sent(&mut self, count: usize) -> Option<u64> {
        let front = self.claims.front_mut()?;
        front.differing.drain(..count.min(front.differing.len()));
        if !front.differing.is_empty() {
            return None;
        }
        self.claims.pop_front().map(|asked| asked.claim.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Differing;
    use towline_block::VolumeId;

    fn claim(id: u64) -> Claim {
        let first_block = id * 64;
        let volume = VolumeId(0);
        Claim { id, volume, first_block, blocks: 64, compare: true, granted_at: 0, parts: vec![] }
    }

    fn differs(claim: u64, block: u64) -> Differing {
        Differing { volume: 0, offset: (claim * 64 + block) * BLOCK_BYTES, len: BLOCK_BYTES }
    }

    fn asked(ids: &[u64]) -> Compares {
        let mut compares = Compares::default();
        for id in ids {
            compares.read(&claim(*id), true, true);
            compares.shipped(100 + id);
        }
        compares
    }

    #[test]
    fn claims_settle_in_order_whatever_the_order_of_verdicts() {
        let mut compares = asked(&[1, 2, 3]);
        compares.verdict(&Compared { number: 102, claim: 2, differs: vec![] });
        assert_eq!(compares.pop_equal(), None);
        compares.verdict(&Compared { number: 101, claim: 1, differs: vec![] });
        assert_eq!(compares.pop_equal(), Some(2));
        assert!(compares.front_differing(9).is_none(), "3 is not answered");
        let verdict = vec![differs(3, 5), differs(3, 9)];
        compares.verdict(&Compared { number: 103, claim: 3, differs: verdict });
        assert_eq!(compares.pop_equal(), None);
        assert_eq!(compares.front_differing(1).unwrap().1.len(), 1);
        assert_eq!(compares.sent(1), None);
        assert_eq!(compares.front_differing(9).unwrap().1.len(), 1);
        assert_eq!(compares.sent(1), Some(3));
        assert!(!compares.is_busy());
    }

    #[test]
    fn verdicts_on_other_batches_and_other_ranges_count_for_nothing() {
        let mut compares = asked(&[1]);
        compares.verdict(&Compared { number: 7, claim: 1, differs: vec![] });
        compares.verdict(&Compared { number: 101, claim: 9, differs: vec![] });
        assert_eq!(compares.pop_equal(), None, "still open");
        let mut outside = vec![differs(2, 0), differs(1, 3)];
        outside[1].len = u64::MAX;
        compares.verdict(&Compared { number: 101, claim: 1, differs: outside });
        assert_eq!(compares.pop_equal(), Some(1));
    }

    #[test]
    fn a_claim_without_a_question_needs_no_verdict() {
        let mut compares = Compares::default();
        compares.read(&claim(1), true, false);
        compares.shipped(5);
        compares.read(&claim(1), false, true);
        compares.shipped(6);
        assert_eq!(compares.pop_equal(), None);
        compares.verdict(&Compared { number: 5, claim: 1, differs: vec![] });
        assert_eq!(compares.pop_equal(), Some(1));
    }
}
