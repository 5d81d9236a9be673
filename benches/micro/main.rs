//! The journal's figures in one table: `cargo bench -p towline-bench --bench micro`.
//! `-- --json FILE` writes them as JSON, too; `-- --only PART` measures one part
//! (steps, codec, append, drain, durable, restart, activity, engines). Single operations are timed by themselves; the timer's
//! own cost is measured and shown, and not subtracted. `-- --step NAME --times N` only does a step (`count.rs`).

mod activity;
mod append;
mod codec;
mod count;
mod drain;
mod durable;
mod engines;
mod figures;
mod group;
mod restart;
mod steps;

use figures::Found;

const BLOCK: usize = 4096;

type Part = (&'static str, fn(&mut Found));
const PARTS: [Part; 8] = [
    ("steps", steps::measure),
    ("codec", codec::measure),
    ("append", append::measure),
    ("drain", drain::measure),
    ("durable", durable::measure),
    ("restart", restart::measure),
    ("activity", activity::measure),
    ("engines", engines::measure),
];

/// What stands behind an option.
pub fn value_of(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == restart::CHILD) {
        let dir = arguments.next().expect("the child's folder");
        return restart::fill_and_wait(dir.as_ref());
    }
    if let Some(times) = value_of("--times") {
        let step = value_of("--step").expect("--step NAME");
        return count::run(&step, times.parse().expect("--times N"));
    }
    let (json, only) = (value_of("--json"), value_of("--only"));
    let mut found = Found::default();
    for (name, measure) in PARTS {
        if only.as_ref().is_none_or(|only| only == name) {
            measure(&mut found);
        }
    }
    found.print();
    if let Some(path) = json {
        std::fs::write(&path, format!("{:#}\n", found.json()))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}
