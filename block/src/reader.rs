//! Background reads of a source: asynchronous, O_DIRECT, at most one change-map
//! block each, a few in flight. Measured: this leaves a guest's buffered writes at
//! their latency, where a synchronous O_DIRECT reader multiplies it by 60 and
//! readahead by 14 (docs/design/0001).

use crate::buffer::{AlignedBuf, DIRECT_ALIGN};
use crate::disk::{Run, run_at};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::uring::{Driver, Fd, Op, Window};
use crate::upstream::ExportReader;
use crate::{BLOCK_BYTES, Extent};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

/// Reads in flight at once. 8 x 64 KiB saturate a SATA SSD and half an NVMe drive.
pub const READS_IN_FLIGHT_MAX: usize = 8;

/// Bound to the thread that made it.
pub struct DirectReader {
    driver: Driver,
}

struct Pending {
    extent: Extent,
    /// Bytes that have arrived.
    filled: usize,
}

impl DirectReader {
    pub fn new() -> Result<DirectReader> {
        let driver = Driver::new(READS_IN_FLIGHT_MAX as u32 * 2)
            .map_err(|e| Error::io("background reader", e).with_kind(ErrorKind::Unsupported))?;
        Ok(DirectReader { driver })
    }

    /// Reads each extent whole. Starts must be multiples of 4 KiB; lengths at most
    /// [`BLOCK_BYTES`], multiples of 4 KiB except at the end of the disk.
    ///
    /// # Errors
    /// The first read that failed or found the disk shorter than asked.
    pub fn read(&mut self, disk: &Fd, extents: &[Extent]) -> Result<Vec<AlignedBuf>> {
        let mut results: Vec<Option<AlignedBuf>> = extents.iter().map(|_| None).collect();
        let mut pending: Vec<Pending> =
            extents.iter().map(|extent| Pending { extent: *extent, filled: 0 }).collect();
        let mut next = 0;
        let mut done = Vec::new();
        let mut failure = None;
        loop {
            while failure.is_none()
                && next < extents.len()
                && self.driver.pending() < READS_IN_FLIGHT_MAX
            {
                assert!(extents[next].len <= BLOCK_BYTES, "a background read is one block");
                let buf = AlignedBuf::new(extents[next].len as usize);
                if let Err(e) = self.submit(disk, next, &pending[next], buf) {
                    failure = Some(e);
                }
                next += 1;
            }
            if self.driver.pending() == 0 {
                break;
            }
            self.driver.wait(1, None, &mut done).map_err(|e| Error::io("background read", e))?;
            for completion in done.drain(..) {
                let index = completion.token as usize;
                let state = &mut pending[index];
                let window = completion.window;
                let start = window.start - state.filled;
                let buf = AlignedBuf::from_parts((window.buf, start, state.extent.len as usize));
                match completion.result {
                    Err(e) => failure = Some(failed(state.extent, e)),
                    Ok(0) => failure = Some(short(state.extent, state.filled)),
                    Ok(bytes) => {
                        state.filled += bytes;
                        if state.filled >= state.extent.len as usize {
                            results[index] = Some(buf);
                        } else if let Err(e) = self.submit(disk, index, state, buf) {
                            failure = Some(e);
                        }
                    }
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(results.into_iter().map(|r| r.expect("every read ended")).collect()),
        }
    }

    fn submit(&mut self, disk: &Fd, index: usize, state: &Pending, buf: AlignedBuf) -> Result<()> {
        let (storage, start, len) = buf.into_parts();
        let rest = len.next_multiple_of(DIRECT_ALIGN) - state.filled;
        let window = Window::new(storage, start + state.filled, rest);
        let offset = state.extent.offset + state.filled as u64;
        self.driver
            .push(index as u64, Op::Read(disk.clone(), offset, window))
            .map_err(|e| failed(state.extent, e))
    }
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
        let read = reader.read(&disk.open_direct().unwrap(), &extents).unwrap();
        let joined: Vec<u8> = read.iter().flat_map(|b| b.as_slice().to_vec()).collect();
        assert!(joined == bytes);
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
