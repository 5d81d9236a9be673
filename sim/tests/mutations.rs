//! Each rule is necessary: without it the search finds a broken promise. So each check can
//! fail, and the search reaches what each rule is for.

use towline_sim::{Config, Rules, run};

/// Storms that are searched before a rule counts as not proved.
const SEEDS_MAX: u64 = 20_000;

/// The first broken promise without the rule.
fn first_violation(rule: &str) -> Option<(u64, String)> {
    let rules = Rules::without(rule);
    (0..SEEDS_MAX).find_map(|seed| {
        let failure = run(Config::stormy(rules, seed), seed).err()?;
        Some((seed, failure.what))
    })
}

#[test]
fn without_any_one_rule_the_search_finds_a_broken_promise() {
    let mut unproved = Vec::new();
    for rule in Rules::NAMES {
        match first_violation(rule) {
            Some((seed, what)) => println!("{rule}: seed {seed}: {what}"),
            None => unproved.push(*rule),
        }
    }
    assert!(unproved.is_empty(), "no seed below {SEEDS_MAX} misses these rules: {unproved:?}");
}
