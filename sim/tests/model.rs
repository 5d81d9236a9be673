//! The model holds: over a kill of each process at each step, and over random storms.

use towline_sim::{Config, Failure, Rules, run, sweep};

/// Storms on every commit; `TOWLINE_SIM_SEEDS` asks for more.
const STORM_SEEDS: u64 = 2000;

fn seeds() -> u64 {
    std::env::var("TOWLINE_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(STORM_SEEDS)
}

/// Sweeps on every commit; each is a run for every step and process.
fn sweeps() -> u64 {
    (seeds() / 500).max(1)
}

fn must_hold<T>(result: Result<T, Box<Failure>>) -> T {
    match result {
        Ok(value) => value,
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn storms_break_no_promise() {
    let (mut points, mut promoted, mut parts) = (0, 0, 0);
    for seed in 0..seeds() {
        let passed = must_hold(run(Config::stormy(Rules::ALL, seed), seed));
        points += passed.points;
        promoted += u64::from(passed.promoted);
        parts += passed.parts;
    }
    assert!(points > 0 && promoted > 0 && parts > 0, "the storms reach all of these");
    println!("{points} points, {promoted} promotions, {parts} blocks sent in part");
}

#[test]
fn power_losses_break_no_promise_and_spare_what_is_cold() {
    let (mut verdicts, mut spared) = ([0, 0], 0);
    for seed in 0..seeds() {
        let passed = must_hold(run(Config::power(Rules::ALL, seed), seed));
        verdicts = [0, 1].map(|at| verdicts[at] + passed.verdicts[at]);
        spared += passed.spared;
    }
    assert!(!verdicts.contains(&0) && spared > 0, "{verdicts:?}, {spared} blocks not compared");
    println!("verdicts {verdicts:?}, {spared} blocks not compared after the loss of a ring");
}

#[test]
fn storms_over_a_spill_of_any_durability_break_no_promise() {
    let (mut shipped, mut answers, mut marks) = ([0, 0], [0, 0], 0);
    for seed in 0..seeds() {
        let passed = must_hold(run(Config::spill(Rules::ALL, seed), seed));
        shipped = [0, 1].map(|at| shipped[at] + passed.shipped[at]);
        answers = [0, 1].map(|at| answers[at] + passed.durable_answers[at]);
        marks += passed.marks;
    }
    assert!(!shipped.contains(&0) && !answers.contains(&0) && marks > 0);
    println!(
        "{} records shipped from a history, {} from the spill, {} durable answers, {} late, {marks} marks",
        shipped[0], shipped[1], answers[0], answers[1]
    );
}

#[test]
fn storms_over_a_durable_spill_before_a_target_that_lags_break_no_promise() {
    let (mut shipped, mut spared) = ([0, 0], 0);
    for seed in 0..seeds() {
        let passed = must_hold(run(Config::history(Rules::ALL, seed), seed));
        shipped = [0, 1].map(|at| shipped[at] + passed.shipped[at]);
        spared += passed.spared;
    }
    assert!(!shipped.contains(&0) && spared > 0);
    println!("{} records shipped from a history, {} from the spill", shipped[0], shipped[1]);
}

#[test]
fn what_machines_and_people_should_not_do_breaks_no_promise() {
    let points: u64 =
        (0..seeds()).map(|seed| must_hold(run(Config::odd(Rules::ALL, seed), seed)).points).sum();
    assert!(points > 0);
}

#[test]
fn a_kill_of_any_process_at_any_step_breaks_no_promise() {
    let runs: u64 = (0..sweeps()).map(|seed| must_hold(sweep(Config::calm(3), seed))).sum();
    println!("{runs} runs");
}

#[test]
fn a_kill_of_any_process_at_any_step_of_a_cutover_breaks_no_promise() {
    let config = Config { cutover_at: Some((60, 5000)), ..Config::calm(3) };
    let runs: u64 = (0..sweeps()).map(|seed| must_hold(sweep(config, seed))).sum();
    println!("{runs} runs");
}

#[test]
fn a_kill_of_any_process_at_any_step_breaks_no_promise_while_rings_overflow_and_writes_fail() {
    let config = Config { fail_write: 10, ..Config::uneven(6) };
    let runs: u64 = (0..sweeps()).map(|seed| must_hold(sweep(config, seed))).sum();
    println!("{runs} runs");
}
