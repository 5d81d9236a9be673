//! Writes that follow each other on a disk, written as one: a baseline's blocks in pieces of a few
//! megabytes past the page cache, or in few requests to a server; scattered ones as they are.
//!
//! Several pieces are under way at once, each by a thread of its own: a disk that is far away
//! does one request after the other at a third of what it does with eight.
//!
//! | a write comes | and under way is | |
//! |---|---|---|
//! | piece | nothing, or other ranges | begins at once |
//! | piece | some of its range | begins after all |
//! | piece | [`UNDER_WAY_MAX`] pieces | begins after the oldest |
//! | through the page cache | something of that volume | begins after all: the kernel keeps both ways coherent in turns only |
//! | zero, trim, comparison, end | anything | begins after all |

use super::medium::Target;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::thread::{Builder, Scope, ScopedJoinHandle};
use towline_block::buffer::DIRECT_ALIGN;
use towline_block::{AlignedBuf, Extent, VolumeId, copy};

/// At once past the page cache, by a thread that is started for it.
const PIECE_BYTES: u64 = 2 << 20;
/// Pieces under way.
const UNDER_WAY_MAX: usize = 4;
/// What is shorter goes through the page cache: a write past it waits for the disk, of which
/// each may take a millisecond where that is far away.
const PASSING_BYTES_MIN: u64 = 256 << 10;
/// A run; more would be held back for nothing.
const RUN_BYTES_MAX: usize = 4 << 20;

/// Memory for pieces, kept from group to group: as many as are under way, and one being filled.
#[derive(Default)]
pub struct Room(Vec<AlignedBuf>);

/// A piece that a thread of its own writes.
struct Piece<'scope> {
    volume: VolumeId,
    extent: Extent,
    writing: ScopedJoinHandle<'scope, (AlignedBuf, Result<()>)>,
}

/// A run of writes, each beginning where the one before ends, and the pieces under way. Dropped,
/// the pieces end with their scope.
pub struct Gather<'r, 'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    room: &'r mut Room,
    under_way: VecDeque<Piece<'scope>>,
    target: Option<(VolumeId, &'env Target)>,
    offset: u64,
    len: usize,
    parts: Vec<&'env [u8]>,
}

impl<'r, 'scope, 'env> Gather<'r, 'scope, 'env> {
    pub fn new(room: &'r mut Room, scope: &'scope Scope<'scope, 'env>) -> Self {
        let (under_way, parts) = (VecDeque::new(), Vec::new());
        Gather { scope, room, under_way, target: None, offset: 0, len: 0, parts }
    }

    /// A write that comes after all others so far.
    ///
    /// # Errors
    /// Of writes before it.
    pub fn put(
        &mut self,
        volume: VolumeId,
        target: &'env Target,
        offset: u64,
        payload: &'env [u8],
    ) -> Result<()> {
        let end = self.offset + self.len as u64;
        let follows = self.target.is_some_and(|(of, _)| of == volume) && end == offset;
        if !follows || self.len >= RUN_BYTES_MAX {
            self.end_run()?;
            self.target = Some((volume, target));
            self.offset = offset;
        }
        self.parts.push(payload);
        self.len += payload.len();
        Ok(())
    }

    /// Writes what was gathered, and waits for all that is under way.
    ///
    /// # Errors
    /// Of the targets. What was written is not known then; it may be written again.
    pub fn finish(&mut self) -> Result<()> {
        self.end_run()?;
        self.wait_for_all()
    }

    /// Writes the run, or begins to.
    fn end_run(&mut self) -> Result<()> {
        let Some((volume, target)) = self.target.take() else { return Ok(()) };
        let run = Extent::new(self.offset, std::mem::take(&mut self.len) as u64);
        let mut parts = VecDeque::from(std::mem::take(&mut self.parts));
        // Past the page cache go whole sectors only.
        let align = DIRECT_ALIGN as u64;
        let passes = run.len >= PASSING_BYTES_MIN
            && run.offset.is_multiple_of(align)
            && !target.disk.is_remote();
        let passing = Extent::new(run.offset, if passes { run.len / align * align } else { 0 });
        for extent in passing.pieces(PIECE_BYTES) {
            let mut buf = self.buffer()?;
            fill(buf.as_mut_slice().split_at_mut(extent.len as usize).0, &mut parts);
            self.begin(volume, target, extent, buf)?;
        }
        match parts.make_contiguous() {
            [] => Ok(()),
            rest => self.write_cached(volume, target, passing.end(), rest),
        }
    }

    fn write_cached(
        &mut self,
        volume: VolumeId,
        target: &Target,
        at: u64,
        parts: &[&[u8]],
    ) -> Result<()> {
        if self.under_way.iter().any(|piece| piece.volume == volume) {
            self.wait_for_all()?;
        }
        target.write_run(at, parts)
    }

    fn begin(
        &mut self,
        volume: VolumeId,
        target: &'env Target,
        extent: Extent,
        buf: AlignedBuf,
    ) -> Result<()> {
        let meets = |piece: &Piece<'_>| piece.volume == volume && piece.extent.overlaps(extent);
        if self.under_way.iter().any(meets) {
            self.wait_for_all()?;
        }
        let len = extent.len as usize;
        target.announce(extent.offset, buf.as_slice().split_at(len).0)?;
        let write = move || {
            let written = target.disk.write_passing(buf.as_slice().split_at(len).0, extent.offset);
            (buf, written)
        };
        let thread = Builder::new().name("towline-write".into());
        let writing = thread
            .spawn_scoped(self.scope, write)
            .map_err(|e| Error::storage("cannot start a thread that writes to a target", e))?;
        self.under_way.push_back(Piece { volume, extent, writing });
        Ok(())
    }

    /// One to fill, once fewer than [`UNDER_WAY_MAX`] are under way.
    fn buffer(&mut self) -> Result<AlignedBuf> {
        while self.under_way.len() >= UNDER_WAY_MAX {
            self.wait_for_oldest()?;
        }
        Ok(self.room.0.pop().unwrap_or_else(|| AlignedBuf::new(PIECE_BYTES as usize)))
    }

    fn wait_for_all(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.wait_for_oldest()?;
        }
        Ok(())
    }

    fn wait_for_oldest(&mut self) -> Result<()> {
        let Some(piece) = self.under_way.pop_front() else { return Ok(()) };
        let (buf, written) =
            piece.writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.room.0.push(buf);
        written
    }
}

/// Fills all of `into` with what comes first in `parts`, and leaves the rest there.
fn fill(mut into: &mut [u8], parts: &mut VecDeque<&[u8]>) {
    while !into.is_empty()
        && let Some(part) = parts.pop_front()
    {
        let (now, later) = part.split_at(part.len().min(into.len()));
        let (filled, free) = into.split_at_mut(now.len());
        copy(filled, now);
        into = free;
        if !later.is_empty() {
            parts.push_front(later);
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
            std::thread::scope(|scope| {
                let mut gather = Gather::new(&mut room, scope);
                for (volume, offset, bytes) in writes {
                    let id = VolumeId(*volume as u16);
                    gather.put(id, &self.targets[*volume], *offset as u64, bytes).unwrap();
                    self.expected[*volume][*offset..][..bytes.len()].copy_from_slice(bytes);
                }
                gather.finish().unwrap();
            });
            assert!(room.0.len() <= UNDER_WAY_MAX + 1, "{} buffers", room.0.len());
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
        assert_eq!(rig.lens(), [2 << 20, 2 << 20, 1 << 20]);
        rig.write(&[(0, 0, block(1)), (1, 64 << 10, block(2)), (0, 64 << 10, block(3))]);
        assert_eq!(rig.lens(), [64 << 10; 3], "another volume ends a run");
        rig.write(&[(1, 512, vec![9; 5 << 20])]);
        assert_eq!(rig.lens(), [5 << 20], "not aligned");
        rig.write(&[(1, 4096, vec![8; (2 << 20) + 512])]);
        assert_eq!(rig.lens(), [2 << 20, 512], "aligned, all but its end");
        rig.write(&[(1, 0, vec![7; (256 << 10) - 1])]);
        assert_eq!(rig.lens(), [(256 << 10) - 1], "too short");
    }

    #[test]
    fn a_piece_that_fails_fails_all_and_the_next_attempt_is_as_good_as_the_first() {
        let mut rig = Rig::new();
        let mut room = Room::default();
        // The last of its pieces reaches past the end of the disk.
        let beyond = vec![5; 8 << 20];
        let written = std::thread::scope(|scope| {
            let mut gather = Gather::new(&mut room, scope);
            gather.put(VolumeId(0), &rig.targets[0], (SIZE - (6 << 20)) as u64, &beyond)?;
            gather.finish()
        });
        assert!(written.unwrap_err().to_string().contains("past the end"));
        assert_eq!(rig.lens(), [2 << 20; 4]);
        rig.write(&[(0, SIZE - (6 << 20), vec![6; 6 << 20])]);
    }

    #[test]
    fn the_last_of_overlapping_writes_stays_whatever_is_gathered() {
        let mut rig = Rig::new();
        let mut rng = StdRng::seed_from_u64(7);
        for round in 0..40 {
            let mut writes = Vec::new();
            let (mut volume, mut at) = (0, 0);
            // Of sectors or of pages, few or many at once.
            let unit = [512, 4096][round % 2];
            let len_max = if round % 4 < 2 { 2048 } else { 6144 };
            for _ in 0..20 {
                if rng.random_bool(0.4) {
                    (volume, at) =
                        (rng.random_range(0..2), rng.random_range(0..SIZE / unit) * unit);
                }
                let len = (rng.random_range(1..=len_max) << 10).min(SIZE - at) / unit * unit;
                if len == 0 {
                    at = 0;
                    continue;
                }
                writes.push((volume, at, vec![rng.random(); len]));
                if rng.random_bool(0.3) {
                    let within = at + rng.random_range(0..len / unit) * unit;
                    writes.push((volume, within, vec![rng.random(); unit]));
                }
                at += len;
            }
            rig.write(&writes);
        }
    }
}
