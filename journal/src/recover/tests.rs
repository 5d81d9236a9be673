//! What must hold of every combination, and that the documents' tables are this one.

use super::*;

const STATES: [StateFound; 2] = [StateFound::Absent, StateFound::Present];
const RINGS: [RingFound; 4] =
    [RingFound::Absent, RingFound::Intact, RingFound::Unusable, RingFound::Newer];
const SAVED: [SavedFound; 4] =
    [SavedFound::Absent, SavedFound::Valid, SavedFound::Unusable, SavedFound::Newer];
const ACTIVITIES: [ActivityFound; 3] =
    [ActivityFound::Sound, ActivityFound::Unusable, ActivityFound::Newer];
const SPILLS: [SpillFound; 4] =
    [SpillFound::Nothing, SpillFound::Sound, SpillFound::Holed, SpillFound::Newer];
const SOURCES: [SourceFound; 3] = [SourceFound::Same, SourceFound::Unknown, SourceFound::Changed];
const POLICIES: [AttachPolicy; 3] = [AttachPolicy::Auto, AttachPolicy::Trust, AttachPolicy::Resync];

fn all() -> Vec<Findings> {
    let mut all = Vec::new();
    for state in STATES {
        for ring in RINGS {
            for saved in SAVED {
                for activity in ACTIVITIES {
                    for spill in SPILLS {
                        for source in SOURCES {
                            let of = |policy| Findings {
                                state,
                                ring,
                                saved,
                                activity,
                                spill,
                                source,
                                policy,
                            };
                            all.extend(POLICIES.map(of));
                        }
                    }
                }
            }
        }
    }
    all
}

/// Walks all 3456 combinations and states what must hold, not what the code says.
#[test]
fn every_combination_keeps_the_promises() {
    let all = all();
    assert_eq!(all.len(), 2 * 4 * 4 * 3 * 4 * 3 * 3);
    for found in all {
        check(&found, decide(&found));
    }
}

fn check(found: &Findings, decision: Decision) {
    let ctx = format!("{found:?} -> {decision:?}");
    let Findings { state, ring, saved, activity, spill, source, policy } = *found;
    // Where the ring lies is known from the state alone.
    let newer = spill == SpillFound::Newer
        || saved == SavedFound::Newer
        || activity == ActivityFound::Newer
        || (state == StateFound::Present && ring == RingFound::Newer);
    assert_eq!(matches!(decision, Decision::Refuse(_)), newer, "{ctx}");
    if newer {
        return;
    }
    assert_eq!(decision == Decision::Create, state == StateFound::Absent, "{ctx}");
    if state == StateFound::Absent {
        return;
    }
    let vouched = policy == AttachPolicy::Trust;
    if !matches!(decision, Decision::Restart { .. }) {
        assert_ne!(policy, AttachPolicy::Resync, "{ctx}");
        assert!(source != SourceFound::Changed || vouched, "{ctx}");
    }
    match decision {
        Decision::UseRing | Decision::UseRingCompareAll => {
            assert_eq!(ring, RingFound::Intact, "{ctx}");
            let holed = spill == SpillFound::Holed;
            assert_eq!(decision == Decision::UseRingCompareAll, holed, "{ctx}");
        }
        Decision::RestoreSaved | Decision::CompareHot { .. } => {
            assert_ne!(ring, RingFound::Intact, "{ctx}");
            assert!(source == SourceFound::Same || vouched, "{ctx}");
            let is_saved = saved == SavedFound::Valid;
            assert_eq!(decision == Decision::RestoreSaved, is_saved, "{ctx}");
            assert!(is_saved || activity == ActivityFound::Sound, "{ctx}");
        }
        _ => {}
    }
    // What lies on disk is shipped whenever the ring is given up, unless the operator
    // wants everything sent again, and only if it is there.
    if let Decision::CompareHot { history } | Decision::Restart { history, .. } = decision {
        let there = spill == SpillFound::Sound;
        assert_eq!(history, there && policy != AttachPolicy::Resync, "{ctx}");
    }
    // Never start over without need: an intact ring under an unchanged source goes on.
    let sound = ring == RingFound::Intact && source == SourceFound::Same;
    if sound && policy != AttachPolicy::Resync {
        let goes_on = matches!(decision, Decision::UseRing | Decision::UseRingCompareAll);
        assert!(goes_on, "{ctx}");
    }
}

const DOC: &str = include_str!("../../../docs/formats/journal.md");
const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");

/// A row of the document: patterns, and what is decided.
struct Row {
    patterns: [String; 7],
    decision: String,
}

fn rows() -> Vec<Row> {
    let table = DOC.split("## Recovery\n").nth(1).and_then(|text| text.split("\n\n").nth(1));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows = table.expect("the table is there").lines().skip(2).map(cells);
    rows.map(|mut cells| {
        let decision = cells.pop().unwrap();
        Row { patterns: cells.try_into().expect("seven findings"), decision }
    })
    .collect()
}

/// The document's word for what was found of each thing, in its columns' order.
fn words(found: &Findings) -> [&'static str; 7] {
    let state = match found.state {
        StateFound::Absent => "absent",
        StateFound::Present => "present",
    };
    let ring = match found.ring {
        RingFound::Absent => "lost",
        RingFound::Unusable => "damaged",
        RingFound::Intact => "intact",
        RingFound::Newer => "newer",
    };
    let spill = match found.spill {
        SpillFound::Nothing => "empty",
        SpillFound::Sound => "sound",
        SpillFound::Holed => "holed",
        SpillFound::Newer => "newer",
    };
    let saved = match found.saved {
        SavedFound::Absent => "absent",
        SavedFound::Valid => "valid",
        SavedFound::Unusable => "damaged",
        SavedFound::Newer => "newer",
    };
    let activity = match found.activity {
        ActivityFound::Sound => "sound",
        ActivityFound::Unusable => "unusable",
        ActivityFound::Newer => "newer",
    };
    let source = match found.source {
        SourceFound::Same => "same",
        SourceFound::Unknown => "unknown",
        SourceFound::Changed => "changed",
    };
    let policy = match found.policy {
        AttachPolicy::Auto => "auto",
        AttachPolicy::Trust => "trust",
        AttachPolicy::Resync => "resync",
    };
    [state, ring, spill, saved, activity, source, policy]
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Create => "CREATE",
        Decision::UseRing => "GO ON",
        Decision::UseRingCompareAll => "GO ON, COMPARE ALL",
        Decision::RestoreSaved => "RESTORE",
        Decision::CompareHot { .. } => "COMPARE HOT",
        Decision::Restart { .. } => "COMPARE ALL",
        Decision::Refuse(_) => "REFUSE",
    }
}

#[test]
fn the_document_s_table_is_the_code_s_for_every_combination() {
    let rows = rows();
    let mut used = vec![false; rows.len()];
    for found in all() {
        let words = words(&found);
        let fits = |row: &Row| {
            row.patterns
                .iter()
                .zip(words)
                .all(|(pattern, word)| pattern == "any" || pattern.split(" or ").any(|p| p == word))
        };
        let at = rows.iter().position(fits).unwrap_or_else(|| panic!("no row for {found:?}"));
        used[at] = true;
        assert_eq!(rows[at].decision, word(decide(&found)), "row {} for {found:?}", at + 1);
    }
    assert!(used.iter().all(|used| *used), "a row that nothing reaches: {used:?}");
}

#[test]
fn every_sentence_is_explained_to_the_operator() {
    let flat = OPERATIONS.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentences: Vec<String> = all().iter().map(|found| decide(found).sentence()).collect();
    sentences.push(Decision::Restart { why: RECORD_DAMAGED, history: false }.sentence());
    sentences.sort();
    sentences.dedup();
    for sentence in &sentences {
        assert!(flat.contains(sentence.as_str()), "docs/OPERATIONS.md does not have: {sentence}");
    }
    assert_eq!(sentences.len(), 4 + 5 + 4 + 1, "{sentences:#?}");
}

/// Each row of the operator's table names the tests that prove it.
#[test]
fn every_row_of_the_operator_s_table_names_a_test_that_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let source_of = |module: &str| {
        let tests = [
            root.join("tests/journal").join(format!("{module}.rs")),
            root.join("../tests/crash").join(format!("{module}.rs")),
        ];
        tests.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    };
    let section = OPERATIONS.split("## What a start finds\n").nth(1).expect("the section is there");
    let table = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() >= 14, "{rows:#?}");
    for row in rows {
        let tests = row.trim_matches('|').rsplit('|').next().unwrap();
        assert!(tests.contains("::"), "no test in {row}");
        for test in tests.split(',').map(|test| test.trim().trim_matches('`')) {
            let (module, name) = test.split_once("::").expect(test);
            assert!(source_of(module).contains(&format!("fn {name}(")), "{test} is not there");
        }
    }
}
