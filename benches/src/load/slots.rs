//! The requests in flight of one connection. The slot's number is the request's
//! cookie. Shared by the sending and the receiving half, which in the open loop are
//! two threads: each word is written by one side while the other leaves it alone.

use super::tally::Kind;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Slots {
    /// When the request was sent or due; 0: the slot is free.
    since_ns: Box<[AtomicU64]>,
    /// Kind and length.
    what: Box<[AtomicU64]>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Slots {
        let words = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Slots { since_ns: words(), what: words() }
    }

    pub(super) fn len(&self) -> usize {
        self.since_ns.len()
    }

    pub(super) fn is_free(&self, slot: usize) -> bool {
        self.since_ns[slot].load(Ordering::Acquire) == 0
    }

    pub(super) fn take(&self, slot: usize, kind: Kind, len: u32, since_ns: u64) {
        self.what[slot].store(kind as u64 | u64::from(len) << 8, Ordering::Relaxed);
        self.since_ns[slot].store(since_ns, Ordering::Release);
    }

    /// Kind, length and start of a request in flight.
    pub(super) fn get(&self, cookie: u64) -> Option<(Kind, u32, u64)> {
        let slot = usize::try_from(cookie).ok().filter(|&slot| slot < self.len())?;
        let since = self.since_ns[slot].load(Ordering::Acquire);
        let what = self.what[slot].load(Ordering::Relaxed);
        let kind = *Kind::ALL.get((what & 0xff) as usize)?;
        (since != 0).then_some((kind, (what >> 8) as u32, since))
    }

    pub(super) fn free(&self, cookie: u64) {
        self.since_ns[cookie as usize].store(0, Ordering::Release);
    }
}
