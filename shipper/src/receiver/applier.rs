//! The thread that applies. Woken by the clerk, it applies until nothing durable
//! is left, and tells the clerk how far it is. A failing target is tried again;
//! staging holds what waits.
//!
//! A flush of all targets costs much more than what a small batch writes, so small
//! batches are applied together: there is a pause between two groups, unless somebody
//! waits for the applied state or much has come.

use super::apply::Apply;
use super::counters::{Counters, add};
use super::order::{Inbox, Order};
use super::state::Books;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use towline_block::upstream::Backoff;

/// Pause between two groups, while nothing is urgent.
const SPACING: Duration = Duration::from_millis(100);

/// How often it is looked whether a clone wants a mark, while nothing is to be applied.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Wish {
    work: bool,
    /// No pause before the next group.
    urgent: bool,
    halt: bool,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    wish: Mutex<Wish>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Applier {
    shared: Arc<Shared>,
    apply: Arc<Mutex<Apply>>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    pub fn start(
        apply: Apply,
        inbox: Inbox,
        books: Arc<Books>,
        counters: Arc<Counters>,
    ) -> Applier {
        let shared = Arc::new(Shared::default());
        let apply = Arc::new(Mutex::new(apply));
        let worker = Worker {
            shared: Arc::clone(&shared),
            apply: Arc::clone(&apply),
            inbox,
            books,
            counters,
        };
        let thread = std::thread::Builder::new()
            .name("towline-apply".into())
            .spawn(move || worker.run())
            .map_err(|error| tracing::error!(%error, "cannot start the applying thread"))
            .ok();
        Applier { shared, apply, thread }
    }

    /// Something new is durable, or, if it is urgent, to be applied at once.
    pub fn wake(&self, urgent: bool) {
        let mut wish = self.shared.lock();
        wish.work = true;
        wish.urgent |= urgent;
        drop(wish);
        self.shared.changed.notify_all();
    }

    /// Ends applying after the group in work, until [`Applier::resume`], and hands
    /// out what it works with.
    pub fn halt(&self) -> MutexGuard<'_, Apply> {
        self.shared.lock().halt = true;
        self.apply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn resume(&self) {
        self.shared.lock().halt = false;
        self.wake(true);
    }

    pub fn stop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the applying thread ended by a panic");
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    apply: Arc<Mutex<Apply>>,
    inbox: Inbox,
    books: Arc<Books>,
    counters: Arc<Counters>,
}

impl Worker {
    fn run(self) {
        let _told = Told(self.inbox.clone());
        let (mut retry, mut ended) = (Retry::default(), None);
        while self.wait(&mut retry, ended) {
            let is_behind = self.step(&mut retry);
            ended = (!is_behind).then(Instant::now);
        }
    }

    /// Waits for work, and until its time has come after the group that ended then;
    /// false to end.
    fn wait(&self, retry: &mut Retry, ended: Option<Instant>) -> bool {
        let mut wish = self.shared.lock();
        if retry.failure.is_some() && !wish.stop {
            let pause = retry.backoff.next_wait();
            let waited = self.shared.changed.wait_timeout_while(wish, pause, |wish| !wish.stop);
            wish = waited.unwrap_or_else(PoisonError::into_inner).0;
            wish.work = true;
        }
        while !wish.stop && (wish.halt || !wish.work) {
            let waited = self.shared.changed.wait_timeout(wish, LOOK);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            wish = woken;
            wish.work |= timeout.timed_out();
        }
        let rest = ended.map_or(Duration::ZERO, |at| SPACING.saturating_sub(at.elapsed()));
        let pause = |wish: &mut Wish| !wish.stop && !wish.urgent && !wish.halt;
        let waited = self.shared.changed.wait_timeout_while(wish, rest, pause);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// One group. True when more waits for the next one than it may hold.
    fn step(&self, retry: &mut Retry) -> bool {
        let mut apply = self.apply.lock().unwrap_or_else(PoisonError::into_inner);
        {
            // A halt that came while the lock was taken goes first.
            let mut wish = self.shared.lock();
            if wish.halt {
                return false;
            }
            (wish.work, wish.urgent) = (false, false);
        }
        let before = apply.applied().number;
        match apply.step() {
            Ok(applied) => {
                retry.succeeded();
                let Some(applied) = applied else { return false };
                self.shared.lock().work = true;
                add(&self.counters.apply_groups, 1);
                add(&self.counters.applied_batches, applied.number.saturating_sub(before));
                for verdict in apply.take_compared() {
                    let _ = self.inbox.send(Order::Compared(verdict));
                }
                let _ =
                    self.inbox.send(Order::Applied { applied: Box::new(applied), stalled: false });
                apply.is_behind()
            }
            Err(error) => {
                add(&self.counters.storage_errors, 1);
                let what = error.to_string();
                if retry.failed(&what) {
                    tracing::error!(%error, "cannot apply; trying again");
                }
                if let Err(error) = self.books.update(|state| state.last_error = Some(what)) {
                    tracing::error!(%error, "cannot note the error");
                }
                let applied = Box::new(apply.applied().clone());
                let _ = self.inbox.send(Order::Applied { applied, stalled: true });
                false
            }
        }
    }
}

/// Tells the clerk of a panic: a receiver that does not apply is to be started anew.
struct Told(Inbox);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(Order::Stop);
        }
    }
}

/// What is known of the failures since the last success.
#[derive(Default)]
struct Retry {
    backoff: Backoff,
    failure: Option<String>,
}

impl Retry {
    fn succeeded(&mut self) {
        if self.failure.is_some() {
            *self = Retry::default();
        }
    }

    /// Whether it is another one than the last time.
    fn failed(&mut self, what: &str) -> bool {
        self.failure.replace(what.to_owned()).is_none_or(|former| former != what)
    }
}
