//! Running a program to its end, within a time, with all it said.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// For what a killed program left in its pipes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// The standard output of a success; panics with everything said otherwise.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Asserts an exit code and gives the rest for further looks.
    #[track_caller]
    pub fn exits(self, code: i32) -> Finished {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// The one JSON object on standard output.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not exactly one JSON value ({e}): {self}"));
        assert!(value.is_object(), "{self}");
        assert!(value.get("schema").is_some(), "no schema: {self}");
        value
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\n--- stdout\n{}--- stderr\n{}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// Runs `program` with `args`, without a terminal, for at most `timeout`.
///
/// # Panics
/// When it cannot be started or does not end in time; then it is killed with all
/// that it started.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
    timeout: Duration,
) -> Finished {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, timeout)
}

/// As [`run`], for a command with an environment or a working directory.
#[track_caller]
pub fn run_command(mut command: Command, timeout: Duration) -> Finished {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that all of it can be ended.
    command.process_group(0);
    let text = words(&command);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{text}`: {e}"));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both are piped");
    };
    let (stdout, stderr) = (read_all(stdout), read_all(stderr));
    // The pipes close when the program and all it started have ended.
    let late = || format!("`{text}` did not end within {} s", timeout.as_secs());
    let Ok(stdout) = stdout.recv_timeout(timeout) else {
        kill_group(&mut child);
        let said = stderr.recv_timeout(LAST_WORDS).unwrap_or_default();
        let printed = stdout.recv_timeout(LAST_WORDS).unwrap_or_default();
        panic!("{}; it printed:\n{printed}\nand said:\n{said}", late());
    };
    let Ok(stderr) = stderr.recv_timeout(timeout) else {
        kill_group(&mut child);
        panic!("{}; it printed:\n{stdout}", late());
    };
    let status = child.wait().unwrap_or_else(|e| panic!("cannot wait for `{text}`: {e}"));
    Finished { command: text, status, stdout, stderr }
}

/// The child leads its group and was not yet waited for, so the number is its own.
fn kill_group(child: &mut Child) {
    let group = child.id().to_string();
    // Already gone is as good.
    let _ = Command::new("sh").args(["-c", "kill -KILL -\"$0\"", &group]).status();
    let _ = child.kill();
    let _ = child.wait();
}

fn read_all(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (to, all) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
        let _ = to.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    all
}

/// A command that finds Debian's own programs first: scripts such as nbdsh run
/// `python3` from the path, and only Debian's has Debian's modules.
pub fn debian_command(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"));
    command
}

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
