//! Whether a flush is made on the volume's thread, or given to the kernel's workers.
//!
//! A worker has to be woken, and wakes us when it is done: 100 us where cores sleep, as
//! much as the flush itself. While it flushes, the thread serves others. A single client
//! that waits for its flush has no others, so for it the thread flushes itself:
//!
//! ```text
//!                     flushed here, nothing came meanwhile: pause halves
//!                   +----------------------------------------------------+
//!                   v                                                    |
//!   left = 0: here, if one client waits for one request ---------- + ----+
//!                   ^                                              |
//!                   | flushes by a worker count down               | something came: it waited for us;
//!   left > 0: by a worker  <---------------------------------------+ pause doubles
//! ```
//! A disk that takes longer than [`TOOK_MAX`] is never waited for here. Where a flush has to
//! find the records in the spill, the thread writes these, too (`journal/src/spill/lone.rs`).

use super::run::Engine;
use std::io;
use std::time::{Duration, Instant};
use towline_block::Backend;

/// What the rest of the volume (claims, a new connection, a hold) may have to wait.
const TOOK_MAX: Duration = Duration::from_millis(2);
/// Flushes by a worker after a row of such that somebody waited for.
const PAUSE_MAX: u32 = 1024;

#[derive(Debug, Default)]
pub(super) struct Alone {
    left: u32,
    pause: u32,
}

impl Alone {
    /// Whether the next flush may be made here; `took` is what the last one took.
    fn may(&mut self, took: Duration) -> bool {
        if self.left == 0 && took <= TOOK_MAX {
            return true;
        }
        self.left = self.left.saturating_sub(1);
        false
    }

    fn flushed(&mut self, somebody_waited: bool) {
        if somebody_waited {
            self.pause = (self.pause * 2).clamp(1, PAUSE_MAX);
            self.left = self.pause;
        } else {
            self.pause /= 2;
        }
    }
}

impl Engine {
    /// Whether one client waits for one flush, and for nothing else.
    fn is_alone(&self) -> bool {
        let core = &self.core;
        core.requests == 1
            && self.connections.keys().take(2).count() == 1
            && core.ready.is_empty()
            // A file in the page cache.
            && core.rules.is_none()
            && core.pending.is_idle()
            && core.volume.is_flushed_alone()
    }

    /// Begins the flush that is due, if one is.
    pub(super) fn start_sync(&mut self) -> io::Result<()> {
        if !self.core.syncs.start() {
            return Ok(());
        }
        if !self.is_alone() || !self.core.alone.may(self.core.sync_took) {
            return self.core.begin_sync();
        }
        let core = &mut self.core;
        core.take_place();
        if !core.write_here() {
            return core.ask_journal();
        }
        core.note_issue();
        core.counters.syncs.add(1);
        core.sync_begun = Instant::now();
        let result = match core.volume.disk().backend() {
            Backend::File(disk) => disk.flush().map(|()| 0).map_err(io::Error::other),
            Backend::Upstream(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        core.now = Instant::now();
        let somebody_waited = core.driver.is_ready() || self.has_more();
        self.core.alone.flushed(somebody_waited);
        self.synced(result)
    }

    /// Whether the client has sent more, of which the kernel was not asked to tell.
    fn has_more(&mut self) -> bool {
        let Some(key) = self.connections.keys().next() else { return false };
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if connection.receiving {
            return false;
        }
        let received = connection.receive_now();
        if let Some(received) = &received {
            self.core.arrived(key, connection, received);
        }
        received.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_send_during_a_flush_get_workers_for_longer_each_time() {
        let mut alone = Alone::default();
        let mut by_workers = 0;
        for _ in 0..10_000 {
            match alone.may(Duration::ZERO) {
                true => alone.flushed(true),
                false => by_workers += 1,
            }
        }
        assert!(by_workers > 9_900, "{by_workers}");
        let here = (0..10_000)
            .filter(|_| {
                let here = alone.may(Duration::ZERO);
                if here {
                    alone.flushed(false);
                }
                here
            })
            .count();
        assert!(here > 8_900, "{here}");
    }

    #[test]
    fn a_slow_disk_is_not_waited_for() {
        let mut alone = Alone::default();
        assert!(alone.may(TOOK_MAX));
        assert!(!alone.may(TOOK_MAX + Duration::from_nanos(1)));
        assert!(alone.may(TOOK_MAX));
    }
}
