//! What the proxy does for the shipper: attach, claim, ack, hold, seal and their ends.
//! Only the proxy writes ring and map.

use super::{Held, Life, Owner, Seal, volume_of};
use crate::activity::EXTENTS;
use crate::disk::{BLOCKS, BlockSet, VOLUMES, volume_of_block};
use crate::parts::Parts;
use crate::ring::{Kind, Pos, SlotState};
use crate::wire::Durable;
use crate::world::World;
use std::collections::VecDeque;
use towline_journal::resume::{Holding, Resume, decide};

/// The socket between the two; gone with either.
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub requests: VecDeque<Req>,
    pub replies: VecDeque<Reply>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Req {
    Attach(Durable),
    Claim,
    Ack {
        pos: Pos,
        claims: u64,
    },
    /// A record of the spill cannot be read.
    Damaged {
        seq: u64,
    },
    /// The history cannot be read from here on.
    HistoryEnded {
        seq: u64,
    },
    Hold {
        attempt: u64,
        until: u64,
    },
    Release,
    Seal {
        attempt: u64,
    },
    Unseal {
        attempt: u64,
    },
    Commit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Attached {
        inc: u32,
        start: u64,
        durable: Durable,
        seal: Option<Seal>,
        promoted: bool,
        history: Option<HistoryPart>,
    },
    /// `None`: nothing to claim now.
    Claimed(Option<Claim>),
    /// The stream breaks and passes all records up to here.
    Skipped {
        upto: u64,
    },
    /// Everything is compared, from this RESYNC on.
    Resynced {
        start: u64,
        claims: u64,
    },
    HistoryEnded,
    Held(u64),
    HoldFailed,
    Sealed(Pos),
    SealFailed,
    Settled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub id: u64,
    /// Granted at: all records up to here precede the blocks in the stream.
    pub granted_at: u64,
    /// Compared before anything is sent.
    pub compare: bool,
    pub blocks: Vec<usize>,
    /// Of each block.
    pub parts: Vec<Parts>,
}

impl Claim {
    pub fn parts_of(&self, block: usize) -> Parts {
        let at = self.blocks.iter().position(|of| *of == block);
        at.and_then(|at| self.parts.get(at).copied().flatten())
    }
}

/// What the proxy remembers of a claim until it is acknowledged.
#[derive(Clone, Debug)]
pub struct Granted {
    pub id: u64,
    pub blocks: Vec<usize>,
    pub parts: Vec<Parts>,
}

/// What the spill has of a lost ring for a target that stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPart {
    pub inc: u32,
    pub first: u64,
    pub last: u64,
    /// What the target has of that incarnation's claims.
    pub claims: u64,
}

/// A request of more than one store.
#[derive(Clone, Debug)]
pub enum LinkOp {
    /// `attach`: what the target has; else it is for a record that is lost.
    Resync {
        attach: Option<Durable>,
        start: Option<u64>,
        dirtied: Option<usize>,
    },
    Dirty {
        blocks: BlockSet,
        next: Option<usize>,
        lost: Option<u64>,
        answer: Reply,
    },
    Claim {
        claim: Claim,
        block: usize,
        store: usize,
    },
    Hold {
        attempt: u64,
        until: u64,
    },
    Seal {
        attempt: u64,
        step: u8,
        pos: Pos,
    },
}

/// The stores of a claim of one block.
#[derive(Clone, Copy)]
enum ClaimStore {
    SetClaimed,
    CountClaimed,
    ClearDirty,
    CountDirty,
}

fn target_of(durable: &Durable) -> towline_journal::Durable {
    let Durable { pos, claims, .. } = *durable;
    let epoch = u32::from(pos.inc > 0);
    towline_journal::Durable { epoch, incarnation: pos.inc, seq: pos.seq, claims }
}

impl World {
    pub fn link_op_uses(&self, volume: usize) -> bool {
        match &self.proxy.link_op {
            Some(LinkOp::Claim { claim, .. }) => volume_of(&claim.blocks) == Some(volume),
            _ => false,
        }
    }

    pub fn link_is_ready(&self) -> bool {
        let Some(link) = &self.link else { return false };
        if !matches!(self.proxy.life, Life::Serving | Life::Retired) {
            return false;
        }
        let idle = (0..VOLUMES).all(|v| !self.proxy.in_flight(v));
        match &self.proxy.link_op {
            Some(LinkOp::Resync { .. } | LinkOp::Dirty { .. }) => {
                self.proxy.lock.is_none_or(|owner| owner == Owner::Attach)
            }
            Some(LinkOp::Hold { .. }) => idle || !self.rules.hold_waits_for_inflight,
            Some(LinkOp::Seal { .. }) => self.proxy.lock.is_none(),
            Some(LinkOp::Claim { .. }) => true,
            None => match link.requests.front() {
                Some(Req::Ack { .. }) => {
                    self.proxy.lock.is_none() || !self.rules.slots_freed_under_lock
                }
                request => request.is_some(),
            },
        }
    }

    /// Requests of an older connection are still in its socket.
    pub fn stale_link_is_ready(&self) -> bool {
        self.proxy.life == Life::Serving
            && self.proxy.link_op.is_none()
            && self.proxy.lock.is_none()
            && !self.stale.is_empty()
    }

    /// Serves them as the proxy serves any, and answers nobody.
    pub fn step_stale_link(&mut self) {
        let current = std::mem::take(&mut self.link);
        let requests = self.stale.pop_front().into_iter().collect();
        self.link = Some(Link { requests, replies: VecDeque::new() });
        self.step_link();
        while let Some(op) = self.proxy.link_op.take() {
            self.step_link_op(op);
        }
        self.link = current;
    }

    pub fn step_link(&mut self) {
        if let Some(op) = self.proxy.link_op.take() {
            self.note(|| format!("link: {op:?}"));
            return self.step_link_op(op);
        }
        let request = self.link.as_mut().and_then(|link| link.requests.pop_front());
        let Some(request) = request else { return };
        self.note(|| format!("link: {request:?}"));
        match request {
            Req::Attach(durable) => {
                if self.rules.link_fence {
                    self.stale.clear();
                }
                self.proxy.link_op =
                    Some(LinkOp::Resync { attach: Some(durable), start: None, dirtied: None });
            }
            Req::Damaged { seq } => self.begin_damaged(seq),
            Req::HistoryEnded { seq } => self.begin_history_ended(seq),
            Req::Claim => self.begin_claim(),
            Req::Ack { pos, claims } => self.ack(pos, claims),
            Req::Hold { .. } if self.proxy.life == Life::Retired || self.state.seal.is_some() => {
                self.answer(Reply::HoldFailed);
            }
            Req::Hold { attempt, until } => {
                self.proxy.held = Some(Held { attempt, until });
                self.proxy.link_op = Some(LinkOp::Hold { attempt, until });
            }
            Req::Release => self.proxy.held = None,
            Req::Seal { attempt } => {
                if let Some(seal) = self.state.seal.filter(|seal| seal.attempt == attempt) {
                    return self.answer(Reply::Sealed(seal.pos));
                }
                let held = self.proxy.held.is_some_and(|held| held.attempt == attempt);
                if held || !self.rules.seal_needs_hold {
                    let pos = Pos::default();
                    self.proxy.link_op = Some(LinkOp::Seal { attempt, step: 0, pos });
                } else {
                    self.answer(Reply::SealFailed);
                }
            }
            Req::Unseal { attempt } => {
                if self.state.seal.is_some_and(|seal| seal.attempt == attempt) {
                    self.state.seal = None;
                }
                // A seal of this attempt must not come true any more.
                self.proxy.held = self.proxy.held.filter(|held| held.attempt != attempt);
                self.answer(Reply::Settled);
            }
            Req::Commit => {
                self.state.promoted = true;
                self.proxy.life = Life::Retired;
                self.answer(Reply::Settled);
            }
        }
    }

    fn step_link_op(&mut self, op: LinkOp) {
        match op {
            LinkOp::Resync { attach, start, dirtied } => self.step_resync(attach, start, dirtied),
            LinkOp::Dirty { blocks, next, lost, answer } => {
                self.step_dirty(blocks, next, lost, answer);
            }
            LinkOp::Claim { claim, block, store } => self.step_claim(claim, block, store),
            LinkOp::Hold { attempt, until } => {
                // The proxy's own deadline may have come first.
                if self.proxy.held == Some(Held { attempt, until }) {
                    let head = self.head().seq;
                    self.answer(Reply::Held(head));
                }
            }
            LinkOp::Seal { attempt, step, pos } => self.step_seal(attempt, step, pos),
        }
    }

    /// The product's own rule: resume, start of a newer incarnation, history, or everything
    /// dirty.
    fn resume_at(&mut self, durable: &Durable) -> Resume {
        let rules = self.rules;
        let history = self.proxy.index.history.clone();
        let ring = self.ring_mut();
        let mut target = target_of(durable);
        let base = ring.base;
        let mut holding = Holding {
            epoch: 1,
            incarnation: ring.inc,
            acked: ring.acked,
            acked_claims: ring.acked_claims,
            done: ring.watermark(),
            base: target_of(&Durable { pos: base.pos, claims: base.claims, ..Durable::default() }),
            history,
        };
        if target.incarnation == holding.incarnation {
            if !rules.resume_checks_position {
                holding.acked = holding.acked.min(target.seq);
            }
            if !rules.resume_checks_claims {
                target.claims = target.claims.max(holding.acked_claims);
            }
        }
        let in_history =
            holding.history.as_ref().is_some_and(|h| h.incarnation == target.incarnation);
        if !rules.resume_checks_base || (in_history && !rules.history_reaches_base) {
            holding.base = towline_journal::Durable::default();
        }
        decide(target, &holding)
    }

    fn step_resync(&mut self, attach: Option<Durable>, start: Option<u64>, dirtied: Option<usize>) {
        if self.proxy.life == Life::Retired {
            let durable = attach.unwrap_or_default();
            return self.attached(durable, 0, None, true);
        }
        match (start, dirtied) {
            (None, _) => match attach.map(|durable| (durable, self.resume_at(&durable))) {
                Some((durable, Resume::From(start))) => {
                    self.ack(durable.pos, durable.claims);
                    self.finish_attach(durable, start, None);
                }
                Some((durable, Resume::History(run))) => {
                    let (inc, claims) = (durable.pos.inc, durable.claims);
                    let part = HistoryPart { inc, first: run.first, last: run.last, claims };
                    self.finish_attach(durable, 1, Some(part));
                }
                _ => self.begin_resync(attach),
            },
            (Some(start), Some(block)) if block < BLOCKS => {
                self.dirty_whole(block);
                let dirtied = Some(block + 1);
                self.proxy.link_op = Some(LinkOp::Resync { attach, start: Some(start), dirtied });
            }
            (Some(start), _) => {
                self.proxy.lock = None;
                match attach {
                    Some(durable) => self.finish_attach(durable, start, None),
                    None => {
                        self.revert_claims();
                        let claims = self.ring_mut().next_claim - 1;
                        self.answer(Reply::Resynced { start, claims });
                    }
                }
            }
        }
    }

    /// Everything becomes dirty, from a RESYNC on.
    fn begin_resync(&mut self, attach: Option<Durable>) {
        let rules = self.rules;
        self.proxy.lock = Some(Owner::Attach);
        if rules.resync_heats_all {
            self.heat_now(&[true; EXTENTS]);
        }
        let ring = self.ring_mut();
        let mut start = ring.slots.front().map_or(ring.head + 1, |slot| slot.seq);
        if rules.fresh_resync {
            ring.floor = ring.head + 1;
            ring.acked = ring.head;
            ring.free_tail();
            if ring.free_slots() == 0 {
                // Requests in flight end by themselves; then there is room.
                self.proxy.lock = None;
                self.proxy.link_op = Some(LinkOp::Resync { attach, start: None, dirtied: None });
                return;
            }
            start = ring.append(Kind::Resync, SlotState::Done);
        } else {
            self.append_break();
        }
        let ring = self.ring_mut();
        ring.whole = false;
        // A target that has nothing is sent everything.
        ring.suspect = [attach.is_none_or(|durable| durable.pos.inc != 0); BLOCKS];
        self.passed_history();
        self.proxy.link_op = Some(LinkOp::Resync { attach, start: Some(start), dirtied: Some(0) });
    }

    /// Claims of older sessions are dirty again, and the new one may begin.
    fn finish_attach(&mut self, durable: Durable, start: u64, history: Option<HistoryPart>) {
        if self.rules.claims_revert_on_new_session {
            self.revert_claims();
        }
        self.attached(durable, start, history, false);
    }

    fn attached(
        &mut self,
        durable: Durable,
        start: u64,
        history: Option<HistoryPart>,
        promoted: bool,
    ) {
        let (inc, seal) = match promoted {
            true => (0, None),
            false => (self.head().inc, self.state.seal),
        };
        self.answer(Reply::Attached { inc, start, durable, seal, promoted, history });
    }

    /// The target has the first record of this incarnation, or will never need older ones.
    fn passed_history(&mut self) {
        self.proxy.index.end_history();
        let acked = self.ring_mut().acked;
        self.proxy.index.release(acked);
    }

    pub fn ack(&mut self, pos: Pos, claims: u64) {
        if self.proxy.life != Life::Serving || pos.inc != self.head().inc {
            return;
        }
        let ended: Vec<Granted>;
        (ended, self.proxy.claims) =
            self.proxy.claims.drain(..).partition(|claim| claim.id <= claims);
        let ring = self.ring_mut();
        let rises = pos.seq > ring.acked;
        ring.acked = ring.acked.max(pos.seq);
        ring.acked_claims = ring.acked_claims.max(claims);
        for block in ended.into_iter().flat_map(|claim| claim.blocks) {
            ring.suspect[block] = false;
            ring.clear_claimed(block);
        }
        if self.rules.slots_freed_by_ack {
            self.ring_mut().free_tail();
        }
        if rises {
            self.passed_history();
        }
    }

    fn begin_claim(&mut self) {
        let rules = self.rules;
        let busy: Vec<bool> = (0..VOLUMES)
            .map(|v| self.proxy.in_flight(v) && rules.claim_waits_for_inflight)
            .collect();
        let want = 1 + self.rng.below(2);
        let first_block = self.rng.below(BLOCKS);
        if self.proxy.life != Life::Serving {
            return self.answer(Reply::Claimed(None));
        }
        let ring = self.ring_mut();
        let free = |b: usize| {
            ring.dirty[b]
                && (!ring.claimed[b] || !rules.no_second_claim)
                && !busy[volume_of_block(b)]
        };
        let first = (0..BLOCKS).map(|i| (first_block + i) % BLOCKS).find(|b| free(*b));
        let Some(first) = first else { return self.answer(Reply::Claimed(None)) };
        let compare = ring.suspect[first];
        let same = |b: &usize| {
            volume_of_block(*b) == volume_of_block(first) && free(*b) && ring.suspect[*b] == compare
        };
        let blocks: Vec<usize> = (first..BLOCKS).take_while(same).take(want).collect();
        let (id, parts) = (ring.next_claim, vec![None; blocks.len()]);
        ring.next_claim += 1;
        self.proxy.claims.push(Granted { id, blocks: blocks.clone(), parts: parts.clone() });
        let claim = Claim { id, granted_at: self.head().seq, compare, blocks, parts };
        self.proxy.link_op = Some(LinkOp::Claim { claim, block: 0, store: 0 });
    }

    fn step_claim(&mut self, mut claim: Claim, block: usize, store: usize) {
        use ClaimStore::*;
        let rules = self.rules;
        let order = if !rules.claimed_before_clean {
            [ClearDirty, SetClaimed, CountClaimed, CountDirty]
        } else if !rules.claim_counts_never_both_zero {
            [SetClaimed, ClearDirty, CountDirty, CountClaimed]
        } else {
            [SetClaimed, CountClaimed, ClearDirty, CountDirty]
        };
        let ring = self.ring_mut();
        let at = claim.blocks[block];
        match order[store] {
            SetClaimed => ring.claimed[at] = true,
            CountClaimed => ring.claimed_count += 1,
            ClearDirty => {
                ring.dirty[at] = false;
                claim.parts[block] = self.proxy.parts[at].take().filter(|_| !claim.compare);
                if let Some(granted) = self.proxy.claims.iter_mut().find(|c| c.id == claim.id) {
                    granted.parts[block] = claim.parts[block];
                }
            }
            CountDirty => ring.dirty_count -= 1,
        }
        let (block, store) = if store == 3 { (block + 1, 0) } else { (block, store + 1) };
        if block < claim.blocks.len() {
            self.proxy.link_op = Some(LinkOp::Claim { claim, block, store });
            return;
        }
        let ring = self.ring_mut();
        claim.granted_at = ring.head;
        if !rules.no_second_claim {
            // What is to be found is the lost block, not that the fault counts twice.
            ring.recount();
        }
        self.answer(Reply::Claimed(Some(claim)));
    }

    fn step_seal(&mut self, attempt: u64, step: u8, pos: Pos) {
        let next = match step {
            0 => {
                self.source.flush();
                LinkOp::Seal { attempt, step: 1, pos }
            }
            1 => {
                if self.ring_mut().free_slots() == 0 {
                    return self.answer(Reply::SealFailed);
                }
                self.ring_mut().append(Kind::Seal, SlotState::Done);
                LinkOp::Seal { attempt, step: 2, pos: self.head() }
            }
            _ => {
                self.proxy.held = None;
                self.answer(Reply::Sealed(pos));
                self.state.seal = Some(Seal { attempt, pos });
                return;
            }
        };
        self.proxy.link_op = Some(next);
    }

    /// The shipper is gone in the middle of a request. A claim has begun on its volume's
    /// thread and ends there; a seal may or may not have come through; the rest stops.
    pub fn abandon_link_op(&mut self) {
        let goes_on = match &self.proxy.link_op {
            Some(LinkOp::Claim { .. }) => true,
            Some(LinkOp::Dirty { .. }) => self.proxy.lock.is_none_or(|o| o == Owner::Attach),
            Some(LinkOp::Seal { .. }) => self.proxy.lock.is_none() && self.rng.chance(50),
            _ => false,
        };
        while goes_on && let Some(op) = self.proxy.link_op.take() {
            self.step_link_op(op);
        }
        self.proxy.link_op = None;
        if self.proxy.lock == Some(Owner::Attach) {
            self.proxy.lock = None;
        }
    }

    pub(super) fn answer(&mut self, reply: Reply) {
        if let Some(link) = &mut self.link {
            link.replies.push_back(reply);
        }
    }
}
