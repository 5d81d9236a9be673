//! Whether to look for the next request for a moment before sleeping.
//!
//! Waking a sleeping core costs tens of microseconds where it has to be woken by an
//! interrupt, most of the time of a small request. Looking costs the core's time, so
//! it is done only while it pays off and nobody else wants the core:
//!
//! ```text
//!             a look found something: pause halves
//!          +------------------------------------+
//!          v                                    |
//!   pause = 0: look before sleeping  ---------- + ---> found nothing: pause doubles
//!          ^                                    |
//!          |  sleeps counted down to 0          +---> somebody else ran on the core:
//!   pause > 0: sleep at once  <-----------------+     sleep at once for `off`, which
//!                                                     doubles each time
//! ```
//! Each look yields the core to whoever waits for it, and a look that took long was
//! one in which somebody did.

use super::run::Engine;
use super::slots::Key;
use std::io;
use std::time::{Duration, Instant};

/// How much of a core may be spent on answering sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatencyPolicy {
    /// Looks for the next request while that pays off and the core is idle otherwise.
    #[default]
    Balanced,
    /// Looks longer, and lets no processor of the machine halt while a client is served.
    Lowest,
    /// Sleeps whenever there is nothing to do.
    Frugal,
}

/// A client woken by our answer sends its next request within this: the wake-up of an
/// idle virtual core and then some.
const LOOK_MAX: Duration = Duration::from_micros(50);
/// The same for [`LatencyPolicy::Lowest`]: clients that think for a while.
const LOOK_LOWEST_MAX: Duration = Duration::from_micros(200);
/// Sleeps after a row of vain looks: one look of 50 us in 1024 requests is nothing.
const PAUSE_MAX: u32 = 1024;
/// A look, with its yield, takes less than 2 us unless somebody else ran.
const LONG_LOOK: Duration = Duration::from_micros(20);
/// A client that keeps more requests than this in flight gains nothing from a look:
/// what comes during a sleep is executed as one batch, for less of the core.
const DEPTH_MAX: u32 = 4;
/// How long others keep the core after they wanted it.
const OFF_MIN: Duration = Duration::from_millis(2);
const OFF_MAX: Duration = Duration::from_millis(512);

/// The state of a thread's looking.
pub(super) struct Spin {
    look_max: Duration,
    /// Receives of this connection are not with the kernel: we look ourselves.
    watched: Option<Key>,
    /// Sleeps left before the next look, and how many there were at the last count.
    left: u32,
    pause: u32,
    off: Duration,
    off_until: Instant,
    /// Requests that came together: the most of late. A small one fades it by an eighth.
    depth: u32,
    depth_max: u32,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Found,
    Nothing,
    /// Somebody else ran on the core meanwhile.
    Wanted,
}

impl Spin {
    pub fn new(policy: LatencyPolicy, now: Instant) -> Spin {
        let look_max = match policy {
            LatencyPolicy::Balanced => LOOK_MAX,
            LatencyPolicy::Lowest => LOOK_LOWEST_MAX,
            LatencyPolicy::Frugal => Duration::ZERO,
        };
        let depth_max = match policy {
            LatencyPolicy::Lowest => u32::MAX,
            _ => DEPTH_MAX,
        };
        Spin {
            look_max,
            watched: None,
            left: 0,
            pause: 0,
            off: OFF_MIN,
            off_until: now,
            depth: 0,
            depth_max,
        }
    }

    fn may_look(&self, now: Instant) -> bool {
        let is_due = self.left == 0 && self.depth <= self.depth_max;
        is_due && !self.look_max.is_zero() && now >= self.off_until
    }

    /// So many requests were executed since the last call.
    fn executed(&mut self, requests: u32) {
        self.depth = requests.max(self.depth - self.depth.div_ceil(8));
    }

    /// Takes a connection that wants to receive; false when that is the kernel's.
    pub fn watch(&mut self, key: Key, now: Instant) -> bool {
        if self.watched.is_some_and(|watched| watched != key) || !self.may_look(now) {
            return false;
        }
        self.watched = Some(key);
        true
    }

    /// How long to look before this sleep.
    fn begin(&mut self, now: Instant) -> Option<Duration> {
        if self.may_look(now) {
            return Some(self.look_max);
        }
        self.left = self.left.saturating_sub(1);
        None
    }

    fn end(&mut self, look: Look, now: Instant) {
        match look {
            Look::Found => {
                self.pause /= 2;
                self.off = (self.off - self.off / 64).max(OFF_MIN);
            }
            Look::Nothing => {
                self.pause = (self.pause * 2).clamp(1, PAUSE_MAX);
                self.left = self.pause;
            }
            Look::Wanted => {
                self.off_until = now + self.off;
                self.off = (self.off * 2).min(OFF_MAX);
            }
        }
    }
}

impl Engine {
    /// Looks for something to do before the thread sleeps. True when there is
    /// something, at `core.now`.
    pub(super) fn spin(&mut self) -> io::Result<bool> {
        if !self.core.ready.is_empty() {
            return Ok(false);
        }
        let requests = std::mem::take(&mut self.core.requests);
        if requests > 0 {
            self.core.spin.executed(requests);
            self.core.place(requests);
        }
        let look = match self.core.spin.begin(self.core.now) {
            Some(max) => self.look(max)?,
            None => Look::Nothing,
        };
        if let Some(key) = self.core.spin.watched.take() {
            self.with(key, |core, connection| match connection.receiving || connection.queued {
                true => Ok(()),
                false => core.arm(key, connection),
            })?;
        }
        Ok(look == Look::Found)
    }

    fn look(&mut self, max: Duration) -> io::Result<Look> {
        let start = Instant::now();
        // Everybody else's receives, and the bell.
        self.core.driver.submit()?;
        let mut last = start;
        let look = loop {
            if self.look_at_watched()? || self.core.driver.is_ready() {
                break Look::Found;
            }
            std::thread::yield_now();
            let now = Instant::now();
            if now - last > LONG_LOOK && last != start {
                break Look::Wanted;
            }
            last = now;
            if now - start >= max {
                break Look::Nothing;
            }
        };
        let now = Instant::now();
        if self.core.ready.is_empty() {
            self.core.now = now;
        }
        self.core.counters.spin_ns.add((now - start).as_nanos() as u64);
        self.core.spin.end(look, now);
        Ok(look)
    }

    fn look_at_watched(&mut self) -> io::Result<bool> {
        let Some(key) = self.core.spin.watched else { return Ok(false) };
        let mut found = false;
        self.with(key, |core, connection| {
            if let Some(received) = connection.receive_now() {
                found = true;
                core.now = Instant::now();
                core.arrived(key, connection, &received);
            }
            Ok(())
        })?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(spin: &mut Spin, now: Instant, look: Look) -> bool {
        let looked = spin.begin(now).is_some();
        if looked {
            spin.end(look, now);
        }
        looked
    }

    #[test]
    fn vain_looks_become_rare_and_found_requests_bring_them_back() {
        let now = Instant::now();
        let mut spin = Spin::new(LatencyPolicy::Balanced, now);
        let in_vain = (0..100_000).filter(|_| looks(&mut spin, now, Look::Nothing)).count();
        assert!(in_vain < 120, "{in_vain} looks in 100,000 waits");
        let found = (0..100_000).filter(|_| looks(&mut spin, now, Look::Found)).count();
        assert!(found > 90_000, "{found} looks in 100,000 waits");
    }

    #[test]
    fn a_core_that_others_want_is_left_to_them_for_longer_each_time() {
        let mut now = Instant::now();
        let mut spin = Spin::new(LatencyPolicy::Balanced, now);
        let mut off = OFF_MIN;
        while off < OFF_MAX {
            assert!(looks(&mut spin, now, Look::Wanted));
            assert!(!looks(&mut spin, now + off - Duration::from_nanos(1), Look::Found));
            now += off;
            off *= 2;
        }
        assert!(looks(&mut spin, now, Look::Found));
    }

    #[test]
    fn a_client_with_many_requests_in_flight_is_not_looked_for_unless_lowest() {
        let now = Instant::now();
        for (policy, looked) in [
            (LatencyPolicy::Balanced, false),
            (LatencyPolicy::Lowest, true),
            (LatencyPolicy::Frugal, false),
        ] {
            let mut spin = Spin::new(policy, now);
            spin.executed(DEPTH_MAX + 1);
            assert_eq!(spin.begin(now).is_some(), looked, "{policy:?}");
        }
        let mut spin = Spin::new(LatencyPolicy::Balanced, now);
        spin.executed(32);
        (0..32).for_each(|_| spin.executed(1));
        assert!(spin.begin(now).is_some());
    }

    #[test]
    fn one_connection_is_watched_and_the_kernel_has_the_others() {
        let now = Instant::now();
        let mut slots = super::super::slots::Slots::new();
        let (first, second) = (slots.insert(()), slots.insert(()));
        let mut spin = Spin::new(LatencyPolicy::Balanced, now);
        assert!(spin.watch(first, now));
        assert!(spin.watch(first, now));
        assert!(!spin.watch(second, now));
        assert!(!Spin::new(LatencyPolicy::Frugal, now).watch(first, now));
    }
}
