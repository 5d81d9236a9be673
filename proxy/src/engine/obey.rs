//! Commands of other threads, obeyed between two events of the volume's thread: at that
//! moment nothing is in flight to an inline source but an fdatasync. Of an asynchronous
//! one, holds and claims wait for the changes that came before them.

use super::command::{Command, NewConnection};
use super::connection::{Connection, Pause};
use super::core::Waiter;
use super::run::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Gate;
use crossbeam::channel::Sender;
use std::io;
use std::time::Duration;

/// How long an orderly stop waits for clients to take their replies.
pub(super) const STOP_WAIT: Duration = Duration::from_secs(5);

/// Answers an asker, who may have left.
pub(super) fn answer<T>(done: &Sender<Result<T>>, result: Result<T>) {
    let _ = done.send(result);
}

/// The answer to a seal whose fdatasync has ended.
pub(super) fn sealed(succeeded: bool) -> Result<()> {
    if succeeded {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Storage,
        "the source could not be flushed: its last writes may be lost; check the disk, then \
         restart the proxy",
    ))
}

impl Engine {
    pub(super) fn obey(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Connect(new) => self.connect(new),
            Command::Hold { attempt, until, done } => match self.core.gate.hold(attempt, until) {
                Ok(()) => self.holds.push(done),
                Err(error) => answer(&done, Err(error)),
            },
            Command::Release { attempt, done } => {
                self.core.gate.release(attempt);
                self.gate_changed();
                answer(&done, Ok(()));
            }
            Command::Seal { attempt, done } => {
                let failed = self.core.syncs.has_failed();
                match self.core.gate.seal(attempt, self.core.now) {
                    Ok(()) if failed => answer(&done, sealed(false)),
                    Ok(()) => self.core.syncs.join(Waiter::Seal(done)),
                    Err(error) => answer(&done, Err(error)),
                }
                self.gate_changed();
            }
            Command::Unseal { attempt, done } => {
                self.core.gate.unseal(attempt);
                self.gate_changed();
                answer(&done, Ok(()));
            }
            Command::Promote { refusal, done } => {
                self.core.gate.promote(refusal);
                self.gate_changed();
                answer(&done, Ok(()));
            }
            Command::Claim { from_block, blocks_max, runs_max, done } => {
                self.core.claim(from_block, blocks_max, runs_max, done);
            }
            Command::Upstream(new) => self.core.reconnected(*new)?,
            // Whoever waits for it is answered in every round.
            Command::Persisted => {}
            Command::Stop => self.stop(),
        }
        Ok(())
    }

    fn connect(&mut self, new: NewConnection) {
        if self.stop_by.is_some() {
            return;
        }
        self.core.counters.connections.add(1);
        let connection = Connection::new(new, self.core.now);
        self.core.seat_joined(connection.peer);
        let key = self.connections.insert(connection);
        if let Some(connection) = self.connections.get_mut(key) {
            self.core.enqueue(key, connection);
        }
    }

    fn gate_changed(&mut self) {
        self.resume(Pause::Gate);
    }

    pub(super) fn stop(&mut self) {
        if self.stop_by.is_some() {
            return;
        }
        self.stop_by = Some(self.core.now + STOP_WAIT);
        let keys: Vec<_> = self.connections.keys().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.stop_receiving();
                self.core.enqueue(key, connection);
            }
        }
    }

    /// Tells those who asked for a hold that nothing is in flight any more.
    pub(super) fn answer_holds(&mut self) {
        if self.holds.is_empty()
            || !self.core.syncs.is_idle()
            || self.core.pending.overlaps.has_changes()
        {
            return;
        }
        let held = matches!(self.core.gate, Gate::Held { .. });
        for done in self.holds.drain(..) {
            let result = match held {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Lapsed,
                    "the hold ended before everything in flight did",
                )),
            };
            answer(&done, result);
        }
    }
}
