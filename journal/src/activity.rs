//! The activity map (R7): which extents of the sources a power loss may have left
//! different from what the target and the maps say. One bit an extent, durable before
//! the extent's first write; after a power loss exactly the hot extents are suspect.
//!
//! A writer takes its sequence number, notes its touch, then looks whether the extent
//! is hot. The cooler clears *hot* in memory, then looks at the touches: one of the
//! two sees the other. Format: `docs/formats/activity.md`.

mod cooler;
pub mod file;

pub(crate) use cooler::CoolerContext;
pub(crate) use file::{Base, Found, find};

use crate::error::Result;
use file::{MapFile, extent_counts};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;
use towline_block::{Extent, VolumeId};

/// Bytes under one bit. 16 MiB: comparing one costs 10 ms of a disk; smaller ones cost
/// more activations, each a sync of the state disk (docs/design/0004).
pub const EXTENT_BYTES: u64 = 16 << 20;
/// Extents heated at once from the one that is written: sequential writers pay for
/// one activation in four.
pub const HEATED_AHEAD: u64 = 4;
/// Length of the cooler's round unless told otherwise. Each costs one source sync if there
/// is something to cool; what was not touched for one to two of them goes cold. Shorter
/// rounds make a guest's pauses expensive, longer ones leave more to compare
/// (docs/design/0004).
pub const COOL_EVERY: Duration = Duration::from_secs(60);
/// Shorter ones would flush the sources all the time; longer ones are as good as none.
pub const COOL_EVERY_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
/// Longest wait of a guest's write for the state disk. Past it the write goes on and
/// the map is invalid until the disk answers (R7).
const ACTIVATE_WAIT_MAX: Duration = Duration::from_millis(500);

/// Bits of all volumes.
struct Bits {
    volumes: Vec<Vec<AtomicU64>>,
}

impl Bits {
    fn new(words: &[Vec<u64>]) -> Bits {
        let volume = |words: &Vec<u64>| words.iter().map(|word| AtomicU64::new(*word)).collect();
        Bits { volumes: words.iter().map(volume).collect() }
    }

    fn word(&self, volume: usize, extent: u64) -> (&AtomicU64, u64) {
        (&self.volumes[volume][(extent / 64) as usize], 1 << (extent % 64))
    }
}

/// What the map's thread is asked and tells.
#[derive(Default)]
struct Desk {
    /// Extents to be made hot, durably.
    wanted: Vec<(usize, u64)>,
    /// Wanted extents that were served, in all.
    served: u64,
    asked: u64,
    /// A cooling round was asked for, and how many were done.
    cool: bool,
    rounds: u64,
    stop: bool,
}

pub(crate) struct Activity {
    extents: Vec<u64>,
    /// Who sees a bit here writes the source without waiting: it is set only when the file
    /// says the same, durably.
    hot: Bits,
    /// Extents touched since the last round of the cooler.
    touched: Bits,
    desk: Mutex<Desk>,
    changed: Condvar,
    /// A write went on without its extent being hot durably.
    invalid: AtomicBool,
    file: Mutex<MapFile>,
}

impl Activity {
    /// Makes the map of a new incarnation: the given extents hot, the rest cold.
    pub fn create(
        path: &Path,
        group_uuid: [u8; 16],
        incarnation: u32,
        base: Base,
        sizes: &[u64],
        hot: &Hot,
    ) -> Result<Activity> {
        let extents = extent_counts(sizes);
        let volume_words = |(volume, count): (usize, &u64)| {
            let mut words = vec![0; count.div_ceil(64) as usize];
            for extent in (0..*count).filter(|extent| hot.has(volume, *extent)) {
                words[(extent / 64) as usize] |= 1_u64 << (extent % 64);
            }
            words
        };
        let words = extents.iter().enumerate().map(volume_words).collect();
        let file = MapFile::create(path, group_uuid, incarnation, base, &extents, words)?;
        Ok(Activity::of(file, extents))
    }

    /// Goes on with the map of an incarnation whose ring survived. A map that is not
    /// sound is made anew, all hot.
    pub fn resume(
        path: &Path,
        group_uuid: [u8; 16],
        incarnation: u32,
        sizes: &[u64],
    ) -> Result<Activity> {
        match MapFile::open(path, group_uuid, incarnation, sizes)? {
            Some(file) => Ok(Activity::of(file, extent_counts(sizes))),
            None => {
                tracing::warn!("the activity map is lost: a power loss would compare everything");
                Activity::create(path, group_uuid, incarnation, Base::default(), sizes, &Hot::All)
            }
        }
    }

    fn of(file: MapFile, extents: Vec<u64>) -> Activity {
        let hot = Bits::new(file.words());
        let untouched = |words: &Vec<u64>| vec![0; words.len()];
        let touched = Bits::new(&file.words().iter().map(untouched).collect::<Vec<_>>());
        Activity {
            extents,
            hot,
            touched,
            desk: Mutex::default(),
            changed: Condvar::new(),
            invalid: AtomicBool::new(false),
            file: Mutex::new(file),
        }
    }

    /// Before the source operation of a change that has its number: its extents are
    /// hot, durably, when this returns true. Else the state disk failed or took too long.
    #[must_use]
    pub fn touch(&self, volume: VolumeId, range: Extent) -> bool {
        if range.is_empty() {
            return true;
        }
        let (first, last) = (range.offset / EXTENT_BYTES, (range.end() - 1) / EXTENT_BYTES);
        let mut cold = false;
        for extent in first..=last {
            let (touched, bit) = self.touched.word(volume.index(), extent);
            // A touch that is there already was not taken yet: whoever takes it takes
            // this one, too.
            if touched.load(SeqCst) & bit == 0 {
                touched.fetch_or(bit, SeqCst);
            }
            cold |= self.hot.word(volume.index(), extent).0.load(SeqCst) & bit == 0;
        }
        !cold || self.heat(volume.index(), first, last)
    }

    #[cold]
    fn heat(&self, volume: usize, first: u64, last: u64) -> bool {
        let end = (last + HEATED_AHEAD).min(self.extents[volume]);
        let mut desk = self.desk();
        desk.wanted.extend((first..end.max(last + 1)).map(|extent| (volume, extent)));
        desk.asked += 1;
        let ticket = desk.asked;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(desk, ACTIVATE_WAIT_MAX, |desk| desk.served < ticket && !desk.stop);
        let timed_out = match waited {
            Ok((desk, _)) => desk.served < ticket,
            Err(_) => true,
        };
        if timed_out && !self.invalid.swap(true, SeqCst) {
            tracing::error!(
                "the state disk takes longer than {ACTIVATE_WAIT_MAX:?}: the guest goes on; until \
                 the disk answers, a power loss would compare everything"
            );
        }
        !self.invalid.load(SeqCst)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("no holder of the desk panics")
    }

    /// These extents hot, durably, for blocks that become dirty without a write of a
    /// guest. Not for the guest's path: it waits for the state disk.
    pub fn heat_now(&self, extents: &[(usize, u64)]) -> Result<()> {
        // The touch first: a cooler that is about to clear the bit looks at it last.
        for (volume, extent) in extents {
            let (touched, bit) = self.touched.word(*volume, *extent);
            touched.fetch_or(bit, SeqCst);
        }
        let mut file = self.file.lock().expect("no holder of the map file panics");
        let is_hot = |(volume, extent): &(usize, u64)| {
            let (hot, bit) = self.hot.word(*volume, *extent);
            hot.load(SeqCst) & bit != 0
        };
        if extents.iter().all(is_hot) && !self.invalid.load(SeqCst) {
            return Ok(());
        }
        if let Err(e) = file.mark(extents, true) {
            // The file's words have them: written when the disk answers.
            self.invalid.store(true, SeqCst);
            return Err(e);
        }
        for (volume, extent) in extents {
            let (hot, bit) = self.hot.word(*volume, *extent);
            hot.fetch_or(bit, SeqCst);
        }
        Ok(())
    }

    /// Everything hot, durably: the target's content is not known any more.
    pub fn heat_all(&self) -> Result<()> {
        for volume in &self.touched.volumes {
            volume.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        }
        let mut file = self.file.lock().expect("no holder of the map file panics");
        let stored = file.mark_all();
        if stored.is_err() {
            self.invalid.store(true, SeqCst);
        }
        for volume in &self.hot.volumes {
            volume.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        }
        stored
    }

    /// Bytes written to the map's file since the last call.
    pub fn take_written_bytes(&self) -> u64 {
        self.file.lock().expect("no holder of the map file panics").take_written_bytes()
    }

    /// Extents that are hot now.
    pub fn hot_extents(&self) -> u64 {
        let count = |(volume, extents): (&Vec<AtomicU64>, &u64)| {
            (0..*extents)
                .filter(|extent| {
                    volume[(extent / 64) as usize].load(SeqCst) >> (extent % 64) & 1 == 1
                })
                .count() as u64
        };
        self.hot.volumes.iter().zip(&self.extents).map(count).sum()
    }

    /// Ends the map's thread, which is inside [`Activity::serve`].
    pub fn stop(&self) {
        self.desk().stop = true;
        self.changed.notify_all();
    }

    /// One round of the cooler, now; returns when it is done.
    pub fn cool_now(&self) {
        let mut desk = self.desk();
        desk.cool = true;
        let round = desk.rounds + 1;
        self.changed.notify_all();
        let waited = self.changed.wait_while(desk, |desk| desk.rounds < round && !desk.stop);
        drop(waited);
    }
}

/// The extents of a range of a volume that has `size` bytes.
pub(crate) fn extents_of(volume: usize, range: Extent, size: u64) -> Vec<(usize, u64)> {
    let end = range.end().min(size).div_ceil(EXTENT_BYTES);
    (range.offset / EXTENT_BYTES..end).map(|extent| (volume, extent)).collect()
}

/// Which extents a new map has hot.
pub(crate) enum Hot {
    All,
    /// Words of bits, a volume.
    Words(Vec<Vec<u64>>),
}

impl Hot {
    pub fn has(&self, volume: usize, extent: u64) -> bool {
        match self {
            Hot::All => true,
            Hot::Words(words) => {
                let word = words.get(volume).and_then(|w| w.get((extent / 64) as usize));
                word.copied().unwrap_or(0) >> (extent % 64) & 1 == 1
            }
        }
    }
}

#[cfg(test)]
mod tests;
