//! Shippers, and the connections to the receiver.

use crate::{GROUP, LANES};
use std::collections::VecDeque;
use towline_shipper::batch::{Chain, Sealed};
use towline_shipper::receiver::Stream;
use towline_shipper::{BatchHash, SessionId};

#[derive(Clone)]
pub enum Up {
    Hello(SessionId),
    Batch(Vec<u8>),
}

pub enum Down {
    Welcome(Stream),
    Ack(Stream),
}

/// A connection, or a session's first one and its lanes.
pub struct Conn {
    pub id: usize,
    pub up: VecDeque<Up>,
    /// Batches of further connections: in order in each, in any order among them.
    pub lanes: [VecDeque<Vec<u8>>; LANES],
    pub is_parallel: bool,
    pub down: VecDeque<Down>,
    /// Each end sees it when it has taken what came before.
    pub closed: bool,
}

impl Conn {
    pub fn is_empty(&self) -> bool {
        let lanes = self.lanes.iter().all(VecDeque::is_empty);
        self.up.is_empty() && self.down.is_empty() && lanes
    }
}

/// One run of a shipper, and what of it survives a kill.
pub struct Shipper {
    pub alive: bool,
    pub session: SessionId,
    pub conn: Option<usize>,
    pub welcomed: bool,
    pub chain: Chain,
    /// Last record that is cut.
    pub cut: u64,
    /// Batches that are not durable at the target, and how many of them are on the way.
    pub window: VecDeque<Sealed>,
    pub sent: usize,
    pub base: (u64, BatchHash),
    /// In the page of counters.
    pub sent_bytes: u64,
    pub acked: Stream,
}

impl Shipper {
    pub fn new(session: u8) -> Shipper {
        let session = SessionId([session; 16]);
        let chain =
            Chain { group: GROUP, session, number: 0, hash: BatchHash::NONE, stream_bytes: 0 };
        Shipper {
            alive: true,
            session,
            conn: None,
            welcomed: false,
            chain,
            cut: 0,
            window: VecDeque::new(),
            sent: 0,
            base: (0, BatchHash::NONE),
            sent_bytes: 0,
            acked: Stream::default(),
        }
    }

    pub fn window_bytes(&self) -> usize {
        self.window.iter().map(|sealed| sealed.bytes.len()).sum()
    }

    pub fn drop_durable(&mut self, number: u64) {
        while let Some(front) = self.window.front()
            && front.number <= number
        {
            self.base = (front.number, front.hash);
            self.window.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// Goes on behind what the target has, with the window where it fits.
    pub fn welcome(&mut self, stream: &Stream) {
        let at = (stream.number, stream.hash);
        let in_window = self.window.iter().any(|sealed| (sealed.number, sealed.hash) == at);
        if in_window || at == self.base {
            self.drop_durable(stream.number);
        } else {
            self.window.clear();
            let (number, hash) = at;
            self.chain = Chain { number, hash, stream_bytes: stream.stream_bytes, ..self.chain };
            self.cut = stream.position.seq.0;
        }
        (self.base, self.sent, self.welcomed) = (at, 0, true);
        self.acked = stream.clone();
    }
}
