//! A group whose target has everything, on files of its own.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use towline_block::{Access, FileDisk, VolumeId};
use towline_journal::format::Counter;
use towline_journal::{
    AttachPolicy, Begun, Change, Journal, OpenReport, Options, Outcome, Resync, Source,
    SpillOptions, unix_now_ns,
};

const VOLUMES: usize = 2;
pub const VOLUME_BYTES: u64 = 64 << 20;
/// Appends between two acknowledgements; an eighth of the smallest ring here.
const ACK_EVERY: usize = 4096;

pub struct Group {
    journal: Arc<Journal>,
    _dir: tempfile::TempDir,
}

/// A folder in memory: neither ring nor activity map is to measure a disk.
pub fn memory_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("room for a ring")
}

/// Opens the group that lives in `dir`, made now if it is not there; `disk` is where its
/// state and spill are.
pub fn open(
    dir: &Path,
    disk: &Path,
    ring_bytes: u64,
    spill: SpillOptions,
) -> (Arc<Journal>, OpenReport) {
    let sources = (0..VOLUMES).map(|volume| {
        let path = dir.join(format!("v{volume}"));
        if !path.exists() {
            File::create(&path).and_then(|file| file.set_len(VOLUME_BYTES)).expect("room");
        }
        let own = Access::Own { wait: Duration::from_secs(1) };
        let disk = Arc::new(FileDisk::open(&path, own).expect("a source"));
        Source { name: format!("v{volume}").parse().expect("a name"), disk }
    });
    let options = Options {
        group: "micro".parse().expect("a name"),
        state_dir: disk.join("state"),
        ring_dir: dir.to_owned(),
        ring_bytes: Some(ring_bytes),
        sources: sources.collect(),
        attach: AttachPolicy::Auto,
        spill,
        cool_every: towline_journal::activity::COOL_EVERY,
        clock: unix_now_ns,
    };
    Journal::open(options).expect("a group")
}

/// As if a shipper had sent every block.
pub fn heal(journal: &Journal) {
    journal.resync_all(Resync::Send);
    let mut last = 0;
    for volume in 0..VOLUMES {
        while let Some(claim) = journal.claim(VolumeId(volume as u16), 0, u64::MAX) {
            last = claim.id;
        }
    }
    journal.ack(journal.get(Counter::Done), last);
    assert!(journal.heal().is_some(), "nothing is dirty");
}

/// One write, as the data path does it.
pub fn append(journal: &Journal, volume: VolumeId, index: usize, data: &[u8]) {
    let offset = (index * data.len()) as u64 % VOLUME_BYTES;
    match journal.begin(volume, &Change::Write { offset, data }) {
        Begun::Record(ticket) => journal.finish(ticket, Outcome::Done),
        Begun::Map => panic!("the ring overflowed"),
    }
}

impl Group {
    pub fn in_memory(ring_bytes: u64) -> Group {
        let dir = memory_dir();
        let (journal, _) = open(dir.path(), dir.path(), ring_bytes, SpillOptions::OFF);
        heal(&journal);
        Group { journal, _dir: dir }
    }

    /// `count` appends; `step` is called with each as a closure. Acknowledges as it goes.
    pub fn appends(
        &self,
        volume: VolumeId,
        count: usize,
        data: &[u8],
        mut step: impl FnMut(&dyn Fn()),
    ) {
        for index in 0..count {
            step(&|| append(&self.journal, volume, index, data));
            if index % ACK_EVERY == ACK_EVERY - 1 {
                self.make_room();
            }
        }
        self.make_room();
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
