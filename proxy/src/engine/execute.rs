//! From received bytes to replies: parses a connection's input and executes each
//! request to its end, until something named in [`Pause`] stops it.

use super::connection::{Connection, Pause, TIMINGS_MAX};
use super::core::{Core, Waiter};
use super::pending::Rules;
use super::slots::Key;
use crate::gate::Passage;
use crate::latency::{Kind, Timing};
use crate::nbd::errno::Errno;
use crate::nbd::proto::{ChunkFrame, REQUEST_FRAME_BYTES};
use crate::nbd::reply::{self, READ_HEAD_BYTES_MAX, ReadHead};
use crate::nbd::request::{RawRequest, Request, validate};
use crate::volume::{Failure, ZERO_PIECE_BYTES_MAX};
use towline_block::Extent;

/// Data moved for one connection before the others of its volume get a turn: received,
/// written or read, about 100 us of copying. A longer write is done in pieces, so that a
/// reader beside a writer of 32 MiB waits for one of them and not for 10 ms.
pub(super) const TURN_BYTES: usize = 256 << 10;
/// Unsent replies of a connection at which its requests wait. One more reply, of
/// at most 32 MiB, can come on top.
pub(super) const REPLY_BATCH_BYTES: usize = 1 << 20;
/// Unanswered flushes of a connection at which its requests wait. No client known
/// has more than 128 requests in flight.
pub(super) const SYNCS_MAX: u32 = 256;
/// Longest reply to a flush: an error with its text.
pub(super) const SYNC_REPLY_BYTES_MAX: usize = 128;

const SYNC_FAILED: Failure = Failure {
    error: Errno::Io,
    text: "an earlier flush of this volume failed: writes since the flush before may be lost",
};
const _: () = assert!(size_of::<ChunkFrame>() + 6 + SYNC_FAILED.text.len() <= SYNC_REPLY_BYTES_MAX);

impl Core {
    /// Executes what the connection's input holds.
    pub(super) fn parse(&mut self, key: Key, connection: &mut Connection) -> Pause {
        let mut budget = TURN_BYTES;
        connection.batch = 0;
        loop {
            if !connection.discard() {
                return Pause::Bytes(1);
            }
            if connection.output.len() >= REPLY_BATCH_BYTES {
                return Pause::Replies;
            }
            if connection.syncs >= SYNCS_MAX {
                return Pause::Syncs;
            }
            if budget == 0 {
                return Pause::Turn;
            }
            let raw = match RawRequest::parse(connection.input.unread()) {
                Ok(Some(raw)) => raw,
                Ok(None) => return Pause::Bytes(REQUEST_FRAME_BYTES),
                Err(_) => return Pause::Broken,
            };
            match self.step(key, connection, &raw) {
                Ok(moved) => budget = budget.saturating_sub(moved),
                Err(pause) => return pause,
            }
            connection.batch += 1;
        }
    }

    /// One request; the bytes it moved.
    fn step(
        &mut self,
        key: Key,
        connection: &mut Connection,
        raw: &RawRequest,
    ) -> Result<usize, Pause> {
        let request = match validate(raw, &connection.terms) {
            Ok(request) => request,
            Err(refusal) => {
                self.counters.errors.add(1);
                return match connection.refuse(raw, refusal) {
                    true => Ok(REQUEST_FRAME_BYTES),
                    false => Err(Pause::Broken),
                };
            }
        };
        let total = raw.total_bytes();
        if connection.input.unread().len() < total {
            return Err(Pause::Bytes(total));
        }
        self.requests = self.requests.saturating_add(1);
        if request.is_gated() {
            match self.gate.passage() {
                Passage::Go => {}
                Passage::Wait => return Err(Pause::Gate),
                Passage::Refuse(text) => {
                    connection.reply_error(raw.cookie, Errno::Shutdown, text);
                    self.counters.errors.add(1);
                    connection.progress = 0;
                    connection.input.consume(total);
                    return Ok(total);
                }
            }
        }
        let moved = self.execute(key, connection, raw, request)?;
        connection.input.consume(total);
        Ok(total + moved)
    }

    fn execute(
        &mut self,
        key: Key,
        connection: &mut Connection,
        raw: &RawRequest,
        request: Request,
    ) -> Result<usize, Pause> {
        if let Some(rules) = self.rules {
            if let Some(moved) = self.accept(key, connection, raw, request, rules)? {
                return Ok(moved);
            }
        } else if self.meets_read(request) {
            return Err(Pause::Source);
        }
        match request {
            Request::Read { extent } => return self.read(key, connection, raw, extent),
            Request::Write { extent, fua } => {
                let result =
                    self.in_pieces(connection, extent, TURN_BYTES as u64, |core, rest, piece| {
                        let data = &rest[REQUEST_FRAME_BYTES..];
                        let at = (piece.offset - extent.offset) as usize;
                        core.volume.write(&data[at..][..piece.len as usize], piece.offset)
                    })?;
                self.counters.writes.add(1);
                self.counters.written_bytes.add(extent.len);
                let kind = if fua { Kind::Fua } else { Kind::Write };
                let timing = self.timing(connection, kind, raw);
                self.complete(key, connection, raw.cookie, fua, result, timing);
            }
            Request::Zero { extent, fua, no_hole } => {
                let most = ZERO_PIECE_BYTES_MAX;
                let result = self.in_pieces(connection, extent, most, |core, _, piece| {
                    core.counters.zeroed_bytes.add(piece.len);
                    core.volume.zero(piece, no_hole)
                })?;
                self.counters.zeroes.add(1);
                let timing = self.timing(connection, Kind::Zero, raw);
                self.complete(key, connection, raw.cookie, fua, result, timing);
            }
            Request::Trim { extent, fua } => {
                let most = ZERO_PIECE_BYTES_MAX;
                let result = self.in_pieces(connection, extent, most, |core, _, piece| {
                    core.counters.zeroed_bytes.add(piece.len);
                    core.volume.trim(piece)
                })?;
                self.counters.trims.add(1);
                let timing = self.timing(connection, Kind::Zero, raw);
                self.complete(key, connection, raw.cookie, fua, result, timing);
            }
            Request::Flush => {
                self.counters.flushes.add(1);
                let timing = self.timing(connection, Kind::Flush, raw);
                self.complete(key, connection, raw.cookie, true, Ok(()), timing);
            }
            Request::Status { extent, one } => {
                self.counters.statuses.add(1);
                self.volume.status(extent, one, &mut self.runs);
                let output = &mut connection.output;
                reply::block_status(raw.cookie, &self.runs, |part| output.put(part));
            }
            Request::Disconnect => return Err(Pause::Disconnect),
        }
        Ok(0)
    }

    /// From the page cache at once; what that lacks comes asynchronously, and keeps
    /// nobody else waiting.
    fn read(
        &mut self,
        key: Key,
        connection: &mut Connection,
        raw: &RawRequest,
        extent: Extent,
    ) -> Result<usize, Pause> {
        let len = raw.length as usize;
        let output = &mut connection.output;
        if !output.make_room(READ_HEAD_BYTES_MAX + len, &mut self.memory) {
            return Err(Pause::Memory);
        }
        let before = output.len();
        let structured = connection.terms.structured;
        output.put(ReadHead::new(structured, raw.cookie, extent.offset, raw.length).as_bytes());
        match self.volume.read_now(output.put_space(len), extent.offset) {
            Ok(true) => {}
            Ok(false) => {
                output.truncate(before);
                let request = Request::Read { extent };
                let moved = self.accept(key, connection, raw, request, Rules::CACHED)?;
                return Ok(moved.unwrap_or(0));
            }
            Err(failure) => {
                output.truncate(before);
                self.fail(connection, raw.cookie, failure);
            }
        }
        let timing = self.timing(connection, Kind::Read, raw);
        self.replied(connection, timing);
        self.counters.reads.add(1);
        self.counters.read_bytes.add(extent.len);
        Ok(len)
    }

    /// One piece of a change, of at most `most` bytes; the result once it was the last.
    /// The operation gets the request as it was received, too.
    fn in_pieces(
        &mut self,
        connection: &mut Connection,
        extent: Extent,
        most: u64,
        operation: impl FnOnce(&mut Core, &[u8], Extent) -> Result<(), Failure>,
    ) -> Result<Result<(), Failure>, Pause> {
        let left = extent.len - connection.progress;
        let offset = extent.offset + connection.progress;
        let piece = Extent::new(offset, left.min(most));
        let result = operation(self, connection.input.unread(), piece);
        connection.source += self.volume.take_source_time();
        if result.is_ok() && piece.len < left {
            connection.progress += piece.len;
            return Err(Pause::Turn);
        }
        connection.progress = 0;
        Ok(result)
    }

    /// Replies to a change: now, or when it is durable.
    pub(super) fn complete(
        &mut self,
        key: Key,
        connection: &mut Connection,
        cookie: u64,
        durable: bool,
        result: Result<(), Failure>,
        timing: Timing,
    ) {
        match result {
            Err(failure) => self.fail(connection, cookie, failure),
            Ok(()) if !durable && self.waits_for_journal(key, cookie, timing) => {
                connection.syncs += 1;
                return;
            }
            Ok(()) if !durable => connection.reply_done(cookie),
            Ok(()) if self.syncs.has_failed() => self.fail(connection, cookie, SYNC_FAILED),
            Ok(()) => {
                connection.syncs += 1;
                self.syncs.join(Waiter::Reply { key, cookie, timing });
                return;
            }
        }
        self.replied(connection, timing);
    }

    /// Replies to a flush or FUA whose fdatasync has ended.
    pub(super) fn synced(
        &mut self,
        connection: &mut Connection,
        cookie: u64,
        succeeded: bool,
        timing: Timing,
    ) {
        connection.syncs -= 1;
        self.replied(connection, timing);
        match succeeded {
            true => connection.reply_done(cookie),
            false => self.fail(connection, cookie, SYNC_FAILED),
        }
    }

    pub(super) fn fail(&mut self, connection: &mut Connection, cookie: u64, failure: Failure) {
        self.counters.errors.add(1);
        connection.reply_error(cookie, failure.error, failure.text);
    }

    /// The times of a request whose source operation is over, or still to come.
    fn timing(&mut self, connection: &mut Connection, kind: Kind, raw: &RawRequest) -> Timing {
        let source = std::mem::take(&mut connection.source) + self.volume.take_source_time();
        Timing::new(kind, u64::from(raw.length), connection.received, source)
    }

    /// The reply of a request is in the output.
    pub(super) fn replied(&self, connection: &mut Connection, timing: Timing) {
        if connection.timings.len() == TIMINGS_MAX {
            self.fold(connection);
        }
        connection.timings.push(timing);
    }
}
