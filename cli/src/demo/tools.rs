//! Programs of the system that the demo runs: where they are, and how they end.

use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Debian keeps some of them outside an ordinary user's search path.
const EXTRA_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Finds a program as a shell would, and in the system folders.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(EXTRA_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A command for a program that has to be there.
pub fn command(name: &str) -> anyhow::Result<Command> {
    let file = find(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new(file);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs a program to its end.
pub fn output<S: AsRef<OsStr>>(name: &str, args: &[S]) -> anyhow::Result<Output> {
    command(name)?.args(args).output().with_context(|| format!("cannot run {name}"))
}

/// Runs a program that has to succeed; returns what it printed, trimmed.
pub fn run<S: AsRef<OsStr>>(name: &str, args: &[S]) -> anyhow::Result<String> {
    let output = output(name, args)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        assert!(find("sh").is_some());
        let error = run("no-such-program", &["x"]).unwrap_err().to_string();
        assert!(error.contains("no-such-program is not installed"), "{error}");
    }

    #[test]
    fn a_failed_program_is_shown_with_its_words() {
        let error = run("sh", &["-c", "echo broken >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }
}
