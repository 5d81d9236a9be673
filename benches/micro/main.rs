//! The journal's figures in one table: `cargo bench -p towline-bench --bench micro`.
//! `-- --json FILE` writes them as JSON, too; `-- --only PART` measures one part
//! (steps, codec, append). Single operations are timed by themselves; the timer's
//! own cost is measured and shown, and not subtracted.

mod append;
mod codec;
mod figures;
mod group;
mod steps;

use figures::Found;

const BLOCK: usize = 4096;

type Part = (&'static str, fn(&mut Found));
const PARTS: [Part; 3] =
    [("steps", steps::measure), ("codec", codec::measure), ("append", append::measure)];

fn main() {
    let value_of = |name: &str| std::env::args().skip_while(|argument| argument != name).nth(1);
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
