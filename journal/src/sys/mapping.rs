//! A shared file mapping, used by two processes.
//!
//! Invariants that make the unsafe blocks sound:
//! 1. The mapping lives as long as `Mapping`; no pointer or slice into it leaves
//!    this file, except atomics borrowed from `&self`.
//! 2. Every access is checked against the mapping's length, which was checked
//!    against the file's length when it was made. Nobody shortens a ring file:
//!    it is mode 0600 and only this crate opens it.
//! 3. Bytes are copied in and out through raw pointers, never seen as `&[u8]`,
//!    because another process may write them at the same time. Readers of records
//!    re-check the commit word and verify checksums on their copy.
//! 4. Words shared between threads and processes are accessed as atomics only.

use super::Use;
use super::sync::AtomicU64;
use crate::error::{Error, ErrorKind, Result};
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use towline_block::copy::at_once;

/// Mapped and locked at a time. The kernel holds the process's memory map meanwhile: no
/// thread starts, none maps memory; 256 MiB at once kept a start from serving for 90 ms.
const SETTLE_PIECE_BYTES: usize = 4 << 20;

pub struct Mapping {
    raw: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Maps `len` bytes of `file`.
    pub fn new(file: &File, len: u64, how: Use) -> Result<Mapping> {
        let file_len = file.metadata().map_err(|e| Error::io("cannot stat the ring", e))?.len();
        if file_len < len {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the file has {file_len} bytes where its header says {len}"),
            ));
        }
        let map_len = usize::try_from(len).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "the ring exceeds the address space")
        })?;
        let mut options = MmapOptions::new();
        options.len(map_len);
        if how == Use::Drain {
            options.populate();
        }
        let writable = how == Use::Write;
        let raw = if writable { options.map_raw(file) } else { options.map_raw_read_only(file) }
            .map_err(|e| Error::io(format!("cannot map {len} bytes of ring"), e))?;
        Ok(Mapping { raw, writable })
    }

    /// Maps every page, and locks them in memory where the limits allow it.
    pub fn settle(&self) {
        let pieces = || (0..self.raw.len()).step_by(SETTLE_PIECE_BYTES);
        let end = |at: usize| (at + SETTLE_PIECE_BYTES).min(self.raw.len());
        if pieces().all(|at| self.lock(at, end(at) - at).is_ok()) {
            return;
        }
        tracing::debug!("ring not locked in memory: the memlock limit is lower than its size");
        for at in pieces() {
            if let Err(e) = self.raw.advise_range(Advice::PopulateWrite, at, end(at) - at) {
                tracing::debug!("ring not populated: {e}");
                return;
            }
        }
    }

    fn lock(&self, offset: usize, len: usize) -> std::io::Result<()> {
        let from = self.at(offset as u64, len);
        // SAFETY: invariant 2: the range lies in the mapping, whose content does not change.
        match unsafe { libc::mlock(from.cast_const().cast(), len) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    pub fn len(&self) -> u64 {
        self.raw.len() as u64
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let end = offset.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{len} bytes at {offset} lie outside the mapping of {} bytes",
            self.len()
        );
        // SAFETY: invariant 2, just checked.
        unsafe { self.raw.as_mut_ptr().add(offset as usize) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: invariants 1 to 3; `into` is private memory and cannot overlap.
        unsafe { copy(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes out, behind what `into` has. Not zeroed first: a shipper does this with
    /// every byte of the guests.
    pub fn append_to(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let from = self.at(offset, len);
        into.reserve(len);
        // SAFETY: invariants 1 to 3; `reserve` has made room for `len` bytes in private
        // memory, which cannot overlap, and all of them are written before they count.
        unsafe {
            copy(from, into.as_mut_ptr().add(into.len()), len);
            into.set_len(into.len() + len);
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// On a read-only mapping: only the owner of the ring writes.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(self.writable, "a reader does not write the ring");
        let to = self.at(offset, bytes.len());
        // SAFETY: invariants 1 to 3; `bytes` is private memory and cannot overlap.
        unsafe { copy(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Asks the processor for lines that are about to be written. Changes nothing.
    pub fn prefetch(&self, offset: u64, len: u64) {
        let at = self.at(offset, len as usize);
        for line in (0..len as usize).step_by(64) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint; inside the mapping, invariant 2.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_ET0>(at.add(line).cast());
            }
        }
    }

    /// The 64-bit word at `offset`, which must be aligned to 8.
    pub fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "the word at {offset} is not aligned");
        let pointer = self.at(offset, 8).cast::<u64>();
        // SAFETY: invariants 1, 2 and 4; aligned because mappings begin on a page.
        // Stores through a read-only mapping would fault: callers that store own a
        // writable one, which `Journal` alone creates.
        unsafe { AtomicU64::from_ptr(pointer) }
    }
}

/// As `copy_nonoverlapping`, in pieces where one would be slow.
///
/// # Safety
/// As of `copy_nonoverlapping`: `from` may be read and `into` written for `len` bytes, and they
/// do not overlap.
unsafe fn copy(from: *const u8, into: *mut u8, len: usize) {
    let at_once = at_once(into, from);
    let mut done = 0;
    while done < len {
        let now = at_once.min(len - done);
        // SAFETY: `done + now <= len`, so the caller's promise covers it.
        unsafe { std::ptr::copy_nonoverlapping(from.add(done), into.add(done), now) };
        done += now;
    }
}
