//! The processors of the volume's thread: where it runs, and whether they may halt.

use super::core::Core;
use super::seat::{CORES_MAX, Move};
use super::spin::LatencyPolicy;
use rustix::process::getpid;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Where the kernel is asked to wake up without delay, for as long as the file is open:
/// Documentation/power/pm_qos_interface.rst.
const CPU_LATENCY: &str = "/dev/cpu_dma_latency";
/// Processors are kept awake until no request came for one to two of these.
const AWAKE_PERIOD: Duration = Duration::from_secs(1);
/// Threads of clients that are looked at.
const THREADS_MAX: usize = 512;

/// The process at the other end of a unix socket, when it is on this machine and visible.
pub(super) fn peer(fd: impl AsFd) -> Option<Pid> {
    rustix::net::sockopt::socket_peercred(fd).ok().map(|peer| peer.pid)
}

/// The cores to which threads of these processes are confined one by one, of those that `may`
/// be used; empty when there are too many to try. Reading takes about 1 us a thread.
fn confined_to(processes: &[Pid], may: &CpuSet) -> Vec<usize> {
    let folder = |process: &Pid| format!("/proc/{}/task", process.as_raw_nonzero());
    let mut cores: Vec<usize> = processes
        .iter()
        .filter_map(|process| fs::read_dir(folder(process)).ok())
        .flatten()
        .take(THREADS_MAX)
        .filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|thread| only_core(&sched_getaffinity(Pid::from_raw(thread)).ok()?))
        .filter(|core| may.is_set(*core))
        .collect();
    cores.sort_unstable();
    cores.dedup();
    if cores.len() > CORES_MAX {
        cores.clear();
    }
    cores
}

fn only_core(set: &CpuSet) -> Option<usize> {
    (set.count() == 1).then(|| (0..CpuSet::MAX_CPU).find(|core| set.is_set(*core)))?
}

/// How the thread moves, and comes back to where it was allowed to run.
#[derive(Default)]
pub(super) struct Mover {
    /// Processors that it had before it was confined to one.
    home: Option<CpuSet>,
}

impl Mover {
    fn go(&mut self, to: Move) -> io::Result<()> {
        match to {
            Move::To(core) => {
                if self.home.is_none() {
                    self.home = Some(sched_getaffinity(None)?);
                }
                let mut set = CpuSet::new();
                set.set(core);
                sched_setaffinity(None, &set)?;
            }
            Move::Home => {
                if let Some(home) = self.home {
                    sched_setaffinity(None, &home)?;
                    self.home = None;
                }
            }
        }
        Ok(())
    }

    fn may_use(&self) -> CpuSet {
        let now = || sched_getaffinity(None).unwrap_or_default();
        self.home.unwrap_or_else(now)
    }
}

/// Keeps the machine's processors from halting while a client is served: waking a halted one
/// takes 20 to 50 us in a virtual machine. An idle processor then polls in the kernel, which
/// takes no time from anybody who wants to run, but power, and a hypervisor's time.
pub(super) struct Awake {
    /// `None`: the policy does not want it, or the system refused.
    path: Option<PathBuf>,
    held: Option<Held>,
}

struct Held {
    _file: File,
    /// When the period began, and whether a request came in it.
    since: Instant,
    used: bool,
}

impl Awake {
    pub fn new(policy: LatencyPolicy) -> Awake {
        Awake::at(Path::new(CPU_LATENCY), policy)
    }

    fn at(path: &Path, policy: LatencyPolicy) -> Awake {
        let path = (policy == LatencyPolicy::Lowest).then(|| path.to_owned());
        Awake { path, held: None }
    }

    /// Requests came. True when from now on no processor halts.
    fn executed(&mut self, now: Instant) -> io::Result<bool> {
        if let Some(held) = &mut self.held {
            held.used = true;
            return Ok(false);
        }
        let Some(path) = &self.path else { return Ok(false) };
        let asked = OpenOptions::new().write(true).open(path).and_then(|mut file| {
            // Microseconds, as a native integer.
            file.write_all(&0i32.to_ne_bytes())?;
            Ok(file)
        });
        match asked {
            Ok(file) => self.held = Some(Held { _file: file, since: now, used: true }),
            Err(error) => {
                self.path = None;
                return Err(error);
            }
        }
        Ok(true)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.held.as_ref().map(|held| held.since + AWAKE_PERIOD)
    }

    /// Ends a period that is over: how long it was.
    fn expire(&mut self, now: Instant) -> Option<Duration> {
        let held = self.held.as_mut()?;
        let period = now.saturating_duration_since(held.since);
        if period < AWAKE_PERIOD {
            return None;
        }
        match held.used {
            true => (held.since, held.used) = (now, false),
            false => self.held = None,
        }
        Some(period)
    }

    fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

impl Core {
    /// The thread is the one that serves: its figures are its own.
    pub(super) fn note_thread(&self) {
        self.counters.cores.thread.store(gettid().as_raw_nonzero().get() as u32, Relaxed);
    }

    /// Another client came. A reader of our own, for the shipper, is none.
    pub(super) fn seat_joined(&mut self, client: Option<Pid>) {
        if client == Some(getpid()) {
            return;
        }
        self.clients.extend(client);
        let moved = self.seat.joined(self.now);
        self.moved(moved);
    }

    /// A connection of that client has ended; it may have others.
    pub(super) fn seat_left(&mut self, client: Option<Pid>) {
        if let Some(at) = self.clients.iter().position(|known| Some(*known) == client) {
            self.clients.swap_remove(at);
        }
    }

    /// So many requests were executed since the last call, the last of them at `self.now`.
    pub(super) fn place(&mut self, requests: u32) {
        let (clients, mover) = (&self.clients, &self.mover);
        let cores = || confined_to(clients, &mover.may_use());
        let moved = self.seat.executed(requests, self.now, cores);
        self.moved(moved);
        match self.awake.executed(self.now) {
            Ok(false) => {}
            Ok(true) => self.note_awake(),
            Err(error) => tracing::warn!(
                volume = %self.volume.name(), %error, path = CPU_LATENCY,
                "processors may halt: latency = lowest needs the right to write there"
            ),
        }
    }

    fn moved(&mut self, to: Option<Move>) {
        let Some(to) = to else { return };
        if let Err(error) = self.mover.go(to) {
            let volume = self.volume.name();
            tracing::warn!(%volume, %error, ?to, "the volume's thread cannot move");
            self.seat.failed(self.now);
            // Where it was confined before; what is refused now is tried with the next move.
            let _ = self.mover.go(Move::Home);
        }
        self.note_seat();
    }

    /// Logged when it changes: trials are not.
    fn note_seat(&mut self) {
        let seat = self.seat.core();
        let core = seat.map_or(-1, |(core, _)| core as i64);
        let before = self.counters.cores.seat.swap(core, Relaxed);
        let volume = self.volume.name();
        match seat {
            Some((core, interval)) if before != core as i64 => {
                let us = interval.as_secs_f64() * 1e6;
                tracing::info!(%volume, core, "shares the core of its client: a request every {us:.1} us");
            }
            None if before >= 0 => {
                tracing::info!(%volume, core = before, "left the core of its client")
            }
            _ => {}
        }
    }

    /// Processors may halt again when nobody came for a while.
    pub(super) fn expire_awake(&mut self) {
        if let Some(period) = self.awake.expire(self.now) {
            self.counters.cores.awake_ns.add(period.as_nanos() as u64);
            self.note_awake();
        }
    }

    fn note_awake(&self) {
        self.counters.cores.awake.store(self.awake.is_held(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn set(cores: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cores.iter().for_each(|core| set.set(*core));
        set
    }

    fn all() -> CpuSet {
        set(&(0..CpuSet::MAX_CPU).collect::<Vec<_>>())
    }

    /// A process whose only thread may run there.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn on(cores: &CpuSet) -> Sleeper {
            let mut sleep = Command::new("sleep");
            let child = sleep.arg("60").stdout(Stdio::null()).spawn().unwrap();
            let sleeper = Sleeper(child);
            sched_setaffinity(Some(sleeper.pid()), cores).unwrap();
            sleeper
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The cores that this test may use.
    fn here() -> Vec<usize> {
        let here = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|core| here.is_set(*core)).collect()
    }

    #[test]
    fn a_client_confined_to_one_core_is_found_and_one_that_roams_is_not() {
        let cores = here();
        let last = *cores.last().unwrap();
        let confined = Sleeper::on(&set(&[last]));
        assert_eq!(confined_to(&[confined.pid()], &all()), [last]);
        assert_eq!(confined_to(&[confined.pid()], &CpuSet::new()), [0usize; 0]);
        let roams = Sleeper::on(&set(&cores));
        let expected = if cores.len() == 1 { cores.clone() } else { vec![] };
        assert_eq!(confined_to(&[roams.pid()], &all()), expected);
    }

    #[test]
    fn threads_of_a_process_count_each_and_a_process_that_is_gone_has_none() {
        let cores = here();
        let (bye, ended) = std::sync::mpsc::channel::<()>();
        let (ready, started) = std::sync::mpsc::channel();
        let first = cores[0];
        let thread = std::thread::spawn(move || {
            sched_setaffinity(None, &set(&[first])).unwrap();
            ready.send(()).unwrap();
            let _ = ended.recv();
        });
        started.recv().unwrap();
        assert!(confined_to(&[getpid()], &all()).contains(&first));
        drop(bye);
        thread.join().unwrap();
        let gone = Sleeper::on(&set(&cores)).pid();
        let stays = Sleeper::on(&set(&[first]));
        assert_eq!(confined_to(&[gone, stays.pid()], &all()), [first]);
        assert_eq!(confined_to(&[gone], &all()), [0usize; 0]);
    }

    #[test]
    fn the_thread_comes_back_to_where_it_was_allowed_to_run() {
        std::thread::spawn(|| {
            let before = sched_getaffinity(None).unwrap();
            let cores = here();
            let mut mover = Mover::default();
            for core in &cores {
                mover.go(Move::To(*core)).unwrap();
                assert_eq!(sched_getaffinity(None).unwrap(), set(&[*core]));
                assert_eq!(mover.may_use(), before);
            }
            mover.go(Move::Home).unwrap();
            assert_eq!(sched_getaffinity(None).unwrap(), before);
            assert!(mover.go(Move::To(CpuSet::MAX_CPU - 1)).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_client_of_a_unix_socket_is_known() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer(&ours), Some(getpid()));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(peer(&tcp), None);
    }

    #[test]
    fn processors_are_kept_awake_while_requests_come_and_by_lowest_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latency");
        fs::write(&path, "").unwrap();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for policy in [LatencyPolicy::Balanced, LatencyPolicy::Frugal] {
            let mut awake = Awake::at(&path, policy);
            awake.executed(start).unwrap();
            assert!(!awake.is_held() && awake.deadline().is_none());
        }
        let mut awake = Awake::at(&path, LatencyPolicy::Lowest);
        assert_eq!((awake.is_held(), awake.deadline()), (false, None));
        awake.executed(start).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0; 4]);
        assert_eq!(awake.deadline(), Some(at(1000)));
        assert_eq!(awake.expire(at(999)), None);
        assert_eq!(awake.expire(at(1000)), Some(AWAKE_PERIOD));
        assert!(awake.is_held());
        awake.executed(at(1100)).unwrap();
        assert_eq!(awake.expire(at(2000)), Some(AWAKE_PERIOD));
        assert!(awake.is_held());
        // A period without requests is the last.
        assert_eq!(awake.expire(at(3000)), Some(AWAKE_PERIOD));
        assert_eq!((awake.is_held(), awake.deadline()), (false, None));
        awake.executed(at(9000)).unwrap();
        assert!(awake.is_held());
    }

    #[test]
    fn where_the_system_refuses_it_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut awake = Awake::at(&dir.path().join("none"), LatencyPolicy::Lowest);
        assert!(awake.executed(Instant::now()).is_err());
        assert!(awake.executed(Instant::now()).is_ok());
        assert!(!awake.is_held());
    }
}
