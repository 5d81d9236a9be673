//! What a volume's thread has beside its connections, and how a connection and the
//! kernel hand buffers to each other.

use super::alone::Alone;
use super::buffers::LargeMemory;
use super::command::{Inbox, Mailbox};
use super::connection::{Connection, Ending, Pause};
use super::cores::{Awake, Mover};
use super::durable::{Waits, WakeOnDurable};
use super::pending::{Pending, Rules};
use super::seat::Seat;
use super::slots::{Key, Purpose};
use super::spin::{LatencyPolicy, Spin};
use super::upstream::Link;
use crate::error::Result;
use crate::gate::Gate;
use crate::latency::{Counters, Shadow, Timing};
use crate::nbd::reply::Descriptor;
use crate::syncs::Syncs;
use crate::volume::Volume;
use crossbeam::channel::Sender;
use rustix::thread::Pid;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::sys::uring::{Completion, Driver, Op, Window};
use towline_block::{Backend, Cache};
use towline_journal::Ticket;

/// Operations submitted in one system call: a receive, a send and a watch of every
/// connection that a volume may have.
const RING_ENTRIES: u32 = 256;

/// A client that sends at least so many requests at a time has often sent more meanwhile:
/// it is looked for before the kernel is asked to.
const BATCH_MIN: u32 = 8;

/// Who waits for an fdatasync.
pub(super) enum Waiter {
    Reply {
        key: Key,
        cookie: u64,
        timing: Timing,
    },
    Seal(Sender<Result<()>>),
    /// The thread, before its end.
    End,
}

pub(super) struct Core {
    pub driver: Driver,
    pub volume: Volume,
    pub gate: Gate,
    pub syncs: Syncs<Waiter>,
    pub memory: LargeMemory,
    pub counters: Arc<Counters>,
    pub shadow: Arc<Shadow>,
    /// Scratch of BLOCK_STATUS.
    pub runs: Vec<Descriptor>,
    /// Barrier of the fdatasync in flight.
    pub barrier: Option<Ticket>,
    /// When the last fdatasync was issued, and what it took once it has ended.
    pub sync_begun: Instant,
    pub sync_took: Duration,
    pub alone: Alone,
    pub waits: Waits,
    pub pending: Pending,
    /// Of an asynchronous source.
    pub rules: Option<Rules>,
    /// To an upstream server, where that is the source.
    pub link: Option<Link>,
    pub spin: Spin,
    pub seat: Seat,
    pub mover: Mover,
    pub awake: Awake,
    /// The process of each open connection, where it can be known.
    pub clients: Vec<Pid>,
    /// Requests executed since the last look.
    pub requests: u32,
    /// Connections that stand for a turn.
    pub ready: VecDeque<Key>,
    /// Time of the last wake-up.
    pub now: Instant,
}

impl Core {
    pub fn new(
        volume: Volume,
        gate: Gate,
        shadow: Arc<Shadow>,
        counters: Arc<Counters>,
        policy: LatencyPolicy,
        mailbox: Mailbox,
        wake: WakeOnDurable,
    ) -> io::Result<Core> {
        let now = Instant::now();
        let mut driver = Driver::new(RING_ENTRIES)?;
        let (rules, link) = match volume.disk().backend() {
            Backend::File(disk) if disk.cache() == Cache::Page => (None, None),
            Backend::File(_) => (Some(Rules::DIRECT), None),
            Backend::Upstream(upstream) => {
                let link = Link::start(upstream, mailbox, &mut driver, now)?;
                (Some(link.rules()), Some(link))
            }
        };
        Ok(Core {
            driver,
            volume,
            gate,
            syncs: Syncs::new(),
            memory: LargeMemory::new(),
            counters,
            shadow,
            runs: Vec::new(),
            barrier: None,
            sync_begun: now,
            sync_took: Duration::ZERO,
            alone: Alone::default(),
            waits: Waits::new(wake),
            pending: Pending::default(),
            rules,
            link,
            spin: Spin::new(policy, now),
            seat: Seat::new(now),
            mover: Mover::default(),
            awake: Awake::new(policy),
            clients: Vec::new(),
            requests: 0,
            ready: VecDeque::new(),
            now,
        })
    }

    /// Waits for the bell.
    pub fn listen(&mut self, inbox: &Inbox, window: Window) -> io::Result<()> {
        self.driver.push(Purpose::Wake.token(), Op::Recv(inbox.ear.clone(), window))
    }

    /// Issues the fdatasync that [`Syncs::start`] asked for. The barrier takes its place
    /// in the journal before.
    pub fn begin_sync(&mut self) -> io::Result<()> {
        self.take_place();
        self.ask_journal()
    }

    /// The barrier takes its place; what lies before it is to be on disk.
    pub fn take_place(&mut self) {
        self.barrier = self.volume.begin_barrier();
        self.waits.needed = self.volume.needed_before(self.barrier.as_ref());
    }

    /// Asks the journal for that, and issues the fdatasync when it may be.
    pub fn ask_journal(&mut self) -> io::Result<()> {
        self.volume.persist_for_flush(self.waits.needed);
        match self.hold_sync() {
            true => Ok(()),
            false => self.issue_sync(),
        }
    }

    pub fn issue_sync(&mut self) -> io::Result<()> {
        self.note_issue();
        self.counters.syncs.add(1);
        self.sync_begun = Instant::now();
        let fd = match self.volume.disk().backend() {
            Backend::File(disk) => disk.fd().clone(),
            Backend::Upstream(_) => {
                self.upstream().ask_flush();
                return Ok(());
            }
        };
        self.driver.push(Purpose::Sync.token(), Op::Datasync(fd))
    }

    pub fn enqueue(&mut self, key: Key, connection: &mut Connection) {
        if !connection.queued {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// What the connection waited for may be there. The wait is not our latency.
    pub fn resume(&mut self, key: Key, connection: &mut Connection) {
        connection.pause = None;
        connection.received = self.now;
        self.enqueue(key, connection);
    }

    pub fn received(
        &mut self,
        key: Key,
        connection: &mut Connection,
        completion: Completion,
    ) -> io::Result<()> {
        connection.receiving = false;
        let received = *completion.result.as_ref().unwrap_or(&0);
        connection.input.take_back(completion.window, received);
        self.arrived(key, connection, &completion.result);
        Ok(())
    }

    /// Bytes, the end of the stream or its failure: the connection gets a turn.
    pub fn arrived(&mut self, key: Key, connection: &mut Connection, received: &io::Result<usize>) {
        match received {
            Err(_) => connection.shut_down(),
            Ok(0) if connection.ending == Ending::No => connection.ending = Ending::Draining,
            Ok(_) => {}
        }
        connection.received = self.now;
        self.enqueue(key, connection);
    }

    pub fn sent(
        &mut self,
        key: Key,
        connection: &mut Connection,
        completion: Completion,
    ) -> io::Result<()> {
        let mut window = completion.window;
        match completion.result {
            Ok(sent) if sent < window.len && sent > 0 => {
                window.start += sent;
                window.len -= sent;
                let op = Op::Send(connection.fd.clone(), window);
                return self.driver.push(Purpose::Send(key).token(), op);
            }
            Ok(0) | Err(_) => connection.shut_down(),
            Ok(_) => {}
        }
        connection.sent(window.buf, &mut self.memory);
        if connection.pause == Some(Pause::Replies) {
            self.resume(key, connection);
        } else {
            self.enqueue(key, connection);
        }
        Ok(())
    }

    /// After a turn: sends what was replied, and sees to what comes next. `pause`
    /// is `None` when there was nothing to parse.
    pub fn settle(
        &mut self,
        key: Key,
        connection: &mut Connection,
        pause: Option<Pause>,
    ) -> io::Result<()> {
        self.send(key, connection)?;
        match pause {
            None => {}
            Some(Pause::Bytes(_) | Pause::Disconnect) if connection.ending != Ending::No => {
                connection.ending = Ending::Drained;
            }
            Some(Pause::Bytes(total)) => self.receive(key, connection, total)?,
            Some(Pause::Disconnect) => connection.ending = Ending::Drained,
            Some(Pause::Turn) => self.enqueue(key, connection),
            // The full buffer is on its way and the other one is empty.
            Some(Pause::Replies) if connection.output.is_empty() => self.enqueue(key, connection),
            // The client has hung up, or we have: nobody would learn the outcome.
            Some(Pause::Gate) if connection.ending != Ending::No => connection.shut_down(),
            Some(Pause::Gate) => {
                connection.pause = Some(Pause::Gate);
                self.watch(key, connection)?;
            }
            Some(Pause::Source) => {
                connection.pause = Some(Pause::Source);
                if !self.pending.waiters.contains(&key) {
                    self.pending.waiters.push_back(key);
                }
            }
            Some(pause @ (Pause::Replies | Pause::Syncs | Pause::Memory | Pause::Owed)) => {
                connection.pause = Some(pause);
            }
            Some(Pause::Broken) => {
                tracing::warn!(volume = %self.volume.name(), "a client sent no NBD: dropped");
                connection.shut_down();
            }
        }
        if connection.is_finished() {
            connection.shut_down();
        }
        Ok(())
    }

    fn send(&mut self, key: Key, connection: &mut Connection) -> io::Result<()> {
        if connection.sending || connection.output.is_empty() {
            return Ok(());
        }
        let rest = connection.send_now(&mut self.memory);
        self.fold(connection);
        match rest {
            Some(rest) => {
                let op = Op::Send(connection.fd.clone(), rest);
                self.driver.push(Purpose::Send(key).token(), op)
            }
            None => Ok(()),
        }
    }

    /// The replies queued so far are with the socket, or as good as: their requests
    /// are over.
    pub fn fold(&self, connection: &mut Connection) {
        if connection.timings.is_empty() {
            return;
        }
        let now = Instant::now();
        for timing in connection.timings.drain(..) {
            self.shadow.replied(&timing, now);
        }
    }

    fn receive(&mut self, key: Key, connection: &mut Connection, total: usize) -> io::Result<()> {
        if !connection.input.make_room(total, &mut self.memory) {
            connection.pause = Some(Pause::Memory);
            return Ok(());
        }
        if self.spin.watch(key, self.now) {
            return Ok(());
        }
        if connection.batch >= BATCH_MIN
            && let Some(received) = connection.receive_now()
        {
            self.now = Instant::now();
            self.arrived(key, connection, &received);
            return Ok(());
        }
        self.arm(key, connection)
    }

    /// Leaves the receive to the kernel.
    pub fn arm(&mut self, key: Key, connection: &mut Connection) -> io::Result<()> {
        connection.receiving = true;
        let window = connection.input.lend();
        self.driver.push(Purpose::Recv(key).token(), Op::Recv(connection.fd.clone(), window))
    }

    /// A connection at the gate is not read, but that its client hangs up is seen.
    fn watch(&mut self, key: Key, connection: &mut Connection) -> io::Result<()> {
        if connection.watching {
            return Ok(());
        }
        connection.watching = true;
        self.driver.push(Purpose::Watch(key).token(), Op::PollIn(connection.fd.clone()))
    }
}
