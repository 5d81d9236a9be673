//! The drain thread: journal in, stream out, one turn after the other.
//!
//! ```text
//!   no feed ── target connected, nothing on its way: attach to the proxy ──> feed
//!   feed    ── ack the proxy, cut records, walk one chunk, ask for HEAL ──> feed
//!   feed    ── proxy gone, or the target is no longer where we fed it ────> no feed
//! ```

use super::compress::{Compression, Compressor};
use super::control::Order;
use super::cutover::{Driver, STALLED, STALLED_AFTER};
use super::feed::{Feed, unexpected};
use super::history::History;
use super::linger::Linger;
use super::meter::Meter;
use super::stream::{News, Stream, Walked};
use super::together::until_next;
use super::walker::Walker;
use super::{ShipConfig, from_journal};
use crate::batch::{Chain, Encoder, GroupKey, Method};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use crate::wire::{LACKS_RUNS_MAX, Welcome};
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use towline_block::{Epoch, Incarnation, Position, Seq};
use towline_journal::format::Counter;
use towline_journal::link::{LINK_VERSION, Link, Reply, Request};
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
    /// The target applies nothing, and that was said.
    is_stalled: bool,
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
            is_stalled: false,
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
            let what = match welcome.position.incarnation {
                _ if self.stream.is_store() => "everything is sent",
                Incarnation(0) => "everything is sent",
                _ => "everything is compared with the target, and sent where it differs",
            };
            tracing::warn!("{what}: {reason}");
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
        let is_stalled = self.stream.stalled_for() >= STALLED_AFTER;
        if is_stalled != self.is_stalled {
            self.is_stalled = is_stalled;
            if is_stalled {
                tracing::warn!("{STALLED}");
                progress.set_error(STALLED);
            } else if progress.error().as_deref() == Some(STALLED) {
                // What went wrong since stays: a lost connection ends a stall, too.
                progress.set_error("");
            }
        }
        let Some(feed) = &mut self.feed else {
            self.meter.pause();
            return;
        };
        feed.compressor.observe(self.meter.durable_rate);
        let (reader, durable) = (&feed.reader, self.stream.ack().stream_bytes);
        self.meter.publish(now, reader, durable, self.stream.is_device(), progress);
    }
}

/// For the driver: what it hears from the session.
pub(crate) type SessionNews = News;
