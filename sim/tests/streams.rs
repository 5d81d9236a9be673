//! Streams of batches over a network that does what it likes: a cutter, two shippers that may
//! both be alive, a receiver that stages, acknowledges and applies, and its disks.
//!
//! The batches are real: built, encoded, opened and admitted by `towline-shipper`
//! ([`BatchBuilder`], [`Batch::open`], [`Stream::follow`]), corrupted as bytes. Modelled are
//! window, sessions, staging and disks. A seed is a run, for ever.

use std::collections::VecDeque;
use towline_block::{Epoch, Incarnation, Position, Seq, VolumeId, crc32c};
use towline_shipper::batch::{Batch, BatchBuilder, Chain, Control, Keyring, Op, Sealed};
use towline_shipper::receiver::Stream;
use towline_shipper::{BatchHash, GroupUuid, SessionId};

const GROUP: GroupUuid = GroupUuid([7; 16]);
const CELL_BYTES: usize = 512;
const CELLS: usize = 16;
const RECORDS_A_BATCH_MAX: u64 = 4;
/// More than the largest batch.
const BATCH_BYTES_MAX: usize = 4096;
const WINDOW_BYTES: usize = 8 << 10;
const STAGING_BYTES: usize = 12 << 10;
/// Records of a run, and steps in which all must come to rest once nothing fails.
const RECORDS: u64 = 40;
const REST_STEPS_MAX: usize = 20_000;

/// What the receiver and the shippers obey; each is switched off once.
#[derive(Clone, Copy, Debug)]
struct Rules {
    sync_before_ack: bool,
    flush_before_record: bool,
    session_fence: bool,
    follow_chain: bool,
    release_by_durable_ack: bool,
    window_bounded: bool,
    staging_bounded: bool,
    redo_from_applied: bool,
}

const ALL: Rules = Rules {
    sync_before_ack: true,
    flush_before_record: true,
    session_fence: true,
    follow_chain: true,
    release_by_durable_ack: true,
    window_bounded: true,
    staging_bounded: true,
    redo_from_applied: true,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

type Content = [u8; CELLS];

/// The source and its ring: record 1 is RESYNC, 2 is HEAL, each other writes a cell.
struct Source {
    writes: Vec<(usize, u8)>,
    acked: u64,
}

impl Source {
    fn head(&self) -> u64 {
        2 + self.writes.len() as u64
    }

    fn at(&self, seq: u64) -> Content {
        let mut content = [0; CELLS];
        for (cell, value) in self.writes.iter().take(seq.saturating_sub(2) as usize) {
            content[*cell] = *value;
        }
        content
    }
}

#[derive(Clone)]
enum Up {
    Hello(SessionId),
    Batch(Vec<u8>),
}

enum Down {
    Welcome(Stream),
    Ack(Stream),
}

struct Conn {
    id: usize,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// Each end sees it when it has taken what came before.
    closed: bool,
}

/// One run of a shipper, and what of it survives a kill.
struct Shipper {
    alive: bool,
    session: SessionId,
    conn: Option<usize>,
    welcomed: bool,
    chain: Chain,
    /// Last record that is cut.
    cut: u64,
    /// Batches that are not durable at the target, and how many of them are on the way.
    window: VecDeque<Sealed>,
    sent: usize,
    base: (u64, BatchHash),
    /// In the page of counters.
    sent_bytes: u64,
    acked: Stream,
}

impl Shipper {
    fn new(session: u8) -> Shipper {
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

    fn window_bytes(&self) -> usize {
        self.window.iter().map(|sealed| sealed.bytes.len()).sum()
    }

    fn drop_durable(&mut self, number: u64) {
        while let Some(front) = self.window.front()
            && front.number <= number
        {
            self.base = (front.number, front.hash);
            self.window.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// Goes on behind what the target has, with the window where it fits.
    fn welcome(&mut self, stream: &Stream) {
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

struct Staged {
    bytes: Vec<u8>,
    synced: bool,
}

/// The receiver: disks, and what a kill takes away.
struct Receiver {
    target: Content,
    flushed: Content,
    staging: VecDeque<Staged>,
    applied: Stream,
    full: bool,
    // Gone with a kill:
    alive: bool,
    conn: usize,
    /// Only one session's batches are taken on a connection.
    session: SessionId,
    received: Stream,
    durable: Stream,
    /// Operations of the batch at the front of staging that are written.
    written: Option<usize>,
}

fn position(seq: u64) -> Position {
    Position::new(Epoch(1), Incarnation(1), Seq(seq))
}

fn writes_of(bytes: &[u8]) -> Vec<(usize, u8)> {
    let batch = Batch::open(bytes.to_vec(), &Keyring::default()).expect("admitted batches open");
    let writes = batch.view().ops().filter_map(|entry| match entry.op {
        Op::Write { volume, offset, payload } => {
            let first = volume.index() * CELLS / 2 + offset as usize / CELL_BYTES;
            let cells = payload.chunks(CELL_BYTES).map(|cell| cell[0]).enumerate();
            Some(cells.map(move |(i, value)| (first + i, value)).collect::<Vec<_>>())
        }
        _ => None,
    });
    writes.flatten().collect()
}

impl Receiver {
    fn new() -> Receiver {
        Receiver {
            target: [0; CELLS],
            flushed: [0; CELLS],
            staging: VecDeque::new(),
            applied: Stream::default(),
            full: false,
            alive: true,
            conn: usize::MAX,
            session: SessionId([0; 16]),
            received: Stream::default(),
            durable: Stream::default(),
            written: None,
        }
    }

    /// A start: what staging holds, as far as the chain from `applied` goes.
    fn recover(&mut self, rules: Rules) {
        self.alive = true;
        (self.conn, self.written) = (usize::MAX, None);
        let mut stream = self.applied.clone();
        let mut sound = 0;
        for staged in &self.staging {
            let Ok(batch) = Batch::open(staged.bytes.clone(), &Keyring::default()) else { break };
            if batch.view().number() > stream.number {
                match stream.follow(GROUP, &batch.view()) {
                    Ok(after) => stream = after,
                    Err(_) => break,
                }
            }
            sound += 1;
        }
        self.staging.truncate(sound);
        self.staging.iter_mut().for_each(|staged| staged.synced = true);
        let applied = self.applied.number;
        let number = |staged: &Staged| {
            Batch::open(staged.bytes.clone(), &Keyring::default()).map_or(0, |b| b.view().number())
        };
        if rules.redo_from_applied {
            while self.staging.front().is_some_and(|staged| number(staged) <= applied) {
                self.staging.pop_front();
            }
        } else {
            // The fault: what was being applied counts as applied.
            let skipped = self.staging.pop_front();
            if let Some(batch) =
                skipped.and_then(|staged| Batch::open(staged.bytes, &Keyring::default()).ok())
                && let Ok(after) = self.applied.follow(GROUP, &batch.view())
            {
                self.applied = after;
            }
        }
        (self.received, self.durable) = (stream.clone(), stream);
    }

    fn admit(&mut self, bytes: Vec<u8>, rules: Rules) -> bool {
        let Ok(batch) = Batch::open(bytes.clone(), &Keyring::default()) else { return false };
        let view = batch.view();
        if rules.session_fence && view.session() != self.session {
            return false;
        }
        let after = match self.received.follow(GROUP, &view) {
            Ok(after) => after,
            Err(_) if rules.follow_chain => return false,
            Err(_) => Stream {
                number: view.number(),
                hash: view.hash(),
                position: view.position(),
                stream_bytes: view.stream_bytes(),
                ..self.received.clone()
            },
        };
        if self.full {
            // What was appended and not synced is cut off again.
            self.staging.retain(|staged| staged.synced);
            self.received = self.durable.clone();
            return false;
        }
        self.staging.push_back(Staged { bytes, synced: false });
        self.received = after;
        true
    }

    fn staged_bytes(&self) -> usize {
        self.staging.iter().map(|staged| staged.bytes.len()).sum()
    }

    fn lose_power(&mut self, random: &mut Random) {
        self.alive = false;
        for staged in self.staging.iter_mut().filter(|staged| !staged.synced) {
            match random.below(3) {
                0 => {}
                1 => staged.bytes.truncate(staged.bytes.len() / 2),
                _ => staged.bytes.fill(0),
            }
        }
        for cell in 0..CELLS {
            if random.chance(50) {
                self.target[cell] = self.flushed[cell];
            }
        }
        self.flushed = self.target;
    }

    /// One step of the applier; nothing to do: false.
    fn apply(&mut self, rules: Rules) -> bool {
        let Some(front) = self.staging.front().filter(|staged| staged.synced) else { return false };
        let writes = writes_of(&front.bytes);
        match self.written {
            None => self.written = Some(0),
            Some(at) if at < writes.len() => {
                self.target[writes[at].0] = writes[at].1;
                self.written = Some(at + 1);
            }
            Some(at) if at == writes.len() => {
                if rules.flush_before_record {
                    self.flushed = self.target;
                }
                self.written = Some(at + 1);
            }
            Some(_) => {
                let batch = Batch::open(front.bytes.clone(), &Keyring::default()).expect("staged");
                let view = batch.view();
                self.applied = self.applied.follow(GROUP, &view).unwrap_or_else(|_| Stream {
                    number: view.number(),
                    hash: view.hash(),
                    position: view.position(),
                    stream_bytes: view.stream_bytes(),
                    ..self.applied.clone()
                });
                self.staging.pop_front();
                self.written = None;
            }
        }
        true
    }

    /// What a start and a redo would make of it now: the content, and the last record.
    fn recovered(&self) -> (Content, u64) {
        let (mut content, mut stream) = (self.target, self.applied.clone());
        for staged in &self.staging {
            let Ok(batch) = Batch::open(staged.bytes.clone(), &Keyring::default()) else { break };
            let Ok(after) = stream.follow(GROUP, &batch.view()) else { break };
            stream = after;
            for (cell, value) in writes_of(&staged.bytes) {
                content[cell] = value;
            }
        }
        (content, stream.position.seq.0)
    }
}

struct World {
    rules: Rules,
    random: Random,
    source: Source,
    shippers: [Shipper; 2],
    receiver: Receiver,
    conns: Vec<Conn>,
    next_conn: usize,
    next_session: u8,
    partitioned: bool,
    faulty: bool,
    /// Most that was ever acknowledged to a shipper.
    acknowledged: u64,
    violation: Option<String>,
}

impl World {
    fn new(rules: Rules, seed: u64) -> World {
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
            violation: None,
        }
    }

    fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn conn(&mut self, id: usize) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|conn| conn.id == id)
    }

    fn close(&mut self, id: usize) {
        if let Some(conn) = self.conn(id) {
            conn.closed = true;
        }
    }

    fn step(&mut self) {
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
        self.conns.retain(|conn| !(conn.closed && conn.up.is_empty() && conn.down.is_empty()));
    }

    fn step_shipper(&mut self, index: usize) {
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
                let id = self.next_conn - 1;
                self.conns.push(Conn { id, up, down: VecDeque::new(), closed: false });
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
            conn.up.push_back(Up::Batch(sealed.bytes.clone()));
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

    fn take_down(&mut self, index: usize, message: Down) {
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
    fn take_up(&mut self) {
        if !self.receiver.alive || self.partitioned || self.conns.is_empty() {
            return;
        }
        let bounded = self.receiver.staged_bytes() < STAGING_BYTES || !self.rules.staging_bounded;
        let at = self.random.below(self.conns.len());
        let id = self.conns[at].id;
        let is_batch = matches!(self.conns[at].up.front(), Some(Up::Batch(_)));
        if is_batch && !bounded {
            return;
        }
        let Some(message) = self.conns[at].up.pop_front() else { return };
        match message {
            Up::Hello(session) => {
                let old = std::mem::replace(&mut self.receiver.conn, id);
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
                if !self.receiver.admit(bytes, self.rules) {
                    self.close(id);
                }
            }
        }
    }

    fn commit(&mut self) {
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

    fn strike(&mut self) {
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
    fn kill_or_start(&mut self, index: usize) {
        let (session, sent) = (self.next_session, self.shippers[index].sent_bytes);
        if let Some(id) = self.shippers[index].conn {
            self.close(id);
        }
        let alive = !self.shippers[index].alive || self.random.chance(70);
        self.next_session = self.next_session.wrapping_add(1);
        self.shippers[index] = Shipper { alive, sent_bytes: sent, ..Shipper::new(session) };
    }

    /// The network reorders, repeats, drops or corrupts what is on its way.
    fn meddle(&mut self) {
        let busy: Vec<usize> = (0..self.conns.len())
            .filter(|at| self.conns[*at].up.iter().any(|up| matches!(up, Up::Batch(_))))
            .collect();
        if busy.is_empty() {
            return;
        }
        let at = busy[self.random.below(busy.len())];
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

    fn check(&mut self) {
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
        if staged > STAGING_BYTES + BATCH_BYTES_MAX {
            self.violate(format!("{staged} bytes wait in staging"));
        }
    }

    fn is_at_rest(&self) -> bool {
        let head = self.source.head();
        self.source.acked == head && self.receiver.applied.position.seq.0 == head
    }
}

fn cut(source: &Source, first: u64, last: u64, chain: &Chain) -> Sealed {
    let mut batch = BatchBuilder::records(position(first), 0);
    for seq in first..=last {
        match seq {
            1 => batch.control(Seq(1), Control::Resync, b"").expect("room"),
            2 => batch.control(Seq(2), Control::Heal, b"").expect("room"),
            _ => {
                let (cell, value) = source.writes[seq as usize - 3];
                let volume = VolumeId((cell / (CELLS / 2)) as u16);
                let offset = (cell % (CELLS / 2) * CELL_BYTES) as u64;
                let payload = [value; CELL_BYTES];
                batch.write(Seq(seq), volume, offset, &payload, crc32c(&payload)).expect("room");
            }
        }
        batch.pass(Seq(seq));
    }
    batch.encode(chain, 0)
}

/// A run: the broken promise, if there is one.
fn run(rules: Rules, seed: u64) -> Result<World, String> {
    let mut world = World::new(rules, seed);
    let faulty = 200 + world.random.below(800);
    for _ in 0..faulty {
        world.step();
        world.check();
    }
    (world.faulty, world.partitioned, world.receiver.full) = (false, false, false);
    world.shippers[1].alive = false;
    if let Some(id) = world.shippers[1].conn {
        world.close(id);
    }
    world.shippers[0].alive = true;
    for _ in 0..REST_STEPS_MAX {
        if world.violation.is_some() || world.is_at_rest() {
            break;
        }
        world.step();
        world.check();
    }
    if !world.is_at_rest() {
        world.violate(format!("no rest after {REST_STEPS_MAX} steps"));
    }
    match world.violation.take() {
        Some(what) => Err(format!("seed {seed}: {what}")),
        None => Ok(world),
    }
}

#[test]
fn whatever_the_network_does_the_target_is_a_prefix_and_nothing_acknowledged_is_lost() {
    let seeds = std::env::var("TOWLINE_SIM_SEEDS").ok().and_then(|s| s.parse().ok());
    for seed in 0..seeds.unwrap_or(120_u64) {
        if let Err(what) = run(ALL, seed) {
            panic!("{what}");
        }
    }
}

#[test]
fn without_any_one_rule_a_promise_is_broken() {
    let without: [(&str, Rules); 8] = [
        ("sync_before_ack", Rules { sync_before_ack: false, ..ALL }),
        ("flush_before_record", Rules { flush_before_record: false, ..ALL }),
        ("session_fence", Rules { session_fence: false, ..ALL }),
        ("follow_chain", Rules { follow_chain: false, ..ALL }),
        ("release_by_durable_ack", Rules { release_by_durable_ack: false, ..ALL }),
        ("window_bounded", Rules { window_bounded: false, ..ALL }),
        ("staging_bounded", Rules { staging_bounded: false, ..ALL }),
        ("redo_from_applied", Rules { redo_from_applied: false, ..ALL }),
    ];
    for (name, rules) in without {
        let found = (0..400).find_map(|seed| run(rules, seed).err());
        println!("{name}: {found:?}");
        assert!(found.is_some(), "no seed misses {name}");
    }
}
