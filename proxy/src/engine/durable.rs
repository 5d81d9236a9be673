//! Waiting for the journal's disk: durability "flush" and "write".
//!
//! A flush is answered when the source is flushed and the spill is synced up to every
//! record acknowledged before it. Where one flush of the device serves both
//! (`journal/src/spill/joint.rs`), the source's is issued once the spill's writes are
//! complete; elsewhere both are issued together:
//!
//! ```text
//!            flush asked for
//!    together │            │ one for both, records not on disk yet
//!             v            v
//!          Issued <───── Held     on disk, or the bound is over, or the disk is faulty
//!             │ fdatasync ended
//!             v
//!          Ended ──> answered     records durable, or the bound is over
//! ```
//!
//! The guest is never held beyond [`DURABLE_WAIT_MAX`], nor at all while the spill has no
//! room or no disk, unless the policy is strict (R14): then without bound.

use super::core::{Core, Waiter};
use super::run::Engine;
use super::slots::Key;
use crate::latency::Timing;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};
use towline_block::Backend;
use towline_journal::Durability;

/// How long an answer waits for the journal's disk beyond the source (R14). A disk that
/// takes longer is broken or hopelessly busy; guests give up after 30 s.
pub const DURABLE_WAIT_MAX: Duration = Duration::from_secs(1);

/// What waits for the journal's disk on one volume.
#[derive(Default)]
pub(super) struct Waits {
    /// The records that the fdatasync in flight, or just ended, has to wait for.
    pub needed: u64,
    /// Records that the fdatasync in flight makes durable in the spill.
    covered: u64,
    flush: Flush,
    /// The bound of a flush that was held, for its answer, too.
    held_until: Option<Instant>,
    /// Changes in the order of their records, with durability "write".
    changes: VecDeque<Waiting>,
    /// It was said that answers go out early.
    is_late: AtomicBool,
    wake: WakeOnDurable,
}

/// Whether a volume's thread wants to be woken when more of the journal is durable. It
/// says so before it looks whether enough is; the journal looks here after it has made more
/// durable: one of the two sees the other.
#[derive(Clone, Default)]
pub struct WakeOnDurable(Arc<AtomicBool>);

impl WakeOnDurable {
    pub fn is_wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst)
    }

    fn ask(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn rest(&self) {
        if self.0.load(Ordering::Relaxed) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
}

/// Where the flush under way stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flush {
    /// None, or its fdatasync is in flight.
    #[default]
    Issued,
    /// Its fdatasync waits for the spill's writes, at most until then.
    Held(Option<Instant>),
    /// The fdatasync has ended; the journal has not.
    Ended(Option<Instant>),
}

struct Waiting {
    needed: u64,
    until: Option<Instant>,
    key: Key,
    cookie: u64,
    timing: Timing,
}

impl Waits {
    pub fn new(wake: WakeOnDurable) -> Waits {
        Waits { wake, ..Waits::default() }
    }

    /// When the first answer goes out in any case.
    pub fn deadline(&self) -> Option<Instant> {
        let change = self.changes.front().and_then(|change| change.until);
        let flush = match self.flush {
            Flush::Held(until) | Flush::Ended(until) => until,
            Flush::Issued => None,
        };
        [flush, change].into_iter().flatten().min()
    }
}

impl Core {
    /// A change is done at the source: true when its answer waits for the disk.
    pub(super) fn waits_for_journal(&mut self, key: Key, cookie: u64, timing: Timing) -> bool {
        if self.volume.durability() != Durability::Write {
            return false;
        }
        let needed = self.volume.persist();
        self.waits.wake.ask();
        if self.is_durable(needed) {
            return false;
        }
        let until = self.bound();
        self.waits.changes.push_back(Waiting { needed, until, key, cookie, timing });
        true
    }

    /// When an answer that begins to wait now goes out in any case.
    fn bound(&self) -> Option<Instant> {
        (!self.volume.is_strict()).then(|| self.now + DURABLE_WAIT_MAX)
    }

    /// Writes what the flush made here needs on disk, too. False: the journal has to be asked.
    pub(super) fn write_here(&mut self) -> bool {
        self.waits.held_until = None;
        if self.is_on_disk() {
            return true;
        }
        // Both writes are under way together.
        if let Backend::File(disk) = self.volume.disk().backend() {
            disk.begin_write_back();
        }
        self.volume.persist_here(self.waits.needed)
    }

    /// Whether the fdatasync now due waits for the spill's writes.
    pub(super) fn hold_sync(&mut self) -> bool {
        self.waits.held_until = None;
        self.waits.wake.ask();
        if !self.volume.is_flushed_with_journal() || self.is_on_disk() {
            return false;
        }
        self.waits.held_until = self.bound();
        self.waits.flush = Flush::Held(self.waits.held_until);
        true
    }

    /// What the flush needs is written, or cannot be.
    fn is_on_disk(&self) -> bool {
        let needed = self.waits.needed;
        self.volume.flushable() >= needed || self.is_durable(needed)
    }

    /// The fdatasync is issued: what is written by now is flushed with it.
    pub(super) fn note_issue(&mut self) {
        self.waits.flush = Flush::Issued;
        self.waits.covered = match self.volume.is_flushed_with_journal() {
            true => self.volume.flushable(),
            false => 0,
        };
    }

    pub(super) fn note_end(&mut self, succeeded: bool) {
        self.volume.flushed(std::mem::take(&mut self.waits.covered), succeeded);
    }

    fn is_durable(&self, needed: u64) -> bool {
        self.volume.is_durable(needed, || {
            if !self.waits.is_late.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    volume = %self.volume.name(),
                    "the spill has no room or no working disk: flushes and writes are answered \
                     without it; after a power loss their changes are found by comparing"
                );
            }
        })
    }
}

impl Engine {
    /// The source's part of a flush has ended: true when the journal's has not.
    pub(super) fn flush_waits(&mut self) -> bool {
        let core = &mut self.core;
        if core.is_durable(core.waits.needed) {
            return false;
        }
        core.waits.wake.ask();
        if core.is_durable(core.waits.needed) {
            return false;
        }
        let until = core.waits.held_until.or_else(|| core.bound());
        core.waits.flush = Flush::Ended(until);
        true
    }

    /// Answers whoever need not wait any longer.
    pub(super) fn answer_durable(&mut self) -> io::Result<()> {
        let now = self.core.now;
        let is_over = |until: Option<Instant>| until.is_some_and(|until| now >= until);
        match self.core.waits.flush {
            Flush::Held(until) if self.core.is_on_disk() || is_over(until) => {
                self.core.issue_sync()?;
            }
            Flush::Ended(until) => {
                let durable = self.core.is_durable(self.core.waits.needed);
                if durable || is_over(until) {
                    self.core.late(!durable);
                    self.core.waits.flush = Flush::Issued;
                    self.answer_sync(true)?;
                }
            }
            Flush::Held(_) | Flush::Issued => {}
        }
        while let Some(change) = self.core.waits.changes.front() {
            let (durable, late) = (self.core.is_durable(change.needed), is_over(change.until));
            if !durable && !late {
                break;
            }
            self.core.late(!durable);
            let Some(change) = self.core.waits.changes.pop_front() else { break };
            self.with(change.key, |core, connection| {
                core.synced(connection, change.cookie, true, change.timing);
                core.enqueue(change.key, connection);
                Ok(())
            })?;
        }
        if self.core.waits.flush == Flush::Issued && self.core.waits.changes.is_empty() {
            self.core.waits.wake.rest();
        }
        Ok(())
    }

    /// Answers everyone who waits for the fdatasync that has ended.
    pub(super) fn answer_sync(&mut self, succeeded: bool) -> io::Result<()> {
        let mut waiters = self.core.syncs.finish(succeeded);
        for waiter in waiters.drain(..) {
            match waiter {
                Waiter::End => {}
                Waiter::Reply { key, cookie, mut timing } => {
                    self.with(key, |core, connection| {
                        timing.add_source(core.sync_took);
                        core.synced(connection, cookie, succeeded, timing);
                        core.enqueue(key, connection);
                        Ok(())
                    })?
                }
                Waiter::Seal(done) => super::obey::answer(&done, super::obey::sealed(succeeded)),
            }
        }
        self.core.syncs.recycle(waiters);
        Ok(())
    }
}

impl Core {
    /// Says once that answers go out before the journal is durable, and once that they
    /// do not any more.
    fn late(&self, is_late: bool) {
        if !is_late {
            if self.volume.can_persist() && self.waits.is_late.swap(false, Ordering::Relaxed) {
                let volume = self.volume.name();
                tracing::info!(%volume, "answers wait for the spill again, and in time");
            }
            return;
        }
        self.counters.undurable.add(1);
        if !self.waits.is_late.swap(true, Ordering::Relaxed) {
            tracing::error!(
                volume = %self.volume.name(),
                waited = ?DURABLE_WAIT_MAX,
                "the spill's disk is too slow: an answer goes out before the journal is durable"
            );
        }
    }
}
