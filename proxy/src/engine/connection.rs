//! One client in transmission: its buffers, what it waits for, how it ends.

use super::buffers::{Input, LargeMemory, Output};
use super::command::NewConnection;
use super::cores::peer;
use crate::latency::Timing;
use crate::nbd::errno::Errno;
use crate::nbd::reply;
use crate::nbd::request::{RawRequest, Refusal, Terms};
use rustix::thread::Pid;
use socket2::{SockRef, Socket};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};
use towline_block::sys::socket;
use towline_block::sys::uring::{Fd, Window};

/// Payload of a refused WRITE that is read and dropped, so that the client gets
/// its error and goes on. Twice the largest legal one; beyond, the stream is taken
/// for garbage.
pub const DISCARD_BYTES_MAX: usize = 64 << 20;

/// Requests whose times are kept until their replies go out. Beyond, behind a client
/// that does not read, they count as replied when queued.
pub const TIMINGS_MAX: usize = 256;

/// Why parsing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The request at hand needs so many bytes in the buffer.
    Bytes(usize),
    /// Others get a turn.
    Turn,
    /// Enough replies are unsent.
    Replies,
    /// Enough flushes are unanswered.
    Syncs,
    /// A change waits at the gate.
    Gate,
    /// Enough replies are owed by requests at the source; each one that ends gives a turn.
    Owed,
    /// No permit of the source is free.
    Source,
    /// A large request waits for the volume's memory.
    Memory,
    /// The client has taken its leave.
    Disconnect,
    /// What came is not NBD.
    Broken,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    No,
    /// Nothing more comes; what is here is still executed.
    Draining,
    /// Nothing is left to execute; closed when all replies are sent.
    Drained,
}

/// A refused WRITE whose payload is still coming.
struct Discard {
    left: usize,
    cookie: u64,
    refusal: Refusal,
}

pub struct Connection {
    pub fd: Fd,
    pub terms: Terms,
    pub input: Input,
    pub output: Output,
    /// The other output buffer, while it is not being sent.
    spare: Option<Output>,
    pub receiving: bool,
    pub sending: bool,
    pub watching: bool,
    /// Stands in the queue for a turn.
    pub queued: bool,
    /// What it waits for, while it neither receives nor is queued.
    pub pause: Option<Pause>,
    pub ending: Ending,
    /// Shut down; gone when the kernel has returned its buffers.
    pub dead: bool,
    /// Flushes not answered yet.
    pub syncs: u32,
    /// Requests at an asynchronous source.
    pub pending: u32,
    /// Data bytes of their replies.
    pub owed: usize,
    /// Requests executed in the last turn.
    pub batch: u32,
    /// Bytes done of the change at the head of the input.
    pub progress: u64,
    /// When the bytes of the requests at hand came.
    pub received: Instant,
    /// What the change at the head of the input took in the source so far.
    pub source: Duration,
    /// Requests whose replies are in the output.
    pub timings: Vec<Timing>,
    /// The process at the other end, where it can be known.
    pub peer: Option<Pid>,
    discard: Option<Discard>,
    _permit: Box<dyn Send>,
}

impl Connection {
    pub fn new(new: NewConnection, received: Instant) -> Connection {
        Connection {
            peer: peer(&new.fd),
            fd: Arc::new(new.fd),
            terms: new.terms,
            input: Input::new(),
            output: Output::default(),
            spare: Some(Output::default()),
            receiving: false,
            sending: false,
            watching: false,
            queued: false,
            pause: None,
            ending: Ending::No,
            dead: false,
            syncs: 0,
            pending: 0,
            owed: 0,
            batch: 0,
            progress: 0,
            received,
            source: Duration::ZERO,
            timings: Vec::with_capacity(TIMINGS_MAX),
            discard: None,
            _permit: new.permit,
        }
    }

    pub fn reply_done(&mut self, cookie: u64) {
        self.output.put(&reply::simple(cookie, None));
    }

    pub fn reply_error(&mut self, cookie: u64, error: Errno, text: &str) {
        let output = &mut self.output;
        reply::error(self.terms.structured, cookie, error, text, |part| output.put(part));
    }

    /// Refuses the request at the head of the input. False when its payload is too
    /// long to sit through.
    #[must_use]
    pub fn refuse(&mut self, raw: &RawRequest, refusal: Refusal) -> bool {
        let left = raw.payload_bytes();
        if left > DISCARD_BYTES_MAX {
            return false;
        }
        self.input.consume(raw.total_bytes() - left);
        self.discard = Some(Discard { left, cookie: raw.cookie, refusal });
        true
    }

    /// Drops payload of a refused request. True when none is left, after its reply.
    pub fn discard(&mut self) -> bool {
        let Some(discard) = &mut self.discard else { return true };
        let now = discard.left.min(self.input.unread().len());
        self.input.consume(now);
        discard.left -= now;
        if discard.left > 0 {
            return false;
        }
        let (cookie, refusal) = (discard.cookie, discard.refusal);
        self.discard = None;
        self.reply_error(cookie, refusal.error, refusal.text);
        true
    }

    /// Sends the output as far as the socket has room for it. The rest, if any, is
    /// for the kernel to send when there is more. Call only while no send is in flight.
    pub fn send_now(&mut self, memory: &mut LargeMemory) -> Option<Window> {
        let sent = match socket::send_now(&self.fd, self.output.as_bytes()) {
            Ok(sent) => sent.unwrap_or(0),
            Err(_) => {
                self.shut_down();
                self.output.len()
            }
        };
        if sent == self.output.len() {
            self.output.clear(memory);
            return None;
        }
        let next = self.spare.take().unwrap_or_default();
        self.sending = true;
        Some(std::mem::replace(&mut self.output, next).lend(sent))
    }

    /// Receives what is there, if anything is.
    pub fn receive_now(&mut self) -> Option<std::io::Result<usize>> {
        let received = socket::receive_now(&self.fd, self.input.space()).transpose()?;
        self.input.fill(*received.as_ref().unwrap_or(&0));
        Some(received)
    }

    /// The buffer of an ended send comes back.
    pub fn sent(&mut self, bytes: Vec<u8>, memory: &mut LargeMemory) {
        self.sending = false;
        self.spare = Some(Output::recycle(bytes, memory));
    }

    /// Everything was executed, answered and sent.
    pub fn is_finished(&self) -> bool {
        let unsent = self.sending || !self.output.is_empty();
        self.ending == Ending::Drained && !unsent && self.syncs == 0 && self.pending == 0
    }

    /// Dead, and the kernel holds nothing of it.
    pub fn is_gone(&self) -> bool {
        self.dead && !self.receiving && !self.sending && !self.watching
    }

    /// Ends both directions: whatever is in flight comes back.
    pub fn shut_down(&mut self) {
        self.dead = true;
        // Fails when the peer was faster, which is as good.
        let _ = SockRef::from(&*self.fd).shutdown(Shutdown::Both);
    }

    /// Takes no more requests than have arrived.
    pub fn stop_receiving(&mut self) {
        if self.ending == Ending::No {
            self.ending = Ending::Draining;
        }
        let _ = SockRef::from(&*self.fd).shutdown(Shutdown::Read);
    }

    /// Whether the client has hung up, of a connection that is readable.
    pub fn has_hung_up(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let socket: &Socket = &SockRef::from(&*self.fd);
        match socket.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(received) => received == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    pub fn free(mut self, memory: &mut LargeMemory) {
        self.input.close(memory);
        self.output.close(memory);
        if let Some(spare) = self.spare.take() {
            spare.close(memory);
        }
    }
}
