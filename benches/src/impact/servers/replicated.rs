//! Ours with journal, shipper and receiver: the real processes of the same binary.

use super::plain::{free_port, upstream, words};
use super::{Place, READY_WAIT, Running, wait_until_it_answers};
use crate::impact::child::Process;
use crate::impact::plan::ServerKind;
use crate::nbd_client::NbdUri;
use anyhow::{Context, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GROUP: &str = "bench";

/// The slowest baseline that is waited for, in bytes a second, and a start.
const BASELINE_BYTES_PER_S_MIN: u64 = 10 << 20;

/// Longest wait for the shipper between two cells. A cell that begins behind says so.
const CATCH_UP_WAIT: Duration = Duration::from_secs(20);

const LOOK_EVERY: Duration = Duration::from_millis(30);

/// The replication beside a proxy.
pub(in crate::impact) struct Replication {
    towline: PathBuf,
    state: PathBuf,
    receiver_port: u16,
    side: Option<crate::load::Cpus>,
    ship_log: PathBuf,
    ship: Option<Process>,
    /// Stopped while cells are measured.
    idle: bool,
    /// Rate of the baseline with no guest at work, if one was made.
    pub(in crate::impact) baseline_bytes_per_s: Option<f64>,
}

/// How the shipper stood before a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::impact) enum Catching {
    Up,
    Behind,
}

/// What `status` shows, as far as it is of use here.
#[derive(Clone, Debug, Default)]
pub(in crate::impact) struct Status {
    pub state: String,
    pub lag_bytes: u64,
    pub ladder_steps: u64,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// The rate at which a baseline is copied: from its first bytes to its last. Starting,
/// connecting and the target's last steps are not copying.
#[derive(Default)]
struct Solo {
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Solo {
    fn look(&mut self, at: Instant, status: &Status) {
        let done = status.done_bytes;
        if self.first.is_none() && done > 0 {
            self.first = Some((at, done));
        }
        if self.last.is_none_or(|(_, known)| done > known) {
            self.last = Some((at, done));
        }
    }

    fn bytes_per_s(&self) -> Option<f64> {
        let ((from, first), (to, last)) = self.first.zip(self.last)?;
        (last > first).then(|| (last - first) as f64 / (to - from).as_secs_f64())
    }
}

pub(super) fn start(kind: ServerKind, place: &Place<'_>) -> anyhow::Result<Running> {
    let mut running = start_proxy(kind, place)?;
    let replication = running.replication.as_mut().expect("made with the proxy");
    let began = Instant::now();
    replication.start_shipping()?;
    let patience =
        READY_WAIT + Duration::from_secs(place.scratch.size_bytes / BASELINE_BYTES_PER_S_MIN);
    let mut solo = Solo::default();
    loop {
        let status = replication.status()?;
        solo.look(Instant::now(), &status);
        if status.state == "live" {
            break;
        }
        if began.elapsed() > patience {
            bail!("no point at the target after {patience:?}: the baseline is too slow here");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    replication.baseline_bytes_per_s = solo.bytes_per_s();
    replication.idle = !ships(kind);
    running.side_pids.extend(replication.ship.as_ref().map(Process::pid));
    Ok(running)
}

/// Goes on shipping while it is measured.
fn ships(kind: ServerKind) -> bool {
    matches!(kind, ServerKind::Towline | ServerKind::TowlineLowest | ServerKind::TowlineUpstream)
}

/// Proxy and receiver; nothing is shipped yet.
pub(super) fn start_proxy(kind: ServerKind, place: &Place<'_>) -> anyhow::Result<Running> {
    let scratch = place.scratch;
    let (socket, state, target) =
        (scratch.at("nbd.sock"), scratch.at("state"), scratch.at("target"));
    std::fs::create_dir(&target).context("cannot make the receiver's folder")?;
    let receiver_port = free_port()?;
    let prefixed = |prefix: &str, path: &Path| {
        let mut word = OsString::from(prefix);
        word.push(path);
        word
    };
    let words = words![
        place.towline,
        "bench",
        "elsewhere",
        place.towline,
        "receive",
        "--listen",
        format!("127.0.0.1:{receiver_port}"),
        "--state",
        &target,
        "--target",
        prefixed("disk0=", &target.join("disk.raw")),
        "--nbd",
        prefixed("unix:", &target.join("nbd.sock")),
        "--insecure-loopback",
    ];
    let log = place.log("receive");
    let mut receive = Process::start("towline receive", &words, place.seats.side.as_ref(), &log)?;
    wait_for_ready(&mut receive, &log)?;
    let (source, behind) = match kind {
        ServerKind::TowlineUpstream => upstream(place).map(|(uri, server)| (uri, Some(server)))?,
        _ => ((&scratch.disk).into(), None),
    };
    let mut words = words![
        place.towline,
        "proxy",
        "--group",
        GROUP,
        "--state",
        &state,
        "--source",
        prefixed("disk0=", source.as_ref()),
        "--nbd",
        prefixed("unix:", &socket),
        "--ring-dir",
        scratch.rings(),
    ];
    match kind {
        ServerKind::TowlineFlush => words.extend(words!["--durability", "flush"]),
        ServerKind::TowlineWrite => words.extend(words!["--durability", "write"]),
        ServerKind::TowlineLowest => words.extend(words!["--latency", "lowest"]),
        _ => {}
    }
    if !ships(kind) {
        words.extend(words!["--ring", place.idle_ring_bytes.to_string()]);
    }
    let log = place.log("proxy");
    let mut proxy = Process::start("towline proxy", &words, place.seats.server.as_ref(), &log)?;
    let uri = NbdUri::unix(&socket, "disk0");
    wait_until_it_answers(&mut proxy, &uri)?;
    let mut running = Running::new(uri);
    running.server_pids.push(proxy.pid());
    running.side_pids.push(receive.pid());
    running.replication = Some(Replication {
        towline: place.towline.into(),
        state,
        receiver_port,
        side: place.seats.side.clone(),
        ship_log: place.log("ship"),
        ship: None,
        idle: false,
        baseline_bytes_per_s: None,
    });
    running.side_pids.extend(behind.as_ref().map(Process::pid));
    running.processes.extend([proxy, receive].into_iter().chain(behind));
    Ok(running)
}

fn wait_for_ready(process: &mut Process, log: &Path) -> anyhow::Result<()> {
    process.wait_until("it is ready", READY_WAIT, || {
        Ok(std::fs::read_to_string(log).unwrap_or_default().contains("ready"))
    })
}

impl Replication {
    pub(in crate::impact) fn start_shipping(&mut self) -> anyhow::Result<u32> {
        let words = words![
            &self.towline,
            "ship",
            "--group",
            GROUP,
            "--state",
            &self.state,
            "--to",
            format!("127.0.0.1:{}", self.receiver_port),
            "--insecure-loopback",
        ];
        let ship = Process::start("towline ship", &words, self.side.as_ref(), &self.ship_log)?;
        let pid = ship.pid();
        self.ship = Some(ship);
        Ok(pid)
    }

    pub(in crate::impact) fn status(&self) -> anyhow::Result<Status> {
        let said = Command::new(&self.towline)
            .args(["status", GROUP, "--json", "--state"])
            .arg(&self.state)
            .stdin(Stdio::null())
            .output()
            .context("cannot run towline status")?;
        if !said.status.success() {
            bail!("towline status: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
        let value: Value = serde_json::from_slice(&said.stdout).context("towline status")?;
        let group = &value["groups"][0];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(Status {
            state: group["state"].as_str().unwrap_or("unknown").into(),
            lag_bytes: number(&group["lag_bytes"]),
            ladder_steps: number(&group["ladder_steps"]),
            done_bytes: number(&group["baseline"]["done_bytes"]),
            total_bytes: number(&group["baseline"]["total_bytes"]),
        })
    }

    /// Lets the shipper empty the ring, then stops it if the cell is to be without.
    pub(in crate::impact) fn before_cell(&self) -> anyhow::Result<Catching> {
        self.freeze(false);
        let began = Instant::now();
        let caught = loop {
            let status = self.status()?;
            if status.state == "live" && status.lag_bytes == 0 {
                break Catching::Up;
            }
            if began.elapsed() > CATCH_UP_WAIT {
                break Catching::Behind;
            }
            std::thread::sleep(LOOK_EVERY);
        };
        self.freeze(self.idle);
        Ok(caught)
    }

    pub(in crate::impact) fn after_cell(&self) {
        self.freeze(false);
    }

    fn freeze(&self, frozen: bool) {
        if let Some(ship) = self.ship.as_ref().filter(|_| self.idle) {
            ship.freeze(frozen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baselines_rate_is_that_of_its_copying_alone() {
        let began = Instant::now();
        let mut solo = Solo::default();
        for (ms, done_bytes) in
            [(0, 0), (500, 10), (1000, 60), (1500, 110), (2000, 110), (9000, 110)]
        {
            let status = Status { done_bytes, ..Status::default() };
            solo.look(began + Duration::from_millis(ms), &status);
        }
        assert_eq!(solo.bytes_per_s(), Some(100.0));
        assert_eq!(Solo::default().bytes_per_s(), None);
    }
}
