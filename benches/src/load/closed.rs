//! The closed loop: a new request for each that ended, a fixed number in flight.

use super::phase::{Phase, Stage};
use super::receiver::Receiver;
use super::sender::Sender;
use super::tally::Kind;
use super::workload::{Aim, Workload};
use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A reply that takes longer ends the run.
pub(super) const REPLY_WAIT: Duration = Duration::from_secs(30);

/// How often a stuck sender or an idle receiver looks up.
pub(super) const LOOK_UP: Duration = Duration::from_millis(100);

/// Writes and the flush that ends them.
#[derive(Debug, Default)]
struct Cycle {
    every: Option<u32>,
    sent: u32,
    ended: u32,
    flushing: bool,
}

impl Cycle {
    /// What may be sent now: `None`: nothing before something ends.
    fn next(&mut self) -> Option<bool> {
        let Some(every) = self.every else { return Some(false) };
        if self.sent < every {
            self.sent += 1;
            return Some(false);
        }
        if self.ended == every && !self.flushing {
            self.flushing = true;
            return Some(true);
        }
        None
    }

    fn ended(&mut self, kind: Kind) {
        match kind {
            Kind::Flush => *self = Cycle { every: self.every, ..Cycle::default() },
            _ => self.ended += 1,
        }
    }
}

pub(super) fn drive(
    workload: &Workload,
    mut aim: Aim,
    stage: &Arc<Stage>,
    sender: &mut Sender,
    receiver: &mut Receiver,
) -> Result<()> {
    let mut free: Vec<usize> = (0..workload.depth).rev().collect();
    let mut cycle = Cycle { every: workload.flush_every, ..Cycle::default() };
    loop {
        let over = stage.phase() == Phase::Over;
        if over && free.len() == workload.depth {
            return Ok(());
        }
        let now = stage.now_ns();
        while !over && let Some(&slot) = free.last() {
            match cycle.next() {
                None => break,
                Some(true) => sender.push(slot, Kind::Flush, 0, 0, now),
                Some(false) => {
                    let (kind, offset) = aim.next();
                    sender.push(slot, kind, offset, workload.request_bytes, now);
                }
            }
            free.pop();
        }
        let mut ended = |cookie: u64, kind| {
            free.push(cookie as usize);
            cycle.ended(kind);
        };
        if sender.gathered() > 0 {
            let since = Instant::now();
            sender.send(|| {
                receiver.receive(Duration::ZERO, &mut ended)?;
                Ok(since.elapsed() < REPLY_WAIT)
            })?;
        }
        let since = Instant::now();
        while !receiver.receive(LOOK_UP, &mut ended)? {
            if since.elapsed() > REPLY_WAIT {
                let what = format!("no reply for {} s", REPLY_WAIT.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_alone_and_follows_exactly_so_many_writes() {
        let mut cycle = Cycle { every: Some(2), ..Cycle::default() };
        for _ in 0..3 {
            assert_eq!(
                [cycle.next(), cycle.next(), cycle.next()],
                [Some(false), Some(false), None]
            );
            cycle.ended(Kind::Write);
            assert_eq!(cycle.next(), None);
            cycle.ended(Kind::Write);
            assert_eq!([cycle.next(), cycle.next()], [Some(true), None]);
            cycle.ended(Kind::Flush);
        }
    }

    #[test]
    fn without_flushes_the_next_request_may_always_be_sent() {
        let mut cycle = Cycle::default();
        for _ in 0..100 {
            assert_eq!(cycle.next(), Some(false));
        }
    }
}
