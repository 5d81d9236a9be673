//! Each row of the state table, against a disk in memory that may be short or fail.

use super::*;
use crate::engine::slots::Slots;

const BLOCK: usize = DIRECT_ALIGN;
const SIZE: usize = 8 * BLOCK;

struct Fake {
    bytes: Vec<u8>,
    can_zero: bool,
    rules: Rules,
    /// Blocks moved at once.
    blocks_max: usize,
    fail_at: Option<usize>,
    steps: usize,
}

fn fake(can_zero: bool, blocks_max: usize) -> Fake {
    let bytes = (0..SIZE).map(|at| (at % 251) as u8 + 1).collect();
    Fake { bytes, can_zero, rules: Rules::DIRECT, blocks_max, fail_at: None, steps: 0 }
}

fn range_of(offset: u64, len: usize) -> std::ops::Range<usize> {
    assert!((offset as usize).is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK), "{offset} {len}");
    offset as usize..offset as usize + len
}

impl Fake {
    fn make(&mut self, io: Io) -> (io::Result<usize>, Window) {
        self.steps += 1;
        let failed = Err(io::Error::from_raw_os_error(libc::EIO));
        match io {
            Io::Read(offset, mut window) => {
                let len = window.len.min(self.blocks_max * BLOCK);
                let from = &self.bytes[range_of(offset, window.len)][..len];
                window.buf[window.start..][..len].copy_from_slice(from);
                (if self.fail_at == Some(self.steps) { failed } else { Ok(len) }, window)
            }
            Io::Write(offset, window) => {
                let len = window.len.min(self.blocks_max * BLOCK);
                let into = &mut self.bytes[range_of(offset, window.len)][..len];
                into.copy_from_slice(&window.buf[window.start..][..len]);
                (if self.fail_at == Some(self.steps) { failed } else { Ok(len) }, window)
            }
            Io::Zero(extent, _) if self.can_zero => {
                self.bytes[extent.offset as usize..extent.end() as usize].fill(0);
                (Ok(0), Window::default())
            }
            Io::Zero(..) => {
                (Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)), Window::default())
            }
        }
    }

    fn run(&mut self, kind: Kind, extent: Extent, fill: u8) -> (io::Result<()>, Operation) {
        let key = Slots::new().insert(());
        let mut pending = Pending::default();
        let mut buf = pending.take_buf(kind.buffer_bytes(extent, self.rules));
        buf.as_mut_slice().fill(0xEE);
        let mut operation =
            Operation::new((key, 1), (kind, extent), self.rules, buf, Instant::now());
        if let Kind::Write { .. } = kind {
            let range = operation.data_range();
            operation.buf.as_mut_slice()[range].fill(fill);
        }
        let mut io = operation.start();
        loop {
            let (result, window) = self.make(io);
            match operation.step(result, window) {
                Step::Next(next) => io = next,
                Step::Ended(result) => return (result, operation),
            }
        }
    }
}

/// Every start and length around one, two and three blocks' edges.
fn extents() -> impl Iterator<Item = Extent> {
    let edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5, SIZE];
    edges.into_iter().flat_map(move |from| {
        let to = edges.into_iter().filter(move |to| *to > from);
        to.map(move |to| Extent::new(from as u64, (to - from) as u64))
    })
}

#[test]
fn changes_of_any_alignment_change_exactly_their_bytes_also_when_the_disk_is_short() {
    let write = Kind::Write { fua: false };
    let (zero, trim) = (Kind::Zero { fua: false, keep: true }, Kind::Trim { fua: false });
    for extent in extents() {
        for (kind, fill) in [(write, 0xAB), (zero, 0), (trim, 0)] {
            for (can_zero, blocks_max) in [(true, 100), (false, 100), (false, 1)] {
                let mut disk = fake(can_zero, blocks_max);
                let mut expected = disk.bytes.clone();
                expected[extent.offset as usize..extent.end() as usize].fill(fill);
                disk.run(kind, extent, fill).0.unwrap();
                assert!(disk.bytes == expected, "{kind:?} {extent:?} {can_zero} {blocks_max}");
            }
        }
    }
}

#[test]
fn reads_of_any_alignment_get_exactly_their_bytes_also_when_the_disk_is_short() {
    for extent in extents() {
        for blocks_max in [1, 100] {
            let mut disk = fake(true, blocks_max);
            let (result, operation) = disk.run(Kind::Read, extent, 0);
            result.unwrap();
            let got = &operation.buf.as_slice()[operation.data_range()];
            assert!(
                got == &disk.bytes[extent.offset as usize..extent.end() as usize],
                "{extent:?}"
            );
        }
    }
}

#[test]
fn an_error_at_any_step_and_a_disk_that_moves_nothing_fail_the_operation() {
    let extent = Extent::new(1, 2 * BLOCK as u64);
    let write = Kind::Write { fua: false };
    // Head, tail, body.
    for step in 1..=3 {
        let mut disk = fake(true, 100);
        disk.fail_at = Some(step);
        assert_eq!(disk.run(write, extent, 1).0.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(disk.steps, step);
    }
    for kind in [write, Kind::Read] {
        assert!(fake(true, 0).run(kind, extent, 1).0.is_err());
    }
}

#[test]
fn a_buffer_is_used_again() {
    let mut pending = Pending::default();
    let buf = pending.take_buf(5000);
    let address = buf.as_slice().as_ptr();
    pending.give_buf(buf);
    assert_eq!(pending.take_buf(8192).as_slice().as_ptr(), address);
}
