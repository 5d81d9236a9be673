//! `towline journal dump`: records as they lie in the journal.

use super::filter::{Filter, Range, Selection};
use super::lines::{Form, Lines, RecordLine};
use super::{Payload, Place};
use crate::exit::Exit;
use crate::output;
use crate::table::count;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use towline_journal::inspect::{GroupView, Marks, SlotFault};

/// Records shown on a terminal unless told otherwise: what can be scrolled back to.
const TERMINAL_RECORDS: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    payload: Payload,
    /// At most this many records; 0: all [default: 1000 on a terminal, else all].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Dump<'a, I: Iterator<Item = RecordLine>> {
    group: String,
    incarnation: u32,
    #[serde(serialize_with = "one_by_one")]
    records: RefCell<I>,
    /// Whether --limit left records out: known when they are written.
    more: &'a Cell<bool>,
}

/// There can be millions: each is written before the next one is read.
fn one_by_one<I: Iterator<Item = RecordLine>, S: serde::Serializer>(
    records: &RefCell<I>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(&mut *records.borrow_mut())
}

/// The first records of an iterator, and whether there are more.
struct Limited<'a, I> {
    records: I,
    left: usize,
    more: &'a Cell<bool>,
}

impl<I: Iterator> Iterator for Limited<'_, I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        if self.left == 0 {
            self.more.set(self.more.get() || self.records.next().is_some());
            return None;
        }
        self.left -= 1;
        self.records.next()
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_records()?;
    let filter = Filter::new(&view, &args.selection)?.within(&args.range)?;
    let form = Form::new(&view, args.payload.bytes(), args.place.json);
    let left = match args.limit {
        Some(0) => usize::MAX,
        Some(limit) => limit,
        None if !form.json && std::io::stdout().is_terminal() => TERMINAL_RECORDS,
        None => usize::MAX,
    };
    let (numbers, marks, more) = (args.range.numbers(&view), view.marks(), Cell::new(false));
    let records = numbers.clone().filter_map(|seq| line(&view, seq, marks, &filter, form));
    let mut records = Limited { records, left, more: &more };
    if form.json {
        let group = view.state.group.to_string();
        let incarnation = view.ring_incarnation();
        output::json(&Dump { group, incarnation, records: RefCell::new(records), more: &more })?;
        return Ok(Exit::Ok);
    }
    let mut out = Lines::stdout();
    let mut last = *numbers.start();
    for record in &mut records {
        last = record.seq;
        if !out.print(&record.text(&form))? {
            return Ok(Exit::Ok);
        }
    }
    out.flush()?;
    if more.get() {
        left_out(filter.is_open().then(|| numbers.end().saturating_sub(last)));
    }
    Ok(Exit::Ok)
}

/// Says on standard error that --limit left records out; how many, where that is known.
fn left_out(records: Option<u64>) {
    let what = records.map_or("more records follow".into(), |left| count(left, "more record"));
    eprintln!("towline: {what}: give --limit N for N of them, --limit 0 for all, or --seq");
}

fn line(
    view: &GroupView,
    seq: u64,
    marks: Marks,
    filter: &Filter,
    form: Form,
) -> Option<RecordLine> {
    match view.read(seq)? {
        Ok(record) => {
            filter.passes(&record).then(|| RecordLine::of(view, &record, marks.acked, form))
        }
        // Nobody knows its kind, volume or time; a record that the target has may be
        // gone, and one without an outcome not there yet.
        Err(fault) => {
            let gone = matches!(fault, SlotFault::OtherRecord { .. })
                && !(marks.acked + 1..=marks.done).contains(&seq);
            (filter.is_open() && !gone).then(|| RecordLine::unreadable(seq, fault, marks.acked))
        }
    }
}
