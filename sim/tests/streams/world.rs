//! All parts, a step at a time, what strikes them, and what has to hold after each step.

use crate::receiver::Receiver;
use crate::shipper::{Conn, Down, Shipper, Up};
use crate::source::{Source, cut};
use crate::{
    BATCH_BYTES_MAX, CELLS, LANES, RECORDS, RECORDS_A_BATCH_MAX, Random, Rules, STAGING_BYTES,
    WINDOW_BYTES,
};
use std::collections::VecDeque;

pub struct World {
    pub rules: Rules,
    pub random: Random,
    pub source: Source,
    pub shippers: [Shipper; 2],
    pub receiver: Receiver,
    pub conns: Vec<Conn>,
    pub next_conn: usize,
    pub next_session: u8,
    pub partitioned: bool,
    pub faulty: bool,
    /// Most that was ever acknowledged to a shipper.
    pub acknowledged: u64,
    pub most_early: usize,
    pub violation: Option<String>,
}

impl World {
    pub fn new(rules: Rules, seed: u64) -> World {
        World {
            rules,
            random: Random(seed),
            source: Source { writes: Vec::new(), acked: 0 },
            shippers: [Shipper::new(1), Shipper { alive: false, ..Shipper::new(2) }],
            receiver: Receiver::new(),
            conns: Vec::new(),
            next_conn: 0,
            next_session: 3,
            partitioned: false,
            faulty: true,
            acknowledged: 0,
            most_early: 0,
            violation: None,
        }
    }

    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn conn(&mut self, id: usize) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|conn| conn.id == id)
    }

    pub fn close(&mut self, id: usize) {
        if let Some(conn) = self.conn(id) {
            conn.closed = true;
        }
    }

    pub fn step(&mut self) {
        match self.random.below(10) {
            0 if self.source.writes.len() < RECORDS as usize => {
                let value = self.source.writes.len() as u8 + 1;
                let cell = self.random.below(CELLS);
                self.source.writes.push((cell, value));
            }
            0..=4 => {
                let index = self.random.below(2);
                self.step_shipper(index);
            }
            5 | 6 => self.take_up(),
            7 => self.commit(),
            _ => {
                if self.receiver.alive {
                    self.receiver.apply(self.rules);
                } else {
                    self.receiver.recover(self.rules);
                }
            }
        }
        if self.faulty && self.random.chance(6) {
            self.strike();
        }
        self.conns.retain(|conn| !(conn.closed && conn.is_empty()));
    }

    pub fn step_shipper(&mut self, index: usize) {
        let rules = self.rules;
        let shipper = &mut self.shippers[index];
        if !shipper.alive {
            return;
        }
        let Some(id) = shipper.conn else {
            if !self.partitioned && self.receiver.alive {
                (self.next_conn, shipper.conn) = (self.next_conn + 1, Some(self.next_conn));
                shipper.welcomed = false;
                let up = VecDeque::from([Up::Hello(shipper.session)]);
                let (id, is_parallel) = (self.next_conn - 1, self.random.chance(50));
                let (lanes, down) = (Default::default(), VecDeque::new());
                self.conns.push(Conn { id, up, lanes, is_parallel, down, closed: false });
            }
            return;
        };
        let conn = self.conns.iter_mut().find(|conn| conn.id == id);
        let Some(conn) = conn.filter(|conn| !conn.closed || !conn.down.is_empty()) else {
            shipper.conn = None;
            return;
        };
        if let Some(message) = conn.down.pop_front() {
            return self.take_down(index, message);
        }
        if !shipper.welcomed {
            return;
        }
        if let Some(sealed) = shipper.window.get(shipper.sent) {
            shipper.sent += 1;
            shipper.sent_bytes = sealed.stream_bytes;
            // Whichever connection is free takes it.
            let lane = if conn.is_parallel { self.random.below(LANES + 1) } else { LANES };
            match conn.lanes.get_mut(lane) {
                Some(lane) => lane.push_back(sealed.bytes.clone()),
                None => conn.up.push_back(Up::Batch(sealed.bytes.clone())),
            }
            return;
        }
        let room = shipper.window_bytes() < WINDOW_BYTES || !rules.window_bounded;
        if room && shipper.cut < self.source.head() {
            let first = shipper.cut + 1;
            if first <= self.source.acked {
                let what = format!("record {first} was released and is needed");
                return self.violate(what);
            }
            let count = 1 + self.random.next() % RECORDS_A_BATCH_MAX;
            let last = self.source.head().min(first + count - 1);
            let sealed = cut(&self.source, first, last, &shipper.chain);
            shipper.chain.advance(&sealed);
            shipper.cut = last;
            shipper.window.push_back(sealed);
            let bytes = shipper.window_bytes();
            if bytes > WINDOW_BYTES + BATCH_BYTES_MAX {
                self.violate(format!("{bytes} bytes wait in the window"));
            }
        }
    }

    pub fn take_down(&mut self, index: usize, message: Down) {
        let shipper = &mut self.shippers[index];
        let stream = match message {
            Down::Welcome(stream) => {
                let resent = shipper.sent_bytes.saturating_sub(stream.stream_bytes);
                shipper.sent_bytes = stream.stream_bytes;
                shipper.welcome(&stream);
                if resent > (WINDOW_BYTES + BATCH_BYTES_MAX) as u64 {
                    self.violate(format!("{resent} bytes are sent again"));
                }
                stream
            }
            Down::Ack(stream) => {
                if stream.number < shipper.acked.number {
                    return;
                }
                shipper.drop_durable(stream.number);
                shipper.acked = stream.clone();
                stream
            }
        };
        let seq = stream.position.seq.0;
        self.acknowledged = self.acknowledged.max(seq);
        let released =
            if self.rules.release_by_durable_ack { seq } else { self.shippers[index].cut };
        self.source.acked = self.source.acked.max(released);
    }

    /// The receiver takes a message of some connection.
    pub fn take_up(&mut self) {
        if !self.receiver.alive || self.partitioned || self.conns.is_empty() {
            return;
        }
        let bounded = self.receiver.staged_bytes() < STAGING_BYTES || !self.rules.staging_bounded;
        let at = self.random.below(self.conns.len());
        let id = self.conns[at].id;
        let from = if self.conns[at].is_parallel { self.random.below(LANES + 1) } else { LANES };
        let is_batch = matches!(self.conns[at].up.front(), Some(Up::Batch(_)));
        if (is_batch || from < LANES) && !bounded {
            return;
        }
        let message = match self.conns[at].lanes.get_mut(from) {
            Some(lane) => lane.pop_front().map(Up::Batch),
            None => self.conns[at].up.pop_front(),
        };
        let Some(message) = message else { return };
        match message {
            Up::Hello(session) => {
                let old = std::mem::replace(&mut self.receiver.conn, id);
                // What waits for its turn ends with its session.
                self.receiver.early.clear();
                self.receiver.session = session;
                if self.rules.session_fence {
                    self.close(old);
                }
                self.commit();
                let durable = self.receiver.durable.clone();
                if let Some(conn) = self.conn(id) {
                    conn.down.push_back(Down::Welcome(durable));
                }
            }
            Up::Batch(_) if self.rules.session_fence && self.receiver.conn != id => self.close(id),
            Up::Batch(bytes) => {
                if !self.receiver.take(bytes, self.conns[at].is_parallel, self.rules) {
                    self.close(id);
                }
            }
        }
    }

    pub fn commit(&mut self) {
        if !self.receiver.alive {
            return;
        }
        if self.rules.sync_before_ack {
            self.receiver.staging.iter_mut().for_each(|staged| staged.synced = true);
        }
        self.receiver.durable = self.receiver.received.clone();
        let (id, ack) = (self.receiver.conn, self.receiver.durable.clone());
        if let Some(conn) = self.conn(id).filter(|conn| !conn.closed && conn.down.len() < 4) {
            conn.down.push_back(Down::Ack(ack));
        }
    }

    pub fn strike(&mut self) {
        let index = self.random.below(2);
        match self.random.below(12) {
            0 | 1 => {
                let end = self.shippers[index].conn;
                if let Some(id) = end {
                    self.close(id);
                }
                // What was under way is partly lost.
                let keep = self.random.below(4);
                if let Some(conn) = end.and_then(|id| self.conn(id)) {
                    conn.up.truncate(keep);
                    conn.lanes.iter_mut().for_each(|lane| lane.truncate(keep));
                    conn.down.clear();
                }
            }
            2 | 3 => self.kill_or_start(index),
            4 => self.receiver.alive = false,
            5 => {
                self.receiver.lose_power(&mut self.random);
            }
            6 => self.partitioned = !self.partitioned,
            7 => self.receiver.full = !self.receiver.full,
            _ => self.meddle(),
        }
        if !self.receiver.alive {
            self.conns.iter_mut().for_each(|conn| conn.closed = true);
        }
    }

    /// A second shipper may start while the first one lives.
    pub fn kill_or_start(&mut self, index: usize) {
        let (session, sent) = (self.next_session, self.shippers[index].sent_bytes);
        if let Some(id) = self.shippers[index].conn {
            self.close(id);
        }
        let alive = !self.shippers[index].alive || self.random.chance(70);
        self.next_session = self.next_session.wrapping_add(1);
        self.shippers[index] = Shipper { alive, sent_bytes: sent, ..Shipper::new(session) };
    }

    /// The network reorders, repeats, drops or corrupts what is on its way.
    pub fn meddle(&mut self) {
        let busy: Vec<usize> = (0..self.conns.len())
            .filter(|at| self.conns[*at].up.iter().any(|up| matches!(up, Up::Batch(_))))
            .collect();
        if busy.is_empty() {
            return;
        }
        let at = busy[self.random.below(busy.len())];
        if self.conns[at].is_parallel {
            // What is lost or damaged on one of several ends them all, as TLS makes sure.
            return self.close(self.conns[at].id);
        }
        let (kind, random) = (self.random.below(4), self.random.next() as usize);
        let up = &mut self.conns[at].up;
        let place = random % up.len();
        match kind {
            0 => up.rotate_left(place),
            1 => {
                let again = up[place].clone();
                up.push_back(again);
            }
            2 => drop(up.remove(place)),
            _ => {
                if let Up::Batch(bytes) = &mut up[place] {
                    let bit = (random >> 8) % (bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
    }

    pub fn check(&mut self) {
        let (content, seq) = self.receiver.recovered();
        if content != self.source.at(seq) {
            self.violate(format!("the target recovers to something that is not record {seq}"));
        }
        if seq < self.acknowledged {
            let acknowledged = self.acknowledged;
            self.violate(format!("{acknowledged} was acknowledged, {seq} is there"));
        }
        if self.source.acked > seq {
            let acked = self.source.acked;
            self.violate(format!("the ring is released to {acked}, the target has {seq}"));
        }
        let staged = self.receiver.staged_bytes();
        let allowed = STAGING_BYTES + BATCH_BYTES_MAX;
        // What waited for its turn comes at once, and is of one window.
        self.receiver.came_at_once &= staged > allowed;
        let at_once = if self.receiver.came_at_once { WINDOW_BYTES } else { 0 };
        if staged > allowed + at_once {
            self.violate(format!("{staged} bytes wait in staging"));
        }
        self.check_early();
    }

    /// Bytes that wait for their turn at the receiver are of one window.
    pub fn check_early(&mut self) {
        let early = self.receiver.early_bytes();
        self.most_early = self.most_early.max(early);
        if early > WINDOW_BYTES + BATCH_BYTES_MAX {
            self.violate(format!("{early} bytes wait for their turn"));
        }
    }

    pub fn is_at_rest(&self) -> bool {
        let head = self.source.head();
        self.source.acked == head && self.receiver.applied.position.seq.0 == head
    }
}
