//! Each rule is necessary: without it a storm breaks a promise that it keeps with all rules
//! on. The table in docs/design/0002-model.md names a storm and a seed for each, and this
//! test is that table's proof; where a seed shows nothing any more it looks for another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use towline_sim::{Config, Rules, run};

/// Storms that are searched for a new seed.
const SEEDS_MAX: u64 = 20_000;

const TABLE: &str = include_str!("../../docs/design/0002-model.md");

/// A row of the table: a switch of `sim/src/rules.rs`, its storm and seed. Without a seed it
/// is not proved yet.
struct Row {
    rule: &'static str,
    storm: &'static str,
    seed: Option<u64>,
}

/// Rows are `| R | switch | where | storm | seed |`.
fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let &[_, _, rule, _, storm, seed, _] = cells.as_slice() else { return None };
        let seed = seed.parse().ok();
        Rules::NAMES.contains(&rule).then_some(Row { rule, storm, seed })
    };
    TABLE.lines().filter_map(row).collect()
}

fn storm(name: &str, rules: Rules, seed: u64) -> Config {
    match name {
        "stormy" => Config::stormy(rules, seed),
        "kills" => Config::kills(rules),
        "slow kills" => Config::slow_kills(rules),
        "power" => Config::power(rules, seed),
        "power, kills" => Config::power_kills(rules, seed),
        "power, set back" => Config::power_set_back(rules, seed),
        "spill" => Config::spill(rules, seed),
        "history" => Config::history(rules, seed),
        "odd" => Config::odd(rules, seed),
        _ => panic!("no storm is called {name}"),
    }
}

/// The promise that is broken without the rule, if with it none is.
fn violation(row: &Row, seed: u64) -> Option<String> {
    let failure = run(storm(row.storm, Rules::without(row.rule), seed), seed).err()?;
    let whole = run(storm(row.storm, Rules::ALL, seed), seed);
    assert!(whole.is_ok(), "seed {seed} fails with all rules, too: {}", whole.unwrap_err());
    Some(failure.what)
}

/// What is wrong with a row, if anything.
fn fault(row: &Row) -> Option<String> {
    let Some(seed) = row.seed else {
        println!("{}: NOT PROVED", row.rule);
        return None;
    };
    if let Some(what) = violation(row, seed) {
        println!("{}: {} {seed}: {what}", row.rule, row.storm);
        return None;
    }
    let other = (0..SEEDS_MAX).find_map(|seed| Some((seed, violation(row, seed)?)));
    Some(match other {
        Some((seed, what)) => format!("`{}` | {} | {seed} | {what}", row.rule, row.storm),
        None => format!("{}: no seed of the storm \"{}\" misses it", row.rule, row.storm),
    })
}

#[test]
fn without_any_one_rule_the_storm_and_seed_of_its_row_break_a_promise() {
    let (rows, faults, next) = (rows(), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let fault = fault(row);
                    faults.lock().unwrap_or_else(PoisonError::into_inner).extend(fault);
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(faults.is_empty(), "rows of docs/design/0002-model.md:\n{}", faults.join("\n"));
}

#[test]
fn the_table_has_a_row_for_every_rule_and_no_other() {
    let mut named: Vec<_> = rows().iter().map(|row| row.rule).collect();
    let mut rules = Rules::NAMES.to_vec();
    named.sort_unstable();
    rules.sort_unstable();
    assert_eq!(named, rules);
}
