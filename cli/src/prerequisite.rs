//! What the machine must offer before a daemon starts.

use crate::exit::usage;

/// Oldest kernel that is supported: io_uring with everything the data path and
/// the background readers use, and the one Debian 12 brings.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// # Errors
/// A sentence that says what is missing and what to do.
pub fn check() -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|e| {
        usage(format!("cannot read the kernel's version from /proc ({e}): towline needs Linux with /proc mounted"))
    })?;
    check_release(release.trim())
}

fn check_release(release: &str) -> anyhow::Result<()> {
    let (major, minor) = KERNEL_MIN;
    match parse(release) {
        Some(found) if found >= KERNEL_MIN => Ok(()),
        Some(_) => Err(usage(format!(
            "this kernel is Linux {release}, towline needs {major}.{minor} or newer: boot a newer \
             kernel (Debian 12 has 6.1) and start again"
        ))),
        None => Err(usage(format!(
            "cannot tell the version of kernel {release:?}: towline needs Linux {major}.{minor} or newer"
        ))),
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_1_are_refused_with_a_sentence() {
        for good in ["6.1.0-18-amd64", "6.18.44-x", "7.0", "6.1-rc1"] {
            check_release(good).unwrap();
        }
        for bad in ["5.15.0", "6.0.19", "4.9"] {
            let text = check_release(bad).unwrap_err().to_string();
            assert!(text.contains(bad) && text.contains("6.1"), "{text}");
        }
        for odd in ["", "x", "6"] {
            check_release(odd).unwrap_err();
        }
    }
}
