//! The mapping, words and locks as the model checker sees them (`--cfg loom`).
//!
//! Every word is an atomic of loom, every cache line of plain bytes a cell that
//! panics when it is read and written without an order between the two. So a header
//! or payload that a reader may see half, or a slot that is reused under a reader,
//! is found without being asked for.
//!
//! [`Fault`] weakens this layer: a proof that cannot fail proves nothing.
//!
//! Invariants that make the unsafe blocks sound: loom runs one thread at a time, and
//! no reference into a cell outlives the call that made it.

use super::Use;
use super::sync::Ordering;
use crate::error::{Error, ErrorKind, Result};
use loom::cell::UnsafeCell;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LockResult};

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fences order nothing.
    Fences,
    /// Every access is relaxed.
    Orders,
    /// Locks exclude nobody.
    Locks,
}

thread_local! {
    // Loom's threads are coroutines of the test's own thread.
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

pub fn set_fault(fault: Option<Fault>) {
    FAULT.set(fault);
}

fn broken(fault: Fault) -> bool {
    FAULT.get() == Some(fault)
}

fn order(asked: Ordering) -> Ordering {
    if broken(Fault::Orders) { Ordering::Relaxed } else { asked }
}

pub fn fence(order: Ordering) {
    if !broken(Fault::Fences) && !broken(Fault::Orders) {
        loom::sync::atomic::fence(order);
    }
}

#[derive(Debug)]
pub struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub fn new(value: u64) -> AtomicU64 {
        AtomicU64(loom::sync::atomic::AtomicU64::new(value))
    }

    pub fn load(&self, asked: Ordering) -> u64 {
        self.0.load(order(asked))
    }

    pub fn store(&self, value: u64, asked: Ordering) {
        self.0.store(value, order(asked));
    }

    pub fn fetch_add(&self, value: u64, asked: Ordering) -> u64 {
        self.0.fetch_add(value, order(asked))
    }

    pub fn fetch_sub(&self, value: u64, asked: Ordering) -> u64 {
        self.0.fetch_sub(value, order(asked))
    }

    pub fn fetch_or(&self, value: u64, asked: Ordering) -> u64 {
        self.0.fetch_or(value, order(asked))
    }

    pub fn fetch_and(&self, value: u64, asked: Ordering) -> u64 {
        self.0.fetch_and(value, order(asked))
    }

    pub fn fetch_max(&self, value: u64, asked: Ordering) -> u64 {
        self.0.fetch_max(value, order(asked))
    }

    pub fn compare_exchange(
        &self,
        from: u64,
        to: u64,
        success: Ordering,
        failure: Ordering,
    ) -> std::result::Result<u64, u64> {
        self.0.compare_exchange(from, to, order(success), order(failure))
    }
}

pub struct Mutex<T> {
    lock: loom::sync::Mutex<()>,
    value: std::cell::UnsafeCell<T>,
}

// SAFETY: loom runs one thread at a time, and the lock orders them.
unsafe impl<T: Send> Sync for Mutex<T> {}

pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    _held: Option<loom::sync::MutexGuard<'a, ()>>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex { lock: loom::sync::Mutex::new(()), value: std::cell::UnsafeCell::new(value) }
    }

    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let held = (!broken(Fault::Locks)).then(|| self.lock.lock().expect("not poisoned"));
        Ok(MutexGuard { mutex: self, _held: held })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held; with the fault, one thread runs at a time and the
        // values are plain data.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.mutex.value.get() }
    }
}

const LINE: u64 = 64;

/// A ring in memory: the words and lines that its maker names, nothing else.
#[derive(Clone)]
pub struct Mapping {
    memory: Arc<Memory>,
}

struct Memory {
    words: BTreeMap<u64, AtomicU64>,
    lines: BTreeMap<u64, UnsafeCell<[u8; LINE as usize]>>,
}

// SAFETY: lines are accessed through loom's cells, which find unordered access.
unsafe impl Sync for Memory {}
// SAFETY: plain data.
unsafe impl Send for Memory {}

impl Mapping {
    /// The model has no files.
    pub fn new(_file: &File, len: u64, how: Use) -> Result<Mapping> {
        let what = format!("{len} bytes (for: {how:?}) are not mapped in the model");
        Err(Error::new(ErrorKind::InvalidInput, what))
    }

    pub fn model(words: &[u64], lines: &[u64]) -> Mapping {
        let word = |at: &u64| (*at, AtomicU64(loom::sync::atomic::AtomicU64::new(0)));
        let line = |at: &u64| (*at, UnsafeCell::new([0; LINE as usize]));
        let words = words.iter().map(word).collect();
        Mapping { memory: Arc::new(Memory { words, lines: lines.iter().map(line).collect() }) }
    }

    /// The bytes of `offset..offset + len` line by line: line, start in it, range.
    fn pieces(
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let into = ((offset + at as u64) % LINE) as usize;
            let bytes = (LINE as usize - into).min(len - at);
            let piece = (offset + at as u64 - into as u64, into, at..at + bytes);
            at += bytes;
            (bytes > 0).then_some(piece)
        })
    }

    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (line, start, range) in Mapping::pieces(offset, into.len()) {
            let part = &mut into[range];
            // SAFETY: see the module's invariants.
            self.memory.lines[&line].with(|cell| unsafe {
                part.copy_from_slice(&(&*cell)[start..start + part.len()]);
            });
        }
    }

    pub fn append_to(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let start = into.len();
        into.resize(start + len, 0);
        self.read(offset, &mut into[start..]);
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        for (line, start, range) in Mapping::pieces(offset, bytes.len()) {
            let part = &bytes[range];
            // SAFETY: see the module's invariants.
            self.memory.lines[&line].with_mut(|cell| unsafe {
                (&mut *cell)[start..start + part.len()].copy_from_slice(part);
            });
        }
    }

    pub fn settle(&self) {}

    pub fn prefetch(&self, _offset: u64, _len: u64) {}

    pub fn word(&self, offset: u64) -> &AtomicU64 {
        &self.memory.words[&offset]
    }
}
