//! A process of `towline` that serves, from its start to its end.

use crate::PATIENCE;
use crate::program::words;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

/// A daemon and what it said on standard error. Killed when dropped; if a test
/// panics, what it said last is printed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    command: String,
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Daemon {
    /// Starts `towline` with `args`; does not wait.
    #[track_caller]
    pub fn start(args: &[OsString]) -> Daemon {
        Daemon::start_in(args, &[])
    }

    /// As [`Daemon::start`], with these in its environment.
    #[track_caller]
    pub fn start_in(args: &[OsString], environment: &[(&str, String)]) -> Daemon {
        let mut command = Command::new(crate::towline());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let text = words(&command);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{text}`: {e}"));
        let said = Arc::<(Mutex<Said>, Condvar)>::default();
        if let Some(stderr) = child.stderr.take() {
            let said = said.clone();
            std::thread::spawn(move || collect(stderr, &said));
        }
        Daemon { child, command: text, said }
    }

    /// Starts `towline` with `args` and waits until it says `ready`.
    #[track_caller]
    pub fn ready(args: &[OsString]) -> Daemon {
        let mut daemon = Daemon::start(args);
        daemon.wait_ready();
        daemon
    }

    /// Waits for the word `ready`.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_for_line(|line| {
            line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "ready")
        });
    }

    /// Waits for a line on standard error; gives it.
    ///
    /// # Panics
    /// When the process ends without it, or it does not come.
    #[track_caller]
    pub fn wait_for_line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        match self.line_within(PATIENCE, wanted) {
            Some(line) => line,
            None => panic!("the line awaited did not come from {self}"),
        }
    }

    /// As [`Daemon::wait_for_line`]; `None` when the process ended without it or
    /// the time is over.
    pub fn line_within(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut said = lock(&self.said.0);
        loop {
            if let Some(line) = said.lines[seen..].iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if said.ended || left.is_zero() {
                return None;
            }
            said = self.said.1.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines of standard error so far.
    pub fn said(&self) -> String {
        lock(&self.said.0).lines.join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGTERM, and waits for the orderly end.
    #[track_caller]
    pub fn terminate(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_end()
    }

    /// SIGSTOP: it is there and does nothing, until [`Daemon::resume`].
    #[track_caller]
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    #[track_caller]
    pub fn resume(&self) {
        self.signal("CONT");
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        // The process is our child and not yet waited for: the id is its own.
        let pid = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &pid, name]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal {}", self.command);
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        // Its end closes standard error, which the collector notes.
        let mut said = lock(&self.said.0);
        let deadline = Instant::now() + PATIENCE;
        while !said.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(said);
                panic!("did not end: {self}");
            }
            said = self.said.1.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(said);
        self.child.wait().unwrap_or_else(|e| panic!("cannot wait for {}: {e}", self.command))
    }

    fn end(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("{self}");
        }
    }
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = lock(&self.said.0);
        let from = said.lines.len().saturating_sub(30);
        write!(f, "`{}`, which said last:", self.command)?;
        for line in &said.lines[from..] {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

fn collect(stderr: ChildStderr, said: &(Mutex<Said>, Condvar)) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { break };
        lock(&said.0).lines.push(String::from_utf8_lossy(&line).into_owned());
        said.1.notify_all();
    }
    lock(&said.0).ended = true;
    said.1.notify_all();
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
