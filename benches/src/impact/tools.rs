//! The programs that cells need: found in PATH, or named as missing.

use std::path::PathBuf;

/// Where a program is. Debian keeps some in sbin, which users other than root lack.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The first line of what `program` says of its version.
pub(super) fn version(program: &str) -> Option<String> {
    let said = std::process::Command::new(find(program)?)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = if said.stdout.is_empty() { said.stderr } else { said.stdout };
    let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
