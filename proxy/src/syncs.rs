//! Group commit: which waiters the next fdatasync of a volume answers.
//!
//! At most one fdatasync is in flight. Whoever asks while it is waits for the next
//! one, since only a sync issued after a write is known to cover it; one sync then
//! answers all of them. A failure is sticky: the kernel reports a lost write once
//! and may have dropped the pages, so no later success can be believed.

/// The state of a volume's flushes. `W` is whoever waits.
pub struct Syncs<W> {
    waiting: Vec<W>,
    running: Vec<W>,
    in_flight: bool,
    failed: bool,
}

impl<W> Syncs<W> {
    pub fn new() -> Syncs<W> {
        Syncs { waiting: Vec::new(), running: Vec::new(), in_flight: false, failed: false }
    }

    /// A former sync has failed; nothing asked from now on can succeed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub fn join(&mut self, waiter: W) {
        self.waiting.push(waiter);
    }

    /// Nothing in flight and nobody waiting.
    pub fn is_idle(&self) -> bool {
        !self.in_flight && self.waiting.is_empty()
    }

    /// Whether the caller must issue an fdatasync now, for all who wait so far.
    #[must_use]
    pub fn start(&mut self) -> bool {
        if self.in_flight || self.waiting.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.waiting, &mut self.running);
        self.in_flight = true;
        true
    }

    /// The fdatasync has ended; hands out those it answers. Give the emptied list
    /// back to [`Syncs::recycle`].
    pub fn finish(&mut self, succeeded: bool) -> Vec<W> {
        assert!(self.in_flight, "a sync ended that was not begun");
        self.in_flight = false;
        self.failed |= !succeeded;
        std::mem::take(&mut self.running)
    }

    /// Keeps a list's memory for the next sync.
    pub fn recycle(&mut self, mut answered: Vec<W>) {
        if !self.in_flight {
            answered.clear();
            self.running = answered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_during_a_sync_waits_for_the_next() {
        let mut syncs = Syncs::new();
        assert!(!syncs.start());
        syncs.join(1);
        syncs.join(2);
        assert!(syncs.start());
        syncs.join(3);
        assert!(!syncs.start());
        assert_eq!(syncs.finish(true), [1, 2]);
        assert!(!syncs.is_idle());
        assert!(syncs.start());
        assert_eq!(syncs.finish(true), [3]);
        assert!(syncs.is_idle());
    }

    #[test]
    fn a_failure_stays() {
        let mut syncs = Syncs::new();
        syncs.join(1);
        assert!(syncs.start());
        drop(syncs.finish(false));
        syncs.join(2);
        assert!(syncs.start());
        drop(syncs.finish(true));
        assert!(syncs.has_failed());
    }
}
