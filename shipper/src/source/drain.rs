//! The drain thread: journal in, stream out, one turn after the other.
//!
//! ```text
//!   no feed ── target connected, nothing on its way: attach to the proxy ──> feed
//!   feed    ── ack the proxy, cut records, walk one chunk, ask for HEAL ──> feed
//!   feed    ── proxy gone, or the target is no longer where we fed it ────> no feed
//! ```

use super::compress::{Compression, Compressor};
use super::control::Order;
use super::cutover::Driver;
use super::history::History;
use super::linger::Linger;
use super::meter::Meter;
use super::stream::{News, Stream, Walked};
use super::together::until_next;
use super::walker::{Chunk, Walker};
use super::{ShipConfig, cutter, from_journal};
use crate::batch::{BatchBuilder, Chain, Encoder, GroupKey, Method};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::wire::{LACKS_RUNS_MAX, Welcome};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_journal::format::Counter;
use towline_journal::link::{CLAIM_RUNS_MAX, LINK_VERSION, Link, Reply, Request};
use towline_journal::progress::Figure;
use towline_journal::spill::Store;
use towline_journal::{Durable, GroupDir, RingReader, unix_now_ns};

/// Pause between two looks at the ring: while there was something lately, later, and when there
/// was nothing for long, as in most groups of a shipper of many: the first change after a long
/// rest waits half a second at most.
const POLL_BUSY: Duration = Duration::from_millis(2);
const POLL_IDLE: Duration = Duration::from_millis(20);
const POLL_DOZING: Duration = Duration::from_millis(100);
const POLL_ASLEEP: Duration = Duration::from_millis(500);
/// How long "lately" is.
const BUSY_FOR: Duration = Duration::from_millis(200);
/// How long "long" is.
const DOZING_AFTER: Duration = Duration::from_secs(2);
const ASLEEP_AFTER: Duration = Duration::from_secs(15);
/// Pause between two looks at a batch that is being filled.
const POLL_LINGER: Duration = Duration::from_millis(5);
/// Pause between two attempts to find proxy or target.
const POLL_MISSING: Duration = Duration::from_millis(50);
/// Longest wait for an answer of the proxy. It answers from its I/O threads, which a
/// slow disk can hold up.
pub(crate) const LINK_ANSWER_MAX: Duration = Duration::from_secs(20);
/// An idle link is asked so often whether the proxy still answers, and still has the ring
/// that is mapped here. That it is gone shows in its socket.
const LINK_PULSE: Duration = Duration::from_secs(5);
/// How often figures are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

pub(crate) struct Drain {
    stream: Arc<Stream>,
    dir: GroupDir,
    orders: Receiver<Order>,
    feed: Option<Feed>,
    driver: Driver,
    /// The target has taken over: nothing is shipped any more.
    finished: bool,
    compression: Compression,
    key: Option<GroupKey>,
    busy_until: Instant,
    published: Instant,
    meter: Meter,
    last_error: String,
}

/// An attached journal and the stream it feeds.
pub(crate) struct Feed {
    link: Link,
    pub reader: RingReader,
    /// Until all of it is in the stream, nothing else is.
    history: Option<History>,
    walker: Walker,
    chain: Chain,
    epoch: u32,
    /// Last record in the stream.
    pub cut: u64,
    linger: Linger,
    claims_upto: u64,
    /// What the proxy was last told.
    told: (u64, u64),
    told_at: Instant,
    encoder: Encoder,
    compressor: Compressor,
}

impl Drain {
    pub fn new(
        stream: Arc<Stream>,
        config: &ShipConfig,
        dir: GroupDir,
        orders: Receiver<Order>,
    ) -> Drain {
        let driver = Driver::new(config.group.clone(), dir.clone());
        let now = Instant::now();
        Drain {
            stream,
            dir,
            orders,
            feed: None,
            driver,
            finished: false,
            compression: config.compression,
            key: config.keys.newest().cloned(),
            busy_until: now,
            published: now,
            meter: Meter::default(),
            last_error: String::new(),
        }
    }

    pub fn run(mut self) {
        while !self.stream.stopping() {
            self.take_orders();
            while let Some(news) = self.stream.news() {
                self.hear(&news);
                self.driver.news(news, &self.stream);
            }
            let moved = match self.turn() {
                Ok(moved) => moved,
                Err(error) => {
                    self.lost(&error);
                    false
                }
            };
            self.drive_cutover();
            self.publish();
            if moved {
                self.busy_until = Instant::now() + BUSY_FOR;
            } else {
                self.stream.wait(self.pause());
            }
        }
        self.driver.stop();
    }

    fn pause(&self) -> Duration {
        if self.driver.is_running() {
            return POLL_BUSY;
        }
        match &self.feed {
            None => POLL_MISSING,
            Some(feed) if feed.linger.is_running() => POLL_LINGER,
            Some(_) => match Instant::now().checked_duration_since(self.busy_until) {
                None => POLL_BUSY,
                Some(idle) if idle < DOZING_AFTER => POLL_IDLE,
                Some(idle) if idle < ASLEEP_AFTER => POLL_DOZING,
                Some(_) => until_next(POLL_ASLEEP),
            },
        }
    }

    fn hear(&mut self, news: &News) {
        let Some(feed) = &mut self.feed else { return };
        match news {
            News::Compared(verdict) => feed.walker.verdict(verdict),
            // A verdict may be lost with its connection: attach anew, compare again.
            News::NetBack if feed.walker.is_comparing() => self.feed = None,
            _ => {}
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.driver.order(order, self.feed.as_ref(), &self.stream);
        }
    }

    fn drive_cutover(&mut self) {
        let cut = self.feed.as_ref().map(|feed| feed.cut);
        self.driver.turn(cut, &self.stream, &self.meter);
        if self.driver.promoted() && !self.finished {
            self.finished = true;
            self.feed = None;
            tracing::info!("the target has taken over; nothing more is shipped");
        }
    }

    fn lost(&mut self, error: &Error) {
        if self.feed.take().is_some() {
            self.driver.link_lost(&self.stream);
        }
        let text = error.to_string();
        if text != self.last_error {
            tracing::warn!("{text}");
            self.stream.progress().set_error(&text);
            self.last_error = text;
        }
    }

    /// True when something was moved.
    fn turn(&mut self) -> Result<bool> {
        if self.finished {
            return Ok(false);
        }
        if self.feed.is_some() && !self.stream.established() {
            self.feed = None;
        }
        let Some(feed) = &mut self.feed else {
            self.stream.set_walked(None);
            return self.begin();
        };
        let dirty_blocks = feed.reader.get(Counter::DirtyBlocks);
        self.stream.set_walked(Some(Walked { dirty_blocks, rounds: feed.walker.rounds() }));
        feed.acknowledge(&self.stream)?;
        let mut moved = false;
        if feed.history.is_some() {
            return if self.stream.has_room() { feed.cut_history(&self.stream) } else { Ok(false) };
        }
        let is_urgent = self.driver.is_running() || feed.is_catching_up();
        if self.stream.has_room() && feed.may_cut(is_urgent) {
            moved |= feed.cut_records(&self.stream)?;
        }
        if self.stream.has_room() && !self.driver.is_sealed() {
            moved |= feed.walk(&self.stream)?;
        }
        feed.heal()?;
        Ok(moved)
    }

    fn begin(&mut self) -> Result<bool> {
        let Some(welcome) = self.stream.beginning() else { return Ok(false) };
        if welcome.promoted.is_some() {
            self.superseded(&welcome);
            return Ok(false);
        }
        let Some(state) = self.dir.load().map_err(from_journal)? else { return Ok(false) };
        let mut link = Link::connect(&self.dir.proxy_socket()).map_err(from_journal)?;
        link.set_timeout(Some(LINK_ANSWER_MAX)).map_err(from_journal)?;
        let target = Durable {
            epoch: welcome.position.epoch.0,
            incarnation: welcome.position.incarnation.0,
            seq: welcome.position.seq.0,
            claims: welcome.claims_upto,
        };
        let request = Request::Attach { version: LINK_VERSION, target };
        let (reply, fds) = link.call(&request).map_err(from_journal)?;
        let (attached, seal) = match reply {
            Reply::Attached { attached, seal, .. } => (attached, seal),
            Reply::Superseded => {
                self.superseded(&welcome);
                return Ok(false);
            }
            other => return Err(unexpected(&other)),
        };
        let mut fds = fds.into_iter();
        let missing = || Error::new(ErrorKind::Protocol, "the proxy sent too few descriptors");
        let ring = File::from(fds.next().ok_or_else(missing)?);
        // As the proxy that was attached to has it: another one may have moved it.
        let spill = Store::of(&self.dir, self.dir.load().map_err(from_journal)?.as_ref());
        let reader = RingReader::open(&ring).map_err(from_journal)?.with_spill(spill.clone());
        let sources: Vec<_> =
            fds.enumerate().map(|(index, fd)| (fd, reader.volume_size_bytes(index))).collect();
        if sources.len() != reader.volume_count() {
            return Err(missing());
        }
        if let Some(reason) = &attached.resync {
            tracing::warn!("everything is sent again: {reason}");
        }
        // Before anything is shipped: it is behind a BREAK.
        for runs in self.stream.lacks().chunks(LACKS_RUNS_MAX) {
            let runs = runs.iter().map(|run| (*run).into()).collect();
            match link.call(&Request::Lacks { runs }).map_err(from_journal)?.0 {
                Reply::Ok => {}
                other => return Err(unexpected(&other)),
            }
        }
        let chain = Chain {
            group: GroupUuid(state.group_uuid.0),
            session: self.stream.session(),
            number: welcome.number,
            hash: welcome.hash,
            stream_bytes: welcome.stream_bytes,
        };
        if !self.stream.establish(&chain) {
            return Ok(false);
        }
        tracing::info!(start_seq = attached.start_seq, "attached to the journal");
        if let Some(part) = &attached.history {
            tracing::info!(
                incarnation = part.incarnation,
                first = part.first_seq,
                last = part.last_seq,
                "first the records that the spill has of the lost ring"
            );
        }
        let history = attached.history.map(|part| History::new(&reader, spill, part));
        self.stream.progress().set_error("");
        self.last_error.clear();
        self.feed = Some(Feed {
            link,
            reader,
            history,
            walker: Walker::new(sources)?,
            chain,
            epoch: attached.epoch,
            cut: attached.start_seq - 1,
            linger: Linger::default(),
            claims_upto: attached.claims_upto,
            told: (0, 0),
            told_at: Instant::now(),
            encoder: match self.stream.is_device() {
                true => Encoder::new(Method::None, self.key.clone()).telling_touches(),
                false => Encoder::new(Method::None, self.key.clone()),
            },
            compressor: Compressor::new(self.compression),
        });
        if let Some(seal) = seal {
            let position = Position::new(
                Epoch(attached.epoch),
                Incarnation(attached.incarnation),
                Seq(seal.seq),
            );
            self.driver.found_sealed(seal.attempt, position, &self.stream);
        }
        Ok(true)
    }

    /// The target was promoted: by our attempt, which the proxy then has to learn, or
    /// by force, which an operator has to sort out.
    fn superseded(&mut self, welcome: &Welcome) {
        let Some(promoted) = &welcome.promoted else { return };
        if self.driver.found_promoted(promoted) {
            return;
        }
        let what = format!(
            "the target was promoted to epoch {} without this side: nothing is shipped; stop the \
             guests here",
            promoted.epoch.0
        );
        self.lost(&Error::new(ErrorKind::Refused, what));
    }

    fn publish(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.published) < PUBLISH_EVERY {
            return;
        }
        self.published = now;
        let progress = self.stream.progress();
        progress.set(Figure::HeartbeatNs, unix_now_ns());
        self.stream.pace().publish(progress);
        progress.set(Figure::CutoverRunning, u64::from(self.driver.is_under_way()));
        let Some(feed) = &mut self.feed else {
            self.meter.pause();
            return;
        };
        feed.compressor.observe(self.meter.durable_rate);
        let (reader, durable) = (&feed.reader, self.stream.ack().stream_bytes);
        self.meter.publish(now, reader, durable, self.stream.is_device(), progress);
    }
}

impl Feed {
    /// Tells the proxy what the target durably has.
    fn acknowledge(&mut self, stream: &Stream) -> Result<()> {
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
    fn cut_history(&mut self, stream: &Stream) -> Result<bool> {
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
    fn is_catching_up(&self) -> bool {
        self.walker.granted_at().is_some() || self.reader.get(Counter::Whole) == 0
    }

    fn may_cut(&mut self, is_urgent: bool) -> bool {
        let records = self.reader.done_seq().saturating_sub(self.cut);
        records > 0 && self.linger.is_over(records, is_urgent, &self.reader)
    }

    fn cut_records(&mut self, stream: &Stream) -> Result<bool> {
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

    fn walk(&mut self, stream: &Stream) -> Result<bool> {
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
    fn heal(&mut self) -> Result<()> {
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

    /// A damaged record: everything is sent again from a RESYNC on.
    fn resync(&mut self, error: &Error) -> Result<bool> {
        tracing::error!("{error}: everything is sent again");
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

/// For the driver: what it hears from the session.
pub(crate) type SessionNews = News;
