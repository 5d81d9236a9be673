//! One volume's thread: connects, keeps the pipeline full, notes every outcome.
//!
//! After any lost connection what was in flight stays `Unknown` for ever and its
//! blocks are written again under new ids. No two requests in flight share a block.

use super::choose::Chooser;
use super::guest::{Plan, Shared, VolumeLog, VolumeState, lock, wait};
use super::history::{FlushPoint, Kind, Op, Order, Outcome, fill};
use super::known::Known;
use super::{STAMP_BYTES, read};
use crate::error::Result;
use crate::nbd_client::{Client, Completion, Cookie, NbdUri, Options, ReplyError, Request};
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A stop or hold is seen within this, even when the server is silent.
const ATTENTION: Duration = Duration::from_millis(50);

/// How far a rate-limited guest may catch up after a stall, in requests.
const CATCH_UP_MAX: f64 = 50.0;

/// Picks of blocks before the next completion is awaited instead.
const PICKS_MAX: usize = 8;

pub(super) struct Session {
    plan: Plan,
    order: Arc<Order>,
    shared: Arc<Shared>,
    state: Arc<VolumeState>,
    addresses: Vec<NbdUri>,
    current: usize,
    /// The last server refused writes: one request at a time until one is acknowledged.
    probing: bool,
    volume: u32,
    chooser: Chooser,
    known: Known,
    reserved: HashSet<u64>,
    flights: HashMap<Cookie, Flight>,
    again: VecDeque<(Kind, Range<u64>)>,
    writes_since_flush: u32,
    due: Instant,
    buf: Vec<u8>,
}

struct Flight {
    sent_at: Instant,
    what: Sent,
}

enum Sent {
    /// Index into the history's ops.
    Write(usize, Op),
    Read(u64),
    Flush(u64),
}

/// Why a connection is left.
enum End {
    /// Held or stopped, nothing in flight.
    Quiet,
    /// The server refuses writes: it is sealed.
    Refused,
}

impl Session {
    pub(super) fn new(
        plan: Plan,
        order: Arc<Order>,
        shared: Arc<Shared>,
        state: Arc<VolumeState>,
        source: NbdUri,
        target: Option<NbdUri>,
    ) -> Session {
        let (volume, known) = {
            let log = lock(&state.log);
            (log.history.volume, Known::of(&log.history))
        };
        let seed = plan.seed ^ u64::from(volume).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Session {
            chooser: Chooser::new(seed, known.block_count(), plan.pattern),
            buf: vec![0; plan.write_blocks_max.max(1) as usize * STAMP_BYTES],
            plan,
            order,
            shared,
            state,
            addresses: std::iter::once(source).chain(target).collect(),
            current: 0,
            probing: false,
            volume,
            known,
            reserved: HashSet::new(),
            flights: HashMap::new(),
            again: VecDeque::new(),
            writes_since_flush: 0,
            due: Instant::now(),
        }
    }

    pub(super) fn run(mut self) {
        let options = Options { timeout: self.plan.reply_timeout, structured: true };
        let mut client: Option<Client> = None;
        while self.rest_while_held() {
            let end = match client.as_mut() {
                Some(client) => self.serve(client),
                None => match Client::connect(&self.addresses[self.current], options) {
                    Ok(connected) => {
                        self.log(|log| log.progress.connects += 1);
                        client = Some(connected);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match end {
                Ok(End::Quiet) => continue,
                Ok(End::Refused) => self.probing = true,
                Err(error) => {
                    self.log(|log| log.progress.last_error = Some(error.to_string()));
                    self.give_up_flights();
                }
            }
            client = None;
            self.current = (self.current + 1) % self.addresses.len();
            self.pause_between_attempts();
        }
        if let Some(client) = client {
            // The connection ends either way.
            let _ = client.disconnect();
        }
    }

    /// Waits out a hold; false when the guest is stopped.
    fn rest_while_held(&self) -> bool {
        let mut control = lock(&self.shared.control);
        if control.held && !control.stopped {
            control.idle += 1;
            self.shared.changed.notify_all();
            while control.held && !control.stopped {
                control = wait(&self.shared.changed, control);
            }
            control.idle -= 1;
        }
        !control.stopped
    }

    fn pause_between_attempts(&self) {
        let control = lock(&self.shared.control);
        if !control.stopped {
            drop(self.shared.changed.wait_timeout(control, self.plan.reconnect_wait));
        }
    }

    fn serve(&mut self, client: &mut Client) -> Result<End> {
        let mut refused = false;
        let mut heard_at = Instant::now();
        loop {
            let quiet = {
                let control = lock(&self.shared.control);
                control.held || control.stopped
            };
            let depth = match (quiet || refused, self.probing) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => self.plan.queue_depth,
            };
            let wait = self.issue(client, depth)?;
            if self.flights.is_empty() {
                if refused || quiet {
                    return Ok(if refused { End::Refused } else { End::Quiet });
                }
                self.idle_for(wait.min(ATTENTION));
                heard_at = Instant::now();
                continue;
            }
            match client.complete_within(wait.min(ATTENTION))? {
                Some(completion) => {
                    heard_at = Instant::now();
                    refused |= self.completed(completion, heard_at);
                    while let Some(completion) = client.completed() {
                        refused |= self.completed(completion, heard_at);
                    }
                }
                None if heard_at.elapsed() > self.plan.reply_timeout => {
                    // Says so, and ends the connection.
                    client.complete()?;
                }
                None => {}
            }
        }
    }

    /// A rate-limited guest with nothing to do.
    fn idle_for(&self, time: Duration) {
        let control = lock(&self.shared.control);
        if !control.stopped && !control.held {
            drop(self.shared.changed.wait_timeout(control, time));
        }
    }

    /// Issues what depth and rate allow; says how long until the rate allows more.
    fn issue(&mut self, client: &mut Client, depth: usize) -> Result<Duration> {
        let interval = self.plan.rate_per_s.map(|rate| 1.0 / rate.max(1e-3));
        let mut pushed = false;
        let mut wait = ATTENTION;
        while self.flights.len() < depth {
            let now = Instant::now();
            if let Some(interval) = interval {
                if self.due > now {
                    wait = self.due - now;
                    break;
                }
                let behind = Duration::from_secs_f64(interval * CATCH_UP_MAX);
                self.due = self.due.max(now.checked_sub(behind).unwrap_or(now))
                    + Duration::from_secs_f64(interval);
            }
            if !self.issue_one(client, now)? {
                break;
            }
            pushed = true;
        }
        if pushed {
            client.send()?;
        }
        Ok(wait)
    }

    /// False when every block picked was in flight.
    fn issue_one(&mut self, client: &mut Client, now: Instant) -> Result<bool> {
        if let Some((kind, blocks)) = self.again.pop_front() {
            if !self.is_free(&blocks) {
                self.again.push_front((kind, blocks));
                return Ok(false);
            }
            self.issue_write(client, kind, blocks, now)?;
            return Ok(true);
        }
        if self.plan.flush_every > 0 && self.writes_since_flush >= self.plan.flush_every {
            self.writes_since_flush = 0;
            let issued_at = self.order.tick();
            let cookie = client.push(Request::Flush)?;
            self.flights.insert(cookie, Flight { sent_at: now, what: Sent::Flush(issued_at) });
            return Ok(true);
        }
        for _ in 0..PICKS_MAX {
            let first = self.chooser.block();
            if self.chooser.with_share(self.plan.read_share) {
                if self.is_free(&(first..first + 1)) {
                    self.issue_read(client, first, now)?;
                    return Ok(true);
                }
                continue;
            }
            let count = match self.chooser.with_share(self.plan.large_share) {
                true => u64::from(self.chooser.many(self.plan.write_blocks_max)),
                false => 1,
            };
            let blocks = first..(first + count).min(self.known.block_count());
            if !self.is_free(&blocks) {
                continue;
            }
            let zero = self.chooser.with_share(self.plan.zero_share);
            let kind = if zero { Kind::Zero } else { Kind::Write };
            self.issue_write(client, kind, blocks, now)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn is_free(&self, blocks: &Range<u64>) -> bool {
        blocks.clone().all(|block| !self.reserved.contains(&block))
    }

    fn issue_read(&mut self, client: &mut Client, block: u64, now: Instant) -> Result<()> {
        self.reserved.insert(block);
        let offset = block * STAMP_BYTES as u64;
        let cookie = client.push(Request::Read { offset, buf: vec![0; STAMP_BYTES] })?;
        self.flights.insert(cookie, Flight { sent_at: now, what: Sent::Read(block) });
        Ok(())
    }

    fn issue_write(
        &mut self,
        client: &mut Client,
        kind: Kind,
        blocks: Range<u64>,
        now: Instant,
    ) -> Result<()> {
        let block_count = (blocks.end - blocks.start) as u32;
        let fua = self.chooser.with_share(self.plan.fua_share) && client.export().can_fua();
        let first_block = blocks.start;
        let op = {
            // The history has the write before the server can.
            let mut log = lock(&self.state.log);
            let id = self.order.tick();
            let op = Op { id, kind, first_block, block_count, fua, outcome: Outcome::Unknown };
            log.history.ops.push(op);
            Sent::Write(log.history.ops.len() - 1, op)
        };
        let Sent::Write(_, Op { id, .. }) = op else { return Ok(()) };
        self.reserved.extend(blocks);
        self.writes_since_flush += 1;
        let offset = first_block * STAMP_BYTES as u64;
        let len = block_count as usize * STAMP_BYTES;
        let request = match kind {
            Kind::Zero => Request::WriteZeroes { offset, len: len as u32, fua, no_hole: false },
            Kind::Write => {
                let data = &mut self.buf[..len];
                fill(data, id, self.volume, first_block);
                Request::Write { offset, data, fua }
            }
        };
        let cookie = client.push(request)?;
        self.flights.insert(cookie, Flight { sent_at: now, what: op });
        Ok(())
    }

    /// Notes an outcome; true when the server refuses writes.
    fn completed(&mut self, completion: Completion, now: Instant) -> bool {
        let Some(flight) = self.flights.remove(&completion.cookie) else { return false };
        match (flight.what, completion.result) {
            (Sent::Write(index, op), Ok(_)) => self.acked(index, op, flight.sent_at, now),
            (Sent::Write(index, op), Err(error)) => {
                self.free(&op);
                let refused = error.errno == libc::ESHUTDOWN as u32;
                if refused {
                    self.again.push_back((op.kind, op.blocks()));
                } else {
                    self.known.note_unknown(&op);
                }
                self.log(|log| {
                    if refused {
                        log.history.ops[index].outcome = Outcome::Refused;
                        log.progress.refused += 1;
                    } else {
                        log.progress.io_errors += 1;
                    }
                    log.progress.last_error = Some(words(&error));
                });
                return refused;
            }
            (Sent::Read(block), Ok(bytes)) => {
                self.reserved.remove(&block);
                self.check_read(block, &bytes);
            }
            (Sent::Read(block), Err(error)) => {
                self.reserved.remove(&block);
                return self.failed(&error);
            }
            (Sent::Flush(issued_at), Ok(_)) => {
                let acked_at = self.order.tick();
                self.log(|log| log.history.flushes.push(FlushPoint { issued_at, acked_at }));
            }
            (Sent::Flush(_), Err(error)) => return self.failed(&error),
        }
        false
    }

    fn acked(&mut self, index: usize, op: Op, sent_at: Instant, now: Instant) {
        self.free(&op);
        self.probing = false;
        let op = Op { outcome: Outcome::Acked(self.order.tick()), ..op };
        self.known.note_acked(&op);
        let at_target = self.current > 0;
        self.log(|log| {
            log.history.ops[index].outcome = op.outcome;
            log.progress.acked_writes += 1;
            log.progress.acked_bytes += u64::from(op.block_count) * STAMP_BYTES as u64;
            log.latency_us.saturating_record((now - sent_at).as_micros() as u64);
            if at_target {
                log.switchover.first_ack_at_target.get_or_insert(now);
            } else {
                log.switchover.last_ack_at_source = Some(now);
            }
        });
        if lock(&self.shared.control).watchers > 0 {
            self.shared.changed.notify_all();
        }
    }

    fn failed(&self, error: &ReplyError) -> bool {
        let refused = error.errno == libc::ESHUTDOWN as u32;
        self.log(|log| {
            log.progress.io_errors += u64::from(!refused);
            log.progress.last_error = Some(words(error));
        });
        refused
    }

    fn check_read(&self, block: u64, bytes: &[u8]) {
        let verdict = self.known.judge(block, read(bytes));
        self.log(|log| {
            log.progress.checked_reads += 1;
            if let Err(what) = verdict {
                log.progress.bad_reads += 1;
                log.progress.last_error = Some(what);
            }
        });
    }

    /// The connection is gone: outcomes of writes in flight stay unknown.
    fn give_up_flights(&mut self) {
        let mut lost: Vec<Op> = Vec::new();
        for flight in std::mem::take(&mut self.flights).into_values() {
            if let Sent::Write(_, op) = flight.what {
                self.known.note_unknown(&op);
                lost.push(op);
            }
        }
        self.reserved.clear();
        lost.sort_by_key(|op| op.id);
        self.again.extend(lost.into_iter().map(|op| (op.kind, op.blocks())));
    }

    fn free(&mut self, op: &Op) {
        for block in op.blocks() {
            self.reserved.remove(&block);
        }
    }

    fn log(&self, note: impl FnOnce(&mut VolumeLog)) {
        note(&mut lock(&self.state.log));
    }
}

fn words(error: &ReplyError) -> String {
    let name = std::io::Error::from_raw_os_error(error.errno as i32);
    format!("server: {} ({name})", error.text)
}
