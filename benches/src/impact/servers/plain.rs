//! Servers that only serve.

use super::{Place, READY_WAIT, Running, UpstreamFailed, answers, wait_until_it_answers};
use crate::impact::child::{Daemonized, Process};
use crate::nbd_client::NbdUri;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::Path;

/// Clients at once: four connections, and a spare for looking.
const CLIENTS: &str = "8";

/// Words of a command, of any kinds.
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(::std::ffi::OsString::from($word)),*] };
}
pub(super) use words;

fn serve(
    place: &Place<'_>,
    name: &str,
    uri: NbdUri,
    words: &[OsString],
) -> anyhow::Result<Running> {
    let mut running = Running::new(uri);
    let log = place.log(name);
    let mut process = Process::start(name, words, place.seats.server.as_ref(), &log)?;
    wait_until_it_answers(&mut process, &running.uri)?;
    running.server_pids.push(process.pid());
    running.processes.push(process);
    Ok(running)
}

pub(super) fn nbdkit(place: &Place<'_>) -> anyhow::Result<Running> {
    let socket = place.scratch.at("nbd.sock");
    let words = nbdkit_words(&socket, &place.scratch.disk);
    serve(place, "nbdkit", NbdUri::unix(&socket, ""), &words)
}

/// nbdkit with its file plugin and nothing else said.
pub(super) fn nbdkit_words(socket: &Path, disk: &Path) -> Vec<OsString> {
    words!["nbdkit", "-f", "-U", socket, "file", disk]
}

/// nbdkit's nbd plugin before the server that is our upstream, too.
pub(super) fn nbdkit_hop(place: &Place<'_>) -> anyhow::Result<Running> {
    let (uri, behind) = upstream(place)?;
    let socket = place.scratch.at("nbd.sock");
    let mut source = OsString::from("uri=");
    source.push(uri);
    let words = words!["nbdkit", "-f", "-U", &socket, "nbd", source];
    let mut running = serve(place, "nbdkit-hop", NbdUri::unix(&socket, ""), &words)?;
    running.side_pids.push(behind.pid());
    running.processes.push(behind);
    Ok(running)
}

/// The server behind a hop: nbdkit on the disk. Its URI.
///
/// # Errors
/// [`UpstreamFailed`] with the reason.
pub(super) fn upstream(place: &Place<'_>) -> anyhow::Result<(OsString, Process)> {
    let socket = place.scratch.at("upstream.sock");
    let words = nbdkit_words(&socket, &place.scratch.disk);
    let log = place.log("upstream");
    let start = || {
        let mut process = Process::start("nbdkit", &words, place.seats.side.as_ref(), &log)?;
        wait_until_it_answers(&mut process, &NbdUri::unix(&socket, ""))?;
        anyhow::Ok(process)
    };
    let process = start().context(UpstreamFailed)?;
    let mut uri = OsString::from("nbd+unix:///?socket=");
    uri.push(&socket);
    Ok((uri, process))
}

pub(super) fn qemu_nbd(place: &Place<'_>) -> anyhow::Result<Running> {
    let socket = place.scratch.at("nbd.sock");
    let disk = &place.scratch.disk;
    let words = words![
        "qemu-nbd",
        "-k",
        &socket,
        "-f",
        "raw",
        "-t",
        "-e",
        CLIENTS,
        "--cache=writeback",
        "--aio=io_uring",
        disk
    ];
    serve(place, "qemu-nbd", NbdUri::unix(&socket, ""), &words)
}

/// Our server without a journal: a hidden command of the same binary.
pub(super) fn towline_off(place: &Place<'_>) -> anyhow::Result<Running> {
    let socket = place.scratch.at("nbd.sock");
    let mut address = OsString::from("unix:");
    address.push(&socket);
    let words = words![place.towline, "bench", "serve", address, &place.scratch.disk];
    serve(place, "towline-off", NbdUri::unix(&socket, "disk0"), &words)
}

/// nbd-server has no foreground mode that serves more than one client: it becomes a
/// daemon, and a process for each client.
pub(super) fn nbd_server(place: &Place<'_>) -> anyhow::Result<Running> {
    let scratch = place.scratch;
    let (socket, config, pid_file) =
        (scratch.at("nbd.sock"), scratch.at("nbd-server.conf"), scratch.at("nbd-server.pid"));
    // It binds TCP in any case; a port of this moment, on this machine only.
    let port = free_port()?;
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nunixsock = {}\n[disk0]\nexportname = \
         {}\nflush = true\nfua = true\n",
        socket.display(),
        scratch.disk.display()
    );
    std::fs::write(&config, text).context("cannot write nbd-server's configuration")?;
    let words = words!["nbd-server", "-C", &config, "-p", &pid_file];
    let mut running = Running::new(NbdUri::unix(&socket, "disk0"));
    let log = place.log("nbd-server");
    let mut parent = Process::start("nbd-server", &words, place.seats.server.as_ref(), &log)?;
    let began = std::time::Instant::now();
    let pid = loop {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<u32>() {
            break pid;
        }
        if began.elapsed() > READY_WAIT {
            bail!("nbd-server wrote no {}:\n{}", pid_file.display(), parent.last_words());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    running.daemon = Some(Daemonized { pid, command: "nbd-server" });
    while !answers(&running.uri) {
        if began.elapsed() > READY_WAIT {
            bail!("nbd-server does not answer:\n{}", parent.last_words());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // The parent has ended, or ends now.
    let _ = parent.wait_until("its end", std::time::Duration::ZERO, || Ok(true));
    running.server_pids.push(pid);
    Ok(running)
}

/// A port that nobody has at this moment.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(socket.local_addr()?.port())
}
