//! Memory of batches that are done with, for batches to come: fresh memory costs a page fault each
//! 4 KiB, some 4 % of what a baseline costs both ends. One pool for the process.

use std::sync::{Mutex, PoisonError};

/// Kept at most, by capacity: what one group has in work.
const KEEP_BYTES_MAX: usize = 32 << 20;
/// Less is not worth a look.
const KEEP_BYTES_MIN: usize = 256 << 10;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// Memory for so many bytes where there is some, with whatever is in it; else none.
pub fn take(bytes: usize) -> Vec<u8> {
    match bytes < KEEP_BYTES_MIN {
        true => Vec::new(),
        false => POOL.lock().unwrap_or_else(PoisonError::into_inner).take(bytes),
    }
}

/// What is in it does not matter any more.
pub fn put(memory: Vec<u8>) {
    if memory.capacity() >= KEEP_BYTES_MIN {
        POOL.lock().unwrap_or_else(PoisonError::into_inner).put(memory);
    }
}

struct Pool {
    kept: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    const fn new() -> Pool {
        Pool { kept: Vec::new(), bytes: 0 }
    }

    /// The last one that is large enough: the one most likely in a cache. Not a much larger one:
    /// what is counted in bytes received would be several times that in memory.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let fits = |memory: &Vec<u8>| (bytes..=4 * bytes).contains(&memory.capacity());
        let found = self.kept.iter().rposition(fits);
        let Some(at) = found else { return Vec::new() };
        let memory = self.kept.remove(at);
        self.bytes -= memory.capacity();
        memory
    }

    /// Without room the oldest ones go.
    fn put(&mut self, memory: Vec<u8>) {
        if memory.capacity() > KEEP_BYTES_MAX {
            return;
        }
        self.bytes += memory.capacity();
        self.kept.push(memory);
        while self.bytes > KEEP_BYTES_MAX {
            self.bytes -= self.kept.remove(0).capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_memory_that_is_large_enough_is_used_again_and_no_more_than_the_limit_is_kept() {
        let mut pool = Pool::new();
        assert_eq!(pool.take(1 << 20).capacity(), 0);
        for mib in [1, 4, 2] {
            pool.put(Vec::with_capacity(mib << 20));
        }
        assert_eq!(pool.take(1 << 20).capacity(), 2 << 20);
        assert_eq!(pool.take(2 << 20).capacity(), 4 << 20);
        assert_eq!(pool.take(2 << 20).capacity(), 0);
        assert_eq!(pool.take(200 << 10).capacity(), 0, "far too large");
        for _ in 0..40 {
            pool.put(Vec::with_capacity(3 << 20));
        }
        assert_eq!((pool.kept.len(), pool.bytes), (10, 30 << 20), "the one of 1 MiB went first");
        pool.put(Vec::with_capacity(KEEP_BYTES_MAX + 1));
        assert_eq!(pool.bytes, 30 << 20);
    }
}
