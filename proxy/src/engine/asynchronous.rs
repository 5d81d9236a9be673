//! Requests of an asynchronous source: from the connection to the source and back.
//!
//! A request takes a permit, is copied out of the input and stands in the overlap table;
//! its reply is written when it has ended, in whatever order. All that became runnable
//! in a round is issued at its end, in one submission.

use super::connection::{Connection, Pause};
use super::core::Core;
use super::execute::REPLY_BATCH_BYTES;
use super::pending::{Io, Kind, Operation, Rules, Step, WaitingClaims};
use super::run::Engine;
use super::slots::{Key, Purpose};
use crate::error::Result as ProxyResult;
use crate::nbd::proto::REQUEST_FRAME_BYTES;
use crate::nbd::reply::{READ_HEAD_BYTES_MAX, ReadHead};
use crate::nbd::request::{RawRequest, Request};
use crate::overlap::Use;
use crate::volume::Failure;
use crossbeam::channel::Sender;
use std::io;
use std::time::Instant;
use towline_block::sys::uring::{Op, Window};
use towline_block::{BLOCK_BYTES, Backend, Extent, copy};
use towline_journal::{Change, Claim, Durability};

impl Core {
    /// Takes a request for the source; `None` when it is none.
    pub(super) fn accept(
        &mut self,
        key: Key,
        connection: &mut Connection,
        raw: &RawRequest,
        request: Request,
        rules: Rules,
    ) -> Result<Option<usize>, Pause> {
        let (kind, extent) = match request {
            Request::Read { extent } => (Kind::Read, extent),
            Request::Write { extent, fua } => (Kind::Write { fua }, extent),
            Request::Zero { extent, fua, no_hole } => (Kind::Zero { fua, keep: no_hole }, extent),
            Request::Trim { extent, fua } => (Kind::Trim { fua }, extent),
            Request::Flush | Request::Status { .. } | Request::Disconnect => return Ok(None),
        };
        if extent.is_empty() {
            return Ok(None);
        }
        let bytes = kind.buffer_bytes(extent, rules);
        let permit = kind.permit_bytes(extent, rules);
        let reply_bytes = if kind.is_read() { extent.len as usize } else { 0 };
        if connection.output.len() + connection.owed >= REPLY_BATCH_BYTES {
            return Err(if connection.pending > 0 { Pause::Owed } else { Pause::Replies });
        }
        if reply_bytes > REPLY_BATCH_BYTES && !self.memory.has_free() {
            return Err(Pause::Memory);
        }
        if !self.pending.overlaps.admits(permit) {
            return Err(Pause::Source);
        }
        let buf = self.pending.take_buf(bytes);
        let at = connection.received;
        let mut operation = Operation::new((key, raw.cookie), (kind, extent), rules, buf, at);
        if let Kind::Write { .. } = kind {
            let data = &connection.input.unread()[REQUEST_FRAME_BYTES..raw.total_bytes()];
            let range = operation.data_range();
            copy(&mut operation.buf.as_mut_slice()[range], data);
        }
        let used = if kind.is_read() { Use::Read } else { Use::Change };
        let slot = self.pending.insert(operation);
        let blocks = rules.whole_blocks(extent);
        let (arrival, runs) = self.pending.overlaps.enter(slot, blocks, used, permit);
        self.pending.get(slot).arrival = arrival;
        if runs {
            self.pending.runnable.push(slot);
        }
        connection.pending += 1;
        connection.owed += reply_bytes;
        Ok(Some(reply_bytes))
    }

    /// Whether a change of a page-cache source has to wait for a read that is under way
    /// asynchronously: the two would be at the source together.
    pub(super) fn meets_read(&self, request: Request) -> bool {
        if self.pending.is_idle() {
            return false;
        }
        match request {
            Request::Write { extent, .. }
            | Request::Zero { extent, .. }
            | Request::Trim { extent, .. } => self.pending.overlaps.meets(extent, Use::Change),
            _ => false,
        }
    }

    /// Issues all that may run. Changes take their place in the journal here.
    pub(super) fn issue(&mut self) -> io::Result<()> {
        if self.pending.runnable.is_empty() {
            return Ok(());
        }
        let runnable = std::mem::take(&mut self.pending.runnable);
        for slot in runnable.iter().copied() {
            let operation = self.pending.get(slot);
            let (offset, extent) = (operation.extent.offset, operation.extent);
            let data = operation.data_range();
            operation.begun = match operation.kind {
                Kind::Read => None,
                Kind::Write { .. } => {
                    let data = &operation.buf.as_slice()[data];
                    self.volume.begin(|| Change::Write { offset, data })
                }
                Kind::Zero { .. } => self.volume.begin(|| Change::Zero { extent, trim: false }),
                Kind::Trim { .. } => self.volume.begin(|| Change::Zero { extent, trim: true }),
            };
            let writes_through = self.rules.is_some_and(|rules| rules.can_fua)
                && self.volume.durability() == Durability::Process;
            operation.fua_at_source = operation.kind.fua() && writes_through;
            let io = operation.start();
            self.take_step(slot, io)?;
        }
        // All are in the journal, and go to the kernel together next.
        let now = Instant::now();
        runnable.iter().for_each(|slot| self.pending.get(*slot).submitted = now);
        self.recycle_runnable(runnable);
        Ok(())
    }

    /// Makes one step of an operation.
    fn take_step(&mut self, slot: usize, io: Io) -> io::Result<()> {
        let disk = match self.volume.disk().backend() {
            Backend::File(disk) => disk,
            Backend::Upstream(_) => {
                let fua = self.pending.get(slot).fua_at_source;
                self.upstream().ask(slot, io, fua);
                return Ok(());
            }
        };
        let fd = disk.fd().clone();
        let op = match io {
            Io::Read(offset, window) => Op::Read(fd, offset, window),
            Io::Write(offset, window) => Op::Write(fd, offset, window),
            Io::Zero(extent, how) => Op::Zero(fd, extent, how),
        };
        self.driver.push(Purpose::Source(slot as u32).token(), op)
    }

    /// Keeps the list's memory.
    fn recycle_runnable(&mut self, mut runnable: Vec<usize>) {
        if self.pending.runnable.is_empty() {
            runnable.clear();
            self.pending.runnable = runnable;
        }
    }

    /// Replies to an operation that has ended.
    fn reply(
        &mut self,
        key: Key,
        connection: &mut Connection,
        ended: &Operation,
        result: Result<(), Failure>,
    ) {
        connection.pending -= 1;
        let len = if ended.kind.is_read() { ended.extent.len as usize } else { 0 };
        connection.owed -= len;
        connection.output.force_room(READ_HEAD_BYTES_MAX + len, &mut self.memory);
        // The source is done when this thread hears of it.
        let source = self.now.saturating_duration_since(ended.submitted);
        let timing = ended.kind.timing(ended.extent.len, ended.received, source);
        let counters = &self.counters;
        match ended.kind {
            Kind::Read => {
                counters.reads.add(1);
                counters.read_bytes.add(ended.extent.len);
                self.replied(connection, timing);
                if let Err(failure) = result {
                    return self.fail(connection, ended.cookie, failure);
                }
                let structured = connection.terms.structured;
                let (offset, len32) = (ended.extent.offset, ended.extent.len as u32);
                let head = ReadHead::new(structured, ended.cookie, offset, len32);
                connection.output.put(head.as_bytes());
                let data = &ended.buf.as_slice()[ended.data_range()];
                copy(connection.output.put_space(len), data);
                return;
            }
            Kind::Write { .. } => {
                counters.writes.add(1);
                counters.written_bytes.add(ended.extent.len);
            }
            Kind::Zero { .. } => counters.zeroes.add(1),
            Kind::Trim { .. } => counters.trims.add(1),
        }
        if !matches!(ended.kind, Kind::Write { .. }) {
            counters.zeroed_bytes.add(ended.extent.len);
        }
        // A flush that has failed before fails what is to be durable (R7).
        let needs_flush = !ended.fua_at_source || self.syncs.has_failed();
        let durable = ended.kind.fua() && needs_flush;
        self.complete(key, connection, ended.cookie, durable, result, timing);
    }

    /// Makes claims; answered at once, or when the changes before them have ended (R3).
    pub(super) fn claim(
        &mut self,
        from_block: u64,
        blocks_max: u64,
        runs_max: u32,
        done: Sender<ProxyResult<Vec<Claim>>>,
    ) {
        let claims = self.volume.claim(from_block, blocks_max, runs_max);
        let mark = self.pending.overlaps.mark();
        self.pending.claims.push(WaitingClaims { claims, mark, done });
        self.answer_claims();
    }

    fn answer_claims(&mut self) {
        let overlaps = &self.pending.overlaps;
        self.pending.claims.retain_mut(|waiting| {
            let waits = waiting.claims.iter().any(|claim| {
                let blocks = claim.range();
                let bytes = Extent::new(blocks.first * BLOCK_BYTES, blocks.count * BLOCK_BYTES);
                overlaps.changes_before(waiting.mark, bytes)
            });
            if !waits {
                super::obey::answer(&waiting.done, Ok(std::mem::take(&mut waiting.claims)));
            }
            waits
        });
    }
}

impl Engine {
    /// One step at the source has ended.
    pub(super) fn source_done(
        &mut self,
        slot: usize,
        result: io::Result<usize>,
        window: Window,
    ) -> io::Result<()> {
        let core = &mut self.core;
        let result = match core.pending.get(slot).step(result, window) {
            Step::Next(io) => return core.take_step(slot, io),
            Step::Ended(result) => result,
        };
        let mut ended = core.pending.remove(slot);
        let offset = ended.extent.offset;
        let verb = if ended.kind.is_read() { "read" } else { "change" };
        let result = result.map_err(|error| {
            let what = format!("cannot {verb} {} at {offset}", core.volume.disk().path().display());
            towline_block::Error::io(what, error)
        });
        core.volume.finish(ended.begun.take(), &result);
        core.answer_claims();
        let result = result.map_err(|error| core.volume.failed(verb, offset, &error));
        let key = ended.key;
        self.with(key, |core, connection| {
            core.reply(key, connection, &ended, result);
            core.enqueue(key, connection);
            Ok(())
        })?;
        self.core.pending.give_buf(ended.buf);
        Ok(())
    }

    /// The connection that waits longest for a permit gets the next turn. Those of a
    /// page-cache source wait for a read to end, and look again together.
    pub(super) fn admit_waiter(&mut self) {
        while self.core.pending.overlaps.admits(0) {
            let Some(key) = self.core.pending.waiters.pop_front() else { return };
            if let Some(connection) = self.connections.get_mut(key)
                && connection.pause == Some(Pause::Source)
            {
                self.core.resume(key, connection);
                if self.core.rules.is_some() {
                    return;
                }
            }
        }
    }
}
