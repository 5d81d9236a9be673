//! What becomes of records that the spill has lost, in the ring's incarnation and in the
//! history of the one before.

use super::{LinkOp, Owner, Reply};
use crate::activity::extents_of;
use crate::disk::{BLOCKS, BlockSet};
use crate::world::World;

impl World {
    /// A record of the spill cannot be read. The stream has everything before it.
    pub(super) fn begin_damaged(&mut self, seq: u64) {
        let rules = self.rules;
        let Some((upto, touched)) = self.proxy.index.damage_at(seq) else {
            self.proxy.link_op = Some(LinkOp::Resync { attach: None, start: None, dirtied: None });
            return;
        };
        let blocks = if rules.damage_dirties_segment { touched } else { [false; BLOCKS] };
        let answer = Reply::Skipped { upto };
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: None, lost: Some(seq), answer });
    }

    /// A HEAL or RESYNC follows the lost record in the stream.
    fn is_behind(&mut self, seq: u64) -> bool {
        let compares = self.rules.damage_behind_heal_compares_all;
        let ring = self.ring_mut();
        compares && ring.healed_seq.max(ring.resync_seq) >= seq
    }

    /// The history cannot be read from a record on.
    pub(super) fn begin_history_ended(&mut self, seq: u64) {
        let rest = self.proxy.index.past_touches(seq);
        let blocks = if self.rules.history_end_dirties_rest { rest } else { [false; BLOCKS] };
        let answer = Reply::HistoryEnded;
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: None, lost: None, answer });
    }

    /// BREAK, then block by block. `lost`: the record, of this ring; else of the history, and
    /// what it touched is suspect.
    pub(super) fn step_dirty(
        &mut self,
        blocks: BlockSet,
        next: Option<usize>,
        lost: Option<u64>,
        answer: Reply,
    ) {
        let Some(from) = next else {
            // Under the append lock: no HEAL comes between this and the BREAK.
            if lost.is_some_and(|seq| self.is_behind(seq)) {
                self.proxy.link_op =
                    Some(LinkOp::Resync { attach: None, start: None, dirtied: None });
                return;
            }
            self.proxy.lock = Some(Owner::Attach);
            if blocks.contains(&true) || self.rules.damage_breaks_ring {
                self.append_break();
                self.ring_mut().whole = false;
                let at = self.head();
                self.history.broke(at);
            }
            self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: Some(0), lost, answer });
            return;
        };
        let Some(block) = (from..BLOCKS).find(|block| blocks[*block]) else {
            self.proxy.lock = None;
            // Behind the dirty bits, or it could go cold before them; before the answer, since
            // no target has passed the record until then.
            if lost.is_some() && self.rules.damage_heats {
                self.heat_now(&extents_of(&blocks));
            }
            self.answer(answer);
            return;
        };
        self.ring_mut().suspect[block] |= lost.is_none();
        self.dirty_whole(block);
        let next = Some(block + 1);
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next, lost, answer });
    }
}
