//! The cutover of a group, driven by the shipper: hold, drain, seal, promote, commit.
//!
//! Promises, whatever the order of events: a group is either given back to its guest
//! (`Release` or `Unseal`) or committed to the target, never both; `Commit` follows only a
//! durable promotion and `Unseal` only a durable abort, both decided by the receiver;
//! `Finish` comes exactly once, as the last action.
//!
//! Does no I/O. The caller carries the actions out in order and repeats `Commit` and `Unseal`
//! until the proxy has confirmed them (both are idempotent there, and `Unseal` of a group
//! that is not sealed does nothing). A caller that dies before is covered too: its successor
//! finds the group sealed, starts with [`Cutover::resume`], and learns the decision.
//!
//! ```text
//!            Held           Drained         Sealed             Promoted
//!  Holding ───────> Draining ─────> Sealing ───────> Promoting ─────────> Commit, Finish
//!     │                │              │  ╲               │  ╲  Aborted
//!     │ deadline, operator,           │   ╲ deadline,    │   ╲──────────> Unseal, Finish
//!     │ proxy gone: Release, Finish   │    ╲ operator    │ deadline, operator
//!     └────────────────┘     SealFailed:    ╲            v
//!                       Release, Finish      ╲───────> Aborting ──Aborted──> Unseal, Finish
//!                                                        ╲──────Promoted───> Commit, Finish
//! ```
//!
//! The whole table; `-` is "nothing, same state". "late" means at or past the deadline,
//! `D` the state after `SendAbort` (Aborting). Every event that is listed as late is judged
//! by its own time, no `Tick` needs to come first.
//!
//! | event          | Holding          | Draining         | Sealing            | Promoting            | Aborting     |
//! |----------------|------------------|------------------|--------------------|----------------------|--------------|
//! | Held           | DrainCheck; late: Release, Finish | - | -                 | -                    | -            |
//! | HoldFailed     | Finish           | -                | -                  | -                    | -            |
//! | DrainProgress  | -                | -; late: Release, Finish | -          | -                    | -            |
//! | Drained        | -                | Seal; late: Release, Finish | -       | -                    | -            |
//! | Sealed         | -                | -                | SendPromote; late or asked to abort: SendAbort -> D | - | - |
//! | SealFailed     | -                | -                | Release, Finish    | -                    | -            |
//! | Promoted       | -                | -                | -                  | Commit, Finish       | Commit, Finish |
//! | Aborted        | -                | -                | -                  | Unseal, Finish       | Unseal, Finish |
//! | LinkLost       | Release, Finish  | Release, Finish  | SendAbort -> D     | -                    | -            |
//! | NetLost        | -                | -                | -                  | -                    | -            |
//! | NetBack        | -                | DrainCheck       | Seal; late or asked to abort: SendAbort -> D | SendPromote; late: SendAbort -> D | SendAbort |
//! | Tick           | late: Release, Finish | late: Release, Finish | late: remembered | late: SendAbort -> D | - |
//! | OperatorAbort  | Release, Finish  | Release, Finish  | remembered         | SendAbort -> D       | -            |
//!
//! Why so:
//! - *LinkLost while sealing*: the proxy may or may not have sealed. No PROMOTE was sent for
//!   this attempt, so the receiver can only answer "aborted"; after its durable answer the
//!   `Unseal` is right in both cases.
//! - *NetBack while sealing*: a new session may have been made over a new connection to the
//!   proxy, and the answer lost with the old one. `Seal` is idempotent: a proxy that already
//!   sealed this attempt answers with the same position. The proxy carries out one control
//!   operation at a time, over all connections, so an `Unseal` never overtakes a `Seal`.
//! - *LinkLost later*: the seal is durable at the proxy and the decision is the receiver's;
//!   the proxy is told when it is back.
//! - *Late or operator abort while sealing*: the hold may just have become a seal, so it must
//!   not be released here; the answer decides what to undo.
//! - *A decision before the seal* was never asked for by this attempt and is ignored.

use std::time::Duration;
use towline_block::{Epoch, Position, Seq};

/// Names one attempt to cut over. Never repeats for a group: the receiver keeps its decision
/// on an attempt for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

/// What the receiver has durably decided about an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Promoted { epoch: Epoch, exports: Vec<String> },
    Aborted,
}

/// What the shipper observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The proxy holds guest writes; the last record is `Seq`.
    Held(Seq),
    HoldFailed(String),
    /// Bytes still to be made durable at the receiver.
    DrainProgress {
        backlog_bytes: u64,
    },
    /// The receiver has a point at the held position and the change map is empty.
    Drained,
    /// The source is flushed and the proxy refuses writes, durably.
    Sealed(Position),
    SealFailed(String),
    Decision(Decision),
    /// The connection to the proxy ended.
    LinkLost,
    /// The connection to the receiver ended.
    NetLost,
    /// A new session stands, at the receiver and at the proxy. What was sent to either
    /// before may be lost, and so may their answers.
    NetBack,
    /// Time passed.
    Tick,
    OperatorAbort,
}

/// What the shipper is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the proxy to hold writes for at most `max`.
    Hold { attempt: Attempt, max: Duration },
    /// Lift the hold (best effort: the proxy lifts it itself at its deadline).
    Release { attempt: Attempt },
    /// Ship everything up to `upto`; report `DrainProgress` and `Drained`.
    DrainCheck { upto: Seq },
    /// Ask the proxy to seal. It refuses unless this attempt is held now; if it has sealed
    /// this attempt already, it answers with the same position.
    Seal { attempt: Attempt },
    /// Ship the rest up to `position`, then ask the receiver to promote at exactly that point.
    SendPromote { attempt: Attempt, position: Position },
    /// Ask the receiver to abort the attempt; it answers with what it has durably decided.
    SendAbort { attempt: Attempt },
    /// Tell the proxy that the target has taken over. Repeat until confirmed.
    Commit { epoch: Epoch, exports: Vec<String> },
    /// Tell the proxy to serve its guests again. Repeat until confirmed.
    Unseal { attempt: Attempt },
    /// Nothing more will be asked.
    Finish(Outcome),
}

/// How the attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Promoted { epoch: Epoch, exports: Vec<String> },
    Aborted { reason: String },
}

/// Where the attempt stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// `Hold` sent.
    Holding,
    /// Writes are held up to and with `upto`; the rest is being shipped.
    Draining {
        upto: Seq,
    },
    /// `Seal` sent, not answered. `abort`: why it shall not be promoted, if so.
    Sealing {
        abort: Option<String>,
    },
    /// Sealed at `position`; the receiver was asked to promote.
    Promoting {
        position: Position,
    },
    /// The receiver was asked to abort, because of `reason`.
    Aborting {
        reason: String,
    },
    Finished,
}

/// One attempt, from the hold to `Finish`.
#[derive(Clone, Debug)]
pub struct Cutover {
    attempt: Attempt,
    deadline: Duration,
    max_pause: Duration,
    state: State,
    cut: Option<Seq>,
}

impl Cutover {
    /// Starts an attempt at `now`. The deadline counts from here, that is from before the
    /// proxy starts to hold: the pause that guests see is never longer for it.
    pub fn start(now: Duration, attempt: Attempt, max_pause: Duration) -> (Cutover, Vec<Action>) {
        let deadline = now.saturating_add(max_pause);
        let machine = Cutover { attempt, deadline, max_pause, state: State::Holding, cut: None };
        (machine, vec![Action::Hold { attempt, max: max_pause }])
    }

    /// A shipper that starts and finds its group sealed: nobody knows any more what was asked
    /// of the receiver, so it asks for an abort and obeys what the receiver has decided.
    pub fn resume(attempt: Attempt, position: Position) -> (Cutover, Vec<Action>) {
        let reason = "the shipper was restarted while the group was sealed".to_string();
        let machine = Cutover {
            attempt,
            deadline: Duration::ZERO,
            max_pause: Duration::ZERO,
            state: State::Aborting { reason },
            cut: Some(position.seq),
        };
        (machine, vec![Action::SendAbort { attempt }])
    }

    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The position at which the group is cut, as far as known: the held one, then the sealed one.
    pub fn cut_seq(&self) -> Option<Seq> {
        self.cut
    }

    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// When the caller must send a `Tick` at the latest; `None` when time decides nothing more.
    pub fn next_tick(&self) -> Option<Duration> {
        match &self.state {
            State::Holding | State::Draining { .. } | State::Promoting { .. } => {
                Some(self.deadline)
            }
            State::Sealing { abort: None } => Some(self.deadline),
            State::Sealing { abort: Some(_) } | State::Aborting { .. } | State::Finished => None,
        }
    }

    /// Takes one observation made at `now`, returns what to do. See the table above.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let late = now >= self.deadline;
        match self.state.clone() {
            State::Holding => self.step_holding(late, event),
            State::Draining { upto } => self.step_draining(late, upto, event),
            State::Sealing { abort } => self.step_sealing(late, abort, event),
            State::Promoting { position } => self.step_promoting(late, position, event),
            State::Aborting { reason } => self.step_aborting(reason, event),
            State::Finished => Vec::new(),
        }
    }

    fn step_holding(&mut self, late: bool, event: Event) -> Vec<Action> {
        match event {
            Event::Held(seq) => {
                self.cut = Some(seq);
                if late {
                    return self.release(self.too_late("while the proxy stopped writes"));
                }
                self.state = State::Draining { upto: seq };
                vec![Action::DrainCheck { upto: seq }]
            }
            Event::HoldFailed(text) => {
                self.finish_aborted(format!("the proxy did not hold the group: {text}"))
            }
            Event::Tick if late => self.release(self.too_late("before the proxy held the group")),
            Event::LinkLost => self.release(PROXY_GONE.to_string()),
            Event::OperatorAbort => self.release(OPERATOR.to_string()),
            _ => Vec::new(),
        }
    }

    fn step_draining(&mut self, late: bool, upto: Seq, event: Event) -> Vec<Action> {
        match event {
            Event::Drained | Event::DrainProgress { .. } | Event::Tick if late => {
                self.release(self.too_late("while the rest was shipped"))
            }
            Event::Drained => {
                self.state = State::Sealing { abort: None };
                vec![Action::Seal { attempt: self.attempt }]
            }
            Event::NetBack => vec![Action::DrainCheck { upto }],
            Event::LinkLost => self.release(PROXY_GONE.to_string()),
            Event::OperatorAbort => self.release(OPERATOR.to_string()),
            _ => Vec::new(),
        }
    }

    fn step_sealing(&mut self, late: bool, abort: Option<String>, event: Event) -> Vec<Action> {
        match event {
            Event::Sealed(position) => {
                self.cut = Some(position.seq);
                let abort = abort.or_else(|| late.then(|| self.too_late("while the proxy sealed")));
                match abort {
                    Some(reason) => self.ask_abort(reason),
                    None => {
                        self.state = State::Promoting { position };
                        vec![Action::SendPromote { attempt: self.attempt, position }]
                    }
                }
            }
            Event::SealFailed(text) => {
                self.release(format!("the proxy could not seal the group: {text}"))
            }
            Event::NetBack => match abort {
                Some(reason) => self.ask_abort(reason),
                None if late => self.ask_abort(self.too_late("while the proxy sealed")),
                None => vec![Action::Seal { attempt: self.attempt }],
            },
            Event::LinkLost => self.ask_abort(PROXY_GONE.to_string()),
            Event::OperatorAbort => self.remember_abort(abort, OPERATOR.to_string()),
            Event::Tick if late => {
                let reason = self.too_late("while the proxy sealed");
                self.remember_abort(abort, reason)
            }
            _ => Vec::new(),
        }
    }

    fn step_promoting(&mut self, late: bool, position: Position, event: Event) -> Vec<Action> {
        match event {
            Event::Decision(decision) => {
                self.obey(decision, "the receiver refused to promote".to_string())
            }
            Event::Tick | Event::NetBack if late => {
                self.ask_abort(self.too_late("while the receiver was asked to promote"))
            }
            Event::NetBack => vec![Action::SendPromote { attempt: self.attempt, position }],
            Event::OperatorAbort => self.ask_abort(OPERATOR.to_string()),
            _ => Vec::new(),
        }
    }

    fn step_aborting(&mut self, reason: String, event: Event) -> Vec<Action> {
        match event {
            Event::Decision(decision) => self.obey(decision, reason),
            Event::NetBack => vec![Action::SendAbort { attempt: self.attempt }],
            _ => Vec::new(),
        }
    }

    fn obey(&mut self, decision: Decision, reason: String) -> Vec<Action> {
        self.state = State::Finished;
        match decision {
            Decision::Promoted { epoch, exports } => vec![
                Action::Commit { epoch, exports: exports.clone() },
                Action::Finish(Outcome::Promoted { epoch, exports }),
            ],
            Decision::Aborted => vec![
                Action::Unseal { attempt: self.attempt },
                Action::Finish(Outcome::Aborted { reason }),
            ],
        }
    }

    fn ask_abort(&mut self, reason: String) -> Vec<Action> {
        self.state = State::Aborting { reason };
        vec![Action::SendAbort { attempt: self.attempt }]
    }

    fn remember_abort(&mut self, earlier: Option<String>, reason: String) -> Vec<Action> {
        self.state = State::Sealing { abort: Some(earlier.unwrap_or(reason)) };
        Vec::new()
    }

    fn release(&mut self, reason: String) -> Vec<Action> {
        let mut actions = vec![Action::Release { attempt: self.attempt }];
        actions.append(&mut self.finish_aborted(reason));
        actions
    }

    fn finish_aborted(&mut self, reason: String) -> Vec<Action> {
        self.state = State::Finished;
        vec![Action::Finish(Outcome::Aborted { reason })]
    }

    fn too_late(&self, phase: &str) -> String {
        format!("the longest allowed pause of {:?} ended {phase}", self.max_pause)
    }
}

const PROXY_GONE: &str = "the connection to the proxy ended";
const OPERATOR: &str = "aborted by the operator";

#[cfg(test)]
mod tests;
