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
        let known = self.proxy.index.damage_at(seq);
        let ring = self.ring_mut();
        let behind = ring.healed_seq.max(ring.resync_seq) >= seq;
        let exact = !behind || !rules.damage_behind_heal_compares_all;
        let Some((upto, touched)) = known.filter(|_| exact) else {
            self.proxy.link_op = Some(LinkOp::Resync { attach: None, start: None, dirtied: None });
            return;
        };
        if rules.damage_heats {
            self.heat_now(&extents_of(&touched));
        }
        let blocks = if rules.damage_dirties_segment { touched } else { [false; BLOCKS] };
        let answer = Reply::Skipped { upto };
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: None, suspect: false, answer });
    }

    /// The history cannot be read from a record on.
    pub(super) fn begin_history_ended(&mut self, seq: u64) {
        let rest = self.proxy.index.past_touches(seq);
        let blocks = if self.rules.history_end_dirties_rest { rest } else { [false; BLOCKS] };
        let answer = Reply::HistoryEnded;
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: None, suspect: true, answer });
    }

    /// BREAK, then block by block.
    pub(super) fn step_dirty(
        &mut self,
        blocks: BlockSet,
        next: Option<usize>,
        suspect: bool,
        answer: Reply,
    ) {
        let Some(from) = next else {
            self.proxy.lock = Some(Owner::Attach);
            if blocks.contains(&true) || self.rules.damage_breaks_ring {
                self.append_break();
                self.ring_mut().whole = false;
                let at = self.head();
                self.history.broke(at);
            }
            self.proxy.link_op = Some(LinkOp::Dirty { blocks, next: Some(0), suspect, answer });
            return;
        };
        let Some(block) = (from..BLOCKS).find(|block| blocks[*block]) else {
            self.proxy.lock = None;
            self.answer(answer);
            return;
        };
        self.ring_mut().suspect[block] |= suspect;
        self.dirty_whole(block);
        let next = Some(block + 1);
        self.proxy.link_op = Some(LinkOp::Dirty { blocks, next, suspect, answer });
    }
}
