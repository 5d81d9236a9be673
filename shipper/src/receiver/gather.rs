//! Writes that follow each other on a disk, written as one: a baseline's blocks as a few
//! megabytes past the page cache, or in few requests to a server; scattered ones as they are.

use super::medium::Target;
use crate::error::Result;
use towline_block::{AlignedBuf, VolumeId};

/// At once past the page cache: enough for a disk to be busy with.
const PASSING_BYTES_MAX: usize = 4 << 20;
/// What is shorter goes through the page cache: a write past it waits for the disk, of which
/// each may take a millisecond where that is far away.
const PASSING_BYTES_MIN: usize = 256 << 10;

/// Memory for them, kept from group to group.
#[derive(Default)]
pub struct Room(AlignedBuf);

/// A run of writes, each beginning where the one before ends.
pub struct Gather<'a> {
    room: &'a mut Room,
    target: Option<(VolumeId, &'a Target)>,
    offset: u64,
    len: usize,
    parts: Vec<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub fn new(room: &'a mut Room) -> Gather<'a> {
        Gather { room, target: None, offset: 0, len: 0, parts: Vec::new() }
    }

    /// A write that comes after all others so far.
    ///
    /// # Errors
    /// As [`Gather::finish`], of the run that it does not continue.
    pub fn put(
        &mut self,
        volume: VolumeId,
        target: &'a Target,
        offset: u64,
        payload: &'a [u8],
    ) -> Result<()> {
        let end = self.offset + self.len as u64;
        let follows = self.target.is_some_and(|(of, _)| of == volume) && end == offset;
        if !follows || self.len >= PASSING_BYTES_MAX {
            self.finish()?;
            self.target = Some((volume, target));
            self.offset = offset;
        }
        self.parts.push(payload);
        self.len += payload.len();
        Ok(())
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// Of the target. What of the run was written is not known; it may be written again.
    pub fn finish(&mut self) -> Result<()> {
        let Some((_, target)) = self.target.take() else { return Ok(()) };
        let (mut at, len) = (self.offset, std::mem::take(&mut self.len));
        if len < PASSING_BYTES_MIN || target.disk.is_remote() {
            let written = target.write_run(at, &self.parts);
            self.parts.clear();
            return written;
        }
        if self.room.0.is_empty() {
            self.room.0 = AlignedBuf::new(PASSING_BYTES_MAX);
        }
        let mut filled = 0;
        for mut part in self.parts.drain(..) {
            while !part.is_empty() {
                let free = self.room.0.as_mut_slice().split_at_mut(filled).1;
                let (now, later) = part.split_at(part.len().min(free.len()));
                free.split_at_mut(now.len()).0.copy_from_slice(now);
                (part, filled) = (later, filled + now.len());
                if filled == PASSING_BYTES_MAX {
                    target.write_passing(at, self.room.0.as_slice())?;
                    at += filled as u64;
                    filled = 0;
                }
            }
        }
        match self.room.0.as_slice().split_at(filled).0 {
            [] => Ok(()),
            rest => target.write_passing(at, rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::medium::Medium;
    use crate::receiver::tests::disk::{Change, Recorder};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::sync::Arc;
    use std::time::Duration;
    use towline_block::{Access, FileDisk};

    const SIZE: usize = 12 << 20;

    /// Two targets, what they should hold, and what was asked of them.
    struct Rig {
        _dir: tempfile::TempDir,
        recorder: Arc<Recorder>,
        targets: Vec<Target>,
        expected: Vec<Vec<u8>>,
    }

    impl Rig {
        fn new() -> Rig {
            let dir = tempfile::tempdir().unwrap();
            let recorder = Arc::new(Recorder::default());
            let target = |name: &str| {
                let access = Access::Own { wait: Duration::ZERO };
                let path = dir.path().join(name);
                let disk = FileDisk::open_or_create(&path, SIZE as u64, access).unwrap();
                Target::new(name.parse().unwrap(), disk, Medium::observed(recorder.clone()))
            };
            let targets = vec![target("a"), target("b")];
            Rig { _dir: dir, recorder, targets, expected: vec![vec![0; SIZE]; 2] }
        }

        fn write(&mut self, writes: &[(usize, usize, Vec<u8>)]) {
            let mut room = Room::default();
            let mut gather = Gather::new(&mut room);
            for (volume, offset, bytes) in writes {
                let id = VolumeId(*volume as u16);
                gather.put(id, &self.targets[*volume], *offset as u64, bytes).unwrap();
                self.expected[*volume][*offset..][..bytes.len()].copy_from_slice(bytes);
            }
            gather.finish().unwrap();
            for (target, expected) in self.targets.iter().zip(&self.expected) {
                let mut now = vec![0; SIZE];
                target.disk.read_at(&mut now, 0).unwrap();
                assert!(now == *expected, "{} differs", target.name);
            }
        }

        /// Lengths of the writes that the targets saw.
        fn lens(&self) -> Vec<usize> {
            let len = |change: Change| match change {
                Change::Write(_, _, bytes) => bytes.len(),
                other => panic!("{other:?}"),
            };
            self.recorder.take().into_iter().map(len).collect()
        }
    }

    #[test]
    fn runs_are_written_as_one_and_scattered_writes_as_they_are() {
        let mut rig = Rig::new();
        let block = |fill: u8| vec![fill; 64 << 10];
        let run: Vec<_> = (0..80).map(|i| (0, i * (64 << 10), block(i as u8))).collect();
        rig.write(&run);
        assert_eq!(rig.lens(), [4 << 20, 1 << 20]);
        rig.write(&[(0, 0, block(1)), (1, 64 << 10, block(2)), (0, 64 << 10, block(3))]);
        assert_eq!(rig.lens(), [64 << 10; 3], "another volume ends a run");
        rig.write(&[(1, 512, vec![9; 5 << 20])]);
        assert_eq!(rig.lens(), [4 << 20, 1 << 20], "aligned or not");
    }

    #[test]
    fn the_last_of_overlapping_writes_stays_whatever_is_gathered() {
        let mut rig = Rig::new();
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..20 {
            let mut writes = Vec::new();
            let (mut volume, mut at) = (0, 0);
            for _ in 0..30 {
                if rng.random_bool(0.3) {
                    (volume, at) = (rng.random_range(0..2), rng.random_range(0..SIZE / 512) * 512);
                }
                let len = 512 << rng.random_range(0..11);
                if at + len > SIZE {
                    at = 0;
                }
                writes.push((volume, at, vec![rng.random(); len]));
                at += len;
            }
            rig.write(&writes);
        }
    }
}
