//! What all three daemons do alike: check the machine, say `ready`, stay in the
//! foreground, end in order.

use crate::exit::Exit;
use crate::signals::{Again, Stop};
use sd_notify::NotifyState;
use std::time::Duration;

/// How often it is looked whether all parts of a process still run.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub struct Daemon {
    name: &'static str,
    stop: Stop,
}

impl Daemon {
    /// Checks the prerequisites and takes over SIGTERM and SIGINT, before
    /// anything is opened.
    pub fn prepare(name: &'static str) -> anyhow::Result<Daemon> {
        crate::prerequisite::check()?;
        Ok(Daemon { name, stop: Stop::listen(Again::EndsAtOnce)? })
    }

    /// Tells systemd and the reader of stderr that `what` is served now. The word
    /// `ready` is what scripts wait for.
    pub fn ready(&self, what: &str) {
        eprintln!("towline {} ready: {what}", self.name);
        notify(&[NotifyState::Ready, NotifyState::Status(what)]);
    }

    /// Blocks until the process is asked to end.
    pub fn wait(&self) {
        let signal = self.stop.wait();
        self.stopping(signal);
    }

    /// As [`Daemon::wait`], or until a part has failed for good: then whoever supervises the process
    /// is to start it again.
    pub fn wait_while_sound(&self, has_failed: impl Fn() -> bool) -> Exit {
        while !self.wait_for(LOOK_EVERY) {
            if has_failed() {
                eprintln!(
                    "towline {}: a part of it has ended by a fault of its own, see above",
                    self.name
                );
                return Exit::Failed;
            }
        }
        Exit::Ok
    }

    /// Blocks until the process is asked to end (true) or `time` has passed.
    pub fn wait_for(&self, time: Duration) -> bool {
        match self.stop.wait_for(time) {
            Some(signal) => {
                self.stopping(signal);
                true
            }
            None => false,
        }
    }

    fn stopping(&self, signal: &str) {
        tracing::info!("{signal}: {} ends in order", self.name);
        notify(&[NotifyState::Stopping]);
    }
}

/// Not being started by systemd is the normal case on a laptop.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {e}");
    }
}
