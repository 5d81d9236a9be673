//! Three cuts of every test run, and the control that must fail. `scripts/powercut` makes
//! more.

use towline_tests::powercut::{Life, Outcome, plan};
use towline_tests::volatile::Flushes;
use towline_tests::{machine, skip, test_name};

const SEED: u64 = 1;

#[test]
fn power_cuts_lose_nothing_flushed_and_the_target_becomes_the_source_again() {
    if let Some(reason) = machine::unavailable() {
        return skip::skip(test_name!(), &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(0, dir.path(), Flushes::Kept).unwrap();
    let mut outcomes: Vec<_> = Vec::new();
    for cut in plan::short(SEED) {
        let outcome = life.cut(&cut, outcomes.last_mut()).unwrap_or_else(|e| {
            panic!("{e:?}; before: {outcomes:#?}");
        });
        println!("{}", outcome.line(outcomes.len()));
        assert!(outcome.findings.is_empty(), "{:#?}", outcome.findings);
        outcomes.push(outcome);
    }
    let last = outcomes.last_mut().unwrap();
    life.finish(last).unwrap_or_else(|e| panic!("{e:?}: {last:#?}"));
    for (number, outcome) in outcomes.iter().enumerate() {
        println!("{}", outcome.line(number));
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    assert!(
        sum(|o| o.disk.lost) > 0,
        "no cut lost anything of the disk's cache: nothing is proved"
    );
    assert!(sum(|o| o.flushes) > 0, "no flush was acknowledged: nothing is proved");
    let recovery = |number: usize| outcomes[number].recovery.unwrap();
    assert!(recovery(1).map_bytes < outcomes[1].total_bytes, "cold extents are not compared");
    assert!(recovery(2).history_bytes > 0, "the durable spill is shipped before anything else");
}

/// The same judges, over a disk that answers flushes and does not do them.
#[test]
fn without_flushes_the_same_test_fails() {
    if let Some(reason) = machine::unavailable() {
        return skip::skip(test_name!(), &reason);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::new(0, dir.path(), Flushes::Swallowed).unwrap();
    let outcome = life.cut(&plan::control(SEED), None).unwrap();
    println!("{}", outcome.line(0));
    let lost = |finding: &&String| finding.contains("Lost:") || finding.contains("Stale:");
    let found = outcome.findings.iter().find(lost);
    assert!(found.is_some(), "lost flushes went unseen: {:#?}", outcome.findings);
}
