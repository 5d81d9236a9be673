//! Which processors a thread or a process may use. Set by util-linux's `taskset`,
//! so that no unsafe code is needed.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::process::{Command, Stdio};

/// A set of processors, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    pub fn new(numbers: impl IntoIterator<Item = usize>) -> Cpus {
        Cpus(numbers.into_iter().collect())
    }

    pub fn numbers(&self) -> &[usize] {
        &self.0
    }
}

/// As `taskset -c` takes it.
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// The processors that this process may use.
pub fn allowed_cpus() -> Cpus {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Cpus(list.map(|list| parse_list(list.trim())).unwrap_or_default())
}

/// `0-3,7` as numbers.
fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// The kernel's number of the calling thread.
pub(super) fn own_thread_id() -> Option<u32> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// Moves the calling thread to these processors.
pub(super) fn pin_own_thread(cpus: &Cpus) -> Result<()> {
    let fail = |why: String| Error::new(ErrorKind::Io, format!("cannot pin a thread: {why}"));
    let thread = own_thread_id().ok_or_else(|| fail("/proc has no thread-self".into()))?;
    let done = Command::new("taskset")
        .args(["-cp", &cpus.to_string(), &thread.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| fail(format!("taskset: {e}")))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(fail(String::from_utf8_lossy(&done.stderr).trim().into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read_and_written() {
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(parse_list("3"), [3]);
        assert!(parse_list("").is_empty());
        assert_eq!(Cpus::new([0, 3]).to_string(), "0,3");
    }

    #[test]
    fn this_process_may_use_at_least_one_processor() {
        assert!(!allowed_cpus().numbers().is_empty());
    }
}
