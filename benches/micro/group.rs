//! A group whose target has everything, and producers that append to it.

use super::histogram;
use hdrhistogram::Histogram;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use towline_block::{Access, FileDisk, VolumeId};
use towline_journal::format::Counter;
use towline_journal::{
    AttachPolicy, Begun, Change, Journal, Options, Outcome, Resync, Source, SpillOptions,
    unix_now_ns,
};

const VOLUMES: usize = 2;
const VOLUME_BYTES: u64 = 64 << 20;
/// Fits no cache, as in production.
const RING_BYTES: u64 = 128 << 20;
/// Appends between two acknowledgements; a quarter of the ring.
const ACK_EVERY: usize = 4096;

pub struct Group {
    journal: Arc<Journal>,
    _dir: tempfile::TempDir,
}

pub struct Appended {
    pub times: Histogram<u64>,
    /// Appends a second, all producers together, acknowledging included.
    pub per_s: f64,
}

impl Group {
    pub fn open() -> Group {
        let memory = PathBuf::from("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(&memory) } else { tempfile::tempdir() };
        let dir = dir.expect("room for a ring");
        let sources = (0..VOLUMES).map(|volume| {
            let path = dir.path().join(format!("v{volume}"));
            File::create(&path).and_then(|file| file.set_len(VOLUME_BYTES)).expect("room");
            let own = Access::Own { wait: Duration::from_secs(1) };
            let disk = Arc::new(FileDisk::open(&path, own).expect("a fresh file"));
            Source { name: format!("v{volume}").parse().expect("a name"), disk }
        });
        let options = Options {
            group: "micro".parse().expect("a name"),
            state_dir: dir.path().join("state"),
            ring_dir: dir.path().to_owned(),
            ring_bytes: Some(RING_BYTES),
            sources: sources.collect(),
            attach: AttachPolicy::Auto,
            spill: SpillOptions::OFF,
            clock: unix_now_ns,
        };
        let (journal, _) = Journal::open(options).expect("a new group");
        let group = Group { journal, _dir: dir };
        group.heal();
        group
    }

    /// As if a shipper had sent every block.
    fn heal(&self) {
        self.journal.resync_all(Resync::Send);
        let mut last = 0;
        for volume in 0..VOLUMES {
            while let Some(claim) = self.journal.claim(VolumeId(volume as u16), 0, u64::MAX) {
                last = claim.id;
            }
        }
        self.journal.ack(self.journal.get(Counter::Done), last);
        assert!(self.journal.heal().is_some(), "nothing is dirty");
    }

    /// `producers` volumes at once, `count` appends each, every one timed.
    pub fn append_all(&self, producers: usize, count: usize, data: &[u8]) -> Appended {
        let start = Barrier::new(producers + 1);
        let mut times = histogram();
        let elapsed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..producers)
                .map(|volume| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        let began = Instant::now();
                        let times = self.append(VolumeId(volume as u16), count, data);
                        (times, began, Instant::now())
                    })
                })
                .collect();
            start.wait();
            let ends: Vec<_> = threads.into_iter().map(|t| t.join().expect("a producer")).collect();
            ends.iter().for_each(|(part, ..)| times.add(part).expect("same bounds"));
            let began = ends.iter().map(|end| end.1).min().expect("a producer");
            ends.iter().map(|end| end.2).max().expect("a producer") - began
        });
        Appended { times, per_s: (producers * count) as f64 / elapsed.as_secs_f64() }
    }

    fn append(&self, volume: VolumeId, count: usize, data: &[u8]) -> Histogram<u64> {
        let journal = &self.journal;
        let mut times = histogram();
        for index in 0..count {
            let offset = (index * data.len()) as u64 % VOLUME_BYTES;
            let began = Instant::now();
            match journal.begin(volume, &Change::Write { offset, data }) {
                Begun::Record(ticket) => journal.finish(ticket, Outcome::Done),
                Begun::Map => panic!("the ring overflowed"),
            }
            times.saturating_record(began.elapsed().as_nanos() as u64);
            if index % ACK_EVERY == ACK_EVERY - 1 {
                self.make_room();
            }
        }
        self.make_room();
        times
    }

    /// Acknowledges all; waits for a producer that stands inside an append while the
    /// other went far ahead.
    fn make_room(&self) {
        loop {
            self.journal.ack(self.journal.get(Counter::Done), 0);
            let waiting = self.journal.get(Counter::Head) - self.journal.get(Counter::Acked);
            if waiting < ACK_EVERY as u64 {
                return;
            }
            std::thread::yield_now();
        }
    }
}
