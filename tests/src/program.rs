//! Running a program to its end, within a time, with all it said.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

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
/// When it cannot be started or does not end in time; then it is killed.
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
    let text = words(&command);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `{text}`: {e}"));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both are piped");
    };
    let (stdout, stderr) = (read_all(stdout), read_all(stderr));
    // Both ends of pipe are closed when the program ends, or its last child does.
    let late = || format!("`{text}` did not end within {} s", timeout.as_secs());
    let Ok(stdout) = stdout.recv_timeout(timeout) else {
        kill(&mut child);
        panic!("{}; it said:\n{}", late(), stderr.recv().unwrap_or_default());
    };
    let Ok(stderr) = stderr.recv_timeout(timeout) else {
        kill(&mut child);
        panic!("{}; its standard output:\n{stdout}", late());
    };
    let status = child.wait().unwrap_or_else(|e| panic!("cannot wait for `{text}`: {e}"));
    Finished { command: text, status, stdout, stderr }
}

fn kill(child: &mut std::process::Child) {
    // Already gone is as good.
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

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
