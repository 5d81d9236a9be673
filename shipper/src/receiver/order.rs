//! What comes to the clerk, and what it lets everybody know.

use super::state::State;
use super::stream::Stream;
use crate::wire::{Abort, Ack, Compared, Hello, Join, Message, Promote};
use std::sync::mpsc as std_mpsc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

pub type Inbox = std_mpsc::Sender<Order>;
pub type Outbox = mpsc::UnboundedSender<Message>;

pub enum Order {
    Hello {
        connection: u64,
        hello: Box<Hello>,
        outbox: Outbox,
    },
    Join {
        connection: u64,
        join: Join,
        outbox: Outbox,
    },
    Batch {
        connection: u64,
        bytes: Vec<u8>,
        memory: OwnedSemaphorePermit,
    },
    Promote {
        connection: u64,
        request: Promote,
        memory: OwnedSemaphorePermit,
    },
    Abort {
        connection: u64,
        request: Abort,
        memory: OwnedSemaphorePermit,
    },
    Gone {
        connection: u64,
    },
    Applied {
        applied: Box<Stream>,
        stalled: bool,
    },
    /// A new target's disks hold this: from a store's base.
    Hydrated {
        state: Box<State>,
        done: oneshot::Sender<crate::error::Result<()>>,
    },
    /// Verdict for whoever ships now; nobody: it will be asked for again.
    Compared(Compared),
    Stop,
}

/// What sessions tell their peers and regulate themselves by.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub durable: Stream,
    pub applied_number: u64,
    /// Stream bytes that are durable and not yet applied.
    pub backlog_bytes: u64,
}

impl Progress {
    pub fn ack(&self) -> Ack {
        Ack {
            number: self.durable.number,
            position: self.durable.position,
            claims_upto: self.durable.claims_upto,
            applied: self.applied_number,
            stream_bytes: self.durable.stream_bytes,
            point: self.durable.point.map(|point| point.position),
            broken: !self.durable.whole,
        }
    }
}
