//! What a process asks of the scheduler.

use std::io;

/// Gives the calling thread, and the threads that it starts from now on, at least this
/// nice value (0 to 19); one that is nicer already stays. See setpriority(2).
///
/// # Errors
/// Where the system refuses, as some sandboxes do.
pub fn be_nice(least: i32) -> io::Result<()> {
    // SAFETY: both take numbers only. Without a failure to tell of, errno needs no look:
    // the calling thread exists and is ours.
    let refused = unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now.max(least)) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 19 of proc_pid_stat(5), of this thread.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit(") ").next().unwrap();
        after_name.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_gets_nicer_and_its_children_with_it_and_never_less_nice() {
        let threads = std::thread::spawn(|| {
            let before = nice();
            be_nice(before + 3).unwrap();
            let nicer = nice();
            be_nice(before).unwrap();
            (before, nicer, nice(), std::thread::spawn(nice).join().unwrap())
        });
        let (before, nicer, after, child) = threads.join().unwrap();
        assert_eq!((nicer, after, child), (before + 3, before + 3, before + 3));
    }
}
