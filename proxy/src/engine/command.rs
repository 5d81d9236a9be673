//! What other threads ask of a volume's thread, and how it is woken.

use crate::error::{Error, ErrorKind, Result};
use crate::gate::Attempt;
use crate::nbd::request::Terms;
use crossbeam::channel::{Receiver, Sender, unbounded};
use socket2::{Domain, Socket, Type};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use towline_block::sys::uring::Fd;
use towline_block::upstream::{Backoff, Connection};
use towline_journal::Claim;

/// A client that has finished its handshake.
pub struct NewConnection {
    pub fd: OwnedFd,
    pub terms: Terms,
    /// Given back when the connection has ended.
    pub permit: Box<dyn Send>,
}

/// A new connection to the upstream server, and how long to wait before the next one.
pub struct Reconnected {
    pub connection: Connection,
    pub backoff: Backoff,
}

/// Answers go to `done`; an asker that has left is of no consequence.
pub enum Command {
    Connect(NewConnection),
    /// Changes wait; answered when nothing is in flight.
    Hold {
        attempt: Attempt,
        until: Instant,
        done: Sender<Result<()>>,
    },
    Release {
        attempt: Attempt,
        done: Sender<Result<()>>,
    },
    /// Turns the hold into a seal; answered when the source is flushed.
    Seal {
        attempt: Attempt,
        done: Sender<Result<()>>,
    },
    Unseal {
        attempt: Attempt,
        done: Sender<Result<()>>,
    },
    Promote {
        refusal: Arc<str>,
        done: Sender<Result<()>>,
    },
    Claim {
        from_block: u64,
        blocks_max: u64,
        runs_max: u32,
        done: Sender<Result<Vec<Claim>>>,
    },
    /// The upstream server is there again.
    Upstream(Box<Reconnected>),
    /// More of the journal is durable.
    Persisted,
    /// Ends the thread: answers what was received, flushes the source.
    Stop,
}

/// The asking side. Cheap to clone.
#[derive(Clone)]
pub struct Mailbox {
    commands: Sender<Command>,
    rung: Arc<AtomicBool>,
    rope: Arc<UnixStream>,
}

/// The volume thread's side.
pub struct Inbox {
    commands: Receiver<Command>,
    /// The bell was rung and not heard yet: ringing again would be one system call
    /// for nothing.
    rung: Arc<AtomicBool>,
    /// Readable when the bell was rung, at its end when no mailbox is left.
    pub ear: Fd,
}

pub fn mailbox() -> std::io::Result<(Mailbox, Inbox)> {
    let (rope, ear) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
    let rope = UnixStream::from(OwnedFd::from(rope));
    rope.set_nonblocking(true)?;
    let rung = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = unbounded();
    let ear: Fd = Arc::new(ear.into());
    let mailbox = Mailbox { commands: sender, rung: rung.clone(), rope: Arc::new(rope) };
    Ok((mailbox, Inbox { commands: receiver, rung, ear }))
}

impl Mailbox {
    /// Leaves a command. Fails when the volume's thread has ended.
    pub fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())?;
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Never full: at most one byte is unheard at a time.
            (&*self.rope).write_all(&[1]).map_err(|_| gone())?;
        }
        Ok(())
    }
}

impl Inbox {
    /// The byte of the bell was received: from now on it may be rung again. Call
    /// before taking commands, so that none is left unheard.
    pub fn heard(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    pub fn take(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }
}

pub fn gone() -> Error {
    Error::new(ErrorKind::Gone, "the volume's thread has ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_bell_is_rung_once_until_it_is_heard() {
        let (mailbox, inbox) = mailbox().unwrap();
        let mut ear = UnixStream::from(inbox.ear.try_clone().unwrap());
        for _ in 0..3 {
            mailbox.send(Command::Stop).unwrap();
        }
        let mut bytes = [0; 8];
        assert_eq!(ear.read(&mut bytes).unwrap(), 1);
        inbox.heard();
        assert_eq!(std::iter::from_fn(|| inbox.take()).count(), 3);
        mailbox.send(Command::Stop).unwrap();
        assert_eq!(ear.read(&mut bytes).unwrap(), 1);
        drop(inbox);
        drop(ear);
        assert_eq!(mailbox.send(Command::Stop).unwrap_err().kind(), ErrorKind::Gone);
    }
}
