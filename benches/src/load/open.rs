//! The open loop: requests leave when they are due, and count from then on.
//!
//! Two threads: one sends by the clock, one takes replies, so that neither waits for
//! the other. A server that stalls fills the slots; what is due then waits here, and
//! its latency runs.

use super::closed::{LOOK_UP, REPLY_WAIT};
use super::phase::{Phase, Stage};
use super::receiver::Receiver;
use super::sender::Sender;
use super::slots::Slots;
use super::tally::new_histogram;
use super::workload::{Aim, Workload};
use crate::error::{Error, ErrorKind, Result};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Requests in flight at most: at 100,000 a second a stall of 40 ms. Beyond it they
/// wait in the client instead, which their latency shows as well.
pub(super) const IN_FLIGHT_MAX: usize = 4096;

/// While all slots are taken.
const SLOT_WAIT: Duration = Duration::from_micros(200);

/// When the requests of one connection are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    first_ns: u64,
    interval_ns: f64,
}

impl Pace {
    pub(super) fn new(now_ns: u64, rate_per_s: f64, connections: usize, connection: usize) -> Pace {
        let interval_ns = 1e9 * connections as f64 / rate_per_s;
        let shift = interval_ns * connection as f64 / connections as f64;
        Pace { first_ns: now_ns + shift as u64, interval_ns }
    }

    pub(super) fn due_ns(&self, number: u64) -> u64 {
        self.first_ns + (number as f64 * self.interval_ns) as u64
    }
}

/// Sends until the run is over; returns how late each request left.
pub(super) fn send(
    workload: &Workload,
    mut aim: Aim,
    pace: Pace,
    stage: &Stage,
    slots: &Slots,
    sender: &mut Sender,
) -> Result<Histogram<u64>> {
    fine_timers();
    let (mut late, mut number, mut measured) = (new_histogram(), 0u64, false);
    while stage.phase() != Phase::Over {
        let now = stage.now_ns();
        if !measured && stage.phase() == Phase::Measured {
            measured = true;
            late.reset();
        }
        let slot = |number: u64| (number % slots.len() as u64) as usize;
        while pace.due_ns(number) <= now && slots.is_free(slot(number)) {
            let (kind, offset) = aim.next();
            let due = pace.due_ns(number);
            sender.push(slot(number), kind, offset, workload.request_bytes, due);
            late.saturating_record(now - due + 1);
            number += 1;
        }
        if sender.gathered() > 0 {
            let since = Instant::now();
            sender.send(|| Ok(since.elapsed() < REPLY_WAIT))?;
        }
        let now = stage.now_ns();
        let wait = match pace.due_ns(number).checked_sub(now) {
            // A look at the phase now and then is enough for any rate.
            Some(left) => Duration::from_nanos(left).min(LOOK_UP),
            None if slots.is_free(slot(number)) => continue,
            None => SLOT_WAIT,
        };
        std::thread::sleep(wait);
    }
    Ok(late)
}

/// Takes replies until the run is over and nothing is in flight.
pub(super) fn receive(stage: &Stage, slots: &Slots, receiver: &mut Receiver) -> Result<()> {
    let mut heard_at = Instant::now();
    loop {
        if receiver.receive(LOOK_UP, |_, _| {})? {
            heard_at = Instant::now();
        }
        let idle = || (0..slots.len()).all(|slot| slots.is_free(slot));
        if stage.phase() == Phase::Over && idle() {
            return Ok(());
        }
        if heard_at.elapsed() > REPLY_WAIT && !idle() {
            let what = format!("no reply for {} s", REPLY_WAIT.as_secs());
            return Err(Error::new(ErrorKind::TimedOut, what));
        }
    }
}

/// Sleeps end 50 us late by default; this thread's shall not. Where the kernel
/// refuses, requests leave later and their latency says so.
fn fine_timers() {
    if let Some(own) = super::affinity::own_thread_id() {
        let _ = std::fs::write(format!("/proc/{own}/timerslack_ns"), "1");
    }
}
