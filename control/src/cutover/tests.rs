use super::*;
use proptest::prelude::*;
use towline_block::Incarnation;

const ATTEMPT: Attempt = Attempt(7);
const MAX: Duration = Duration::from_secs(2);
const EARLY: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(2);

fn position() -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(10))
}

fn promoted() -> Decision {
    Decision::Promoted { epoch: Epoch(2), exports: vec!["nbd://h/disk0".into()] }
}

fn every_event() -> Vec<Event> {
    vec![
        Event::Held(Seq(9)),
        Event::HoldFailed("no".into()),
        Event::DrainProgress { backlog_bytes: 5 },
        Event::Drained,
        Event::Sealed(position()),
        Event::SealFailed("no".into()),
        Event::Decision(promoted()),
        Event::Decision(Decision::Aborted),
        Event::LinkLost,
        Event::NetLost,
        Event::NetBack,
        Event::Tick,
        Event::OperatorAbort,
    ]
}

fn every_state() -> Vec<State> {
    vec![
        State::Holding,
        State::Draining { upto: Seq(9) },
        State::Sealing { abort: None },
        State::Sealing { abort: Some("why".into()) },
        State::Promoting { position: position() },
        State::Aborting { reason: "why".into() },
        State::Finished,
    ]
}

fn machine_in(state: State) -> Cutover {
    Cutover { attempt: ATTEMPT, deadline: LATE, max_pause: MAX, state, cut: Some(Seq(9)) }
}

/// Short names of actions, so that the table below reads like the one in the module's doc.
fn names(actions: &[Action]) -> String {
    let name = |action: &Action| match action {
        Action::Hold { .. } => "hold",
        Action::Release { .. } => "release",
        Action::DrainCheck { .. } => "drain",
        Action::Seal { .. } => "seal",
        Action::SendPromote { .. } => "promote",
        Action::SendAbort { .. } => "abort",
        Action::Commit { .. } => "commit",
        Action::Unseal { .. } => "unseal",
        Action::Finish(_) => "finish",
    };
    actions.iter().map(name).collect::<Vec<_>>().join(" ")
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::Holding => "Holding",
        State::Draining { .. } => "Draining",
        State::Sealing { abort: None } => "Sealing",
        State::Sealing { abort: Some(_) } => "Sealing-abort",
        State::Promoting { .. } => "Promoting",
        State::Aborting { .. } => "Aborting",
        State::Finished => "Finished",
    }
}

/// The expected cell of the table: actions, and the state after.
fn expected(state: &State, event: &Event, late: bool) -> (&'static str, &'static str) {
    use Event as E;
    let stay = ("", state_name(state));
    let gone = ("release finish", "Finished");
    match (state_name(state), event) {
        ("Holding", E::Held(_)) if late => gone,
        ("Holding", E::Held(_)) => ("drain", "Draining"),
        ("Holding", E::HoldFailed(_)) => ("finish", "Finished"),
        ("Draining", E::DrainProgress { .. } | E::Drained) if late => gone,
        ("Draining", E::Drained) => ("seal", "Sealing"),
        ("Draining", E::NetBack) => ("drain", "Draining"),
        ("Holding" | "Draining", E::Tick) if late => gone,
        ("Holding" | "Draining", E::LinkLost | E::OperatorAbort) => gone,
        ("Sealing", E::Sealed(_)) if !late => ("promote", "Promoting"),
        ("Sealing" | "Sealing-abort", E::Sealed(_)) => ("abort", "Aborting"),
        ("Sealing" | "Sealing-abort", E::SealFailed(_)) => gone,
        ("Sealing" | "Sealing-abort", E::LinkLost) => ("abort", "Aborting"),
        ("Sealing", E::NetBack) if !late => ("seal", "Sealing"),
        ("Sealing" | "Sealing-abort", E::NetBack) => ("abort", "Aborting"),
        ("Sealing", E::OperatorAbort) => ("", "Sealing-abort"),
        ("Sealing", E::Tick) if late => ("", "Sealing-abort"),
        ("Promoting" | "Aborting", E::Decision(Decision::Promoted { .. })) => {
            ("commit finish", "Finished")
        }
        ("Promoting" | "Aborting", E::Decision(Decision::Aborted)) => ("unseal finish", "Finished"),
        ("Promoting", E::NetBack | E::Tick) if late => ("abort", "Aborting"),
        ("Promoting", E::NetBack) => ("promote", "Promoting"),
        ("Promoting", E::OperatorAbort) => ("abort", "Aborting"),
        ("Aborting", E::NetBack) => ("abort", "Aborting"),
        _ => stay,
    }
}

#[test]
fn every_state_meets_every_event_as_the_table_says() {
    let mut cells = 0;
    for state in every_state() {
        for event in every_event() {
            for late in [false, true] {
                let mut machine = machine_in(state.clone());
                let actions = machine.step(if late { LATE } else { EARLY }, event.clone());
                let got = (names(&actions), state_name(machine.state()));
                let (want_actions, want_state) = expected(&state, &event, late);
                assert_eq!(
                    got,
                    (want_actions.to_string(), want_state),
                    "{state:?} + {event:?}, late: {late}"
                );
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 7 * 13 * 2);
}

#[test]
fn a_cutover_without_trouble_promotes() {
    let (mut machine, first) = Cutover::start(Duration::ZERO, ATTEMPT, MAX);
    assert_eq!(first, [Action::Hold { attempt: ATTEMPT, max: MAX }]);
    assert_eq!(names(&machine.step(EARLY, Event::Held(Seq(9)))), "drain");
    assert_eq!(names(&machine.step(EARLY, Event::Drained)), "seal");
    let promote = machine.step(EARLY, Event::Sealed(position()));
    assert_eq!(promote, [Action::SendPromote { attempt: ATTEMPT, position: position() }]);
    assert_eq!(machine.cut_seq(), Some(Seq(10)));
    let last = machine.step(EARLY, Event::Decision(promoted()));
    assert_eq!(names(&last), "commit finish");
    assert!(machine.is_finished());
}

#[test]
fn a_restarted_shipper_obeys_a_promotion_it_did_not_know_of() {
    let (mut machine, first) = Cutover::resume(ATTEMPT, position());
    assert_eq!(first, [Action::SendAbort { attempt: ATTEMPT }]);
    assert_eq!(machine.next_tick(), None);
    assert_eq!(names(&machine.step(LATE, Event::NetBack)), "abort");
    assert_eq!(names(&machine.step(LATE, Event::Decision(promoted()))), "commit finish");
}

#[test]
fn the_reason_of_an_abort_is_the_first_one() {
    let mut machine = machine_in(State::Sealing { abort: None });
    machine.step(EARLY, Event::OperatorAbort);
    machine.step(LATE, Event::Tick);
    machine.step(LATE, Event::Sealed(position()));
    let actions = machine.step(LATE, Event::Decision(Decision::Aborted));
    assert_eq!(
        actions.last(),
        Some(&Action::Finish(Outcome::Aborted { reason: OPERATOR.to_string() }))
    );
}

#[test]
fn a_deadline_that_no_clock_can_hold_does_not_wrap() {
    let (mut machine, _) = Cutover::start(Duration::MAX, ATTEMPT, MAX);
    assert_eq!(names(&machine.step(EARLY, Event::Held(Seq(9)))), "drain");
}

/// What must hold for any sequence of events; `Err` names the broken promise.
fn check_trace(trace: &[(Event, Vec<Action>)]) -> Result<(), String> {
    let (mut finishes, mut commits, mut returns) = (0, 0, 0);
    for (event, actions) in trace {
        for action in actions {
            if finishes > 0 {
                return Err(format!("{action:?} after Finish"));
            }
            match action {
                Action::Finish(_) => finishes += 1,
                Action::Commit { .. } => {
                    commits += 1;
                    if !matches!(event, Event::Decision(Decision::Promoted { .. })) {
                        return Err(format!("Commit after {event:?}"));
                    }
                }
                Action::Unseal { .. } => {
                    returns += 1;
                    if *event != Event::Decision(Decision::Aborted) {
                        return Err(format!("Unseal after {event:?}"));
                    }
                }
                Action::Release { .. } => returns += 1,
                _ => {}
            }
        }
    }
    if commits + returns > 1 {
        return Err(format!("{commits} commits and {returns} returns to the guest"));
    }
    Ok(())
}

/// Once a seal was asked for, the hold is not lifted without the proxy's refusal to seal.
fn check_no_release_after_seal(trace: &[(Event, Vec<Action>)]) -> Result<(), String> {
    let mut asked = false;
    for (event, actions) in trace {
        let released = actions.iter().any(|a| matches!(a, Action::Release { .. }));
        if asked && released && !matches!(event, Event::SealFailed(_)) {
            return Err(format!("Release after Seal because of {event:?}"));
        }
        asked |= actions.iter().any(|a| matches!(a, Action::Seal { .. }));
    }
    Ok(())
}

#[test]
fn the_trace_checker_finds_each_broken_promise() {
    let commit = Action::Commit { epoch: Epoch(2), exports: vec![] };
    let unseal = Action::Unseal { attempt: ATTEMPT };
    let release = Action::Release { attempt: ATTEMPT };
    let finish = Action::Finish(Outcome::Aborted { reason: String::new() });
    let aborted = Event::Decision(Decision::Aborted);
    let bad = [
        vec![(Event::Tick, vec![commit.clone()])],
        vec![(Event::LinkLost, vec![unseal.clone()])],
        vec![(Event::Decision(promoted()), vec![commit]), (Event::Tick, vec![release.clone()])],
        vec![(aborted, vec![finish.clone(), unseal])],
        vec![(Event::Tick, vec![finish.clone(), finish])],
    ];
    for trace in bad {
        assert!(check_trace(&trace).is_err(), "{trace:?}");
    }
    let seal = Action::Seal { attempt: ATTEMPT };
    let bad = [(Event::Drained, vec![seal]), (Event::Tick, vec![release])];
    assert!(check_no_release_after_seal(&bad).is_err());
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_a_promise(
        picks in proptest::collection::vec((0..13usize, 0..5u64), 0..40),
        resumed in any::<bool>(),
    ) {
        let events = every_event();
        let (mut machine, first) = if resumed {
            Cutover::resume(ATTEMPT, position())
        } else {
            Cutover::start(Duration::ZERO, ATTEMPT, MAX)
        };
        let mut trace = vec![(Event::Tick, first)];
        let mut now = Duration::ZERO;
        for (pick, wait_tenths) in picks {
            now += Duration::from_millis(wait_tenths * 100);
            let event = events[pick].clone();
            let actions = machine.step(now, event.clone());
            trace.push((event, actions));
        }
        // Whatever came before, a lost proxy and then a decision end every attempt.
        for event in [Event::LinkLost, Event::NetBack, Event::Decision(Decision::Aborted)] {
            let actions = machine.step(now, event.clone());
            trace.push((event, actions));
        }
        prop_assert!(machine.is_finished());
        prop_assert_eq!(check_trace(&trace), Ok(()));
        prop_assert_eq!(check_no_release_after_seal(&trace), Ok(()));
        let finishes = trace.iter().flat_map(|(_, a)| a).filter(|a| matches!(a, Action::Finish(_)));
        prop_assert_eq!(finishes.count(), 1);
    }
}
