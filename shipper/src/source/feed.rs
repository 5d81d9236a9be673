//! An attached journal and the stream it feeds: what one turn of the drain thread moves.

use super::compress::Compressor;
use super::cutter;
use super::from_journal;
use super::history::History;
use super::linger::Linger;
use super::stream::Stream;
use super::walker::{Chunk, Walker};
use crate::batch::{BatchBuilder, Chain, Encoder};
use crate::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_journal::format::Counter;
use towline_journal::link::{CLAIM_RUNS_MAX, Link, Reply, Request};
use towline_journal::progress::Figure;
use towline_journal::{RingReader, unix_now_ns};

/// An idle link is asked so often whether the proxy still answers, and still has the ring
/// that is mapped here. That it is gone shows in its socket.
const LINK_PULSE: Duration = Duration::from_secs(5);

/// What is there while proxy and target both are.
pub(crate) struct Feed {
    pub link: Link,
    pub reader: RingReader,
    /// Until all of it is in the stream, nothing else is.
    pub history: Option<History>,
    pub walker: Walker,
    pub chain: Chain,
    pub epoch: u32,
    /// Last record in the stream.
    pub cut: u64,
    pub linger: Linger,
    pub claims_upto: u64,
    /// What the proxy was last told.
    pub told: (u64, u64),
    pub told_at: Instant,
    pub encoder: Encoder,
    pub compressor: Compressor,
}

impl Feed {
    /// Tells the proxy what the target durably has.
    pub fn acknowledge(&mut self, stream: &Stream) -> Result<()> {
        let ack = stream.ack();
        let upto = match ack.position.incarnation.0 == self.reader.incarnation() {
            true => (ack.position.seq.0, ack.claims_upto),
            false => self.told,
        };
        if upto == self.told && self.told_at.elapsed() < LINK_PULSE {
            return match is_closed(self.link.socket()) {
                false => Ok(()),
                true => Err(Error::new(ErrorKind::Unreachable, "the proxy is gone")),
            };
        }
        self.told_at = Instant::now();
        self.ask(&Request::Ack { seq: upto.0, claims: upto.1 })?;
        self.told = upto;
        Ok(())
    }

    /// Moves the history on; once it is all in the stream, or can be read no further, the
    /// ring follows.
    pub fn cut_history(&mut self, stream: &Stream) -> Result<bool> {
        let Some(history) = &mut self.history else { return Ok(false) };
        match history.cut(self.epoch, stream.spare()) {
            Ok(Some(cut)) => {
                stream.progress().add(Figure::RecordBytes, cut.payload_bytes);
                self.seal(cut.batch, stream)?;
            }
            Ok(None) => self.history = None,
            Err(error) => {
                let seq = history.next_seq();
                tracing::error!(
                    seq,
                    "{error}: what the rest of the lost ring's spill may have \
                                      touched is compared"
                );
                self.ask(&Request::HistoryEnded { seq, reason: error.to_string() })?;
                self.history = None;
            }
        }
        Ok(true)
    }

    /// A claim waits for the records before it, or the group for its HEAL.
    pub fn is_catching_up(&self) -> bool {
        self.walker.granted_at().is_some() || self.reader.get(Counter::Whole) == 0
    }

    pub fn may_cut(&mut self, is_urgent: bool) -> bool {
        let records = self.reader.done_seq().saturating_sub(self.cut);
        records > 0 && self.linger.is_over(records, is_urgent, &self.reader)
    }

    pub fn cut_records(&mut self, stream: &Stream) -> Result<bool> {
        let range = cutter::Range {
            epoch: self.epoch,
            incarnation: self.reader.incarnation(),
            first: self.cut + 1,
            last: self.reader.done_seq(),
            claims_upto: self.claims_upto,
        };
        let reader = &self.reader;
        let cut = cutter::cut(&range, stream.spare(), |seq, payload| reader.read(seq, payload));
        let cut = match cut {
            Ok(Some(cut)) => cut,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Damaged => {
                return match self.reader.is_spilled(self.cut + 1) {
                    true => self.skip(&error, stream),
                    false => self.resync(&error),
                };
            }
            Err(error) => return Err(error),
        };
        self.cut = cut.last;
        stream.progress().add(Figure::RecordBytes, cut.payload_bytes);
        self.seal(cut.batch, stream)?;
        Ok(true)
    }

    pub fn walk(&mut self, stream: &Stream) -> Result<bool> {
        if let Some(chunk) = self.walker.settle(self.position(), self.claims_upto)? {
            self.ship(chunk, stream)?;
            return Ok(true);
        }
        if self.walker.granted_at().is_none() {
            if self.reader.get(Counter::DirtyBlocks) == 0 {
                return Ok(false);
            }
            let Some((volume, from_block, blocks_max)) = self.walker.wanted() else {
                return Ok(false);
            };
            let runs_max = Some(CLAIM_RUNS_MAX);
            let mut claims =
                match self.ask(&Request::Claim { volume, from_block, blocks_max, runs_max })? {
                    Reply::Claims(claims) => claims,
                    // Of a proxy that knows no runs.
                    Reply::Claimed(claim) => claim.into_iter().collect(),
                    other => return Err(unexpected(&other)),
                };
            // A store answers no question: it gets the blocks.
            claims.iter_mut().for_each(|claim| claim.compare &= !stream.is_store());
            self.walker.granted(claims);
        }
        match self.walker.granted_at() {
            None => return Ok(true),
            // R3: the stream first has all records up to P.
            Some(granted_at) if self.cut < granted_at => return Ok(false),
            Some(_) => {}
        }
        let Some(chunk) = self.walker.read(self.position(), self.claims_upto, stream.spare())?
        else {
            return Ok(false);
        };
        let number = self.ship(chunk, stream)?;
        self.walker.shipped(number);
        Ok(true)
    }

    /// Where the stream stands: all records up to here are in it.
    fn position(&self) -> Position {
        Position::new(Epoch(self.epoch), Incarnation(self.reader.incarnation()), Seq(self.cut))
    }

    /// Puts a chunk into the stream; the number of its batch.
    fn ship(&mut self, chunk: Chunk, stream: &Stream) -> Result<u64> {
        if let Some(claim) = chunk.completes {
            self.claims_upto = claim;
        }
        stream.progress().add(Figure::BlockBytes, chunk.data_bytes);
        self.seal(chunk.batch, stream)?;
        Ok(self.chain.number)
    }

    fn seal(&mut self, batch: BatchBuilder, stream: &Stream) -> Result<()> {
        self.encoder.set_method(self.compressor.method(stream.fill()));
        let began = Instant::now();
        let sealed = self.encoder.encode(batch, &self.chain, unix_now_ns())?;
        let took = began.elapsed();
        self.compressor.learn(&sealed.gains, took);
        let (progress, gains) = (stream.progress(), &sealed.gains);
        progress.add(Figure::CutBytes, gains.payload_bytes);
        progress.add(Figure::CoalescedBytes, gains.coalesced_bytes);
        progress.add(Figure::StoredBytes, gains.stored_bytes);
        progress.add(Figure::EncodeNs, took.as_nanos() as u64);
        self.chain.advance(&sealed);
        stream.push(sealed);
        Ok(())
    }

    /// HEAL takes its number after every Q, so it needs no more than an empty map.
    pub fn heal(&mut self) -> Result<()> {
        let pending =
            self.reader.get(Counter::DirtyBlocks) + self.reader.get(Counter::ClaimedBlocks);
        if pending == 0 && self.reader.get(Counter::Whole) == 0 {
            self.ask(&Request::Heal)?;
        }
        Ok(())
    }

    /// The next record is lost with a part of the spill: the proxy makes its blocks dirty.
    fn skip(&mut self, error: &Error, stream: &Stream) -> Result<bool> {
        let first = self.cut + 1;
        tracing::error!(seq = first, "{error}: what it may have touched is sent again");
        let request = Request::Damaged { seq: first, reason: error.to_string() };
        match self.ask(&request)? {
            Reply::Skipped { upto } => {
                let batch = cutter::skip(&self.reader, self.epoch, first, upto, self.claims_upto)?;
                self.cut = upto.max(first);
                self.seal(batch, stream)?;
                Ok(true)
            }
            reply => self.resynced(&reply),
        }
    }

    /// A damaged record: everything is compared, from a RESYNC on.
    fn resync(&mut self, error: &Error) -> Result<bool> {
        tracing::error!("{error}: everything is compared with the target");
        let reply = self.ask(&Request::Resync { reason: error.to_string() })?;
        self.resynced(&reply)
    }

    fn resynced(&mut self, reply: &Reply) -> Result<bool> {
        match *reply {
            Reply::Resynced { start_seq, claims_upto } => {
                self.cut = start_seq - 1;
                self.claims_upto = claims_upto;
                Ok(true)
            }
            _ => Err(unexpected(reply)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        match self.link.call(request).map_err(from_journal)?.0 {
            Reply::Refused(why) => Err(Error::new(ErrorKind::Refused, why)),
            reply => Ok(reply),
        }
    }
}

/// Whether the other end is gone, without asking it.
fn is_closed(socket: &UnixStream) -> bool {
    match rustix::net::recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((bytes, _)) => bytes == 0,
        Err(error) => error != Errno::WOULDBLOCK,
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Error {
    match reply {
        Reply::Refused(why) => Error::new(ErrorKind::Refused, why.clone()),
        other => Error::new(ErrorKind::Protocol, format!("the proxy answered {other:?}")),
    }
}
