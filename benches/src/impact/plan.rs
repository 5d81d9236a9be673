//! What is measured at which level: servers, workloads, placements, clients. Pure.

use super::placement::Placement;
use crate::load::Workload;
use regex_lite::Regex;
use serde::Serialize;
use std::fmt;

/// A server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    /// Ours with the journal, shipping to a receiver on the same machine.
    Towline,
    /// The same with the shipper stopped while it is measured: journaling alone.
    TowlineIdle,
    /// Our server without a journal: the control.
    TowlineOff,
    /// As idle, `durability = "flush"`.
    TowlineFlush,
    /// As idle, `durability = "write"`.
    TowlineWrite,
    /// As the first, `latency = "lowest"`.
    TowlineLowest,
    /// As the first, its source an export of another server.
    TowlineUpstream,
    Nbdkit,
    /// nbdkit's nbd plugin before the same export.
    NbdkitHop,
    QemuNbd,
    NbdServer,
    /// QEMU's live mirror, background mode, granularity 4096.
    QsdBackground,
    /// QEMU's live mirror, write-blocking mode.
    QsdBlocking,
}

use ServerKind::*;

impl ServerKind {
    pub const ALL: [ServerKind; 13] = [
        Towline,
        TowlineIdle,
        TowlineOff,
        TowlineFlush,
        TowlineWrite,
        TowlineLowest,
        TowlineUpstream,
        Nbdkit,
        NbdkitHop,
        QemuNbd,
        NbdServer,
        QsdBackground,
        QsdBlocking,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Towline => "towline",
            TowlineIdle => "towline-idle",
            TowlineOff => "towline-off",
            TowlineFlush => "towline-flush",
            TowlineWrite => "towline-write",
            TowlineLowest => "towline-lowest",
            TowlineUpstream => "towline-upstream",
            Nbdkit => "nbdkit",
            NbdkitHop => "nbdkit-hop",
            QemuNbd => "qemu-nbd",
            NbdServer => "nbd-server",
            QsdBackground => "qsd-background",
            QsdBlocking => "qsd-blocking",
        }
    }

    pub fn says(self) -> &'static str {
        match self {
            Towline => "journal on, shipping to a receiver here",
            TowlineIdle => "journal on, shipper stopped meanwhile",
            TowlineOff => "our server without a journal",
            TowlineFlush => "journal on, durability = flush, shipper stopped",
            TowlineWrite => "journal on, durability = write, shipper stopped",
            TowlineLowest => "journal on, shipping, latency = lowest: no processor halts meanwhile",
            TowlineUpstream => "journal on, shipping, the source an export of nbdkit file",
            Nbdkit => "nbdkit file, plain",
            NbdkitHop => "nbdkit nbd before an export of nbdkit file",
            QemuNbd => "qemu-nbd, io_uring, writeback, plain",
            NbdServer => "nbd-server, plain",
            QsdBackground => "qemu-storage-daemon, mirror in background mode, granularity 4096",
            QsdBlocking => "qemu-storage-daemon, mirror in write-blocking mode",
        }
    }

    /// The name in `--against`, for servers that are not ours.
    pub fn peer(self) -> Option<&'static str> {
        match self {
            Nbdkit => Some("nbdkit"),
            NbdkitHop => Some("nbdkit-hop"),
            QemuNbd => Some("qemu-nbd"),
            NbdServer => Some("nbd-server"),
            QsdBackground | QsdBlocking => Some("qsd-mirror"),
            _ => None,
        }
    }

    /// Programs that it needs.
    pub(super) fn programs(self) -> &'static [&'static str] {
        match self {
            Nbdkit | NbdkitHop | TowlineUpstream => &["nbdkit"],
            QemuNbd => &["qemu-nbd"],
            NbdServer => &["nbd-server"],
            QsdBackground | QsdBlocking => &["qemu-storage-daemon", "nbdkit"],
            _ => &[],
        }
    }

    /// Has a baseline to make before it can be measured.
    pub(super) fn replicates(self) -> bool {
        self.peer().is_none() && self != TowlineOff
    }
}

/// Names that `--against` takes.
pub const PEERS: [&str; 5] = ["nbdkit", "nbdkit-hop", "qemu-nbd", "nbd-server", "qsd-mirror"];

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who sends the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Our batching load generator.
    Batching,
    Fio,
}

impl ClientKind {
    pub fn name(self) -> &'static str {
        match self {
            ClientKind::Batching => "batching",
            ClientKind::Fio => "fio",
        }
    }
}

/// A named workload, and how much of the disk it uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub name: &'static str,
    pub says: &'static str,
    pub workload: Workload,
    /// The whole disk, instead of the part inside the activity map's bound.
    pub whole_disk: bool,
}

/// Requests a second of the open loop: below what any server here manages, so that
/// its latency is that of a busy disk and not of an overloaded one.
const OPEN_RATE_PER_S: f64 = 8000.0;

/// All workloads.
pub fn jobs() -> Vec<Job> {
    const KIB4: u32 = 4 << 10;
    let job = |name, says, workload| Job { name, says, workload, whole_disk: false };
    let sequential = |workload| Workload { sequential: true, ..workload };
    let flushed =
        |every, depth| Workload { flush_every: Some(every), ..Workload::random_write(KIB4, depth) };
    vec![
        job("write-4k-qd1", "4 KiB random write, queue depth 1", Workload::random_write(KIB4, 1)),
        job("write-4k-qd8", "4 KiB random write, queue depth 8", Workload::random_write(KIB4, 8)),
        job(
            "write-4k-qd32",
            "4 KiB random write, queue depth 32",
            Workload::random_write(KIB4, 32),
        ),
        job("read-4k-qd1", "4 KiB random read, queue depth 1", Workload::random_read(KIB4, 1)),
        job("read-4k-qd32", "4 KiB random read, queue depth 32", Workload::random_read(KIB4, 32)),
        job(
            "write-64k-qd8",
            "64 KiB random write, queue depth 8",
            Workload::random_write(64 << 10, 8),
        ),
        job(
            "write-1m-qd4",
            "1 MiB sequential write, queue depth 4",
            sequential(Workload::random_write(1 << 20, 4)),
        ),
        job(
            "read-1m-qd4",
            "1 MiB sequential read, queue depth 4",
            sequential(Workload::random_read(1 << 20, 4)),
        ),
        job("flush-1", "4 KiB write, a flush after each", flushed(1, 1)),
        job("flush-16", "16 writes of 4 KiB, then a flush", flushed(16, 16)),
        job(
            "mix-70-qd16",
            "70 % reads, 30 % writes of 4 KiB, queue depth 16",
            Workload { read_percent: 70, ..Workload::random_write(KIB4, 16) },
        ),
        job(
            "write-4k-4conn",
            "4 KiB random write, 4 connections of depth 8",
            Workload { connections: 4, ..Workload::random_write(KIB4, 8) },
        ),
        job(
            "open-4k",
            "4 KiB random write, 8000 a second, from the moment each is due",
            Workload { rate_per_s: Some(OPEN_RATE_PER_S), ..Workload::random_write(KIB4, 1) },
        ),
        Job {
            whole_disk: true,
            ..job(
                "whole-4k-qd1",
                "4 KiB random write over the whole disk, depth 1",
                Workload::random_write(KIB4, 1),
            )
        },
        Job {
            whole_disk: true,
            ..job(
                "whole-4k-qd32",
                "4 KiB random write over the whole disk, depth 32",
                Workload::random_write(KIB4, 32),
            )
        },
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Quick,
    Default,
    Full,
}

impl Level {
    pub fn size_bytes(self) -> u64 {
        match self {
            Level::Quick => 256 << 20,
            Level::Default => 512 << 20,
            Level::Full => 4 << 30,
        }
    }

    pub fn rounds(self) -> usize {
        match self {
            Level::Quick => 3,
            Level::Default => 5,
            Level::Full => 7,
        }
    }

    pub fn seconds(self) -> f64 {
        match self {
            Level::Quick => 0.6,
            Level::Default => 0.75,
            Level::Full => 2.0,
        }
    }
}

/// One thing that is measured, once a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub server: ServerKind,
    pub job: Job,
    pub placement: Placement,
    pub client: ClientKind,
}

impl Cell {
    /// What `--only` is matched with: `towline/write-4k-qd1/unpinned/batching`.
    pub fn name(&self) -> String {
        let parts = [self.server.name(), self.job.name, self.placement.name(), self.client.name()];
        parts.join("/")
    }
}

/// What a person chose of it all.
#[derive(Clone, Debug)]
pub struct Choice {
    pub level: Level,
    /// Names as in [`PEERS`]; `None`: all of the level.
    pub against: Option<Vec<String>>,
    /// Matched with [`Cell::name`]; `None`: all.
    pub only: Option<Regex>,
}

/// Everything that a run depends on.
#[derive(Clone, Debug)]
pub struct Settings {
    pub choice: Choice,
    pub rounds: usize,
    pub seconds: f64,
    pub seed: u64,
    /// Bytes of the disk, and of the part that most workloads use.
    pub size_bytes: u64,
    pub working_set_bytes: u64,
    /// The ring of cells in which the shipper is stopped.
    pub idle_ring_bytes: u64,
    /// The binary that is measured, and its hidden command that serves without a journal.
    pub towline: std::path::PathBuf,
}

impl Settings {
    pub fn warm_seconds(&self) -> f64 {
        (self.seconds / 4.0).clamp(0.02, 0.5)
    }
}

/// The cells of a choice, in an order for reading.
pub fn plan(choice: &Choice) -> Vec<Cell> {
    let mut cells = Vec::new();
    for placement in Placement::ALL {
        for job in jobs() {
            for server in ServerKind::ALL {
                for client in [ClientKind::Batching, ClientKind::Fio] {
                    let cell = Cell { server, job: job.clone(), placement, client };
                    if chosen(choice, &cell) {
                        cells.push(cell);
                    }
                }
            }
        }
    }
    cells
}

fn chosen(choice: &Choice, cell: &Cell) -> bool {
    let peer = |name: &str| match &choice.against {
        Some(names) => names.iter().any(|given| given == name),
        None => choice.level != Level::Quick || name == "nbdkit",
    };
    let name = cell.name();
    // Ours behind a hop is of use beside the other hop only.
    let needed = match cell.server {
        TowlineUpstream => NbdkitHop.peer(),
        server => server.peer(),
    };
    in_level(choice.level, cell)
        && needed.is_none_or(peer)
        && choice.only.as_ref().is_none_or(|only| only.is_match(&name))
}

fn in_level(level: Level, cell: &Cell) -> bool {
    const BASIC: [&str; 2] = ["write-4k-qd1", "write-4k-qd32"];
    let job = cell.job.name;
    let basic = BASIC.contains(&job);
    let unpinned = cell.placement == Placement::Unpinned;
    let fio = cell.client == ClientKind::Fio;
    if level == Level::Quick {
        let jobs = ["write-4k-qd1", "write-4k-qd32", "read-4k-qd1", "flush-1"];
        let servers = matches!(cell.server, TowlineFlush | TowlineWrite);
        return unpinned && !fio && jobs.contains(&job) && !servers;
    }
    if cell.job.whole_disk && level != Level::Full {
        return false;
    }
    if fio {
        let servers = matches!(cell.server, Towline | Nbdkit) || level == Level::Full;
        return unpinned && basic && servers;
    }
    let cost = basic || job == "flush-1";
    match (cell.placement, cell.server) {
        (Placement::Unpinned, Towline | Nbdkit) => true,
        (Placement::Unpinned, _) if level == Level::Full => true,
        (Placement::Unpinned, QemuNbd) => {
            !matches!(job, "write-4k-qd8" | "open-4k" | "mix-70-qd16" | "write-4k-4conn")
        }
        (Placement::Unpinned, TowlineUpstream | NbdkitHop | TowlineLowest) => basic,
        (Placement::Unpinned, NbdServer | QsdBackground | QsdBlocking) => {
            basic || matches!(job, "write-64k-qd8" | "write-1m-qd4")
        }
        (Placement::Unpinned, _) => cost,
        (Placement::PinnedClient, Towline | Nbdkit) if level == Level::Default => {
            job == "write-4k-qd1"
        }
        (Placement::PinnedClient, Towline | Nbdkit) => basic,
        (Placement::PinnedClient, _) => false,
        (Placement::Awake, _) if level == Level::Default => false,
        (_, Towline | Nbdkit) => basic,
        (_, TowlineIdle | TowlineOff | QemuNbd) => basic && level == Level::Full,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(level: Level) -> Choice {
        Choice { level, against: None, only: None }
    }

    #[test]
    fn levels_grow_and_names_are_unique() {
        let names = |level| plan(&choose(level)).iter().map(Cell::name).collect::<Vec<_>>();
        let [quick, default, full] = [Level::Quick, Level::Default, Level::Full].map(names);
        assert!(quick.len() < default.len() && default.len() < full.len());
        assert!(default.iter().all(|name| full.contains(name)));
        let mut unique = full.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), full.len());
    }

    #[test]
    fn peers_and_parts_of_names_choose() {
        let mut choice = choose(Level::Default);
        choice.against = Some(vec!["qsd-mirror".into()]);
        choice.only = Regex::new("write-4k-qd1/unpinned").ok();
        let servers: Vec<_> = plan(&choice).iter().map(|cell| cell.server).collect();
        assert!(servers.contains(&QsdBackground) && servers.contains(&Towline), "{servers:?}");
        assert!(!servers.contains(&Nbdkit), "{servers:?}");
    }

    #[test]
    fn every_server_is_measured_at_the_two_basic_workloads() {
        let cells = plan(&choose(Level::Default));
        for server in ServerKind::ALL {
            for job in ["write-4k-qd1", "write-4k-qd32"] {
                assert!(cells.iter().any(|c| c.server == server && c.job.name == job), "{server}");
            }
        }
    }
}
