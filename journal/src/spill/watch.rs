//! The ladder of a group without a spill: ring and change map alone. Decides nothing: the
//! appender breaks and HEAL heals whoever looks on; here the two steps are noted.
//!
//! | the rung was | the stream is whole | step |
//! |---|---|---|
//! | ring | yes | |
//! | ring | no | ring -> map |
//! | map | yes | map -> ring |
//! | map | no | |
//!
//! A thread of its own, which sleeps but for these: a file is written, and neither a guest's
//! write nor the shipper's acknowledgement waits for that. A BREAK that is healed before the
//! thread has looked is none to note.

use super::Rung;
use super::owner::Owner;
use crate::durable;
use crate::error::{Error, Result};
use crate::format::Counter;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;

/// Runs until dropped.
pub struct RungWatch {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RungWatch {
    pub fn start(owner: Owner) -> Result<RungWatch> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, group, observer) = (stopping.clone(), owner.group.clone(), durable::observer());
        // The rung of the start is none that was stepped to.
        let rung = rung_of(&owner);
        owner.ring.set(Counter::Rung, rung as u64);
        let thread = std::thread::Builder::new()
            .name("ladder".into())
            .spawn(move || {
                durable::observe(observer);
                watch(&owner, rung, &stop);
            })
            .map_err(|e| Error::io(format!("cannot start the ladder's thread of {group}"), e))?;
        Ok(RungWatch { stopping, thread: Some(thread) })
    }

    /// After a BREAK or a HEAL.
    pub fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for RungWatch {
    fn drop(&mut self) {
        self.stopping.store(true, SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ladder's thread panicked");
        }
    }
}

fn rung_of(owner: &Owner) -> Rung {
    if owner.ring.get(Counter::Whole) == 1 { Rung::Ring } else { Rung::Map }
}

fn watch(owner: &Owner, mut rung: Rung, stopping: &AtomicBool) {
    while !stopping.load(SeqCst) {
        let to = rung_of(owner);
        if to == rung {
            std::thread::park();
            continue;
        }
        let fill_percent = owner.cursor.lock().fill_percent(&owner.ring);
        owner.step(rung, to, fill_percent, false);
        rung = to;
    }
}
