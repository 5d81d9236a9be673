//! A random history of batches, the volumes after each of them, and the checker.

use crate::batch::{BatchBuilder, Chain, Control, Sealed};
use crate::ids::{BatchHash, GroupUuid, SessionId};
use towline_block::{Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};

/// Two volumes of a few change-map blocks, the last block partial.
pub const SIZES: [u64; 2] = [3 * 65536 + 512, 2 * 65536];

pub const GROUP: GroupUuid = GroupUuid([3; 16]);

/// Content of both volumes.
pub type Volumes = [Vec<u8>; 2];

pub fn blank() -> Volumes {
    SIZES.map(|size| vec![0; size as usize])
}

/// xorshift64*: the same numbers from the same seed, for ever.
pub fn random(state: &mut u64) -> u64 {
    *state |= 1;
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
}

pub struct History {
    pub batches: Vec<Sealed>,
    /// `after[n]`: the volumes after batch `n`; `after[0]` is blank.
    pub after: Vec<Volumes>,
    chain: Chain,
    seq: u64,
    claims: u64,
    state: u64,
}

impl History {
    pub fn new(seed: u64) -> History {
        History {
            batches: Vec::new(),
            after: vec![blank()],
            chain: Chain {
                group: GROUP,
                session: SessionId([4; 16]),
                number: 0,
                hash: BatchHash::NONE,
                stream_bytes: 0,
            },
            seq: 0,
            claims: 0,
            state: seed,
        }
    }

    pub fn last(&self) -> &Volumes {
        self.after.last().unwrap()
    }

    fn below(&mut self, n: u64) -> u64 {
        random(&mut self.state) % n
    }

    fn at(&self, seq: u64) -> Position {
        Position::new(Epoch(1), Incarnation(1), Seq(seq))
    }

    fn finish(&mut self, batch: BatchBuilder, volumes: Volumes) {
        let sealed = batch.encode(&self.chain, 0);
        self.chain.advance(&sealed);
        self.batches.push(sealed);
        self.after.push(volumes);
    }

    /// A batch of `ops` random changes on both volumes, then `controls`.
    pub fn records(&mut self, ops: usize, controls: &[Control]) {
        let mut volumes = self.last().clone();
        let mut batch = BatchBuilder::records(self.at(self.seq + 1), self.claims);
        for index in 0..ops {
            self.seq += 1;
            let change = self.change(index as u64 % 2);
            change.push(&mut batch, Seq(self.seq));
            change.make(&mut volumes);
        }
        for control in controls {
            self.seq += 1;
            batch.control(Seq(self.seq), *control, b"").unwrap();
        }
        self.finish(batch, volumes);
    }

    /// One write of `bytes`, alone in a batch with a barrier.
    pub fn write(&mut self, volume: u16, offset: u64, bytes: &[u8]) {
        let mut volumes = self.last().clone();
        let mut batch = BatchBuilder::records(self.at(self.seq + 1), self.claims);
        self.seq += 2;
        batch.write(Seq(self.seq - 1), VolumeId(volume), offset, bytes, crc32c(bytes)).unwrap();
        batch.barrier(Seq(self.seq)).unwrap();
        let at = offset as usize;
        volumes[usize::from(volume)][at..at + bytes.len()].copy_from_slice(bytes);
        self.finish(batch, volumes);
    }

    /// Changes and, at their end, a mark of this name.
    pub fn mark(&mut self, ops: usize, name: &str) {
        let mut volumes = self.last().clone();
        let mut batch = BatchBuilder::records(self.at(self.seq + 1), self.claims);
        for index in 0..ops {
            self.seq += 1;
            let change = self.change(index as u64 % 2);
            change.push(&mut batch, Seq(self.seq));
            change.make(&mut volumes);
        }
        self.seq += 1;
        batch.mark(Seq(self.seq), name.as_bytes()).unwrap();
        self.finish(batch, volumes);
    }

    /// A batch of claimed blocks: one change on each volume.
    pub fn blocks(&mut self) {
        self.claims += 1;
        let mut volumes = self.last().clone();
        let mut batch = BatchBuilder::blocks(self.at(self.seq), self.claims, self.claims - 1);
        for volume in 0..2 {
            let change = self.change(volume);
            change.push(&mut batch, Seq::NONE);
            change.make(&mut volumes);
        }
        batch.set_claims_upto(self.claims);
        self.finish(batch, volumes);
    }

    fn change(&mut self, volume: u64) -> Change {
        let size = SIZES[volume as usize];
        let sectors = 1 + self.below(40);
        let offset = self.below(size / 512 - sectors) * 512;
        let extent = Extent::new(offset, sectors * 512);
        let fill = match self.below(8) {
            0 => None,
            _ => Some(1 + self.below(255) as u8),
        };
        Change { volume: volume as u16, extent, fill, trim: self.below(2) == 0 }
    }

    /// Baseline, live, an overflow and its resync, live, another overflow that
    /// does not end.
    pub fn scenario(seed: u64) -> History {
        let mut history = History::new(seed);
        history.records(3, &[Control::Resync]);
        history.blocks();
        history.blocks();
        history.records(2, &[Control::Heal]);
        for _ in 0..3 {
            history.records(4, &[]);
        }
        history.records(3, &[Control::Break]);
        history.records(4, &[]);
        history.blocks();
        history.blocks();
        history.records(2, &[Control::Heal]);
        history.records(3, &[]);
        history.records(2, &[Control::Break, Control::Heal]);
        history.records(2, &[]);
        history.records(0, &[Control::Break]);
        history.blocks();
        history.records(4, &[]);
        history
    }
}

impl History {
    /// As [`History::scenario`], with marks before, between and after the broken phases.
    /// Answers their names and batches, too.
    pub fn with_marks(seed: u64) -> (History, Vec<(&'static str, u64)>) {
        let mut history = History::new(seed);
        let mut marks = Vec::new();
        let mut mark = |history: &mut History, ops, name| {
            history.mark(ops, name);
            marks.push((name, history.batches.len() as u64));
        };
        history.records(3, &[Control::Resync]);
        history.blocks();
        history.records(2, &[Control::Heal]);
        mark(&mut history, 3, "first");
        history.records(4, &[]);
        history.records(4, &[]);
        mark(&mut history, 0, "second");
        history.records(3, &[Control::Break]);
        history.blocks();
        history.records(2, &[Control::Heal]);
        history.records(3, &[]);
        mark(&mut history, 2, "third");
        mark(&mut history, 2, "fourth");
        history.records(2, &[Control::Break, Control::Heal]);
        history.records(0, &[Control::Break]);
        history.blocks();
        history.records(4, &[]);
        (history, marks)
    }
}

/// One change of a range.
struct Change {
    volume: u16,
    extent: Extent,
    /// `None`: zeroes.
    fill: Option<u8>,
    trim: bool,
}

impl Change {
    fn push(&self, batch: &mut BatchBuilder, seq: Seq) {
        let volume = VolumeId(self.volume);
        match self.fill {
            Some(fill) => {
                let bytes = vec![fill; self.extent.len as usize];
                batch.write(seq, volume, self.extent.offset, &bytes, crc32c(&bytes)).unwrap();
            }
            None if self.trim => batch.trim(seq, volume, self.extent).unwrap(),
            None => batch.zero(seq, volume, self.extent, true).unwrap(),
        }
    }

    fn make(&self, volumes: &mut Volumes) {
        let range = self.extent.offset as usize..self.extent.end() as usize;
        volumes[usize::from(self.volume)][range].fill(self.fill.unwrap_or(0));
    }
}

/// The checker: the volumes are what they were after batch `number`.
pub fn check(history: &History, volumes: &Volumes, number: u64) -> Result<(), String> {
    let expected = &history.after[number as usize];
    for (index, (found, expected)) in volumes.iter().zip(expected).enumerate() {
        if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
            return Err(format!(
                "volume {index} differs at {at} from its content after batch {number}: {} is {}",
                expected[at], found[at]
            ));
        }
        if found.len() != expected.len() {
            return Err(format!("volume {index} has {} bytes", found.len()));
        }
    }
    Ok(())
}
