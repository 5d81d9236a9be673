//! The proxy's end of the link: what a shipper asks over `proxy.sock`.
//!
//! One thread a connection; a session's questions are served one at a time, so
//! that attaching never crosses a claim. A newer session ends the older ones: their
//! questions are refused. A cutover asks on connections of its own.

use anyhow::Context;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use towline_journal::link::{LINK_VERSION, Link, Reply, Request};
use towline_journal::state::Promoted;
use towline_journal::{Durable, Journal, format::Counter};
use towline_proxy::Group;

/// How long the sources' last flush may take before a seal is given up; guests wait
/// meanwhile.
const SEAL_MAX: Duration = Duration::from_secs(10);

/// What the gate's counter says.
const GATE_OPEN: u64 = 0;
const GATE_HELD: u64 = 1;
const GATE_SEALED: u64 = 2;
const GATE_PROMOTED: u64 = 3;

/// The listening side; ends with [`Service::stop`].
pub struct Service {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: JoinHandle<()>,
}

struct Shared {
    journal: Arc<Journal>,
    group: Group,
    /// The newest session's number; taken for the whole of a session's question.
    session: Mutex<u64>,
    /// Steps of a cutover are taken one at a time.
    cutover: Mutex<()>,
    ended: AtomicBool,
}

/// One connection's standing.
#[derive(Default)]
struct Peer {
    /// Set by attach.
    session: Option<u64>,
}

impl Service {
    /// Listens on the group's `proxy.sock`; the caller holds the group's lock, so
    /// that a socket found there is nobody's.
    pub fn start(journal: Arc<Journal>, group: Group) -> anyhow::Result<Service> {
        let path = journal.dir().proxy_socket();
        let what = || format!("cannot listen on {}", path.display());
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(what),
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(what)?;
        let shared = Arc::new(Shared {
            journal,
            group,
            session: Mutex::new(0),
            cutover: Mutex::new(()),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || accept(&listener, &serving))
            .with_context(what)?;
        Ok(Service { shared, path, thread })
    }

    /// No question is served after this returns.
    pub fn stop(self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Waits for a question that is being served, and wakes accept().
        drop(self.shared.lock());
        let _ = UnixStream::connect(&self.path);
        if self.thread.join().is_err() {
            tracing::error!("the link's thread panicked");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for socket in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(socket) = socket else { continue };
        let shared = Arc::clone(shared);
        let spawned = std::thread::Builder::new().name("link-peer".into()).spawn(move || {
            if let Err(error) = serve(&shared, Link::new(socket)) {
                tracing::debug!("a shipper's connection ended: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("cannot serve a shipper: {error}");
        }
    }
}

fn serve(shared: &Shared, mut link: Link) -> towline_journal::Result<()> {
    let mut peer = Peer::default();
    while let Some((request, _)) = link.receive::<Request>()? {
        if shared.ended.load(Ordering::SeqCst) {
            return link.send(&Reply::Refused("the proxy is stopping".into()), &[]);
        }
        match request {
            Request::Attach { version, target } => {
                attach(shared, &mut peer, &mut link, version, target)?
            }
            request => {
                let reply = shared.answer(&peer, request).unwrap_or_else(Reply::Refused);
                link.send(&reply, &[])?;
            }
        }
    }
    Ok(())
}

/// Answers with descriptors: the ring, then a reader of each source.
fn attach(
    shared: &Shared,
    peer: &mut Peer,
    link: &mut Link,
    version: u32,
    target: Durable,
) -> towline_journal::Result<()> {
    if version != LINK_VERSION {
        let why =
            format!("this proxy speaks version {LINK_VERSION} of the link, the shipper {version}");
        return link.send(&Reply::Refused(why), &[]);
    }
    let readers: Result<Vec<_>, _> =
        shared.journal.sources().iter().map(|s| s.disk.open_direct()).collect();
    let readers = match readers {
        Ok(readers) => readers,
        Err(error) => return link.send(&Reply::Refused(error.to_string()), &[]),
    };
    let mut newest = shared.lock();
    let Some(attached) = shared.journal.attach(target) else {
        return link.send(&Reply::Superseded, &[]);
    };
    *newest += 1;
    peer.session = Some(*newest);
    drop(newest);
    if let Some(why) = &attached.resync {
        tracing::warn!(group = %shared.journal.group(), "everything is sent again: {why}");
    }
    let reply = Reply::Attached {
        group: shared.journal.group().clone(),
        attached,
        seal: shared.journal.sealed(),
    };
    let mut fds: Vec<&dyn AsFd> = vec![shared.journal.ring_file()];
    fds.extend(readers.iter().map(|fd| fd as &dyn AsFd));
    link.send(&reply, &fds)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply, or why the question is refused.
    fn answer(&self, peer: &Peer, request: Request) -> Result<Reply, String> {
        match request {
            Request::Attach { .. } => Err("attach is served elsewhere".into()),
            Request::Claim { .. }
            | Request::Ack { .. }
            | Request::Heal
            | Request::Resync { .. } => self.answer_session(peer, request),
            _ => self.answer_cutover(request).map_err(|error| error.to_string()),
        }
    }

    /// A cutover's steps. Each may be asked again: an answer can be lost.
    fn answer_cutover(&self, request: Request) -> towline_proxy::Result<Reply> {
        let _one_at_a_time = self.cutover.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, gate) = match request {
            Request::Hold { attempt, max_ms } => {
                let held = self.group.hold(attempt, Duration::from_millis(max_ms))?;
                (Reply::Held { seq: held.0 }, GATE_HELD)
            }
            Request::Release { attempt } => {
                self.group.release(attempt)?;
                (Reply::Ok, GATE_OPEN)
            }
            Request::Seal { attempt } => (Reply::Sealed { seq: self.seal(attempt)? }, GATE_SEALED),
            Request::Unseal { attempt } => {
                self.group.unseal(attempt)?;
                (Reply::Ok, GATE_OPEN)
            }
            Request::Commit { attempt, epoch, exports } => {
                self.group.commit(attempt, Promoted { epoch, exports })?;
                (Reply::Ok, GATE_PROMOTED)
            }
            _ => {
                (Reply::Refused("not a step of a cutover".into()), self.journal.get(Counter::Gate))
            }
        };
        self.journal.publish(Counter::Gate, gate);
        Ok(reply)
    }

    /// A seal that is durable stays: asking again must not try it again, for a try
    /// that fails opens the gate.
    fn seal(&self, attempt: u64) -> towline_proxy::Result<u64> {
        if let Some(seal) = self.journal.sealed().filter(|seal| seal.attempt == attempt) {
            return Ok(seal.seq);
        }
        let sealed = self.group.seal(attempt, SEAL_MAX);
        if sealed.is_err() {
            self.journal.publish(Counter::Gate, GATE_OPEN);
        }
        Ok(sealed?.seq)
    }

    /// Questions that only the newest session may ask.
    fn answer_session(&self, peer: &Peer, request: Request) -> Result<Reply, String> {
        let newest = self.lock();
        if peer.session != Some(*newest) {
            return Err("another shipper session has attached since: this one is over".into());
        }
        Ok(match request {
            Request::Claim { volume, from_block, blocks_max } => {
                let claim = self.group.claim(volume, from_block, blocks_max);
                Reply::Claimed(claim.map_err(|error| error.to_string())?)
            }
            Request::Ack { seq, claims } => {
                self.journal.ack(seq, claims);
                Reply::Ok
            }
            Request::Heal => Reply::Healed(self.journal.heal()),
            Request::Resync { reason } => {
                tracing::error!(group = %self.journal.group(), "everything is sent again: {reason}");
                let start_seq = self.journal.resync_all();
                let claims_upto = self.journal.get(Counter::NextClaim).saturating_sub(1);
                Reply::Resynced { start_seq, claims_upto }
            }
            _ => return Err("not a session's question".into()),
        })
    }
}
