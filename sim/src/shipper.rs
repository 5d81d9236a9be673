//! The shipper: one ordered stream of batches, cut from the ring or read for a claim.
//! Remembers nothing over a kill but a page of counters; where it goes on is the receiver's
//! durable position. `shipper/drive.rs` drives the cutover.

mod drive;

use crate::disk::{CELLS_PER_BLOCK, cells_of};
use crate::proxy::{Claim, HistoryPart, Life, Link, Reply, Req};
use crate::ring::{Kind, Pos, Slot, SlotState};
use crate::spill::Read;
use crate::wire::{
    BATCH_RECORDS_MAX, Batch, Body, Conn, Durable, ToReceiver, ToShipper, WINDOW_BATCHES,
};
use crate::world::World;
use std::collections::VecDeque;
use towline_control::Cutover;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Idle,
    /// The receiver was asked what it has.
    Hello,
    /// The proxy was asked where to go on.
    Attaching,
    Running,
    /// The target has taken over.
    Over,
}

/// Everything a kill takes away.
#[derive(Clone, Debug)]
pub struct Shipper {
    pub alive: bool,
    pub stage: Stage,
    pub conn: u64,
    pub inc: u32,
    pub next_seq: u64,
    number: u64,
    hash: u64,
    claims_sent: u64,
    /// Numbers of batches under way.
    window: VecDeque<u64>,
    pub claim: Option<Walk>,
    claim_asked: bool,
    /// Records of a lost ring that come first.
    history: Option<HistoryPart>,
    /// The proxy was told of a record that cannot be read.
    damage_told: bool,
    pub durable: Durable,
    pub cutover: Option<Cutover>,
    /// `DrainCheck` up to here.
    pub drain_to: Option<u64>,
    /// To be sent when the stream has passed the position.
    pub promote: Option<(u64, Pos)>,
    /// `Commit` or `Unseal`, repeated until the proxy has confirmed it.
    pub settle: Option<Req>,
    pub settle_asked: bool,
}

/// A claim on its way: granted, read block by block, sent part by part. A compare claim is
/// asked part by part, waits for the verdicts, and what differs is read and sent.
#[derive(Clone, Debug)]
pub struct Walk {
    claim: Claim,
    pass: Pass,
    /// Blocks of this pass.
    blocks: Vec<usize>,
    read: Vec<Part>,
    sent: usize,
    /// Questions without a verdict: batch and what was asked.
    asked: Vec<(u64, Part)>,
    differing: Vec<Part>,
}

type Part = (usize, [u32; CELLS_PER_BLOCK]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Ask,
    Wait,
    Send,
}

impl Walk {
    fn new(claim: Claim) -> Walk {
        let pass = if claim.compare { Pass::Ask } else { Pass::Send };
        let blocks = claim.blocks.clone();
        let (read, asked, differing) = (Vec::new(), Vec::new(), Vec::new());
        Walk { claim, pass, blocks, read, sent: 0, asked, differing }
    }

    /// All questions of the claim are in the stream.
    fn all_asked(&mut self) {
        self.pass = Pass::Wait;
        self.blocks.clear();
        self.read.clear();
        self.sent = 0;
    }

    fn verdict(&mut self, number: u64, named: bool, block: usize, differs: bool, again: bool) {
        let is_it = |(of, part): &(u64, Part)| (!named || *of == number) && part.0 == block;
        let Some(at) = self.asked.iter().position(is_it) else { return };
        let (_, part) = self.asked.remove(at);
        if differs {
            self.differing.push(part);
        }
        if self.asked.is_empty() && self.pass == Pass::Wait {
            self.pass = Pass::Send;
            self.blocks = self.differing.iter().map(|part| part.0).collect();
            if !again {
                self.read = std::mem::take(&mut self.differing);
            }
        }
    }
}

impl Shipper {
    pub fn dead() -> Shipper {
        Shipper {
            alive: false,
            stage: Stage::Idle,
            conn: 0,
            inc: 0,
            next_seq: 0,
            number: 0,
            hash: 0,
            claims_sent: 0,
            window: VecDeque::new(),
            claim: None,
            claim_asked: false,
            history: None,
            damage_told: false,
            durable: Durable::default(),
            cutover: None,
            drain_to: None,
            promote: None,
            settle: None,
            settle_asked: false,
        }
    }
}

/// What is shipped of a record.
fn cut_kind(slot: &Slot) -> Kind {
    match slot.state {
        SlotState::Failed => Kind::Void,
        _ => slot.kind.clone(),
    }
}

/// Things the shipper can do of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShipStep {
    Connect,
    TakeReply,
    Cut,
    AskClaim,
    Read,
    SendPart,
    Settle,
    Drive,
}

impl World {
    pub fn ship_steps(&self, steps: &mut Vec<ShipStep>) {
        let s = &self.shipper;
        if !s.alive || s.stage == Stage::Over {
            return;
        }
        if s.stage == Stage::Idle {
            if matches!(self.proxy.life, Life::Serving | Life::Retired) && self.receiver.alive {
                steps.push(ShipStep::Connect);
            }
            return;
        }
        if self.link.as_ref().is_some_and(|link| !link.replies.is_empty()) {
            steps.push(ShipStep::TakeReply);
        }
        if s.stage != Stage::Running {
            return;
        }
        self.stream_steps(steps);
        if s.settle.is_some() && !s.settle_asked {
            steps.push(ShipStep::Settle);
        }
        if self.cutover_can_move() {
            steps.push(ShipStep::Drive);
        }
    }

    fn stream_steps(&self, steps: &mut Vec<ShipStep>) {
        let s = &self.shipper;
        if s.damage_told {
            return;
        }
        let room = s.window.len() < WINDOW_BATCHES || !self.rules.window_bounded;
        if s.history.is_some() {
            if room {
                steps.push(ShipStep::Cut);
            }
            return;
        }
        let reading = s.claim.as_ref().is_some_and(|walk| !walk.read.is_empty());
        if room && self.drainable() >= s.next_seq && (!reading || !self.rules.no_cut_while_reading)
        {
            steps.push(ShipStep::Cut);
        }
        let Some(walk) = &s.claim else {
            let dirty = self.ring.as_ref().is_some_and(|ring| ring.dirty_count > 0);
            if dirty && !s.claim_asked {
                steps.push(ShipStep::AskClaim);
            }
            return;
        };
        let passed = s.next_seq > walk.claim.granted_at || !self.rules.cut_through_p_before_read;
        if walk.pass == Pass::Wait {
            return;
        }
        if walk.read.len() < walk.blocks.len() {
            if passed {
                steps.push(ShipStep::Read);
            }
        } else if room {
            steps.push(ShipStep::SendPart);
        }
    }

    /// Records up to here may be cut.
    fn drainable(&self) -> u64 {
        match &self.ring {
            Some(ring) if self.rules.drain_to_watermark => ring.watermark(),
            Some(ring) => match ring.slots.iter().find(|s| s.state == SlotState::Reserved) {
                Some(slot) => slot.seq - 1,
                None => ring.head,
            },
            None => 0,
        }
    }

    pub fn step_shipper(&mut self, step: ShipStep) {
        self.note(|| format!("shipper: {step:?}"));
        match step {
            ShipStep::Connect => self.connect(),
            ShipStep::TakeReply => self.take_reply(),
            ShipStep::Cut if self.shipper.history.is_some() => self.cut_history(),
            ShipStep::Cut => self.cut(),
            ShipStep::AskClaim => {
                self.shipper.claim_asked = true;
                self.ask(Req::Claim);
            }
            ShipStep::Read => {
                let Some(walk) = &mut self.shipper.claim else { return };
                let block = walk.blocks[walk.read.len()];
                let cells = cells_of(block);
                let seen = match self.rules.reads_through_proxy {
                    true => &self.source.now,
                    false => self.source.flushed(),
                };
                let content = std::array::from_fn(|i| seen[cells.start + i]);
                walk.read.push((block, content));
            }
            ShipStep::SendPart => self.send_part(),
            ShipStep::Settle => {
                self.shipper.settle_asked = true;
                if let Some(request) = self.shipper.settle.clone() {
                    self.ask(request);
                }
            }
            ShipStep::Drive => self.drive_cutover(),
        }
    }

    pub fn ask(&mut self, request: Req) {
        if let Some(link) = &mut self.link {
            link.requests.push_back(request);
        }
    }

    fn connect(&mut self) {
        self.next_id += 1;
        let id = self.next_id;
        let mut conn = Conn { id, ..Conn::default() };
        conn.to_receiver.push_back(ToReceiver::Hello { session: id });
        self.conns.push(conn);
        self.link = Some(Link::default());
        self.shipper.conn = id;
        self.shipper.stage = Stage::Hello;
    }

    /// The session ended: link or connection is gone. What was under way is forgotten.
    pub fn end_session(&mut self) {
        if let Some(conn) = self.conns.iter_mut().find(|c| c.id == self.shipper.conn) {
            conn.shipper_gone = true;
        }
        if let Some(link) = self.link.take() {
            self.stale = link.requests;
        }
        self.abandon_link_op();
        let old = std::mem::replace(&mut self.shipper, Shipper::dead());
        self.shipper.alive = old.alive;
        self.shipper.cutover = old.cutover;
        self.shipper.settle = old.settle;
        self.shipper.drain_to = old.drain_to;
    }

    pub fn kill_shipper(&mut self) {
        self.note(|| "KILL shipper".into());
        self.end_session();
        self.shipper = Shipper::dead();
    }

    pub fn shipper_received(&mut self, message: ToShipper) {
        match message {
            ToShipper::HelloReply { durable } => {
                self.shipper.stage = Stage::Attaching;
                self.ask(Req::Attach(durable));
            }
            ToShipper::Ack { durable } => {
                let window = &mut self.shipper.window;
                while window.front().is_some_and(|number| *number <= durable.number) {
                    window.pop_front();
                }
                self.shipper.durable = durable;
                self.ask(Req::Ack { pos: durable.pos, claims: durable.claims });
            }
            ToShipper::Decision { attempt, promoted } => self.decided(attempt, promoted),
            ToShipper::Compared { number, claim, block, differs } => {
                let (named, again) =
                    (self.rules.verdict_names_batch, self.rules.differing_read_again);
                let walk = self.shipper.claim.as_mut().filter(|walk| walk.claim.id == claim);
                if let Some(walk) = walk {
                    walk.verdict(number, named, block, differs, again);
                }
            }
        }
    }

    fn take_reply(&mut self) {
        let reply = self.link.as_mut().and_then(|link| link.replies.pop_front());
        let Some(reply) = reply else { return };
        self.note(|| format!("shipper got {reply:?}"));
        match reply {
            Reply::Attached { promoted: true, .. } => {
                self.shipper.stage = Stage::Over;
                self.shipper.cutover = None;
                self.shipper.settle = None;
            }
            Reply::Attached { inc, start, durable, seal, history, .. } => {
                self.check_resent(&durable);
                let s = &mut self.shipper;
                s.stage = Stage::Running;
                s.inc = inc;
                s.next_seq = start;
                s.history = history;
                s.number = durable.number;
                s.hash = durable.hash;
                s.claims_sent = if durable.pos.inc == inc { durable.claims } else { 0 };
                s.durable = durable;
                self.stream_bytes = durable.stream_bytes;
                self.session_stands(seal);
            }
            Reply::Claimed(claim) => {
                self.shipper.claim_asked = false;
                self.shipper.claim = claim.map(Walk::new);
            }
            Reply::Skipped { upto } => self.skip(upto),
            Reply::Resynced { start, claims } => {
                self.shipper.damage_told = false;
                self.shipper.next_seq = start;
                self.shipper.claims_sent = claims;
            }
            Reply::HistoryEnded => {
                self.shipper.damage_told = false;
                self.shipper.history = None;
            }
            Reply::Held(seq) => self.held(seq),
            Reply::HoldFailed => self.hold_failed(),
            Reply::Sealed(pos) => self.sealed(pos),
            Reply::SealFailed => self.seal_failed(),
            Reply::Settled => {
                if self.shipper.settle == Some(Req::Commit) {
                    self.shipper.stage = Stage::Over;
                }
                self.shipper.settle = None;
                self.shipper.settle_asked = false;
            }
        }
    }

    fn cut(&mut self) {
        let first = self.shipper.next_seq;
        let count = 1 + self.rng.below(BATCH_RECORDS_MAX) as u64;
        let last = self.drainable().min(first + count - 1);
        let mut kinds = Vec::new();
        for seq in first..=last {
            match self.record(seq) {
                Read::Record(slot) => kinds.push(cut_kind(&slot)),
                Read::Damaged if kinds.is_empty() => {
                    self.shipper.damage_told = true;
                    return self.ask(Req::Damaged { seq });
                }
                Read::Damaged => break,
                Read::Missing => {
                    return self.violate(format!("(f) record {seq} was freed unshipped"));
                }
            }
            if kinds.last() == Some(&Kind::Mark) && self.rules.mark_ends_batch {
                break;
            }
        }
        self.shipper.next_seq = first + kinds.len() as u64;
        self.send_batch(Body::Records { first, kinds });
    }

    /// A record, from the ring or from the spill.
    fn record(&mut self, seq: u64) -> Read {
        let Some(ring) = &self.ring else { return Read::Missing };
        match ring.slot(seq) {
            Some(slot) => Read::Record(slot.clone()),
            None => {
                self.seen.shipped[1] += 1;
                let read = self.spill.read(ring.inc, seq, self.rules.spill_checksums);
                // Its header is gone since the start.
                let known = read == Read::Missing && ring.spilled >= seq && self.seen.spill_damaged;
                if known { Read::Damaged } else { read }
            }
        }
    }

    /// In place of lost records: a BREAK.
    fn skip(&mut self, upto: u64) {
        self.shipper.damage_told = false;
        let first = self.shipper.next_seq;
        let upto = upto.max(first);
        let mut kinds = vec![Kind::Void; (upto + 1 - first) as usize];
        if self.rules.damage_breaks {
            kinds[0] = Kind::Break;
        }
        self.shipper.next_seq = upto + 1;
        self.send_batch(Body::Records { first, kinds });
    }

    /// The next records of the lost ring; at the end the ring that is follows.
    fn cut_history(&mut self) {
        let Some(part) = self.shipper.history else { return };
        let count = 1 + self.rng.below(BATCH_RECORDS_MAX) as u64;
        let last = part.last.min(part.first + count - 1);
        let mut kinds = Vec::new();
        for seq in part.first..=last {
            let slot = match self.spill.read(part.inc, seq, self.rules.spill_checksums) {
                Read::Record(slot) => slot,
                Read::Damaged | Read::Missing => break,
            };
            let kind = cut_kind(&slot);
            match kind {
                Kind::Heal(claims)
                    if claims > part.claims && self.rules.history_heal_checks_claims =>
                {
                    break;
                }
                // A cutover does not outlive its ring.
                Kind::Seal => kinds.push(Kind::Void),
                _ => kinds.push(kind),
            }
            if kinds.last() == Some(&Kind::Mark) && self.rules.mark_ends_batch {
                break;
            }
        }
        if kinds.is_empty() && part.first <= part.last {
            self.shipper.damage_told = true;
            return self.ask(Req::HistoryEnded { seq: part.first });
        }
        let first = part.first;
        let next = first + kinds.len() as u64;
        self.shipper.history = (next <= part.last).then_some(HistoryPart { first: next, ..part });
        self.seen.shipped[0] += kinds.len() as u64;
        let at = (Pos { inc: part.inc, seq: next - 1 }, part.claims);
        self.send_at(at, Body::Records { first, kinds });
    }

    fn send_part(&mut self) {
        let rules = self.rules;
        let number = self.shipper.number + 1;
        let Some(walk) = &mut self.shipper.claim else { return };
        if walk.blocks.is_empty() {
            let ends = walk.claim.id;
            self.shipper.claim = None;
            return self.send_batch(Body::Equal { ends });
        }
        let (block, content) = walk.read[walk.sent];
        walk.sent += 1;
        let last = walk.sent == walk.read.len();
        let parts = walk.claim.parts_of(block);
        let first = walk.sent == 1;
        let id = walk.claim.id;
        let ends = (if rules.claim_ends_with_last_part { last } else { first }).then_some(id);
        if walk.pass == Pass::Ask {
            walk.asked.push((number, (block, content)));
            let mut ends = None;
            if last {
                ends = (!rules.compare_ends_when_settled).then_some(id);
                walk.all_asked();
            }
            return self.send_batch(Body::Compare { claim: id, block, content, ends });
        }
        if last {
            self.shipper.claim = None;
            if !rules.ack_clears_claimed {
                let pos = Pos { inc: self.shipper.inc, seq: 0 };
                self.ask(Req::Ack { pos, claims: id });
            }
        }
        self.seen.parts += u64::from(parts.is_some());
        self.send_batch(Body::Block { block, content, parts, ends });
    }

    fn send_batch(&mut self, body: Body) {
        let s = &mut self.shipper;
        if let Some(id) = body.ends() {
            s.claims_sent = id;
        }
        let at = (Pos { inc: s.inc, seq: s.next_seq - 1 }, s.claims_sent);
        self.send_at(at, body);
    }

    /// Where the stream stands behind the batch, records and claims.
    fn send_at(&mut self, (pos, claims): (Pos, u64), body: Body) {
        self.stream_bytes += Batch::bytes(&body);
        let s = &mut self.shipper;
        s.number += 1;
        let batch = Batch {
            session: s.conn,
            number: s.number,
            previous: s.hash,
            pos,
            claims,
            stream_bytes: self.stream_bytes,
            body,
        };
        s.hash = batch.hash();
        s.window.push_back(batch.number);
        self.send(ToReceiver::Batch(batch));
    }

    pub fn send(&mut self, message: ToReceiver) {
        if let Some(conn) = self.conns.iter_mut().find(|c| c.id == self.shipper.conn) {
            conn.to_receiver.push_back(message);
        }
    }
}
