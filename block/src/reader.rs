//! Background reads of a source: asynchronous, O_DIRECT, at most one change-map
//! block each, a few in flight. Measured: this leaves a guest's buffered writes at
//! their latency, where a synchronous O_DIRECT reader multiplies it by 60 and
//! readahead by 14 (docs/design/0001).
//!
//! An O_DIRECT read of a range with dirty pages waits for their writing back under the
//! inode's lock, and every write of a guest waits for that lock. So a read asks not to
//! wait; one that would is preceded by a writing back that needs no lock.

use crate::buffer::{AlignedBuf, DIRECT_ALIGN};
use crate::disk::{Run, run_at};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::uring::{Completion, Driver, Fd, Op, Window};
use crate::upstream::ExportReader;
use crate::{BLOCK_BYTES, Extent};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

/// Reads in flight at once. 8 x 64 KiB saturate a SATA SSD and half an NVMe drive.
pub const READS_IN_FLIGHT_MAX: usize = 8;

/// Bound to the thread that made it.
pub struct DirectReader {
    driver: Driver,
    /// Of whole blocks, for reads to come: fresh memory costs a page fault each 4 KiB.
    spare: Vec<AlignedBuf>,
}

struct Pending {
    extent: Extent,
    /// Bytes that have arrived.
    filled: usize,
    step: Step,
    /// The buffer, while pages are written back.
    buf: Option<AlignedBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A read that does not wait.
    Try,
    /// It would have waited.
    WriteBack,
    /// A read that may wait; little is left to wait for.
    Read,
}

impl DirectReader {
    pub fn new() -> Result<DirectReader> {
        let driver = Driver::new(READS_IN_FLIGHT_MAX as u32 * 2)
            .map_err(|e| Error::io("background reader", e).with_kind(ErrorKind::Unsupported))?;
        Ok(DirectReader { driver, spare: Vec::new() })
    }

    /// Reads each extent whole. Starts must be multiples of 4 KiB; lengths at most
    /// [`BLOCK_BYTES`], multiples of 4 KiB except at the end of the disk.
    ///
    /// # Errors
    /// The first read that failed or found the disk shorter than asked.
    pub fn read(&mut self, disk: &Fd, extents: &[Extent]) -> Result<Vec<AlignedBuf>> {
        let mut all = Vec::with_capacity(extents.len());
        self.each(disk, extents, |_, buf| {
            all.push(buf);
            None
        })?;
        Ok(all)
    }

    /// As [`DirectReader::read`], handing each extent's number and content on, in order, while those
    /// after it are being read. On an error some may have been handed on.
    pub fn read_each(
        &mut self,
        disk: &Fd,
        extents: &[Extent],
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        self.each(disk, extents, |index, buf| {
            take(index, buf.as_slice());
            Some(buf)
        })
    }

    /// Buffers that `take` gives back are used again.
    fn each(
        &mut self,
        disk: &Fd,
        extents: &[Extent],
        mut take: impl FnMut(usize, AlignedBuf) -> Option<AlignedBuf>,
    ) -> Result<()> {
        let mut read: Vec<Option<AlignedBuf>> = extents.iter().map(|_| None).collect();
        let mut pending: Vec<Pending> =
            extents.iter().map(|extent| Pending::new(*extent)).collect();
        let (mut asked, mut taken) = (0, 0);
        let mut done = Vec::new();
        let mut failure = None;
        loop {
            while failure.is_none()
                && asked < extents.len()
                && self.driver.pending() < READS_IN_FLIGHT_MAX
            {
                pending[asked].buf = Some(self.buffer(extents[asked].len));
                failure = self.submit(disk, asked, &mut pending[asked]).err();
                asked += 1;
            }
            let next = read.get_mut(taken).and_then(Option::take);
            if next.is_none() && self.driver.pending() == 0 {
                break;
            }
            // With one at hand: asks for more, and waits for none.
            let timeout = next.as_ref().map(|_| Duration::ZERO);
            self.driver.wait(1, timeout, &mut done).map_err(|e| Error::io("background read", e))?;
            for completion in done.drain(..) {
                let index = completion.token as usize;
                let state = &mut pending[index];
                match state.ended(completion) {
                    Ok(Some(buf)) => read[index] = Some(buf),
                    Ok(None) if failure.is_some() => {}
                    Ok(None) => failure = self.submit(disk, index, state).err(),
                    Err(e) => failure = Some(e),
                }
            }
            if let Some(buf) = next {
                let spare = take(taken, buf).filter(|_| self.spare.len() < READS_IN_FLIGHT_MAX);
                self.spare.extend(spare.filter(|spare| spare.len() as u64 == BLOCK_BYTES));
                taken += 1;
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn buffer(&mut self, len: u64) -> AlignedBuf {
        assert!(len <= BLOCK_BYTES, "a background read is one block");
        let spare = if len == BLOCK_BYTES { self.spare.pop() } else { None };
        spare.unwrap_or_else(|| AlignedBuf::new(len as usize))
    }

    /// The next step of a read.
    fn submit(&mut self, disk: &Fd, index: usize, state: &mut Pending) -> Result<()> {
        let op = match state.step {
            Step::WriteBack => Op::WriteBack(disk.clone(), state.extent),
            step => {
                let buf = state.buf.take().expect("not with the kernel");
                let (storage, start, len) = buf.into_parts();
                let rest = len.next_multiple_of(DIRECT_ALIGN) - state.filled;
                let window = Window::new(storage, start + state.filled, rest);
                let offset = state.extent.offset + state.filled as u64;
                match step {
                    Step::Try => Op::ReadNowait(disk.clone(), offset, window),
                    _ => Op::Read(disk.clone(), offset, window),
                }
            }
        };
        self.driver.push(index as u64, op).map_err(|e| failed(state.extent, e))
    }
}

impl Pending {
    fn new(extent: Extent) -> Pending {
        Pending { extent, filled: 0, step: Step::Try, buf: None }
    }

    /// A step has ended: the whole extent, or `None` for the step after it.
    fn ended(&mut self, completion: Completion) -> Result<Option<AlignedBuf>> {
        if self.step == Step::WriteBack {
            // Its failure belongs to the next flush of the writer; the read tells ours.
            self.step = Step::Read;
            return Ok(None);
        }
        let Window { buf, start, .. } = completion.window;
        let parts = (buf, start - self.filled, self.extent.len as usize);
        let buf = AlignedBuf::from_parts(parts);
        match completion.result {
            Err(e) if self.step == Step::Try && would_wait(&e) => self.step = Step::WriteBack,
            Err(e) => return Err(failed(self.extent, e)),
            Ok(0) => return Err(short(self.extent, self.filled)),
            Ok(bytes) => self.filled += bytes,
        }
        if self.filled >= self.extent.len as usize {
            return Ok(Some(buf));
        }
        self.buf = Some(buf);
        Ok(None)
    }
}

fn would_wait(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP))
}

/// A source as its proxy lets another process read it (R13).
pub enum SourceReader {
    /// A read-only descriptor of the disk, and the same open file to look for holes.
    Disk { direct: Fd, file: File, size_bytes: u64 },
    /// A socket to the proxy, which alone may talk to the disk.
    Export { reader: Box<ExportReader>, size_bytes: u64 },
}

impl SourceReader {
    /// What the proxy passed: a file, a block device or a socket.
    pub fn new(passed: OwnedFd, size_bytes: u64) -> Result<SourceReader> {
        let what = |e| Error::io("cannot use a source's descriptor", e);
        let file = File::from(passed);
        if file.metadata().map_err(what)?.file_type().is_socket() {
            let reader = Box::new(ExportReader::new(file.into(), size_bytes)?);
            return Ok(SourceReader::Export { reader, size_bytes });
        }
        let direct = Arc::new(file.try_clone().map_err(what)?.into());
        Ok(SourceReader::Disk { direct, file, size_bytes })
    }

    pub fn size_bytes(&self) -> u64 {
        match self {
            SourceReader::Disk { size_bytes, .. } | SourceReader::Export { size_bytes, .. } => {
                *size_bytes
            }
        }
    }

    /// As [`DirectReader::read`], by `direct` where it is a disk.
    pub fn read(
        &mut self,
        direct: &mut DirectReader,
        extents: &[Extent],
    ) -> Result<Vec<AlignedBuf>> {
        match self {
            SourceReader::Disk { direct: fd, .. } => direct.read(fd, extents),
            SourceReader::Export { reader, .. } => reader.read(extents),
        }
    }

    /// As [`DirectReader::read_each`], by `direct` where it is a disk.
    pub fn read_each(
        &mut self,
        direct: &mut DirectReader,
        extents: &[Extent],
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        match self {
            SourceReader::Disk { direct: fd, .. } => direct.read_each(fd, extents, take),
            SourceReader::Export { reader, .. } => {
                let read = reader.read(extents)?;
                read.iter().enumerate().for_each(|(index, buf)| take(index, buf.as_slice()));
                Ok(())
            }
        }
    }

    /// The run of data or hole at `offset`; an export is all data.
    pub fn run_at(&self, offset: u64) -> std::io::Result<Run> {
        match self {
            SourceReader::Disk { file, size_bytes, .. } => run_at(file, offset, *size_bytes),
            SourceReader::Export { size_bytes, .. } => Ok(Run { is_data: true, end: *size_bytes }),
        }
    }
}

fn failed(extent: Extent, error: std::io::Error) -> Error {
    Error::io(format!("background read of {} bytes at {}", extent.len, extent.offset), error)
}

fn short(extent: Extent, filled: usize) -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "background read of {} bytes at {} ended after {filled}: the source became shorter",
            extent.len, extent.offset
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, FileDisk};

    #[test]
    fn reads_come_back_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let size = 40 * BLOCK_BYTES as usize + 700;
        let bytes: Vec<u8> = (0..size).map(|i| (i / 512) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let disk = FileDisk::open(&path, Access::Read).unwrap();
        let extents: Vec<_> = Extent::new(0, size as u64).pieces(BLOCK_BYTES).collect();
        let mut reader = DirectReader::new().unwrap();
        let disk = disk.open_direct().unwrap();
        let read = reader.read(&disk, &extents).unwrap();
        let joined: Vec<u8> = read.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        assert!(joined == bytes);
        // Handed on one by one; the second time into buffers that hold other blocks by then.
        for extents in [extents.clone(), extents.into_iter().rev().collect()] {
            let mut taken = 0;
            let each = |index: usize, content: &[u8]| {
                assert_eq!(index, taken);
                let (from, to) = (extents[index].offset as usize, extents[index].end() as usize);
                assert!(content == &bytes[from..to], "{:?}", extents[index]);
                taken += 1;
            };
            reader.read_each(&disk, &extents, each).unwrap();
            assert_eq!((taken, reader.spare.len()), (extents.len(), READS_IN_FLIGHT_MAX));
        }
    }

    #[test]
    fn a_read_that_would_wait_for_dirty_pages_has_them_written_back_first() {
        let extent = Extent::new(0, 8192);
        let ended = |pending: &mut Pending, result| {
            let window = match pending.step {
                Step::WriteBack => Window::default(),
                _ => Window::new(vec![0; 16384], pending.filled, 8192 - pending.filled),
            };
            pending.ended(Completion { token: 0, result, window }).map(|buf| buf.is_some())
        };
        let refused = || Err(std::io::Error::from_raw_os_error(libc::EAGAIN));
        let mut pending = Pending::new(extent);
        assert!(!ended(&mut pending, Ok(4096)).unwrap());
        assert!(pending.step == Step::Try);
        assert!(!ended(&mut pending, refused()).unwrap());
        assert!(pending.step == Step::WriteBack && pending.buf.is_some());
        let failed = Err(std::io::Error::from_raw_os_error(libc::EIO));
        assert!(!ended(&mut pending, failed).unwrap());
        assert!(pending.step == Step::Read);
        assert!(ended(&mut pending, refused()).is_err(), "a read that may wait is not refused");
        assert!(ended(&mut pending, Ok(4096)).unwrap());
    }

    #[test]
    fn a_source_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, vec![1; 4096]).unwrap();
        let disk = FileDisk::open(&path, Access::Read).unwrap();
        let mut reader = DirectReader::new().unwrap();
        let error = reader.read(&disk.open_direct().unwrap(), &[Extent::new(0, 8192)]).unwrap_err();
        assert!(error.to_string().contains("became shorter"), "{error}");
    }
}
