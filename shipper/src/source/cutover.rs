//! Carries out what `control::cutover` decides: speaks to the proxy over a link of its
//! own, to the target through the stream, and answers whoever asked.

mod outlook;

pub(super) use outlook::{STALLED, STALLED_AFTER};

use super::control::{Caller, ControlReply, Order};
use super::drain::{LINK_ANSWER_MAX, SessionNews};
use super::feed::{Feed, unexpected};
use super::from_journal;
use super::meter::Meter;
use super::stream::Stream;
use crate::error::Result;
use crate::wire::{
    Abort, Decision as WireDecision, Message, Outcome as WireOutcome, Promote, Promoted,
};
use outlook::{Outlook, UNREACHED};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use towline_block::{GroupName, Position};
use towline_control::report::ReportContext;
use towline_control::{Action, Attempt, Cutover, CutoverReport, Decision, Event, Outcome, State};
use towline_journal::GroupDir;
use towline_journal::format::Counter;
use towline_journal::link::{Link, Reply, Request};

/// Before guests are held, the stream gets so long to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// Pause between two attempts to tell the proxy the decision, or to ask again.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// How often progress is reported while draining.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for the proxy where nothing is lost by giving up: before anybody is held, and
/// for a release, which it does itself at the hold's deadline.
const PROXY_ANSWER_MAX: Duration = Duration::from_secs(4);
/// What an answer to a hold or a seal gets beyond the deadline. Later ones are of no use: past
/// the deadline the attempt is aborted whatever the proxy says.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// Before anybody is held; `towline cutover` knows it.
const CATCHING_UP: &str = "catching up";

/// The name under which the target knows an attempt.
pub(crate) fn attempt_name(attempt: u64) -> String {
    format!("{attempt:016x}")
}

pub(crate) struct Driver {
    group: GroupName,
    dir: GroupDir,
    catching_up: Option<(Instant, Order)>,
    running: Option<Running>,
    promoted: bool,
    /// Where the target serves, as it said after all was decided.
    exports: Option<Vec<String>>,
    /// On which the last hold is still unanswered, taken back behind it: open until the proxy
    /// has read both.
    unanswered: Option<Link>,
}

struct Running {
    machine: Cutover,
    began: Instant,
    events: VecDeque<Event>,
    /// Asked, or to be asked once the stream holds the SEAL record.
    promote: Option<Promote>,
    promote_sent: bool,
    drain_upto: Option<u64>,
    last_progress: Instant,
    ask_again_at: Option<Instant>,
    /// Decisions the proxy has not confirmed yet.
    to_tell: VecDeque<Request>,
    tell_at: Instant,
    outcome: Option<Outcome>,
    /// Why the target that has taken over does not serve yet.
    problem: Option<String>,
    ended_after: Option<Duration>,
    forecast_pause_ms: Option<u64>,
    source_epoch: u32,
    caller: Option<Caller>,
    unanswered: Option<Link>,
}

impl Driver {
    pub fn new(group: GroupName, dir: GroupDir) -> Driver {
        Driver {
            group,
            dir,
            catching_up: None,
            running: None,
            promoted: false,
            exports: None,
            unanswered: None,
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some() || self.catching_up.is_some()
    }

    /// Guests are held, or about to be.
    pub fn is_under_way(&self) -> bool {
        self.running.is_some()
    }

    /// After the seal nothing is walked: there is nothing dirty, by R4.
    pub fn is_sealed(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.promote.is_some())
    }

    pub fn promoted(&self) -> bool {
        self.promoted && self.running.is_none()
    }

    pub fn order(&mut self, order: Order, feed: Option<&Feed>, stream: &Stream) {
        if let Some(report) = taken_over(&self.dir, self.exports.clone().or(stream.exports())) {
            return order.caller.say(ControlReply::Done(report));
        }
        let refusal = if self.is_running() {
            Some("another cutover of the group is on its way")
        } else if self.promoted {
            Some("the group was cut over already")
        } else if stream.is_store() {
            Some(
                "the group is shipped to a store, which cannot take over: ship it to a receiver first",
            )
        } else if !stream.connected() {
            Some(UNREACHED)
        } else if stream.stalled_for() >= STALLED_AFTER {
            Some(STALLED)
        } else if feed.is_some_and(|feed| feed.reader.get(Counter::Whole) == 0) {
            Some(
                "there is no point yet: the baseline or a resync is still on its way; \
                 `towline status` says how far",
            )
        } else {
            None
        };
        if let Some(why) = refusal {
            return self.refuse(&order, None, why.to_owned());
        }
        // Said before it is looked whether the caller is there: see `control::pass_on`.
        let phase = CATCHING_UP.to_owned();
        order.caller.say(ControlReply::Progress { phase, backlog_bytes: 0 });
        if order.caller.has_left() {
            return dropped();
        }
        let answers = match feed {
            None => Err("the shipper could not attach to it yet".to_owned()),
            Some(_) => probe(&self.dir).map_err(|error| error.to_string()),
        };
        match answers {
            Ok(()) => self.catching_up = Some((Instant::now(), order)),
            Err(why) => {
                let what = format!(
                    "the proxy of group {} does not answer ({why}): nothing was begun, the guest \
                     was not held",
                    self.group
                );
                tracing::warn!("cutover: {what}");
                order.caller.say(ControlReply::Unreachable(what));
            }
        }
    }

    /// Nothing was done.
    fn refuse(&self, order: &Order, forecast_pause_ms: Option<u64>, reason: String) {
        let context = ReportContext {
            group: self.group.to_string(),
            pause_ms: 0,
            forecast_pause_ms,
            cut_seq: None,
            source_epoch: epoch_of(&self.dir),
            problem: None,
        };
        let report = CutoverReport::new(context, Outcome::Aborted { reason });
        tracing::info!(reason = %report.reason, "cutover refused");
        order.caller.say(ControlReply::Done(report));
    }

    /// A group that was sealed before this shipper started.
    pub fn found_sealed(&mut self, attempt: u64, position: Position, stream: &Stream) {
        if self.running.is_some() {
            return;
        }
        tracing::warn!(attempt = %attempt_name(attempt), "the group is sealed: asking the target");
        let (machine, actions) = Cutover::resume(Attempt(attempt), position);
        let mut running = Running::new(machine, None, None, position.epoch.0);
        running.carry_out(actions, &self.dir, stream);
        self.running = Some(running);
    }

    /// A promoted target; true when it was our attempt that promoted it.
    pub fn found_promoted(&mut self, promoted: &Promoted) -> bool {
        if self.running.is_some() || self.promoted {
            return true;
        }
        let Ok(Some(state)) = self.dir.load() else { return false };
        let Some(seal) = state.seal else { return false };
        if attempt_name(seal.attempt) != promoted.attempt {
            return false;
        }
        let position = promoted.position;
        let (machine, _) = Cutover::resume(Attempt(seal.attempt), position);
        let mut running = Running::new(machine, None, None, state.epoch);
        running.events.push_back(Event::Decision(Decision::Promoted {
            epoch: promoted.epoch,
            exports: promoted.exports.clone(),
        }));
        self.running = Some(running);
        true
    }

    pub fn link_lost(&mut self, _stream: &Stream) {
        if let Some(running) = &mut self.running {
            running.events.push_back(Event::LinkLost);
        }
    }

    pub fn news(&mut self, news: SessionNews, _stream: &Stream) {
        let Some(running) = &mut self.running else {
            if let SessionNews::Decision(decision) = news {
                self.exports = Some(decision.exports).filter(|exports| !exports.is_empty());
            }
            return;
        };
        match news {
            SessionNews::Decision(decision) => running.decided(&decision),
            SessionNews::NotReady(why) => {
                tracing::debug!("the target is not ready to promote: {why}");
                running.ask_again_at = Some(Instant::now() + RETRY_EVERY);
            }
            SessionNews::Compared(_) => {}
            SessionNews::NetLost => running.events.push_back(Event::NetLost),
            SessionNews::NetBack => running.events.push_back(Event::NetBack),
        }
    }

    /// One step. `cut`: the last record in the stream, while the journal is attached.
    pub fn turn(&mut self, cut: Option<u64>, stream: &Stream, meter: &Meter) {
        self.begin_when_caught_up(cut, stream, meter);
        let Some(running) = &mut self.running else { return };
        running.observe(cut, stream);
        while let Some(event) = running.next_event() {
            let actions = running.machine.step(running.began.elapsed(), event);
            running.carry_out(actions, &self.dir, stream);
        }
        running.tell_proxy(&self.dir);
        if running.outcome.is_some() && running.to_tell.is_empty() {
            self.finish();
        }
    }

    fn begin_when_caught_up(&mut self, cut: Option<u64>, stream: &Stream, meter: &Meter) {
        let Some((since, order)) = &self.catching_up else { return };
        if order.caller.has_left() {
            self.catching_up = None;
            return dropped();
        }
        let outlook = Outlook::of(stream, meter);
        if !outlook.is_caught_up() && since.elapsed() < CATCH_UP_MAX && cut.is_some() {
            let phase = CATCHING_UP.to_owned();
            let backlog_bytes = outlook.backlog_bytes;
            order.caller.say(ControlReply::Progress { phase, backlog_bytes });
            return;
        }
        let Some((_, order)) = self.catching_up.take() else { return };
        let forecast = outlook.forecast_ms();
        if let Some(why) = outlook.refusal(order.max_pause) {
            return self.refuse(&order, forecast, why);
        }
        let attempt = Attempt(rand::random());
        let (machine, actions) = Cutover::start(Duration::ZERO, attempt, order.max_pause);
        let epoch = epoch_of(&self.dir);
        let mut running = Running::new(machine, Some(order.caller), forecast, epoch);
        running.carry_out(actions, &self.dir, stream);
        self.running = Some(running);
    }

    fn finish(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        self.unanswered = running.unanswered.take().or(self.unanswered.take());
        let Some(outcome) = running.outcome else { return };
        self.promoted |= matches!(outcome, Outcome::Promoted { .. });
        let pause = running.ended_after.unwrap_or_default();
        let context = ReportContext {
            group: self.group.to_string(),
            pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            forecast_pause_ms: running.forecast_pause_ms,
            cut_seq: running.machine.cut_seq().map(|seq| seq.0),
            source_epoch: running.source_epoch,
            problem: running.problem.map(|why| {
                format!("the target has taken over and does not serve yet: {why}; it tries again by itself")
            }),
        };
        let report = CutoverReport::new(context, outcome);
        tracing::info!(outcome = ?report.outcome, pause_ms = report.pause_ms, reason = %report.reason, "cutover ended");
        if let Some(caller) = running.caller {
            caller.say(ControlReply::Done(report));
        }
    }

    /// The shipper ends: whoever waits hears it. What is sealed is resolved by the next.
    pub fn stop(&mut self) {
        let waiting = self
            .running
            .take()
            .and_then(|r| r.caller)
            .or_else(|| self.catching_up.take().map(|(_, order)| order.caller));
        if let Some(caller) = waiting {
            let why = "the shipper was stopped; the proxy lifts a hold by itself, a seal is \
                       resolved when the shipper runs again";
            caller.say(ControlReply::Refused(why.into()));
        }
    }
}

impl Running {
    fn new(
        machine: Cutover,
        caller: Option<Caller>,
        forecast_pause_ms: Option<u64>,
        source_epoch: u32,
    ) -> Running {
        let now = Instant::now();
        Running {
            machine,
            began: now,
            events: VecDeque::new(),
            promote: None,
            promote_sent: false,
            drain_upto: None,
            last_progress: now,
            ask_again_at: None,
            to_tell: VecDeque::new(),
            tell_at: now,
            outcome: None,
            problem: None,
            ended_after: None,
            forecast_pause_ms,
            source_epoch,
            caller,
            unanswered: None,
        }
    }

    /// What happened next. Whoever asked and hung up before the seal has taken the request back;
    /// after it the receiver decides.
    fn next_event(&mut self) -> Option<Event> {
        let is_open = matches!(self.machine.state(), State::Holding | State::Draining { .. });
        let has_failed = matches!(self.events.front(), Some(Event::HoldFailed(_)));
        if is_open && !has_failed && self.caller.as_ref().is_some_and(Caller::has_left) {
            return Some(Event::OperatorAbort);
        }
        self.events.pop_front()
    }

    fn decided(&mut self, decision: &WireDecision) {
        if decision.attempt != attempt_name(self.machine.attempt().0) {
            return;
        }
        self.events.push_back(Event::Decision(match decision.outcome {
            WireOutcome::Promoted => {
                self.problem.clone_from(&decision.problem);
                Decision::Promoted { epoch: decision.epoch, exports: decision.exports.clone() }
            }
            WireOutcome::Aborted => Decision::Aborted,
        }));
    }

    /// Turns what can be seen into events.
    fn observe(&mut self, cut: Option<u64>, stream: &Stream) {
        let ack = stream.ack();
        if let Some(upto) = self.drain_upto {
            let at_point = ack.point.is_some_and(|point| point.seq.0 >= upto);
            if at_point && !ack.broken && ack.applied == ack.number {
                self.drain_upto = None;
                self.events.push_back(Event::Drained);
            } else if self.last_progress.elapsed() >= PROGRESS_EVERY {
                self.last_progress = Instant::now();
                let backlog = stream.progress().get(towline_journal::progress::Figure::LagBytes);
                self.events.push_back(Event::DrainProgress { backlog_bytes: backlog });
                self.say("draining", backlog);
            }
        }
        if self.ask_again_at.is_some_and(|at| Instant::now() >= at) {
            self.ask_again_at = None;
            self.promote_sent = false;
        }
        if let Some(promote) = &self.promote
            && !self.promote_sent
            && cut.is_some_and(|cut| cut >= promote.position.seq.0)
        {
            stream.say(Message::Promote(promote.clone()));
            self.promote_sent = true;
        }
        if self.machine.next_tick().is_some_and(|at| self.began.elapsed() >= at) {
            self.events.push_back(Event::Tick);
        }
    }

    fn say(&self, phase: &str, backlog_bytes: u64) {
        if let Some(caller) = &self.caller {
            caller.say(ControlReply::Progress { phase: phase.to_owned(), backlog_bytes });
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>, dir: &GroupDir, stream: &Stream) {
        for action in actions {
            self.carry_out_one(action, dir, stream);
        }
    }

    fn carry_out_one(&mut self, action: Action, dir: &GroupDir, stream: &Stream) {
        match action {
            Action::Hold { attempt, max } => {
                self.say("stopping writes", 0);
                let event = self.hold(attempt, max, dir);
                self.events.push_back(event);
            }
            Action::Release { attempt } => {
                let request = Request::Release { attempt: attempt.0 };
                if let Err(error) = ask(dir, PROXY_ANSWER_MAX, &request) {
                    tracing::warn!("{error}: the proxy lifts the hold at its own deadline");
                }
            }
            Action::DrainCheck { upto } => {
                self.drain_upto = Some(upto.0);
                self.say("holding", 0);
            }
            Action::Seal { attempt } => {
                let left = self.machine.next_tick().unwrap_or_default();
                let wait = answer_wait(left.saturating_sub(self.began.elapsed()));
                let event = match ask(dir, wait, &Request::Seal { attempt: attempt.0 }) {
                    Ok(Reply::Sealed { seq }) => {
                        let at = stream.ack().position;
                        Event::Sealed(Position { seq: towline_block::Seq(seq), ..at })
                    }
                    Ok(other) => Event::SealFailed(unexpected(&other).to_string()),
                    Err(error) => {
                        tracing::warn!("{error}");
                        Event::LinkLost
                    }
                };
                self.events.push_back(event);
            }
            Action::SendPromote { attempt, position } => {
                self.say("promoting", 0);
                self.ask_again_at = None;
                self.promote_sent = false;
                self.promote = Some(Promote {
                    attempt: attempt_name(attempt.0),
                    position,
                    allow_rollback: false,
                });
            }
            Action::SendAbort { attempt } => {
                self.promote = None;
                stream.say(Message::Abort(Abort { attempt: attempt_name(attempt.0) }));
            }
            Action::Commit { epoch, exports } => self.to_tell.push_back(Request::Commit {
                attempt: self.machine.attempt().0,
                epoch: epoch.0,
                exports,
            }),
            Action::Unseal { attempt } => {
                self.to_tell.push_back(Request::Unseal { attempt: attempt.0 });
            }
            Action::Finish(outcome) => {
                self.ended_after = Some(self.began.elapsed());
                self.outcome = Some(outcome);
            }
        }
    }

    /// A hold that is not answered in time may still come to be: it is taken back behind it, on
    /// the same link, or a proxy that goes on would hold its guest for nobody.
    fn hold(&mut self, attempt: Attempt, max: Duration, dir: &GroupDir) -> Event {
        let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        let mut link = match connect(dir, answer_wait(max)) {
            Ok(link) => link,
            Err(error) => return Event::HoldFailed(error.to_string()),
        };
        match link.call(&Request::Hold { attempt: attempt.0, max_ms }) {
            Ok((Reply::Held { seq }, _)) => Event::Held(towline_block::Seq(seq)),
            Ok((other, _)) => Event::HoldFailed(unexpected(&other).to_string()),
            Err(error) => {
                let _ = link.send(&Request::Release { attempt: attempt.0 }, &[]);
                self.unanswered = Some(link);
                Event::HoldFailed(from_journal(error).to_string())
            }
        }
    }

    /// Repeats decisions until the proxy has confirmed them.
    fn tell_proxy(&mut self, dir: &GroupDir) {
        if Instant::now() < self.tell_at {
            return;
        }
        while let Some(request) = self.to_tell.front() {
            match ask(dir, LINK_ANSWER_MAX, request) {
                Ok(Reply::Ok) => {
                    self.to_tell.pop_front();
                }
                Ok(other) => {
                    tracing::error!("the proxy does not take the decision: {}", unexpected(&other));
                    self.to_tell.pop_front();
                }
                Err(error) => {
                    tracing::warn!("{error}: the decision is told again");
                    self.tell_at = Instant::now() + RETRY_EVERY;
                    return;
                }
            }
        }
    }
}

fn epoch_of(dir: &GroupDir) -> u32 {
    dir.load().ok().flatten().map_or(1, |state| state.epoch)
}

/// Of a group that was promoted before, as its state directory says; `exports` are where it is
/// served by now, if that is known.
pub fn taken_over(dir: &GroupDir, exports: Option<Vec<String>>) -> Option<CutoverReport> {
    let state = dir.load().ok().flatten()?;
    let promoted = state.seal?.promoted?;
    let exports = exports.filter(|exports| !exports.is_empty()).unwrap_or(promoted.exports);
    Some(CutoverReport::already(state.group.to_string(), promoted.epoch, exports))
}

fn dropped() {
    tracing::info!("cutover dropped: whoever asked for it has hung up; nobody was held");
}

/// Whether the proxy answers, down to its I/O threads: a release of nothing does nothing.
fn probe(dir: &GroupDir) -> Result<()> {
    ask(dir, PROXY_ANSWER_MAX, &Request::Release { attempt: 0 }).map(drop)
}

/// How long an answer that has to come within `left` is waited for.
fn answer_wait(left: Duration) -> Duration {
    left.saturating_add(ANSWER_MARGIN).min(LINK_ANSWER_MAX)
}

/// One question on a link of its own: the cutover does not depend on the feed's.
fn ask(dir: &GroupDir, wait: Duration, request: &Request) -> Result<Reply> {
    Ok(connect(dir, wait)?.call(request).map_err(from_journal)?.0)
}

fn connect(dir: &GroupDir, wait: Duration) -> Result<Link> {
    let link = Link::connect(&dir.proxy_socket()).map_err(from_journal)?;
    link.set_timeout(Some(wait)).map_err(from_journal)?;
    Ok(link)
}

#[cfg(test)]
mod tests;
