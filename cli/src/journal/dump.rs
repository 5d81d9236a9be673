//! `towline journal dump`: records as they lie in the ring.

use super::Place;
use super::filter::{Filter, Range, Selection};
use super::lines::{Form, Lines, RecordLine};
use crate::exit::Exit;
use crate::output;
use serde::Serialize;
use towline_journal::inspect::{GroupView, Marks, SlotFault};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    selection: Selection,
    /// Also the payload of each record, in hexadecimal.
    #[arg(long)]
    payload: bool,
    /// At most this many records.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Dump {
    group: String,
    incarnation: u32,
    records: Vec<RecordLine>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_ring()?;
    let filter = Filter::new(&view, &args.selection)?.within(&args.range)?;
    let form = Form { payload: args.payload, json: args.place.json };
    let marks = view.marks();
    let records = args
        .range
        .numbers(&view)
        .filter_map(|seq| line(&view, seq, marks, &filter, form))
        .take(args.limit.unwrap_or(usize::MAX));
    if form.json {
        let group = view.state.group.to_string();
        let incarnation = view.ring_incarnation();
        output::json(&Dump { group, incarnation, records: records.collect() })?;
        return Ok(Exit::Ok);
    }
    let mut out = Lines::stdout();
    for record in records {
        if !out.print(&record.text())? {
            return Ok(Exit::Ok);
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
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
