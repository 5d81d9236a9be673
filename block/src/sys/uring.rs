//! The io_uring driver: one ring, used by one thread, over buffers it owns while
//! the kernel does.
//!
//! Invariants that make the unsafe blocks sound:
//! 1. From `push` until its completion is taken, an operation's buffer and
//!    descriptor live in `in_flight`, in heap memory that does not move and that
//!    nothing else can reach.
//! 2. The pointer and length given to the kernel lie inside that buffer; `push`
//!    checks it.
//! 3. A slot of `in_flight` is reused only after its one completion was taken.
//! 4. On drop everything in flight is cancelled and awaited; if that fails, the
//!    buffers are leaked rather than freed under the kernel.

use crate::Extent;
use io_uring::types::{CancelBuilder, Fd as RawTarget, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A descriptor that stays open while any operation uses it.
pub type Fd = Arc<OwnedFd>;

/// A window of an owned buffer: `len` bytes from `start`.
#[derive(Debug, Default)]
pub struct Window {
    pub buf: Vec<u8>,
    pub start: usize,
    pub len: usize,
}

impl Window {
    pub fn new(buf: Vec<u8>, start: usize, len: usize) -> Window {
        Window { buf, start, len }
    }
}

/// What the kernel is asked to do.
#[derive(Debug)]
pub enum Op {
    /// Receive at least one byte from a socket into the window.
    Recv(Fd, Window),
    /// Send the whole window (the kernel retries short sends).
    Send(Fd, Window),
    /// Read at an offset; may be short.
    Read(Fd, u64, Window),
    /// As `Read`; fails with `EAGAIN` where it would have to wait for anything but the
    /// disk itself, such as the writing back of dirty pages, or `EOPNOTSUPP`.
    ReadNowait(Fd, u64, Window),
    /// Write dirty pages of a range back and wait for that. Not durable.
    WriteBack(Fd, Extent),
    /// Write at an offset; may be short.
    Write(Fd, u64, Window),
    /// fdatasync.
    Datasync(Fd),
    /// Make a range read as zero: deallocated, or kept allocated.
    Zero(Fd, Extent, Zeroing),
    /// Wait until the descriptor is readable.
    PollIn(Fd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    Deallocate,
    KeepAllocated,
}

/// The end of an operation, with its buffer.
#[derive(Debug)]
pub struct Completion {
    pub token: u64,
    /// Bytes moved, or the operation's error.
    pub result: io::Result<usize>,
    pub window: Window,
}

struct InFlight {
    token: u64,
    window: Window,
    _fd: Fd,
}

/// Bound on how long drop waits for cancelled operations before it leaks.
const DROP_WAIT: Duration = Duration::from_secs(5);

pub struct Driver {
    ring: IoUring,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// The ring belongs to the thread that made it (SINGLE_ISSUER).
    _not_send: PhantomData<*const ()>,
}

impl Driver {
    /// A ring for `entries` submissions, bound to the calling thread. Fails with a
    /// sentence when the kernel (Linux 6.1 or newer) does not offer what is needed.
    pub fn new(entries: u32) -> io::Result<Driver> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_clamp()
            .build(entries)
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!(
                        "io_uring is not usable ({error}): Linux 6.1 or newer is needed, and \
                         kernel.io_uring_disabled and seccomp must allow it"
                    ),
                )
            })?;
        Ok(Driver { ring, in_flight: Vec::new(), free: Vec::new(), _not_send: PhantomData })
    }

    /// Hands what is queued to the kernel without waiting for anything.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(0, None)
    }

    /// Whether [`Driver::wait`] would find a completion at once. Costs two loads, no
    /// system call: made for asking in a loop.
    pub fn is_ready(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Operations pushed whose completions were not taken yet.
    pub fn pending(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Queues an operation. It reaches the kernel with the next [`Driver::wait`].
    ///
    /// # Panics
    /// If the window does not lie inside its buffer.
    pub fn push(&mut self, token: u64, op: Op) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        let (entry, in_flight) = build(token, op);
        let entry = entry.user_data(slot as u64);
        self.in_flight[slot] = Some(in_flight);
        loop {
            // SAFETY: invariants 1 and 2; the entry was built from the in-flight slot.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            if let Err(error) = self.enter(0, None) {
                self.in_flight[slot] = None;
                self.free.push(slot);
                return Err(error);
            }
        }
    }

    /// Submits what is queued, waits for `min` completions or `timeout`, and
    /// appends all that are ready to `out`. With a timeout of zero and nothing queued
    /// or ready it makes no system call.
    pub fn wait(
        &mut self,
        min: usize,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let is_look = timeout == Some(Duration::ZERO);
        if !is_look || self.is_ready() || !self.ring.submission().is_empty() {
            self.enter(if is_look { 0 } else { min }, timeout)?;
        }
        self.take_ready(out);
        Ok(())
    }

    fn enter(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<()> {
        let submitted = match timeout {
            Some(timeout) if min > 0 => {
                let limit = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                let args = SubmitArgs::new().timespec(&limit);
                self.ring.submitter().submit_with_args(min, &args)
            }
            _ => self.ring.submit_and_wait(min),
        };
        match submitted {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A signal, the time limit, or completions to take first.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn take_ready(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            // Invariant 3: one completion a slot; a second would be a kernel fault.
            let done = self.in_flight[slot].take().expect("completion of an empty slot");
            self.free.push(slot);
            let result = match entry.result() {
                bytes if bytes >= 0 => Ok(bytes as usize),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
            out.push(Completion { token: done.token, result, window: done.window });
        }
    }
}

fn build(token: u64, op: Op) -> (squeue::Entry, InFlight) {
    let hold = |fd: Fd, window: Window| InFlight { token, window, _fd: fd };
    match op {
        Op::Recv(fd, mut window) => {
            let (pointer, len) = window_parts(&mut window);
            (opcode::Recv::new(target(&fd), pointer, len).build(), hold(fd, window))
        }
        Op::Send(fd, mut window) => {
            let (pointer, len) = window_parts(&mut window);
            let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
            (opcode::Send::new(target(&fd), pointer, len).flags(flags).build(), hold(fd, window))
        }
        Op::Read(fd, offset, mut window) => {
            let (pointer, len) = window_parts(&mut window);
            let entry = opcode::Read::new(target(&fd), pointer, len).offset(offset).build();
            (entry, hold(fd, window))
        }
        Op::ReadNowait(fd, offset, mut window) => {
            let (pointer, len) = window_parts(&mut window);
            let read = opcode::Read::new(target(&fd), pointer, len).offset(offset);
            (read.rw_flags(libc::RWF_NOWAIT).build(), hold(fd, window))
        }
        Op::WriteBack(fd, extent) => {
            let len = u32::try_from(extent.len).expect("an I/O is at most 4 GiB");
            let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            let entry = opcode::SyncFileRange::new(target(&fd), len)
                .offset(extent.offset)
                .flags(flags)
                .build();
            (entry, hold(fd, Window::default()))
        }
        Op::Write(fd, offset, mut window) => {
            let (pointer, len) = window_parts(&mut window);
            let entry = opcode::Write::new(target(&fd), pointer, len).offset(offset).build();
            (entry, hold(fd, window))
        }
        Op::Datasync(fd) => {
            let entry = opcode::Fsync::new(target(&fd)).flags(FsyncFlags::DATASYNC).build();
            (entry, hold(fd, Window::default()))
        }
        Op::Zero(fd, extent, how) => {
            let mode = match how {
                Zeroing::Deallocate => libc::FALLOC_FL_PUNCH_HOLE,
                Zeroing::KeepAllocated => libc::FALLOC_FL_ZERO_RANGE,
            };
            let entry = opcode::Fallocate::new(target(&fd), extent.len)
                .offset(extent.offset)
                .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
                .build();
            (entry, hold(fd, Window::default()))
        }
        Op::PollIn(fd) => {
            let entry = opcode::PollAdd::new(target(&fd), libc::POLLIN as u32).build();
            (entry, hold(fd, Window::default()))
        }
    }
}

fn target(fd: &Fd) -> RawTarget {
    RawTarget(fd.as_raw_fd())
}

/// Invariant 2 is established here.
fn window_parts(window: &mut Window) -> (*mut u8, u32) {
    let len = u32::try_from(window.len).expect("an I/O is at most 4 GiB");
    let bytes = &mut window.buf[window.start..window.start + window.len];
    (bytes.as_mut_ptr(), len)
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut done = Vec::new();
        let deadline = std::time::Instant::now() + DROP_WAIT;
        while self.pending() > 0 {
            let everything = CancelBuilder::any();
            let _ = self.ring.submitter().register_sync_cancel(None, everything);
            let waited = self.wait(1, Some(Duration::from_millis(100)), &mut done);
            done.clear();
            if waited.is_err() || std::time::Instant::now() > deadline {
                // Invariant 4.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                self.free.clear();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_round_trip_returns_the_buffers() {
        let (left, right) = UnixStream::pair().unwrap();
        let (left, right): (Fd, Fd) = (Arc::new(left.into()), Arc::new(right.into()));
        let mut driver = Driver::new(8).unwrap();
        driver.push(1, Op::Recv(right, Window::new(vec![0; 16], 4, 8))).unwrap();
        driver.push(2, Op::Send(left, Window::new(b"..hello".to_vec(), 2, 5))).unwrap();
        let mut done = Vec::new();
        while done.len() < 2 {
            driver.wait(1, None, &mut done).unwrap();
        }
        let received = done.iter().find(|c| c.token == 1).unwrap();
        assert_eq!(*received.result.as_ref().unwrap(), 5);
        assert_eq!(&received.window.buf[4..9], b"hello");
        assert_eq!(driver.pending(), 0);
    }

    #[test]
    fn dropping_the_driver_ends_a_receive_that_never_comes() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut driver = Driver::new(8).unwrap();
        let right: Fd = Arc::new(right.into());
        driver.push(1, Op::Recv(right.clone(), Window::new(vec![0; 16], 0, 16))).unwrap();
        driver.wait(0, None, &mut Vec::new()).unwrap();
        drop(driver);
        assert_eq!(Arc::strong_count(&right), 1);
        drop(left);
    }

    #[test]
    fn more_operations_than_entries_are_taken() {
        let file = tempfile::tempfile().unwrap();
        let fd: Fd = Arc::new(file.into());
        let mut driver = Driver::new(2).unwrap();
        for i in 0..20u64 {
            driver
                .push(i, Op::Write(fd.clone(), i * 4, Window::new(vec![i as u8; 4], 0, 4)))
                .unwrap();
        }
        let mut done = Vec::new();
        while done.len() < 20 {
            driver.wait(1, None, &mut done).unwrap();
        }
        let mut tokens: Vec<_> = done.iter().map(|c| c.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..20).collect::<Vec<_>>());
        assert!(done.iter().all(|c| *c.result.as_ref().unwrap() == 4));
    }
}
