//! `towline journal tail`: the newest records, and those to come.
//!
//! Following looks at the ring's counters a few times a second; nobody is asked and
//! nobody waits for it. Records that are drained and overwritten faster than they
//! are shown are counted.

use super::filter::{Filter, Selection};
use super::lines::{Form, Lines, RecordLine};
use super::{Payload, Place};
use crate::exit::Exit;
use crate::output;
use crate::signals::{Again, Stop};
use crate::table::count;
use anyhow::bail;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use towline_journal::inspect::GroupView;

/// How often the counters are looked at: below what a person notices.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often state.json is read, to see whether the group has a new ring.
const RING_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Records that one JSON object holds; of more, the newest stay.
const JSON_RECORDS_MAX: usize = 100_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    selection: Selection,
    /// Go on with the records to come, until ^C.
    #[arg(short, long)]
    follow: bool,
    /// End following after this time.
    #[arg(long = "for", value_name = "SECONDS", requires = "follow")]
    seconds: Option<f64>,
    /// How many of the newest records to begin with.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    last: u64,
    #[command(flatten)]
    payload: Payload,
}

#[derive(Serialize)]
struct Tail {
    group: String,
    incarnation: u32,
    /// Records overwritten before they could be shown.
    lost: u64,
    /// Older records left out, as one object holds no more.
    dropped: u64,
    records: VecDeque<RecordLine>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_records()?;
    let filter = Filter::new(&view, &args.selection)?;
    let form = Form::new(&view, args.payload.bytes(), args.place.json);
    let mut follower = Follower {
        out: (!form.json).then(Lines::stdout),
        filter,
        form,
        next: 0,
        following: args.follow,
        tail: Tail {
            group: view.state.group.to_string(),
            incarnation: view.ring_incarnation(),
            lost: 0,
            dropped: 0,
            records: VecDeque::new(),
        },
        view,
    };
    follower.rewind(args.last);
    let mut read = follower.show()?;
    if args.follow && read {
        let end = args.seconds.map(duration).transpose()?.map(|time| Instant::now() + time);
        let stop = Stop::listen(Again::EndsAtOnce)?;
        let mut checked = Instant::now();
        while read && end.is_none_or(|end| Instant::now() < end) {
            let left =
                end.map_or(POLL_INTERVAL, |end| end.saturating_duration_since(Instant::now()));
            if stop.wait_for(left.min(POLL_INTERVAL)).is_some() {
                break;
            }
            read = follower.show()?;
            if checked.elapsed() >= RING_CHECK_INTERVAL {
                checked = Instant::now();
                read &= follower.change_ring(&args.place)?;
            }
        }
    }
    if form.json {
        output::json(&follower.tail)?;
    } else if follower.tail.lost > 0 {
        let lost = count(follower.tail.lost, "record");
        eprintln!("towline: {lost} drained and overwritten before they could be shown");
    }
    Ok(Exit::Ok)
}

fn duration(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| Instant::now().checked_add(*time).is_some())
        .ok_or_else(|| crate::exit::usage(format!("--for {seconds} is no number of seconds")))
}

struct Follower {
    view: GroupView,
    filter: Filter,
    form: Form,
    /// The record to show next.
    next: u64,
    following: bool,
    out: Option<Lines>,
    tail: Tail,
}

impl Follower {
    /// Goes back so far that `last` records that pass the filter are ahead.
    fn rewind(&mut self, last: u64) {
        let (done, present) = (self.view.marks().done, self.view.present());
        self.next = done + 1;
        let mut found = 0;
        for seq in (*present.start()..=done).rev() {
            if found >= last {
                break;
            }
            if self.view.record(seq).is_some_and(|record| self.filter.passes(&record)) {
                found += 1;
                self.next = seq;
            }
        }
    }

    /// Shows what is new; whether somebody still reads.
    fn show(&mut self) -> anyhow::Result<bool> {
        let marks = self.view.marks();
        if !marks.sound && self.following {
            bail!(
                "the counters of the ring {} contradict each other, so that nothing says what is \
                 new: see `towline journal verify`",
                self.view.state.ring.path.display()
            );
        }
        let oldest = *self.view.present().start();
        if self.next < oldest {
            self.tail.lost += oldest - self.next;
            self.next = oldest;
        }
        while self.next <= marks.done {
            let seq = self.next;
            self.next += 1;
            let Some(record) = self.view.record(seq) else {
                self.tail.lost += 1;
                continue;
            };
            if !self.filter.passes(&record) {
                continue;
            }
            let line = RecordLine::of(&self.view, &record, marks.acked, self.form);
            match &mut self.out {
                Some(out) => {
                    if !out.print(&line.text(&self.form))? {
                        return Ok(false);
                    }
                }
                None => self.keep(line),
            }
        }
        self.out.as_mut().map_or(Ok(true), Lines::flush)
    }

    fn keep(&mut self, line: RecordLine) {
        if self.tail.records.len() == JSON_RECORDS_MAX {
            self.tail.records.pop_front();
            self.tail.dropped += 1;
        }
        self.tail.records.push_back(line);
    }

    /// Goes on in the group's new ring, if it has one; whether somebody still reads.
    fn change_ring(&mut self, place: &Place) -> anyhow::Result<bool> {
        let stored = self.view.dir.load().ok().flatten();
        let changed = stored.is_some_and(|state| state.ring.id != self.view.state.ring.id);
        if !changed || place.ring.is_some() {
            return Ok(true);
        }
        // The proxy is on its way: the ring is there a moment later.
        let Ok(view) = place.open_records() else { return Ok(true) };
        self.view = view;
        self.tail.incarnation = self.view.ring_incarnation();
        self.next = *self.view.present().start();
        match &mut self.out {
            Some(out) => out.print(&format!("a new ring: incarnation {}", self.tail.incarnation)),
            None => Ok(true),
        }
    }
}
