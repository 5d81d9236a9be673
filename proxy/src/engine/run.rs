//! The event loop of a volume's thread.

use super::command::{Inbox, Mailbox};
use super::connection::{Connection, Ending, Pause};
use super::core::{Core, Waiter};
use super::durable::WakeOnDurable;
use super::obey::STOP_WAIT;
use super::slots::{Key, Purpose, Slots};
use super::spin::LatencyPolicy;
use super::upstream::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Gate;
use crate::latency::{Counters, Shadow};
use crate::volume::Volume;
use crossbeam::channel::Sender;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::Backend;
use towline_block::sys::uring::{Completion, Window};
use towline_journal::Outcome;

/// What a volume's thread starts from.
pub struct Setup {
    pub volume: Volume,
    pub gate: Gate,
    pub inbox: Inbox,
    /// The other end of `inbox`, for threads that the engine starts.
    pub mailbox: Mailbox,
    pub wake: WakeOnDurable,
    pub shadow: Arc<Shadow>,
    pub counters: Arc<Counters>,
    pub policy: LatencyPolicy,
}

pub struct Engine {
    pub(super) core: Core,
    pub(super) connections: Slots<Connection>,
    inbox: Inbox,
    /// Askers of a hold, until nothing is in flight.
    pub(super) holds: Vec<Sender<Result<()>>>,
    /// When the thread, asked to end, waits no longer for clients.
    pub(super) stop_by: Option<Instant>,
    /// An upstream server has to be flushed before the end.
    flush_due: bool,
}

impl Engine {
    /// Only on the thread that calls [`Engine::run`].
    pub fn new(setup: Setup) -> io::Result<Engine> {
        let Setup { volume, gate, inbox, mailbox, wake, shadow, counters, policy } = setup;
        let mut core = Core::new(volume, gate, shadow, counters, policy, mailbox, wake)?;
        let flush_due = core.link.is_some();
        core.listen(&inbox, Window::new(vec![0; 16], 0, 16))?;
        Ok(Engine {
            core,
            connections: Slots::new(),
            inbox,
            holds: Vec::new(),
            stop_by: None,
            flush_due,
        })
    }

    /// Serves until [`super::command::Command::Stop`]; then every source write is on the medium, or
    /// the error says why not.
    pub fn run(mut self) -> Result<()> {
        self.core.note_thread();
        let result = self.serve();
        if let Err(error) = &result {
            tracing::error!(volume = %self.core.volume.name(), %error, "the volume's thread ends");
        }
        let core = &mut self.core;
        let flushed = match core.volume.disk().backend() {
            Backend::File(disk) if !core.volume.is_read_only() => disk.flush(),
            Backend::Upstream(_) if self.flush_due || !core.syncs.is_idle() => {
                Err(towline_block::Error::new(
                    towline_block::ErrorKind::Unreachable,
                    "the upstream server did not flush in time",
                ))
            }
            _ => Ok(()),
        };
        let name = core.volume.name();
        result.map_err(|error| {
            Error::caused(ErrorKind::System, format!("the thread of {name} failed"), error)
        })?;
        flushed.map_err(|error| {
            Error::caused(ErrorKind::Storage, format!("cannot flush {name} at its end"), error)
        })?;
        if core.syncs.has_failed() {
            let what = format!("a flush of {name} has failed before: its last writes may be lost");
            return Err(Error::new(ErrorKind::Storage, what));
        }
        Ok(())
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        while !self.is_over()? {
            self.round(&mut done)?;
        }
        Ok(())
    }

    /// Waits for events and acts on all there are. `done` is scratch.
    fn round(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let spun = self.spin()?;
        let timeout = if spun { Some(Duration::ZERO) } else { self.timeout() };
        self.core.driver.wait(1, timeout, done)?;
        if !spun {
            self.core.now = Instant::now();
        }
        for completion in done.drain(..) {
            self.completed(completion)?;
        }
        self.core.expire_awake();
        if self.core.gate.expire(self.core.now) {
            tracing::warn!(volume = %self.core.volume.name(), "the hold is over: changes go on");
            self.resume(Pause::Gate);
        }
        self.answer_upstream()?;
        self.answer_durable()?;
        self.admit_waiter();
        for _ in 0..self.core.ready.len() {
            self.turn()?;
        }
        if self.core.memory.take_freed() {
            self.resume(Pause::Memory);
        }
        self.core.issue()?;
        self.start_sync()?;
        self.answer_upstream()?;
        self.core.send_upstream()?;
        self.answer_holds();
        Ok(())
    }

    fn is_over(&mut self) -> io::Result<bool> {
        let Some(stop_by) = self.stop_by else { return Ok(false) };
        // What is at the source is waited for, however long: as an inline write would.
        if !self.core.pending.is_idle() {
            return Ok(false);
        }
        let idle = self.connections.is_empty() && self.core.syncs.is_idle();
        if !idle && self.core.now < stop_by {
            return Ok(false);
        }
        if self.flush_due {
            self.flush_due = false;
            self.stop_by = Some(self.core.now + STOP_WAIT);
            self.core.syncs.join(Waiter::End);
            self.start_sync()?;
            self.core.send_upstream()?;
            return Ok(false);
        }
        Ok(true)
    }

    fn timeout(&self) -> Option<Duration> {
        let has_answers = self.core.link.as_ref().is_some_and(Link::has_answers);
        if has_answers || !self.core.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let core = &self.core;
        let waits = core.waits.deadline();
        let stop_by = self.stop_by.filter(|stop_by| core.pending.is_idle() || *stop_by > core.now);
        let upstream = core.link.as_ref().and_then(Link::deadline);
        let awake = core.awake.deadline();
        let deadlines = [core.gate.deadline(), waits, stop_by, upstream, awake];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn completed(&mut self, completion: Completion) -> io::Result<()> {
        match Purpose::of_token(completion.token) {
            // Nobody is left who could ask for anything.
            Purpose::Wake if !matches!(completion.result, Ok(1..)) => {
                self.stop();
                Ok(())
            }
            Purpose::Wake => {
                self.inbox.heard();
                while let Some(command) = self.inbox.take() {
                    self.obey(command)?;
                }
                self.core.listen(&self.inbox, completion.window)
            }
            Purpose::Sync => self.synced(completion.result),
            Purpose::Source(slot) => {
                self.source_done(slot as usize, completion.result, completion.window)
            }
            Purpose::UpstreamRecv(number) => self.core.upstream_received(number, completion),
            Purpose::UpstreamSend(number) => self.core.upstream_sent(number, completion),
            Purpose::Recv(key) => {
                self.with(key, |core, connection| core.received(key, connection, completion))
            }
            Purpose::Send(key) => {
                self.with(key, |core, connection| core.sent(key, connection, completion))
            }
            Purpose::Watch(key) => self.with(key, |_, connection| {
                connection.watching = false;
                if connection.pause == Some(Pause::Gate) && connection.has_hung_up() {
                    connection.shut_down();
                }
                Ok(())
            }),
        }
    }

    /// Works on a connection, and frees it when that was its end.
    pub(super) fn with(
        &mut self,
        key: Key,
        work: impl FnOnce(&mut Core, &mut Connection) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        work(&mut self.core, connection)?;
        if connection.is_gone()
            && let Some(gone) = self.connections.remove(key)
        {
            self.core.seat_left(gone.peer);
            gone.free(&mut self.core.memory);
        }
        Ok(())
    }

    /// The next connection in the queue gets its turn.
    fn turn(&mut self) -> io::Result<()> {
        let Some(key) = self.core.ready.pop_front() else { return Ok(()) };
        self.with(key, |core, connection| {
            connection.queued = false;
            if connection.dead {
                return Ok(());
            }
            let may_parse = !connection.receiving && connection.ending != Ending::Drained;
            let pause = may_parse.then(|| {
                connection.pause = None;
                core.parse(key, connection)
            });
            core.settle(key, connection, pause)
        })
    }

    /// Queues all connections that wait for this.
    pub(super) fn resume(&mut self, pause: Pause) {
        let keys: Vec<Key> = self.connections.keys().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(key)
                && connection.pause == Some(pause)
            {
                self.core.resume(key, connection);
            }
        }
    }

    pub(super) fn synced(&mut self, result: io::Result<usize>) -> io::Result<()> {
        self.core.sync_took = self.core.now.saturating_duration_since(self.core.sync_begun);
        let succeeded = result.is_ok();
        if let Err(error) = result {
            let volume = self.core.volume.name();
            tracing::error!(%volume, %error, "flush failed; this and all later flushes fail");
        }
        self.core.note_end(succeeded);
        let outcome = if succeeded { Outcome::Done } else { Outcome::Failed };
        let barrier = self.core.barrier.take();
        self.core.volume.finish_barrier(barrier, outcome);
        // A source that failed is told at once.
        if succeeded && self.flush_waits() {
            return Ok(());
        }
        self.answer_sync(succeeded)
    }
}

#[cfg(test)]
mod tests;
