//! A group on temporary files and the smallest correct shipper: ships records in
//! order and claimed blocks behind them into an in-memory target.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use towline_block::{Access, BLOCK_BYTES, Backend, BlockRange, Extent, FileDisk, VolumeId};
use towline_journal::format::{Control, Counter, Kind, SlotState};
use towline_journal::map::ranges_of;
use towline_journal::spill::Store;
use towline_journal::*;

pub const BLOCKS: u64 = 6;
pub const SIZE: u64 = BLOCKS * BLOCK_BYTES - 512;
pub const VOLUMES: usize = 2;

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub journal: Option<Arc<Journal>>,
    pub target: Target,
    pub ring_bytes: u64,
    pub attach: AttachPolicy,
    pub spill: SpillOptions,
    /// Incarnation, record, and what the sources held there.
    pub history: Vec<(u32, u64, Vec<Vec<u8>>)>,
    /// Records that were shipped while the spill had them.
    pub from_spill: u64,
    /// Blocks of which only parts were shipped.
    pub shipped_parts: usize,
    /// Damaged stretches of the spill that were passed over.
    pub skipped: u64,
    /// Records taken from the spill of a lost ring.
    pub from_history: u64,
    /// The target takes no record of a history after this one.
    pub history_stops_at: Option<u64>,
    /// What the sources have whatever happens.
    pub synced: Vec<Vec<u8>>,
    pub size: u64,
}

/// What the target durably has.
#[derive(Clone)]
pub struct Target {
    pub images: Vec<Vec<u8>>,
    pub durable: Durable,
    pub whole: bool,
    /// Set once a HEAL was seen.
    pub has_point: bool,
}

impl Lab {
    pub fn new(ring_bytes: u64) -> Lab {
        Lab::with_size(ring_bytes, SIZE)
    }

    pub fn with_size(ring_bytes: u64, size: u64) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        for volume in 0..VOLUMES {
            let file = File::create(dir.path().join(format!("v{volume}"))).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(&[volume as u8 + 1; 5000], 1000).unwrap();
        }
        let target = Target {
            images: vec![vec![0xee; size as usize]; VOLUMES],
            durable: Durable::default(),
            whole: false,
            has_point: false,
        };
        let (attach, spill) = (AttachPolicy::Auto, SpillOptions::OFF);
        let (history, from_spill, skipped, from_history) = (Vec::new(), 0, 0, 0);
        let history_stops_at = None;
        let synced = (0..VOLUMES).map(|v| std::fs::read(dir.path().join(format!("v{v}"))).unwrap());
        let synced = synced.collect();
        Lab {
            dir,
            journal: None,
            target,
            ring_bytes,
            attach,
            spill,
            history,
            from_spill,
            shipped_parts: 0,
            skipped,
            from_history,
            history_stops_at,
            synced,
            size,
        }
    }

    pub fn source_path(&self, volume: usize) -> PathBuf {
        self.dir.path().join(format!("v{volume}"))
    }

    pub fn options(&self) -> Options {
        let own = Access::Own { wait: Duration::from_millis(100) };
        let sources = (0..VOLUMES)
            .map(|volume| Source {
                name: format!("v{volume}").parse().unwrap(),
                disk: Arc::new(FileDisk::open(&self.source_path(volume), own).unwrap()),
            })
            .collect();
        Options {
            group: "lab".parse().unwrap(),
            state_dir: self.dir.path().join("state"),
            ring_dir: self.dir.path().to_owned(),
            ring_bytes: Some(self.ring_bytes),
            sources,
            attach: self.attach,
            spill: self.spill.clone(),
            cool_every: towline_journal::activity::COOL_EVERY,
            clock: unix_now_ns,
        }
    }

    pub fn try_open(&mut self) -> Result<OpenReport> {
        self.journal = None;
        let (journal, report) = Journal::open(self.options())?;
        self.journal = Some(journal);
        Ok(report)
    }

    pub fn open(&mut self) -> OpenReport {
        self.try_open().unwrap()
    }

    pub fn journal(&self) -> &Arc<Journal> {
        self.journal.as_ref().expect("open")
    }

    pub fn group_dir(&self) -> GroupDir {
        GroupDir::of(&self.dir.path().join("state"), &"lab".parse().unwrap())
    }

    pub fn spill_store(&self) -> Store {
        let dir = self.group_dir();
        Store::of(&dir, dir.load().unwrap().as_ref())
    }

    pub fn ring_path(&self) -> PathBuf {
        self.group_dir().load().unwrap().unwrap().ring.path
    }

    /// A guest's write as the proxy does it, up to the given end.
    pub fn write(&self, volume: usize, offset: u64, data: &[u8], end: End) -> Begun {
        let journal = self.journal();
        let begun = journal.begin(VolumeId(volume as u16), &Change::Write { offset, data });
        let disk = file(&journal.sources()[volume]);
        match end {
            End::Done => disk.write_at(data, offset).unwrap(),
            End::KilledBefore => return begun,
            End::KilledAfter | End::Failed => {
                disk.write_at(&data[..data.len() / 2], offset).unwrap();
            }
        }
        if end != End::KilledAfter
            && let Begun::Record(ticket) = begun
        {
            let outcome = if end == End::Failed { Outcome::Failed } else { Outcome::Done };
            journal.finish(ticket, outcome);
        }
        begun
    }

    pub fn zero(&self, volume: usize, extent: Extent, end: End) -> Begun {
        let journal = self.journal();
        let begun = journal.begin(VolumeId(volume as u16), &Change::Zero { extent, trim: true });
        if end == End::KilledBefore {
            return begun;
        }
        file(&journal.sources()[volume]).zero(extent, false).unwrap();
        if end != End::KilledAfter
            && let Begun::Record(ticket) = begun
        {
            let outcome = if end == End::Failed { Outcome::Failed } else { Outcome::Done };
            journal.finish(ticket, outcome);
        }
        begun
    }

    /// A shipper's session: attach, then the given number of steps.
    pub fn ship(&mut self, steps: usize) {
        let journal = self.journal().clone();
        let attached = journal.attach(self.target.durable).expect("same epoch");
        let spill = self.spill_store();
        let reader = RingReader::open(journal.ring_file()).unwrap().with_spill(spill);
        if let Some(part) = &attached.history {
            self.ship_history(&reader, part);
        }
        let durable = &mut self.target.durable;
        durable.epoch = attached.epoch;
        if self.history_stops_at.is_some_and(|seq| durable.seq == seq) {
            return;
        }
        let mut cut = attached.start_seq - 1;
        let mut claims = attached.claims_upto;
        for step in 0..steps {
            if step % 2 == 0 {
                // A contiguous batch of records; applied whole.
                // Some batches end anywhere.
                let records_max = if step % 4 == 2 { 3 } else { u64::MAX };
                self.cut(&reader, records_max, &mut cut, &mut claims);
            } else {
                let volume = VolumeId((step / 2 % VOLUMES) as u16);
                let blocks = self.size.div_ceil(BLOCK_BYTES);
                let (from, count) = match blocks {
                    BLOCKS => ((step as u64 / 4) % BLOCKS, 2),
                    _ => (0, 512),
                };
                if let Some(claim) = journal.claim(volume, from, count) {
                    let done = reader.done_seq();
                    if done < claim.granted_at {
                        continue; // an open record of another volume: not now, P is not reached
                    }
                    self.cut(&reader, u64::MAX, &mut cut, &mut claims);
                    self.shipped_parts += claim.parts.iter().filter(|parts| **parts != 0).count();
                    for block in claim.first_block..claim.range().end() {
                        let extent = BlockRange::new(block, 1).extent(self.size);
                        for range in ranges_of(claim.parts_of(block), extent.len) {
                            let at = extent.offset + range.offset;
                            let mut bytes = vec![0; range.len as usize];
                            let source = &journal.sources()[volume.index()].disk;
                            source.read_at(&mut bytes, at).unwrap();
                            self.target.images[volume.index()][at as usize..][..bytes.len()]
                                .copy_from_slice(&bytes);
                        }
                    }
                    claims = claim.id;
                }
            }
            self.target.durable = Durable {
                epoch: attached.epoch,
                incarnation: attached.incarnation,
                seq: cut,
                claims,
            };
            journal.ack(cut, claims);
            journal.heal();
        }
    }

    /// Leaves the ring no slot, as a target that is away for long does.
    pub fn fill(&mut self) {
        for block in 0.. {
            let head = self.journal().get(Counter::Head);
            let extent = Extent::new(block % BLOCKS * BLOCK_BYTES, 1);
            let _ = self.zero(VOLUMES - 1, extent, End::Done);
            let is_journaled = self.journal().get(Counter::Head) > head;
            // Later laps change nothing.
            if block < BLOCKS {
                self.remember();
            }
            if !is_journaled && self.journal().get(Counter::Whole) == 0 {
                return;
            }
        }
    }

    /// Takes over all final records; what the spill has lost as the journal says.
    fn cut(&mut self, reader: &RingReader, records_max: u64, cut: &mut u64, claims: &mut u64) {
        let done = reader.done_seq().min(cut.saturating_add(records_max));
        while *cut < done {
            let seq = *cut + 1;
            let mut payload = Vec::new();
            match reader.read(seq, &mut payload) {
                Ok(record) => {
                    self.apply_record(&record, &payload);
                    self.from_spill += u64::from(reader.is_spilled(seq));
                    *cut = seq;
                }
                Err(error) => {
                    assert!(reader.is_spilled(seq), "{error}");
                    self.target.whole = false;
                    match self.journal().spill_damaged(seq) {
                        Damage::Skip { upto } => {
                            self.skipped += 1;
                            *cut = upto.max(seq);
                        }
                        Damage::Resync { start_seq, claims_upto } => {
                            (*cut, *claims) = (start_seq - 1, claims_upto);
                        }
                    }
                }
            }
        }
        self.assert_point(reader.incarnation(), *cut);
    }

    /// Takes over what the spill has of the lost ring, as far as it can be read.
    fn ship_history(&mut self, reader: &RingReader, part: &HistoryPart) {
        let mut spill = reader.history(self.spill_store(), part.ring_id.0);
        assert_eq!(part.first_seq, self.target.durable.seq + 1);
        assert_eq!(part.incarnation, self.target.durable.incarnation);
        for seq in part.first_seq..=part.last_seq {
            let mut payload = Vec::new();
            match spill.read(seq, &mut payload) {
                Ok(record) => {
                    assert_eq!(record.incarnation, part.incarnation);
                    self.apply_record(&record, &payload);
                    self.from_history += 1;
                    self.target.durable.seq = seq;
                    if self.history_stops_at == Some(seq) {
                        return;
                    }
                }
                Err(_) => {
                    self.journal().history_damaged(seq);
                    break;
                }
            }
        }
        let Durable { incarnation, seq, .. } = self.target.durable;
        self.assert_point(incarnation, seq);
    }

    /// What the sources hold belongs to the newest record.
    pub fn remember(&mut self) {
        let journal = self.journal();
        let incarnation = RingReader::open(journal.ring_file()).unwrap().incarnation();
        let head = journal.get(Counter::Head);
        let images = (0..VOLUMES).map(|v| std::fs::read(self.source_path(v)).unwrap()).collect();
        self.history.retain(|known| known.0 + 1 >= incarnation);
        self.history.push((incarnation, head, images));
    }

    /// A target that counts as whole holds what the sources held at that record.
    fn assert_point(&self, incarnation: u32, cut: u64) {
        let is_at = |known: &&(u32, u64, _)| known.0 == incarnation && known.1 <= cut;
        let at_cut = self.history.iter().rev().find(is_at);
        if let Some((_, seq, images)) = at_cut.filter(|_| self.target.whole) {
            assert!(self.target.images == *images, "the point at {cut} is not that of {seq}");
        }
    }

    /// The ring forgets what it may forget: slots whose records are spilled.
    pub fn forget_spilled(&self) {
        let journal = self.journal();
        let ring = std::fs::OpenOptions::new().write(true).open(self.ring_path()).unwrap();
        let slots = self.ring_bytes / towline_journal::format::PAYLOAD_BYTES_PER_SLOT;
        for seq in journal.get(Counter::Acked) + 1..=journal.get(Counter::Spilled) {
            let at = towline_journal::format::SLOTS_OFFSET + seq % slots * 64;
            ring.write_all_at(&[0; 8], at).unwrap();
        }
    }

    fn apply_record(&mut self, record: &Record, payload: &[u8]) {
        if record.state != SlotState::Done {
            return;
        }
        let range = record.extent.offset as usize..record.extent.end() as usize;
        let image = &mut self.target.images[record.volume.index()];
        match record.kind {
            Kind::Write => image[range].copy_from_slice(payload),
            Kind::Zero | Kind::Trim => image[range].fill(0),
            Kind::Control => match record.control {
                Some(Control::Heal) => {
                    self.target.whole = true;
                    self.target.has_point = true;
                }
                Some(Control::Break | Control::Resync) => self.target.whole = false,
                _ => {}
            },
            _ => {}
        }
    }

    /// A whole round of the cooler. What goes cold has been synced.
    pub fn cool(&mut self) {
        self.journal().cool_now();
        self.journal().cool_now();
        self.journal().cool_now();
        self.synced = self.sources();
    }

    fn sources(&self) -> Vec<Vec<u8>> {
        (0..VOLUMES).map(|volume| std::fs::read(self.source_path(volume)).unwrap()).collect()
    }

    /// Power loss: the ring is gone, and of what was written to the sources since the
    /// last sync any part.
    pub fn cut_power(&mut self, seed: u64) -> OpenReport {
        self.journal = None;
        std::fs::remove_file(self.ring_path()).unwrap();
        for volume in 0..VOLUMES {
            let now = std::fs::read(self.source_path(volume)).unwrap();
            let synced = &self.synced[volume];
            let path = self.source_path(volume);
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            for (index, page) in now.chunks(4096).enumerate() {
                let at = index * 4096;
                let random = (index as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9);
                if page != &synced[at..at + page.len()] && random >> 20 & 1 == 0 {
                    file.write_all_at(&synced[at..at + page.len()], at as u64).unwrap();
                }
            }
        }
        self.synced = self.sources();
        self.open()
    }

    /// Ships until the target is whole and has everything.
    pub fn drain(&mut self) {
        for _ in 0..20 {
            self.ship(60);
            let journal = self.journal();
            let pending = journal.get(Counter::DirtyBlocks) + journal.get(Counter::ClaimedBlocks);
            let all = journal.get(Counter::Acked) == journal.get(Counter::Head);
            if pending == 0 && all && self.target.whole {
                return;
            }
        }
        panic!("the target never gets whole");
    }

    pub fn assert_identical(&self) {
        for volume in 0..VOLUMES {
            let source = std::fs::read(self.source_path(volume)).unwrap();
            let target = &self.target.images[volume];
            if source == *target {
                continue; // a fast comparison
            }
            let differs = source.iter().zip(target).position(|(a, b)| a != b);
            assert_eq!(differs, None, "volume {volume}");
        }
    }
}

/// How a source operation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// An I/O error after half of it.
    Failed,
    /// kill -9 before the source was touched, or after half of it.
    KilledBefore,
    KilledAfter,
}

/// A source's image.
fn file(source: &Source) -> &FileDisk {
    match source.disk.backend() {
        Backend::File(disk) => disk,
        other => panic!("{other:?} in a test of files"),
    }
}
