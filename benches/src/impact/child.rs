//! Processes that a measurement starts: pinned, logged, ended with their owner.

use crate::load::Cpus;
use anyhow::{Context, bail};
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long an orderly end may take before it is killed.
const END_WAIT: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(5);

/// Lines of a log that a failure shows.
const LOG_LINES_SHOWN: usize = 8;

/// A running process; ends with its owner, at the latest when the harness itself dies.
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `words` on `cpus` (any, if none), with all it says in `log`.
    pub(super) fn start<W: AsRef<OsStr>>(
        name: &str,
        words: &[W],
        cpus: Option<&Cpus>,
        log: &Path,
    ) -> anyhow::Result<Process> {
        let mut argv: Vec<OsString> = Vec::new();
        if super::tools::find("setpriv").is_some() {
            argv.extend(["setpriv", "--pdeathsig", "TERM", "--"].map(OsString::from));
        }
        if let Some(cpus) = cpus {
            argv.extend(["taskset", "-c"].map(OsString::from));
            argv.push(cpus.to_string().into());
        }
        argv.extend(words.iter().map(|word| word.as_ref().to_owned()));
        let file = || OpenOptions::new().create(true).append(true).open(log);
        let file = |what| file().with_context(|| format!("cannot {what} {}", log.display()));
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::piped())
            .stdout(file("write")?)
            .stderr(file("write")?)
            // Ctrl-C at a terminal reaches the harness alone, which ends its children.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.into(), child, log: log.into() })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` holds; fails when the process ends before, or time is up.
    pub(super) fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        mut ready: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !ready()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.last_words());
            }
            if began.elapsed() > patience {
                bail!("{}: waited {patience:?} for {what}:\n{}", self.name, self.last_words());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// Stops the process where it stands (SIGSTOP), or lets it go on.
    pub(super) fn freeze(&self, frozen: bool) {
        signal(self.pid(), if frozen { "STOP" } else { "CONT" });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        signal(self.pid(), "CONT");
        signal(self.pid(), "TERM");
        drop(self.child.stdin.take());
        let began = Instant::now();
        while began.elapsed() < END_WAIT {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(POLL),
                _ => return,
            }
        }
        // Fails only when it has ended after all.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process of ours; one that has ended needs none.
pub(super) fn signal(pid: u32, name: &str) {
    // The shell has `kill` built in, wherever it runs.
    let _ = Command::new("sh")
        .args(["-c", "kill -\"$0\" \"$1\" 2>/dev/null", name, &pid.to_string()])
        .stdin(Stdio::null())
        .status();
}

/// A process that turned itself into a daemon; ended by the number in its pid file.
pub(super) struct Daemonized {
    pub pid: u32,
    /// As /proc tells it: a number that was given to somebody else is left alone.
    pub command: &'static str,
}

impl Daemonized {
    fn lives(&self) -> bool {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        comm.is_ok_and(|comm| comm.trim() == self.command)
    }
}

impl Drop for Daemonized {
    fn drop(&mut self) {
        for name in ["TERM", "KILL"] {
            if self.lives() {
                signal(self.pid, name);
            }
            let began = Instant::now();
            while self.lives() && began.elapsed() < END_WAIT {
                thread::sleep(POLL);
            }
        }
    }
}

static SPINNER: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says how a process is started that computes until its standard input closes; the
/// command line has one. Without it, cells that need it are skipped.
pub fn install_spinners_command(words: Vec<OsString>) {
    // The first one counts.
    let _ = SPINNER.set(words);
}

/// Spinners of the idle class: they keep processors from halting and give way to all.
pub(super) fn start_spinners(cpus: &[usize], log: &Path) -> anyhow::Result<Vec<Process>> {
    let words = SPINNER.get().context("no command for spinners is known")?;
    let start = |&cpu: &usize| {
        let mut argv: Vec<OsString> = ["chrt", "--idle", "0"].map(OsString::from).into();
        argv.extend(words.iter().cloned());
        Process::start("spinner", &argv, Some(&Cpus::new([cpu])), log)
    };
    cpus.iter().map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_process_ends_with_its_owner_even_when_frozen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let process = Process::start("sleep", &["sleep", "1000"], None, &log).unwrap();
        let pid = process.pid();
        process.freeze(true);
        assert!(lives(pid));
        drop(process);
        assert!(!lives(pid));
    }

    #[test]
    fn a_process_that_ends_early_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let words = ["sh", "-c", "echo no such disk >&2; exit 3"];
        let mut process = Process::start("server", &words, None, &log).unwrap();
        let error = process
            .wait_until("it serves", Duration::from_secs(30), || Ok(false))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such disk") && error.contains("exit status: 3"), "{error}");
    }
}
