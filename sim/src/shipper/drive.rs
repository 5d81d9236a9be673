//! Carries out what the real state machine of `towline-control` says: the model proves the
//! machine that the product runs, not a copy of it.

use crate::proxy::{Req, Seal};
use crate::ring::Pos;
use crate::shipper::Stage;
use crate::wire::ToReceiver;
use crate::world::World;
use std::time::Duration;
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_control::{Action, Attempt, Cutover, Decision, Event, State};

fn position(pos: Pos) -> Position {
    Position::new(Epoch(1), Incarnation(pos.inc), Seq(pos.seq))
}

fn pos_of(position: Position) -> Pos {
    Pos { inc: position.incarnation.0, seq: position.seq.0 }
}

impl World {
    /// One step of the model is one millisecond of the machine.
    fn clock(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    /// The operator asks for a cutover.
    pub fn start_cutover(&mut self, max_pause: u64) {
        self.next_id += 1;
        let attempt = Attempt(self.next_id);
        self.note(|| format!("operator: cutover {} within {max_pause}", attempt.0));
        let max = Duration::from_millis(max_pause);
        let (machine, actions) = Cutover::start(self.clock(), attempt, max);
        self.shipper.cutover = Some(machine);
        self.carry_out(actions);
    }

    pub fn cutover_event(&mut self, event: Event) {
        let now = self.clock();
        let Some(machine) = &mut self.shipper.cutover else { return };
        let actions = machine.step(now, event.clone());
        if !actions.is_empty() {
            self.note(|| format!("cutover: {event:?} -> {actions:?}"));
        }
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Hold { attempt, max } => {
                    let until = self.now + max.as_millis() as u64;
                    self.ask(Req::Hold { attempt: attempt.0, until });
                }
                Action::Release { .. } => self.ask(Req::Release),
                Action::DrainCheck { upto } => self.shipper.drain_to = Some(upto.0),
                Action::Seal { attempt } => {
                    self.shipper.drain_to = None;
                    self.ask(Req::Seal { attempt: attempt.0 });
                }
                Action::SendPromote { attempt, position } => {
                    self.shipper.promote = Some((attempt.0, pos_of(position)));
                }
                Action::SendAbort { attempt } => {
                    self.shipper.promote = None;
                    self.send(ToReceiver::Abort { attempt: attempt.0 });
                }
                Action::Commit { .. } => self.shipper.settle = Some(Req::Commit),
                Action::Unseal { attempt } => {
                    self.shipper.settle = Some(Req::Unseal { attempt: attempt.0 });
                }
                Action::Finish(outcome) => {
                    self.note(|| format!("cutover ends: {outcome:?}"));
                    self.shipper.cutover = None;
                    self.shipper.drain_to = None;
                    self.shipper.promote = None;
                }
            }
        }
    }

    /// A new session was made; a sealed group without a machine is a dead shipper's.
    pub fn session_stands(&mut self, seal: Option<Seal>) {
        self.shipper.settle_asked = false;
        match (&self.shipper.cutover, seal, &self.shipper.settle) {
            (None, Some(seal), None) => {
                let (machine, actions) = Cutover::resume(Attempt(seal.attempt), position(seal.pos));
                self.shipper.cutover = Some(machine);
                self.carry_out(actions);
            }
            _ => self.cutover_event(Event::NetBack),
        }
    }

    pub fn held(&mut self, seq: u64) {
        self.cutover_event(Event::Held(Seq(seq)));
    }

    pub fn hold_failed(&mut self) {
        self.cutover_event(Event::HoldFailed("sealed or taken over".into()));
    }

    pub fn sealed(&mut self, pos: Pos) {
        self.cutover_event(Event::Sealed(position(pos)));
    }

    pub fn seal_failed(&mut self) {
        self.cutover_event(Event::SealFailed("not held".into()));
    }

    pub fn decided(&mut self, attempt: u64, promoted: bool) {
        if self.shipper.cutover.as_ref().is_none_or(|m| m.attempt() != Attempt(attempt)) {
            return;
        }
        let decision = if promoted {
            Decision::Promoted { epoch: Epoch(2), exports: Vec::new() }
        } else {
            Decision::Aborted
        };
        self.cutover_event(Event::Decision(decision));
    }

    /// The group is drained, the stream has passed the seal, or the deadline is near.
    pub fn cutover_can_move(&self) -> bool {
        self.is_drained() || self.can_promote() || self.is_late()
    }

    fn is_late(&self) -> bool {
        let Some(machine) = &self.shipper.cutover else { return false };
        machine.next_tick().is_some_and(|tick| tick <= self.clock())
    }

    fn is_drained(&self) -> bool {
        let (Some(upto), Some(ring)) = (self.shipper.drain_to, &self.ring) else { return false };
        let draining = matches!(
            self.shipper.cutover.as_ref().map(Cutover::state),
            Some(State::Draining { .. })
        );
        let durable = self.shipper.durable.pos;
        let passed = durable.inc == ring.inc && durable.seq >= upto;
        draining && passed && ring.whole && ring.map_is_empty()
    }

    fn can_promote(&self) -> bool {
        let Some((_, pos)) = self.shipper.promote else { return false };
        self.shipper.inc == pos.inc && self.shipper.next_seq > pos.seq
    }

    pub fn drive_cutover(&mut self) {
        if self.is_late() {
            self.cutover_event(Event::Tick);
        } else if self.can_promote() {
            if let Some((attempt, pos)) = self.shipper.promote.take() {
                self.send(ToReceiver::Promote { attempt, pos });
            }
        } else if self.is_drained() {
            self.cutover_event(Event::Drained);
        }
    }

    /// The link to the proxy is gone, and the session with it.
    pub fn drop_link(&mut self) {
        if self.link.is_none() {
            return;
        }
        self.end_session();
        self.cutover_event(Event::LinkLost);
    }

    /// The connection to the receiver is gone, and the session with it.
    pub fn drop_net(&mut self) {
        if matches!(self.shipper.stage, Stage::Idle | Stage::Over) {
            return;
        }
        self.end_session();
        self.cutover_event(Event::NetLost);
    }
}
