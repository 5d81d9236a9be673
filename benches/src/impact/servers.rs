//! Starting each server fresh, on the same disk, with what it needs beside it.

mod mirror;
mod plain;
mod replicated;

pub(super) use replicated::{Catching, Replication};

use super::child::{Daemonized, Process};
use super::placement::Seats;
use super::plan::ServerKind;
use super::scratch::Scratch;
use crate::nbd_client::{self, Client, NbdUri};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A server that does not answer by then has failed.
pub(super) const READY_WAIT: Duration = Duration::from_secs(30);

/// What starting a server needs to know.
pub(super) struct Place<'a> {
    pub scratch: &'a Scratch,
    pub seats: &'a Seats,
    /// The `towline` binary.
    pub towline: &'a Path,
    /// Ring of cells in which the shipper is stopped.
    pub idle_ring_bytes: u64,
}

impl Place<'_> {
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.scratch.at(&format!("{name}.log"))
    }
}

/// A server that serves the disk. Its processes end with it, in the order given.
pub(super) struct Running {
    pub uri: NbdUri,
    pub replication: Option<Replication>,
    /// Whose processor time is the server's.
    pub server_pids: Vec<u32>,
    /// Shipper, receiver, a mirror's target.
    pub side_pids: Vec<u32>,
    processes: Vec<Process>,
    daemon: Option<Daemonized>,
}

impl Running {
    fn new(uri: NbdUri) -> Running {
        Running {
            uri,
            replication: None,
            server_pids: Vec::new(),
            side_pids: Vec::new(),
            processes: Vec::new(),
            daemon: None,
        }
    }

    pub(super) fn all_pids(&self) -> Vec<u32> {
        [&self.server_pids[..], &self.side_pids[..]].concat()
    }
}

/// The server behind a hop did not start: no failure of ours, although ours needs it.
#[derive(Debug)]
pub(super) struct UpstreamFailed;

impl fmt::Display for UpstreamFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot start the server behind the hop")
    }
}

/// Starts a server and waits until it can be measured.
pub(super) fn start(kind: ServerKind, place: &Place<'_>) -> anyhow::Result<Running> {
    use ServerKind::*;
    match kind {
        Towline | TowlineIdle | TowlineFlush | TowlineWrite | TowlineLowest | TowlineUpstream => {
            replicated::start(kind, place)
        }
        TowlineOff => plain::towline_off(place),
        Nbdkit => plain::nbdkit(place),
        NbdkitHop => plain::nbdkit_hop(place),
        QemuNbd => plain::qemu_nbd(place),
        NbdServer => plain::nbd_server(place),
        QsdBackground => mirror::start(place, "background"),
        QsdBlocking => mirror::start(place, "write-blocking"),
    }
}

/// Ours, with a receiver and a shipper that has not been started: for the baseline.
pub(super) fn start_without_baseline(place: &Place<'_>) -> anyhow::Result<Running> {
    replicated::start_proxy(ServerKind::Towline, place)
}

/// Whether a client gets through the handshake.
fn answers(uri: &NbdUri) -> bool {
    let options = nbd_client::Options { timeout: Duration::from_secs(5), ..Default::default() };
    Client::connect(uri, options).and_then(Client::disconnect).is_ok()
}

fn wait_until_it_answers(process: &mut Process, uri: &NbdUri) -> anyhow::Result<()> {
    process.wait_until("it serves", READY_WAIT, || Ok(answers(uri)))
}
