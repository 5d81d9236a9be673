//! The proxy's end of the link: serves `proxy.sock` for the shipper.
//!
//! One session at a time may drain: whoever attached last. Everything that touches
//! claims or acknowledgements happens under the session's lock, so that a claim, an
//! acknowledgement and a new session's attach never overlap. Threads of its own: no
//! shipper can cost a guest more than the claims it is given.

use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::listen::{self, Bound, ListenAddr, SocketFile};
use socket2::SockRef;
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use towline_block::sys::uring::Fd;
use towline_block::{Backend, VolumeId};
use towline_journal::format::Counter;
use towline_journal::link::{CLAIM_RUNS_MAX, LINK_VERSION, Link, Reply, Request};
use towline_journal::state::Promoted;
use towline_journal::{Damage, Durable, Journal, Resync};

/// Links open at a time: one shipper, its successor, and somebody looking.
const LINKS_MAX: usize = 8;
/// A peer that takes no reply for so long is given up.
const SEND_WAIT: Duration = Duration::from_secs(30);

/// Serves the link until it is dropped.
pub struct LinkServer {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
    _file: SocketFile,
}

struct Shared {
    group: Group,
    journal: Arc<Journal>,
    /// Number of the connection that attached last.
    session: Mutex<Option<u64>>,
    links: Mutex<HashMap<u64, (UnixStream, JoinHandle<()>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LinkServer {
    /// Serves at `path`, which a killed predecessor may have left behind.
    pub fn start(path: &Path, group: Group, journal: Arc<Journal>) -> Result<LinkServer> {
        let failed = |error| {
            let what = format!("cannot serve the link at {}", path.display());
            Error::caused(ErrorKind::System, what, error)
        };
        let Bound::Unix { listener, path: file } = listen::bind(&ListenAddr::Unix(path.into()))?
        else {
            unreachable!("a unix address binds a unix socket");
        };
        listener.set_nonblocking(false).map_err(failed)?;
        let accepted_on = listener.try_clone().map_err(failed)?;
        let links = Mutex::new(HashMap::new());
        let shared = Arc::new(Shared { group, journal, session: Mutex::new(None), links });
        let accepting = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("link-accept".to_owned())
                .spawn(move || accept(&accepted_on, &shared))
                .map_err(failed)?
        };
        Ok(LinkServer { shared, listener, accepting: Some(accepting), _file: file })
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        // Wakes the accepting thread, which then ends.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.accepting.take()
            && thread.join().is_err()
        {
            tracing::error!("the link's accepting thread panicked");
        }
        let links: Vec<_> = lock(&self.shared.links).drain().collect();
        for (_, (socket, thread)) in links {
            let _ = socket.shutdown(Shutdown::Both);
            if thread.join().is_err() {
                tracing::error!("a link's thread panicked");
            }
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for number in 0u64.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        // The table is locked until the thread is in it: it removes itself.
        let mut links = lock(&shared.links);
        if links.len() >= LINKS_MAX {
            tracing::warn!("link refused: {LINKS_MAX} are open");
            continue;
        }
        let Ok(socket) = stream.try_clone() else { continue };
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name(format!("link-{number}")).spawn(move || {
            if let Err(error) = serve(&serving, number, stream) {
                tracing::info!(link = number, %error, "link ended");
            }
            lock(&serving.links).remove(&number);
        });
        match thread {
            Ok(thread) => drop(links.insert(number, (socket, thread))),
            Err(error) => tracing::warn!(%error, "cannot start a link's thread"),
        }
    }
}

fn serve(shared: &Shared, number: u64, stream: UnixStream) -> towline_journal::Result<()> {
    // Reading waits for ever: a shipper has long pauses.
    let _ = stream.set_write_timeout(Some(SEND_WAIT));
    let mut link = Link::new(stream);
    while let Some((request, _)) = link.receive::<Request>()? {
        tracing::debug!(link = number, ?request, "link");
        let (reply, fds) = shared.answer(number, request).unwrap_or_else(|error| {
            tracing::warn!(link = number, %error, "link request refused");
            (Reply::Refused(error.to_string()), Vec::new())
        });
        let mut passed: Vec<&dyn AsFd> = Vec::new();
        if matches!(reply, Reply::Attached { .. }) {
            passed.push(shared.journal.ring_file());
        }
        passed.extend(fds.iter().map(|fd| fd as &dyn AsFd));
        link.send(&reply, &passed)?;
    }
    Ok(())
}

impl Shared {
    fn answer(&self, number: u64, request: Request) -> Result<(Reply, Vec<Fd>)> {
        if let Request::Attach { version, target } = request {
            return self.attach(number, version, target);
        }
        let reply = match request {
            Request::Attach { .. } => unreachable!("answered above"),
            Request::Claim { volume, from_block, blocks_max, runs_max } => {
                let _session = self.session(number)?;
                let runs = runs_max.unwrap_or(1).min(CLAIM_RUNS_MAX);
                let claims = self.group.claim(volume, from_block, blocks_max, runs)?;
                match runs_max {
                    None => Reply::Claimed(claims.into_iter().next()),
                    Some(_) => Reply::Claims(claims),
                }
            }
            Request::Ack { seq, claims } => {
                let _session = self.session(number)?;
                self.journal.ack(seq, claims);
                Reply::Ok
            }
            Request::Heal => {
                let _session = self.session(number)?;
                Reply::Healed(self.journal.heal())
            }
            Request::Resync { reason } => {
                let _session = self.session(number)?;
                tracing::warn!(reason, "the shipper asks for everything to be compared");
                let start_seq = self.journal.resync_all(Resync::Compare);
                let claims_upto = self.journal.get(Counter::NextClaim).saturating_sub(1);
                Reply::Resynced { start_seq, claims_upto }
            }
            Request::Lacks { runs } => {
                let _session = self.session(number)?;
                self.journal.target_lacks(&runs);
                Reply::Ok
            }
            Request::HistoryEnded { seq, reason } => {
                let _session = self.session(number)?;
                tracing::warn!(seq, reason, "the shipper cannot read on in the lost ring's spill");
                self.journal.history_damaged(seq);
                Reply::Ok
            }
            Request::Damaged { seq, reason } => {
                let _session = self.session(number)?;
                tracing::warn!(seq, reason, "the shipper cannot read a record of the spill");
                match self.journal.spill_damaged(seq) {
                    Damage::Skip { upto } => Reply::Skipped { upto },
                    Damage::Resync { start_seq, claims_upto } => {
                        Reply::Resynced { start_seq, claims_upto }
                    }
                }
            }
            // On any link: a cutover goes on when the session's link was lost. The group
            // orders the steps itself.
            cutover => self.cutover(cutover)?,
        };
        Ok((reply, Vec::new()))
    }

    fn cutover(&self, request: Request) -> Result<Reply> {
        let group = &self.group;
        match request {
            Request::Hold { attempt, max_ms } => {
                let seq = group.hold(attempt, Duration::from_millis(max_ms))?;
                Ok(Reply::Held { seq: seq.0 })
            }
            Request::Mark { name } => group.mark(&name).map(|seq| Reply::Marked { seq: seq.0 }),
            Request::Release { attempt } => group.release(attempt).map(|()| Reply::Ok),
            Request::Seal { attempt } => {
                group.seal(attempt).map(|seal| Reply::Sealed { seq: seal.seq })
            }
            Request::Unseal { attempt } => group.unseal(attempt).map(|()| Reply::Ok),
            Request::Commit { attempt, epoch, exports } => {
                group.commit(attempt, Promoted { epoch, exports }).map(|()| Reply::Ok)
            }
            other => {
                let what = format!("{other:?} is no step of a cutover");
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        }
    }

    fn attach(&self, number: u64, version: u32, target: Durable) -> Result<(Reply, Vec<Fd>)> {
        if version != LINK_VERSION {
            let what = format!(
                "the shipper speaks version {version} of the link, this proxy {LINK_VERSION}: run \
                 both from the same release"
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let mut readers = Vec::new();
        for (index, source) in self.journal.sources().iter().enumerate() {
            readers.push(match source.disk.backend() {
                Backend::File(disk) => disk.open_direct().map_err(|error| {
                    let what = format!("cannot open {} for the shipper", source.name);
                    Error::caused(ErrorKind::Storage, what, error)
                })?,
                // R13: nobody but the volume's thread talks to the server.
                Backend::Upstream(_) => {
                    self.group.reader(VolumeId(index as u16), source.disk.size_bytes())?
                }
            });
        }
        let mut session = lock(&self.session);
        let Some(attached) = self.journal.attach(target) else {
            return Ok((Reply::Superseded, Vec::new()));
        };
        let former = session.replace(number).filter(|former| *former != number);
        if let Some(former) = former
            && let Some((socket, _)) = lock(&self.links).get(&former)
        {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let (group, seal) = (self.journal.group().clone(), self.journal.sealed());
        Ok((Reply::Attached { group, attached, seal }, readers))
    }

    /// The session's lock, if this link has the session.
    fn session(&self, number: u64) -> Result<MutexGuard<'_, Option<u64>>> {
        let session = lock(&self.session);
        if *session == Some(number) {
            return Ok(session);
        }
        let what = "this link has no session: attach first; a newer shipper ends an older one's";
        Err(Error::new(ErrorKind::Busy, what))
    }
}
