//! The receiver: it stages, makes durable, applies; its disks, and what a crash leaves of them.

use crate::source::Content;
use crate::{CELL_BYTES, CELLS, GROUP, Random, Rules};
use std::collections::{BTreeMap, VecDeque};
use towline_shipper::SessionId;
use towline_shipper::batch::{Batch, Keyring, Op, number_of};
use towline_shipper::receiver::Stream;

pub struct Staged {
    pub bytes: Vec<u8>,
    pub synced: bool,
}

/// The receiver: disks, and what a kill takes away.
pub struct Receiver {
    pub target: Content,
    pub flushed: Content,
    pub staging: VecDeque<Staged>,
    pub applied: Stream,
    pub full: bool,
    // Gone with a kill:
    pub alive: bool,
    pub conn: usize,
    /// Batches that came before their turn.
    pub early: BTreeMap<u64, Vec<u8>>,
    /// Some of them have come into staging.
    pub came_at_once: bool,
    /// Only one session's batches are taken on a connection.
    pub session: SessionId,
    pub received: Stream,
    pub durable: Stream,
    /// Operations of the batch at the front of staging that are written.
    pub written: Option<usize>,
}

pub fn writes_of(bytes: &[u8]) -> Vec<(usize, u8)> {
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
    pub fn new() -> Receiver {
        Receiver {
            target: [0; CELLS],
            flushed: [0; CELLS],
            staging: VecDeque::new(),
            applied: Stream::default(),
            full: false,
            alive: true,
            conn: usize::MAX,
            early: BTreeMap::new(),
            came_at_once: false,
            session: SessionId([0; 16]),
            received: Stream::default(),
            durable: Stream::default(),
            written: None,
        }
    }

    /// A start: what staging holds, as far as the chain from `applied` goes.
    pub fn recover(&mut self, rules: Rules) {
        self.alive = true;
        (self.conn, self.written) = (usize::MAX, None);
        self.early.clear();
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

    /// A batch of a session; of one with lanes it may have to wait for its turn.
    pub fn take(&mut self, bytes: Vec<u8>, is_parallel: bool, rules: Rules) -> bool {
        let next = self.received.number + 1;
        if let Some(number) = number_of(&bytes).filter(|number| is_parallel && *number > next) {
            return self.early.insert(number, bytes).is_none();
        }
        let mut admitted = self.admit(bytes, rules);
        while admitted && let Some(bytes) = self.early.remove(&(self.received.number + 1)) {
            admitted = self.admit(bytes, rules);
            self.came_at_once = true;
        }
        admitted
    }

    pub fn early_bytes(&self) -> usize {
        self.early.values().map(Vec::len).sum()
    }

    pub fn admit(&mut self, bytes: Vec<u8>, rules: Rules) -> bool {
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

    pub fn staged_bytes(&self) -> usize {
        self.staging.iter().map(|staged| staged.bytes.len()).sum()
    }

    pub fn lose_power(&mut self, random: &mut Random) {
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
    pub fn apply(&mut self, rules: Rules) -> bool {
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
    pub fn recovered(&self) -> (Content, u64) {
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
