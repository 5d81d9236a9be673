//! SIGTERM and SIGINT as a message, so that a command ends in order.

use anyhow::Context;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What a second request to stop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Whoever asks twice does not want to wait; nothing is lost by it.
    EndsAtOnce,
    /// There are mounts and processes to take down first, which takes seconds.
    ChangesNothing,
}

/// Delivers the first request to stop.
pub struct Stop {
    asked: Receiver<&'static str>,
}

impl Stop {
    /// Takes over the two signals for the whole process.
    pub fn listen(again: Again) -> anyhow::Result<Stop> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot start the signal thread")?;
        let (mut term, mut int) = {
            let _entered = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let (tell, asked) = mpsc::channel();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    for round in 0.. {
                        let name = tokio::select! {
                            _ = term.recv() => "SIGTERM",
                            _ = int.recv() => "SIGINT",
                        };
                        if round > 0 && again == Again::ChangesNothing {
                            continue;
                        }
                        if round > 0 {
                            tracing::warn!("{name} again: ending at once");
                            std::process::exit(i32::from(crate::exit::Exit::Failed.number()));
                        }
                        if tell.send(name).is_err() {
                            return;
                        }
                    }
                });
            })
            .context("cannot start the signal thread")?;
        Ok(Stop { asked })
    }

    /// Waits until somebody asks to stop; returns the signal's name.
    pub fn wait(&self) -> &'static str {
        self.asked.recv().unwrap_or("the end of the signal thread")
    }

    /// As [`Stop::wait`], for at most `time`.
    pub fn wait_for(&self, time: Duration) -> Option<&'static str> {
        match self.asked.recv_timeout(time) {
            Ok(name) => Some(name),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some("the end of the signal thread"),
        }
    }
}
