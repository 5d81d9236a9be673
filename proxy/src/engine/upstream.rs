//! The volume's link to an upstream NBD server: requests and answers on the volume's ring,
//! and what becomes of them when the connection is lost.
//!
//! ```text
//!            answers ┌───┐            lost: in flight -> parked, their ranges dirty (R9)
//!                    v   │       ┌──────────────────────────────────────────┐
//!  start ──────────> up ─┘───────┘                                          v
//!                    ^                                                     down: requests are parked
//!                    │  connected: parked requests are asked again          │
//!                    └──────────────────────────────────────────────────────┤ no answer for WAIT_MAX
//!                    ^                                                      v
//!                    └───────────────────────────────── given up: parked and new requests fail
//! ```
//! Nobody knows whether a change in flight at a lost connection was made, or will still be
//! made by a server that has it. Its record fails, so its blocks go to the target as the
//! source holds them; then it is asked again. What it overlaps waits meanwhile.

use super::command::{Command, Mailbox, Reconnected};
use super::core::Core;
use super::pending::{Io, Rules};
use super::run::Engine;
use super::slots::Purpose;
use socket2::SockRef;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use towline_block::Upstream;
use towline_block::sys::socket;
use towline_block::sys::uring::{Completion, Driver, Fd, Op, Window, Zeroing};
use towline_block::upstream::{Ask, Backoff, Connection, Connector, Ended, Session};

/// Bytes received at once.
const INPUT_BYTES: usize = 256 << 10;
/// How long requests wait for a server that is away. Guests give a disk 30 s; an error
/// before that is one that they can tell from a hang.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// A connection that lived longer was a good one: its end is a new outage.
const STEADY: Duration = Duration::from_secs(5);
/// The flush's id; operations have their slot and one.
const FLUSH_ID: u32 = 0;

struct Line {
    fd: Fd,
    session: Session,
    sending: bool,
    since: Instant,
}

/// See the module.
pub(super) struct Link {
    connector: Connector,
    mailbox: Mailbox,
    line: Option<Line>,
    /// Of connections so far: late completions of former ones reach nobody.
    number: u32,
    /// Asked, and on no connection.
    parked: VecDeque<(u32, Ask)>,
    ended: Vec<Ended>,
    /// No request was answered since then.
    failing_since: Option<Instant>,
    given_up: bool,
    backoff: Option<Backoff>,
    /// While it lives, somebody wants a connection.
    alive: Arc<()>,
}

impl Link {
    /// Takes over the connection that the export was opened with.
    pub fn start(
        upstream: &Upstream,
        mailbox: Mailbox,
        driver: &mut Driver,
        now: Instant,
    ) -> io::Result<Link> {
        let mut link = Link {
            connector: upstream.connector().clone(),
            mailbox,
            line: None,
            number: 0,
            parked: VecDeque::new(),
            ended: Vec::new(),
            failing_since: None,
            given_up: false,
            backoff: Some(Backoff::default()),
            alive: Arc::default(),
        };
        match upstream.take_connection() {
            Some(connection) => link.connected(connection, driver, now)?,
            None => link.connect_again(now)?,
        }
        Ok(link)
    }

    pub fn rules(&self) -> Rules {
        let terms = self.connector.terms();
        Rules { align: u64::from(terms.align), can_zero: terms.can_zero, can_fua: terms.can_fua }
    }

    /// Asks for one step of the operation in `slot`.
    pub fn ask(&mut self, slot: usize, io: Io, fua: bool) {
        let ask = match io {
            Io::Read(offset, window) => Ask::Read { offset, window },
            Io::Write(offset, window) => Ask::Write { offset, window, fua },
            Io::Zero(extent, how) => {
                Ask::Zero { extent, keep_allocated: how == Zeroing::KeepAllocated, fua }
            }
        };
        self.put(slot as u32 + 1, ask);
    }

    pub fn ask_flush(&mut self) {
        self.put(FLUSH_ID, Ask::Flush);
    }

    fn put(&mut self, id: u32, ask: Ask) {
        match &mut self.line {
            Some(line) => line.session.ask(id, ask),
            None if self.given_up => self.ended.push(away(id, ask)),
            None => self.parked.push_back((id, ask)),
        }
    }

    pub fn has_answers(&self) -> bool {
        !self.ended.is_empty()
    }

    /// When parked requests fail.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.line.is_none() && !self.given_up && !self.parked.is_empty();
        self.failing_since.filter(|_| waits).map(|since| since + WAIT_MAX)
    }

    /// Fails what has waited long enough. True when that begins now.
    fn expire(&mut self, now: Instant) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.given_up = true;
        self.ended.extend(self.parked.drain(..).map(|(id, ask)| away(id, ask)));
        true
    }

    fn connected(
        &mut self,
        connection: Connection,
        driver: &mut Driver,
        now: Instant,
    ) -> io::Result<()> {
        let session = Session::new(connection.terms);
        let fd: Fd = Arc::new(OwnedFd::from(connection.stream));
        self.number = self.number.wrapping_add(1);
        let input = Window::new(vec![0; INPUT_BYTES], 0, INPUT_BYTES);
        driver.push(Purpose::UpstreamRecv(self.number).token(), Op::Recv(fd.clone(), input))?;
        self.line = Some(Line { fd, session, sending: false, since: now });
        for (id, ask) in std::mem::take(&mut self.parked) {
            self.put(id, ask);
        }
        Ok(())
    }

    /// Bytes of the current connection: parses, and appends what they answer.
    fn received(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let Some(line) = &mut self.line else { return Ok(()) };
        let before = self.ended.len();
        let fed = line.session.feed(bytes, &mut self.ended);
        if self.ended.len() > before {
            self.failing_since = None;
            self.given_up = false;
        }
        fed.map_err(|violation| violation.0)
    }

    /// The connection is of no more use; the changes that were in flight on it.
    fn lose(&mut self, now: Instant) -> io::Result<Vec<u32>> {
        let Some(line) = self.line.take() else { return Ok(Vec::new()) };
        // Fails when the peer was faster, which is as good.
        let _ = SockRef::from(&*line.fd).shutdown(Shutdown::Both);
        if now.saturating_duration_since(line.since) >= STEADY {
            self.failing_since = None;
            self.given_up = false;
            self.backoff = Some(Backoff::default());
        }
        let mut changes = Vec::new();
        for (id, ask) in line.session.lost() {
            changes.extend(ask.is_change().then_some(id));
            self.put(id, ask);
        }
        self.connect_again(now)?;
        Ok(changes)
    }

    /// Starts a thread that brings a connection, however long that takes.
    fn connect_again(&mut self, now: Instant) -> io::Result<()> {
        self.failing_since.get_or_insert(now);
        let Some(backoff) = self.backoff.take() else { return Ok(()) };
        let (connector, mailbox) = (self.connector.clone(), self.mailbox.clone());
        let alive = Arc::downgrade(&self.alive);
        std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || bring(&connector, &mailbox, &alive, backoff))
            .map(drop)
    }
}

fn away(id: u32, ask: Ask) -> Ended {
    let error = io::Error::new(io::ErrorKind::NotConnected, "the upstream server is away");
    Ended { id, result: Err(error), ask }
}

fn bring(connector: &Connector, mailbox: &Mailbox, alive: &Weak<()>, mut backoff: Backoff) {
    let mut said = String::new();
    loop {
        std::thread::sleep(backoff.next_wait());
        if alive.upgrade().is_none() {
            return;
        }
        match connector.connect() {
            Ok(connection) => {
                let new = Box::new(Reconnected { connection, backoff });
                // A volume that has ended wants none.
                let _ = mailbox.send(Command::Upstream(new));
                return;
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::warn!("{text}: trying again");
                    said = text;
                }
            }
        }
    }
}

impl Core {
    /// # Panics
    /// When the source is no upstream server.
    pub(super) fn upstream(&mut self) -> &mut Link {
        self.link.as_mut().expect("a link to the upstream server")
    }

    pub(super) fn reconnected(&mut self, new: Reconnected) -> io::Result<()> {
        let Reconnected { connection, backoff } = new;
        let Some(link) = &mut self.link else { return Ok(()) };
        tracing::info!(
            volume = %self.volume.name(), asked_again = link.parked.len(),
            "connected to the upstream server again"
        );
        link.backoff = Some(backoff);
        link.connected(connection, &mut self.driver, self.now)
    }

    pub(super) fn upstream_received(
        &mut self,
        number: u32,
        completion: Completion,
    ) -> io::Result<()> {
        // Also of a connection that was lost by a failed send.
        let is_current = |link: &&mut Link| link.number == number && link.line.is_some();
        let Some(link) = self.link.as_mut().filter(is_current) else { return Ok(()) };
        let mut window = completion.window;
        let lost = match completion.result {
            Err(error) => Some(error.to_string()),
            Ok(0) => Some("it closed the connection".to_owned()),
            Ok(bytes) => link.received(&window.buf[..bytes]).err().map(str::to_owned),
        };
        if let Some(why) = lost {
            return self.lose_upstream(&why);
        }
        let Some(line) = &link.line else { return Ok(()) };
        window.len = window.buf.len();
        let op = Op::Recv(line.fd.clone(), window);
        self.driver.push(Purpose::UpstreamRecv(number).token(), op)
    }

    pub(super) fn upstream_sent(&mut self, number: u32, completion: Completion) -> io::Result<()> {
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            return Ok(());
        };
        let Some(line) = &mut link.line else { return Ok(()) };
        let mut window = completion.window;
        match completion.result {
            Ok(sent) if sent == window.len => {
                line.sending = false;
                line.session.recycle(window.buf);
                Ok(())
            }
            Ok(sent) if sent > 0 => {
                window.start += sent;
                window.len -= sent;
                let op = Op::Send(line.fd.clone(), window);
                self.driver.push(Purpose::UpstreamSend(number).token(), op)
            }
            Ok(_) => self.lose_upstream("it takes nothing"),
            Err(error) => self.lose_upstream(&error.to_string()),
        }
    }

    /// Sends what was asked in this round: at once what there is room for.
    pub(super) fn send_upstream(&mut self) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let number = link.number;
        let Some(line) = link.line.as_mut().filter(|line| !line.sending) else { return Ok(()) };
        if !line.session.has_unsent() {
            return Ok(());
        }
        let bytes = line.session.take_unsent();
        let sent = match socket::send_now(&line.fd, &bytes) {
            Ok(sent) => sent.unwrap_or(0),
            Err(error) => return self.lose_upstream(&error.to_string()),
        };
        let left = bytes.len() - sent;
        if left == 0 {
            line.session.recycle(bytes);
            return Ok(());
        }
        line.sending = true;
        let op = Op::Send(line.fd.clone(), Window::new(bytes, sent, left));
        self.driver.push(Purpose::UpstreamSend(number).token(), op)
    }

    fn lose_upstream(&mut self, why: &str) -> io::Result<()> {
        let now = self.now;
        let changes = self.upstream().lose(now)?;
        self.counters.upstream_losses.add(1);
        tracing::warn!(
            volume = %self.volume.name(), changes = changes.len(),
            "lost the upstream server: {why}; requests wait up to {WAIT_MAX:?} for it, what was \
             in flight goes to the target anew"
        );
        for id in changes {
            let begun = self.pending.get(id as usize - 1).begun.take();
            self.volume.fail(begun);
        }
        Ok(())
    }
}

impl Engine {
    /// Goes on with everything that the server answered, or will not answer any more.
    pub(super) fn answer_upstream(&mut self) -> io::Result<()> {
        loop {
            let now = self.core.now;
            let Some(link) = &mut self.core.link else { return Ok(()) };
            if link.expire(now) {
                tracing::error!(
                    volume = %self.core.volume.name(),
                    "the upstream server is away for {WAIT_MAX:?}: requests fail until it is back"
                );
                continue;
            }
            if link.ended.is_empty() {
                return Ok(());
            }
            for ended in std::mem::take(&mut link.ended) {
                match ended.id {
                    FLUSH_ID => self.synced(ended.result)?,
                    id => {
                        let window = ended.ask.into_window();
                        self.source_done(id as usize - 1, ended.result, window)?;
                    }
                }
            }
            // What waited for them may run, and flushes may follow.
            self.core.issue()?;
            self.start_sync()?;
        }
    }
}

#[cfg(test)]
mod tests;
