//! What a process asks of the scheduler.

use std::io;

/// The longest slice that the scheduler grants: whoever has a shorter one, as every
/// ordinary thread has, takes the core from us as soon as it wakes.
const SLICE_NS: u64 = 100_000_000;

/// Gives way to everything else: the calling thread, and the threads and programs that it
/// starts from now on, get at least this nice value (0 to 19; one that is nicer already
/// stays) and the longest slice. The nice value says how much of a core is left to the
/// others, the slice how soon they have it: a woken thread takes the core from one with a
/// longer slice at once and not after the rest of it, which is milliseconds (EEVDF, Linux
/// 6.12; older kernels ignore the slice). See sched_setattr(2).
///
/// # Errors
/// Where the system refuses, as some sandboxes do.
pub fn give_way(nice: i32) -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: the kernel writes at most `size` bytes to `attr`, which lives longer.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    attr.size = size;
    attr.sched_nice = attr.sched_nice.max(nice);
    attr.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads `size` bytes from `attr`, which lives longer.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
            give_way(before + 3).unwrap();
            let nicer = nice();
            give_way(before).unwrap();
            (before, nicer, nice(), std::thread::spawn(nice).join().unwrap())
        });
        let (before, nicer, after, child) = threads.join().unwrap();
        assert_eq!((nicer, after, child), (before + 3, before + 3, before + 3));
    }
}
