//! Facts about the machine that figures depend on.

use super::tools;
use crate::load::allowed_cpus;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub processors: usize,
    pub model: String,
    pub memory_bytes: u64,
    pub kernel: String,
    /// A virtual machine, as far as the processor says.
    pub virtual_machine: bool,
    pub file_system: String,
    /// Programs with the versions that they told.
    pub programs: Vec<String>,
}

impl Machine {
    pub(super) fn look(dir: &Path, programs: &[&str]) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            processors: allowed_cpus().numbers().len(),
            model: field("model name").unwrap_or_else(|| "unknown".into()),
            memory_bytes: memory_bytes(),
            kernel: kernel.trim().to_owned(),
            virtual_machine: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
            file_system: file_system(dir),
            programs: programs.iter().filter_map(|program| tools::version(program)).collect(),
        }
    }
}

pub(super) fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    kib.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Type of the file system, by coreutils' `stat`.
fn file_system(dir: &Path) -> String {
    let said = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output();
    let text = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".into())
}

/// Bytes free in the folder's file system, by coreutils' `df`.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let said = Command::new("df").args(["-B1", "--output=avail"]).arg(dir).output().ok()?;
    String::from_utf8_lossy(&said.stdout).lines().nth(1)?.trim().parse().ok()
}
