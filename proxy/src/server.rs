//! The server: volumes' threads, the accepting thread, and their orderly end.

use crate::accept::{Accepting, Door, Lobby};
use crate::engine::{
    Command, Engine, Inbox, LatencyPolicy, Mailbox, Setup, WakeOnDurable, mailbox,
};
use crate::error::{Error, ErrorKind, Result};
use crate::gate::{Attempt, Gate};
use crate::group::{Group, Member, refusal_of};
use crate::latency::{Counters, Shadow};
use crate::listen::{Bound, ListenAddr, Reserved};
use crate::nbd::handshake::Export;
use crate::volume::{Journaled, Volume};
use crossbeam::channel::{Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use towline_block::{Access, Disk, VolumeName};
use towline_journal::state::{Promoted, Seal};

/// A volume to serve. Its export has its name; the first is also the default.
pub struct ExportConfig {
    pub name: VolumeName,
    pub disk: Arc<dyn Disk>,
    /// `None` serves the disk as it is: a promoted receiver, or a control.
    pub journaled: Option<Journaled>,
}

/// How a group stands when its server starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartGate {
    Open,
    /// Sealed before a restart: changes are refused with this sentence until
    /// [`Group::unseal`] or [`Group::commit`].
    Sealed {
        attempt: Attempt,
        refusal: String,
    },
    /// Served elsewhere: changes are refused with this sentence, for good.
    Promoted {
        refusal: String,
    },
}

impl StartGate {
    /// As a journal's seal says: a seal found at start means that the decision of
    /// its attempt was not learned before the restart.
    pub fn of_seal(seal: Option<&Seal>) -> StartGate {
        match seal {
            None => StartGate::Open,
            Some(Seal { promoted: Some(Promoted { epoch, exports }), .. }) => {
                StartGate::Promoted { refusal: refusal_of(*epoch, exports) }
            }
            Some(Seal { attempt, promoted: None, .. }) => StartGate::Sealed {
                attempt: *attempt,
                refusal: "this group is sealed for a cutover whose outcome is not known here yet: \
                          changes are refused until `towline ship` has asked the receiver"
                    .to_owned(),
            },
        }
    }

    fn gate(&self) -> Gate {
        match self {
            StartGate::Open => Gate::Open,
            StartGate::Sealed { attempt, refusal } => {
                Gate::Sealed { attempt: *attempt, refusal: Some(refusal.as_str().into()) }
            }
            StartGate::Promoted { refusal } => Gate::Promoted { refusal: refusal.as_str().into() },
        }
    }
}

/// Figures of one volume.
#[derive(Clone)]
pub struct VolumeFigures {
    pub name: VolumeName,
    pub shadow: Arc<Shadow>,
    pub counters: Arc<Counters>,
    open: Arc<AtomicUsize>,
}

impl VolumeFigures {
    /// Connections in transmission now.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// A running server. Dropped without [`Server::stop`], it stops all the same and
/// logs what fails.
pub struct Server {
    group: Group,
    addresses: Vec<String>,
    figures: Vec<VolumeFigures>,
    lobby: Arc<Lobby>,
    volumes: Vec<(VolumeName, Mailbox, JoinHandle<Result<()>>)>,
    accepting: Option<Accepting>,
}

impl Server {
    /// Serves `exports` on every address, with the default of [`LatencyPolicy`].
    /// Returns when all of them can be reached.
    pub fn start(
        exports: Vec<ExportConfig>,
        addresses: &[ListenAddr],
        gate: &StartGate,
    ) -> Result<Server> {
        Server::start_with(exports, addresses, gate, LatencyPolicy::default())
    }

    /// As [`Server::start`], with a policy.
    pub fn start_with(
        exports: Vec<ExportConfig>,
        addresses: &[ListenAddr],
        gate: &StartGate,
        policy: LatencyPolicy,
    ) -> Result<Server> {
        // Before the first thread: an address in use ends the start here.
        Server::start_at(exports, Reserved::new(addresses)?, gate, policy)
    }

    /// As [`Server::start_with`], on addresses that were reserved before.
    pub fn start_at(
        exports: Vec<ExportConfig>,
        reserved: Reserved,
        gate: &StartGate,
        policy: LatencyPolicy,
    ) -> Result<Server> {
        check(&exports)?;
        let journal = exports.iter().find_map(|export| {
            export.journaled.as_ref().map(|journaled| journaled.journal.clone())
        });
        let offered: Arc<[Export]> = exports.iter().map(offer).collect();
        let bound = reserved.listen()?;
        let mut server = Server {
            group: Group::new(Vec::new(), None),
            addresses: bound.iter().map(Bound::address).collect(),
            figures: Vec::new(),
            lobby: Arc::new(Lobby::default()),
            volumes: Vec::new(),
            accepting: None,
        };
        let (mut members, mut doors) = (Vec::new(), Vec::new());
        for export in exports {
            let id = export.journaled.as_ref().map(|journaled| journaled.id);
            let (name, open) = (export.name.clone(), Arc::new(AtomicUsize::new(0)));
            let mailbox = server.start_volume(export, gate.gate(), open.clone(), policy)?;
            members.push(Member { name, id, mailbox: mailbox.clone() });
            let enter =
                move |new| mailbox.send(Command::Connect(new)).map_err(std::io::Error::other);
            doors.push(Door { enter: Box::new(enter), open });
        }
        server.group = Group::new(members, journal);
        server.lobby = Arc::new(Lobby { exports: offered, doors, refused: AtomicU64::new(0) });
        server.accepting = Some(Accepting::start(bound, server.lobby.clone())?);
        Ok(server)
    }

    fn start_volume(
        &mut self,
        export: ExportConfig,
        gate: Gate,
        open: Arc<AtomicUsize>,
        policy: LatencyPolicy,
    ) -> Result<Mailbox> {
        let name = export.name.clone();
        let failed = |error: std::io::Error| {
            Error::caused(ErrorKind::System, format!("cannot start the thread of {name}"), error)
        };
        let (mailbox, inbox) = mailbox().map_err(failed)?;
        let (shadow, counters) = (Arc::<Shadow>::default(), Arc::<Counters>::default());
        let wake = WakeOnDurable::default();
        if let Some(journaled) = &export.journaled {
            let (bell, wake) = (mailbox.clone(), wake.clone());
            journaled.journal.on_durable(move || {
                // A volume that has ended waits for nothing.
                if wake.is_wanted() {
                    let _ = bell.send(Command::Persisted);
                }
            });
        }
        self.figures.push(VolumeFigures {
            name: name.clone(),
            shadow: shadow.clone(),
            counters: counters.clone(),
            open,
        });
        let bell = mailbox.clone();
        let setup = move |inbox: Inbox| Setup {
            mailbox: bell,
            wake,
            volume: Volume::new(export.name, export.disk, export.journaled),
            gate,
            inbox,
            shadow,
            counters,
            policy,
        };
        let (ready, started) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("vol-{name}"))
            .spawn(move || serve_volume(setup(inbox), &ready))
            .map_err(failed)?;
        self.volumes.push((name.clone(), mailbox.clone(), thread));
        match started.recv() {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(failed(std::io::Error::other("it ended at once"))),
        }
        Ok(mailbox)
    }

    /// The volumes together, for cutovers and the shipper's claims.
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// Where clients connect: `unix:PATH`, or TCP with the real port.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    /// Under which URIs each volume is served, in the order of the exports.
    pub fn uris(&self) -> Vec<Vec<String>> {
        let of = |name| self.addresses.iter().map(move |address| uri_of(address, name)).collect();
        self.volumes.iter().map(|(name, _, _)| of(name)).collect()
    }

    /// Whether a volume is served no more, for a reason that is in the log. Nothing
    /// but an end of the process helps: whoever supervises it starts it again.
    pub fn has_failed(&self) -> bool {
        self.volumes.iter().any(|(_, _, thread)| thread.is_finished())
    }

    /// Figures of all volumes, in the order of the exports.
    pub fn figures(&self) -> &[VolumeFigures] {
        &self.figures
    }

    /// Clients that never reached transmission because of a limit or a broken rule.
    pub fn refused(&self) -> u64 {
        self.lobby.refused.load(Ordering::Relaxed)
    }

    /// Stops in order: no new clients, everything received is executed and answered,
    /// sources are flushed. Changes that wait at the gate are dropped unanswered.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when a source's last writes may not be durable.
    pub fn stop(mut self) -> Result<()> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<()> {
        if let Some(accepting) = self.accepting.take() {
            accepting.end();
        }
        for (_, mailbox, _) in &self.volumes {
            // A thread that has ended already tells why when it is joined.
            let _ = mailbox.send(Command::Stop);
        }
        let mut result = Ok(());
        for (name, _, thread) in self.volumes.drain(..) {
            let ended = thread.join().unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::System, format!("the thread of {name} panicked")))
            });
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::error!(%error, "the server did not stop in order");
        }
    }
}

fn serve_volume(setup: Setup, ready: &Sender<std::io::Result<()>>) -> Result<()> {
    match Engine::new(setup) {
        Ok(engine) => {
            let _ = ready.send(Ok(()));
            engine.run()
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    }
}

fn check(exports: &[ExportConfig]) -> Result<()> {
    let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
    if exports.is_empty() {
        return invalid("there is no volume to serve".to_owned());
    }
    for (index, export) in exports.iter().enumerate() {
        if exports[..index].iter().any(|other| other.name == export.name) {
            return invalid(format!("two volumes are named {}", export.name));
        }
    }
    Ok(())
}

/// The NBD URI of an export at a listening address.
pub(crate) fn uri_of(address: &str, name: &VolumeName) -> String {
    let Some(path) = address.strip_prefix("unix:") else {
        return format!("nbd://{address}/{name}");
    };
    let mut socket = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                socket.push(char::from(byte));
            }
            other => socket.push_str(&format!("%{other:02X}")),
        }
    }
    format!("nbd+unix:///{name}?socket={socket}")
}

fn offer(export: &ExportConfig) -> Export {
    Export {
        name: export.name.to_string(),
        description: format!("Towline volume {}", export.name),
        size_bytes: export.disk.size_bytes(),
        read_only: export.disk.access() == Access::Read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_export_and_place() {
        let name = "disk0".parse().unwrap();
        assert_eq!(uri_of("[::1]:10809", &name), "nbd://[::1]:10809/disk0");
        let socket = "unix:/run/a b&c.sock";
        assert_eq!(uri_of(socket, &name), "nbd+unix:///disk0?socket=/run/a%20b%26c.sock");
    }
}
