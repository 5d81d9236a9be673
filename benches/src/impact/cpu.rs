//! Processor time of a server with all its threads and children, from /proc.

use std::fs;

/// Length of the kernel's clock tick in /proc/PID/stat, fixed by its ABI.
const TICK_NS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// By the scheduler's own account of the threads that live, in nanoseconds; by
    /// ticks of 10 ms where that is more.
    pub total_ns: u64,
    /// User time in ticks of 10 ms: to tell ours from others' in /proc/stat.
    pub user_ns: u64,
}

impl CpuTime {
    pub(super) fn since(self, before: CpuTime) -> CpuTime {
        CpuTime {
            total_ns: self.total_ns.saturating_sub(before.total_ns),
            user_ns: self.user_ns.saturating_sub(before.user_ns),
        }
    }
}

/// Who started whom, at one moment. A kernel need not offer a list of children.
pub(super) struct Family(Vec<(u32, Stat)>);

impl Family {
    pub(super) fn now() -> Family {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        Family(pids.filter_map(|pid| Some((pid, Stat::of(pid)?))).collect())
    }

    /// Time used so far by these processes, their children (a server may fork for each
    /// connection) and the children they have waited for.
    pub(super) fn time_of(&self, pids: &[u32]) -> CpuTime {
        let mut members = pids.to_vec();
        members.sort_unstable();
        members.dedup();
        let mut next = 0;
        let mut sum = CpuTime::default();
        while next < members.len() {
            let pid = members[next];
            next += 1;
            for (child, stat) in &self.0 {
                if stat.parent == pid && !members.contains(child) {
                    members.push(*child);
                }
            }
            let Some((_, stat)) = self.0.iter().find(|(known, _)| *known == pid) else { continue };
            // Threads that have ended (with a client's connection) are in the ticks alone.
            sum.total_ns += threads_ns(pid).unwrap_or(0).max(stat.own_ns) + stat.waited_for_ns;
            sum.user_ns += stat.user_ns;
        }
        sum
    }
}

/// Time on a processor of all threads, by the scheduler.
fn threads_ns(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    tasks.flatten().map(|task| of(task.path())).sum()
}

struct Stat {
    parent: u32,
    own_ns: u64,
    user_ns: u64,
    waited_for_ns: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let [user, system, waited_user, waited_system] =
            [ticks(11)?, ticks(12)?, ticks(13)?, ticks(14)?];
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            own_ns: (user + system) * TICK_NS,
            user_ns: (user + waited_user) * TICK_NS,
            waited_for_ns: (waited_user + waited_system) * TICK_NS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_threads_of_this_process_use_is_seen() {
        let own = [std::process::id()];
        let before = Family::now().time_of(&own);
        let busy = std::thread::spawn(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(60) {}
            // Looked at while the thread lives: the scheduler's account ends with it.
            Family::now().time_of(&[std::process::id()])
        });
        let used = busy.join().unwrap().since(before);
        assert!(used.total_ns > 0 && used.total_ns < 60_000_000_000, "{used:?}");
    }

    #[test]
    fn what_a_thread_used_is_known_after_its_end() {
        let own = [std::process::id()];
        let before = Family::now().time_of(&own);
        let busy = std::thread::spawn(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(200) {}
            Family::now().time_of(&[std::process::id()])
        });
        let then = busy.join().unwrap().since(before).total_ns;
        let after = Family::now().time_of(&own).since(before).total_ns;
        assert!(after + 2 * TICK_NS >= then, "{after} of {then}");
    }

    #[test]
    fn a_process_that_is_gone_has_used_nothing() {
        assert_eq!(Family::now().time_of(&[u32::MAX - 1]), CpuTime::default());
    }
}
