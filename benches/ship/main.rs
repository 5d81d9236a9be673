//! Shipping by parts: `cargo bench -p towline-bench --bench ship`. What each step does a
//! second on one thread; then a stream of ready batches to a receiver over loopback, with
//! what both sides together took of the CPU. `-- --only PART` measures one part
//! (steps, plain, tls).

mod content;
mod steps;
mod stream;

type Part = (&'static str, fn());
const PARTS: [Part; 3] =
    [("steps", steps::measure), ("plain", stream::plain), ("tls", stream::tls)];

fn main() {
    let only = std::env::args().skip_while(|argument| argument != "--only").nth(1);
    for (name, measure) in PARTS {
        if only.as_ref().is_none_or(|only| only == name) {
            measure();
        }
    }
}
