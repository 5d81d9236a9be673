//! One daemon of the demo: this same binary, started as a process of its own,
//! with its stderr in a log file.

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A daemon that is not serving by then has failed: recovery reads memory, not disks.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How long an orderly end may take before the demo loses patience.
const END_WAIT: Duration = Duration::from_secs(10);

/// Lines of a daemon's log that a failure shows.
const LOG_LINES_SHOWN: usize = 12;

/// How to start one daemon, again and again.
#[derive(Clone)]
pub struct Recipe {
    pub name: &'static str,
    pub args: Vec<OsString>,
    pub log: PathBuf,
}

/// A running daemon; ends with its owner.
pub struct Daemon {
    recipe: Recipe,
    child: Child,
}

impl Recipe {
    /// Starts the daemon and waits until it says `ready`.
    pub fn start(&self) -> anyhow::Result<Daemon> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let child = Command::new(binary)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal reaches the demo alone, which ends its daemons.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start towline {}", self.name))?;
        let mut daemon = Daemon { recipe: self.clone(), child };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// The end of the log, for a person who looks for a reason.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Daemon {
    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let stderr = self.child.stderr.take().context("a child without stderr")?;
        let (tell, ready) = mpsc::channel();
        let log = self.recipe.log.clone();
        std::thread::Builder::new()
            .name(format!("{}-log", self.recipe.name))
            .spawn(move || keep_log(BufReader::new(stderr), &log, &tell))
            .context("cannot start a log thread")?;
        match ready.recv_timeout(READY_WAIT) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "towline {} is not ready after {READY_WAIT:?}:\n{}",
                    self.recipe.name,
                    self.recipe.log_tail()
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!(
                    "towline {} ended at its start:\n{}",
                    self.recipe.name,
                    self.recipe.log_tail()
                )
            }
        }
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What is known of a daemon that ended by itself.
    pub fn obituary(&mut self) -> String {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            _ => "unknown status".into(),
        };
        format!(
            "towline {} ended by itself ({status}):\n{}",
            self.recipe.name,
            self.recipe.log_tail()
        )
    }

    /// `kill -9`, and starts it again. Returns the time from the kill until it
    /// serves again.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.kill();
        let recipe = self.recipe.clone();
        *self = recipe.start()?;
        Ok(start.elapsed())
    }

    fn kill(&mut self) {
        // Fails only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks to end in order (SIGTERM) and waits.
    pub fn end(mut self) -> anyhow::Result<()> {
        // The shell has `kill` built in, wherever it runs.
        let asked = Command::new("sh")
            .args(["-c", &format!("kill -TERM {}", self.child.id())])
            .status()
            .context("cannot run sh")?;
        let deadline = Instant::now() + END_WAIT;
        while asked.success() && Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!(
                    "towline {} ended with {status}:\n{}",
                    self.recipe.name,
                    self.recipe.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("towline {} did not end within {END_WAIT:?} of SIGTERM", self.recipe.name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Copies a daemon's stderr to its log and tells of the `ready` line; ends with
/// the daemon.
fn keep_log(lines: impl BufRead, log: &Path, tell: &mpsc::Sender<()>) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log).ok();
    for line in lines.lines() {
        let Ok(line) = line else { return };
        if let Some(file) = &mut file {
            let _ = writeln!(file, "{line}");
        }
        if line.split_whitespace().any(|word| word.trim_end_matches(':') == "ready") {
            let _ = tell.send(());
        }
    }
}
