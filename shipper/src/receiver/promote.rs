//! Taking over: one durable, exclusive decision an attempt.
//!
//! The first of PROMOTE and ABORT that is durable decides. A normal takeover
//! stands at the SEAL record with everything applied; a takeover that allows
//! rolling back stands at the last point.

use super::clerk::{Clerk, refusal_of};
use super::recovery::finish_takeover;
use super::state::{Rollback, Takeover, attempt_is_usable};
use super::stream::Stream;
use crate::error::Result;
use crate::wire::{
    Abort, Decision, Message, Outcome, Promote as PromoteRequest, Refusal, RefusalCode,
};
use std::sync::Arc;
use towline_block::{Disk, Epoch, Position, VolumeName};

/// Serves a group's volumes once the target has taken over. Called once a
/// takeover, and again when a promoted receiver starts.
pub trait Promote: Send + Sync {
    /// Called when the receiver starts: takes what serving needs and others could take until then,
    /// such as addresses. Nothing is served yet.
    ///
    /// # Errors
    /// What somebody else has: the receiver does not start.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Starts serving; answers where, as addresses for people and clients.
    fn promote(&self, volumes: &[(VolumeName, Arc<dyn Disk>)]) -> Result<Vec<String>>;
}

/// A PROMOTE that waits until everything is applied.
pub struct Pending {
    request: PromoteRequest,
}

/// What can be done for a PROMOTE now. Pure: see [`plan`].
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// The targets are what was asked for.
    TakeOver(Position),
    /// The targets go back to the last point first.
    RollBack(Position),
    /// Not applied yet.
    Wait,
    /// It cannot be: why, and what to do.
    NotReady(String),
}

/// `undo_point` is where the undo log leads back to; `stalled` says that applying
/// does not go on.
pub fn plan(
    request: &PromoteRequest,
    durable: &Stream,
    applied: &Stream,
    undo_point: Option<Position>,
    stalled: bool,
) -> Plan {
    let asked = request.position;
    if durable.whole && durable.sealed == Some(asked) {
        return match applied.number == durable.number {
            true => Plan::TakeOver(asked),
            false => Plan::Wait,
        };
    }
    if !request.allow_rollback {
        let state = if durable.whole { "is whole" } else { "is broken: a resync is under way" };
        return Plan::NotReady(format!(
            "the target is at {}, not at a SEAL at {asked}, and {state}; ship everything up to the \
             seal first",
            durable.position
        ));
    }
    let all_applied = applied.number == durable.number;
    match undo_point {
        _ if !all_applied && !stalled => Plan::Wait,
        _ if all_applied && applied.whole => Plan::TakeOver(applied.position),
        Some(point) => Plan::RollBack(point),
        None => Plan::NotReady("the target has no point to go back to".to_owned()),
    }
}

impl Clerk {
    /// PROMOTE from the current session.
    pub fn promote(&mut self, request: PromoteRequest) {
        if !attempt_is_usable(&request.attempt) {
            return self.answer(unusable());
        }
        match self.decided(&request.attempt) {
            Some(answer) => self.answer(answer),
            None => {
                self.pending = Some(Pending { request });
                self.advance_promotion();
            }
        }
    }

    /// ABORT from the current session.
    pub fn abort(&mut self, request: Abort) {
        if !attempt_is_usable(&request.attempt) {
            return self.answer(unusable());
        }
        if let Some(answer) = self.decided(&request.attempt) {
            return self.answer(answer);
        }
        let Some(bound) = &self.bound else { return };
        let attempt = &request.attempt;
        let decided = bound.books.update(|state| state.record(attempt, Outcome::Aborted));
        if self.pending.as_ref().is_some_and(|pending| pending.request.attempt == *attempt) {
            self.pending = None;
        }
        match decided {
            Ok(()) => {
                tracing::info!(%attempt, "aborted");
                if let Some(answer) = self.decided(attempt) {
                    self.answer(answer);
                }
            }
            Err(error) => self.answer(Message::Error(refusal_of(&error))),
        }
    }

    fn answer(&mut self, message: Message) {
        if let Some(current) = &self.current {
            let _ = current.outbox.send(message);
        }
    }

    /// The answer for an attempt that is decided. A promoted target answers every
    /// other attempt by a refusal: "aborted" would let the source write again.
    fn decided(&mut self, attempt: &str) -> Option<Message> {
        let bound = self.bound.as_ref()?;
        let state = bound.books.get();
        match (&state.promoted, state.decision(attempt)) {
            (Some(takeover), _) if takeover.attempt == attempt => Some(self.serve_again(takeover)),
            (Some(takeover), _) => {
                let what = format!(
                    "the target took over in epoch {} by attempt {}",
                    takeover.epoch.0, takeover.attempt
                );
                Some(Message::Error(Refusal::new(RefusalCode::AlreadyPromoted, what)))
            }
            (None, Some(outcome)) => Some(Message::Decision(Decision {
                attempt: attempt.to_owned(),
                outcome,
                epoch: state.epoch,
                exports: Vec::new(),
                problem: None,
            })),
            (None, None) => None,
        }
    }

    /// Goes on with a PROMOTE that waits, when it can.
    pub fn advance_promotion(&mut self) {
        let (Some(pending), Some(bound)) = (&self.pending, &self.bound) else { return };
        if !bound.is_settled() {
            return; // what came before it is being applied
        }
        let request = pending.request.clone();
        let apply = bound.applier.halt();
        let undo_point = apply.marks.point(apply.applied()).map(|point| point.position);
        let (applied, stalled) = (apply.applied().clone(), bound.stalled);
        drop(apply);
        match plan(&request, &bound.durable, &applied, undo_point, stalled) {
            Plan::Wait => bound.applier.resume(),
            Plan::NotReady(why) => {
                bound.applier.resume();
                self.pending = None;
                self.answer(Message::Error(Refusal::new(RefusalCode::NotReady, why)));
            }
            Plan::TakeOver(position) => self.take_over(&request, position, Rollback::None),
            Plan::RollBack(position) => self.take_over(&request, position, Rollback::Pending),
        }
    }

    /// The decision, durable before anything else happens; the applier is halted.
    fn take_over(&mut self, request: &PromoteRequest, position: Position, rollback: Rollback) {
        self.pending = None;
        let Some(bound) = &mut self.bound else { return };
        let decided = bound.books.update(|state| {
            state.epoch = Epoch(state.epoch.0.saturating_add(1));
            state.record(&request.attempt, Outcome::Promoted);
            state.promoted = Some(Takeover {
                attempt: request.attempt.clone(),
                epoch: state.epoch,
                position,
                rollback,
            });
        });
        if let Err(error) = decided {
            bound.applier.resume();
            return self.answer(Message::Error(refusal_of(&error)));
        }
        tracing::info!(attempt = %request.attempt, %position, ?rollback, "taking over");
        bound.promoted = bound.books.get().promoted;
        if let Some(takeover) = bound.promoted.clone() {
            let answer = self.serve_again(&takeover);
            self.answer(answer);
        }
    }

    /// The decision of a promoted target, which serves from now on if it can.
    fn serve_again(&mut self, takeover: &Takeover) -> Message {
        let problem = self.try_serve().err();
        let exports = self.bound.as_ref().and_then(|bound| bound.exports.clone());
        Message::Decision(Decision {
            attempt: takeover.attempt.clone(),
            outcome: Outcome::Promoted,
            epoch: takeover.epoch,
            exports: exports.unwrap_or_default(),
            problem,
        })
    }

    /// Promoted, and the volumes could not be served so far.
    pub fn owes_serving(&self) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.promoted.is_some() && bound.exports.is_none())
    }

    /// Tries to serve once more; the shipper hears where.
    pub fn make_up_for_serving(&mut self) {
        let takeover = self.bound.as_ref().and_then(|bound| bound.promoted.clone());
        let Some(takeover) = takeover else { return };
        let decision = self.serve_again(&takeover);
        if !self.owes_serving() {
            self.answer(decision);
        }
    }

    /// Serves, or says and notes why that cannot be.
    fn try_serve(&mut self) -> std::result::Result<(), String> {
        let problem = self.serve().err().map(|error| error.to_string());
        let Some(bound) = &self.bound else { return Ok(()) };
        if bound.books.get().last_error != problem {
            if let Some(problem) = &problem {
                tracing::error!("promoted, but not serving: {problem}; trying again");
            }
            let noted = bound.books.update(|state| state.last_error.clone_from(&problem));
            if let Err(error) = noted {
                tracing::error!(%error, "cannot note whether the volumes are served");
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Serves the volumes of a promoted target, unless that runs already.
    pub fn serve(&mut self) -> Result<()> {
        let Some(bound) = &mut self.bound else { return Ok(()) };
        if let (Some(takeover), None) = (bound.books.get().promoted, &bound.exports) {
            let mut apply = bound.applier.halt();
            let apply = &mut *apply;
            finish_takeover(&bound.books, &mut apply.marks, &apply.targets, takeover.rollback)?;
            bound.staging.clear()?;
            let volumes: Vec<_> = apply
                .targets
                .iter()
                .map(|target| (target.name.clone(), target.disk.served()))
                .collect();
            bound.exports = Some(self.desk.promote.promote(&volumes)?);
        }
        Ok(())
    }
}

fn unusable() -> Message {
    let what = "an attempt's id is 1 to 64 visible ASCII characters";
    Message::Error(Refusal::new(RefusalCode::NotReady, what))
}
