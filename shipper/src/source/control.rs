//! `ship.sock`: one JSON line asks, JSON lines answer (docs/formats/link.md).
//!
//! `{"cutover":{"max_pause_ms":2000}}` -> any number of `{"progress":{...}}`, then
//! `{"done":{...}}` with a [`CutoverReport`], `{"refused":"..."}` or `{"unreachable":"..."}`.
//!
//! Promises: whoever asks hears something at once, and then at least every
//! [`HEARTBEAT_EVERY`], however long the drain is held up. A client that hangs up has taken its
//! request back ([`Caller::has_left`]); the drain looks at that before each step that counts.

use super::stream::Stream;
use crate::error::{Error, Result};
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_control::CutoverReport;

/// Longest request line.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Longest wait for a client's request, and for one that takes no answer.
const CLIENT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Clients served at a time: one cutover, and others that hear that it is on its way.
const CLIENTS_MAX: usize = 8;
/// A client hears something at least so often. `towline cutover` takes five times that in
/// silence for a shipper that does not answer.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// How often a client that hears nothing is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest wait until the drain has taken a request. It is at it in half a second, unless the
/// proxy or a disk does not answer.
const UNTAKEN_MAX: Duration = Duration::from_secs(4);
/// The first phase that a client hears of: its request was read.
const ASKED: &str = "asked";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    Cutover { max_pause_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    Progress {
        phase: String,
        backlog_bytes: u64,
    },
    Done(CutoverReport),
    Refused(String),
    /// The proxy or the drain does not answer: nothing was begun.
    Unreachable(String),
}

/// A cutover that somebody asked for.
pub(crate) struct Order {
    pub max_pause: Duration,
    pub caller: Caller,
}

/// Whoever asked.
pub(crate) struct Caller {
    replies: Sender<ControlReply>,
    socket: Arc<UnixStream>,
}

impl Caller {
    pub fn new(socket: Arc<UnixStream>) -> (Caller, Receiver<ControlReply>) {
        let (replies, answers) = channel();
        (Caller { replies, socket }, answers)
    }

    /// Of no consequence when nobody is there any more.
    pub fn say(&self, reply: ControlReply) {
        let _ = self.replies.send(reply);
    }

    /// Has hung up: what it asked for is not wanted any more.
    pub fn has_left(&self) -> bool {
        hung_up(&self.socket)
    }
}

/// The other end is closed, or will send no more.
fn hung_up(socket: &UnixStream) -> bool {
    let mut more = [0; 64];
    match rustix::net::recv(socket, &mut more, RecvFlags::DONTWAIT) {
        Ok((_, length)) => length == 0,
        Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
    }
}

/// Binds the socket, replacing one that nobody listens on: the caller holds the lock.
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::storage(format!("cannot replace {}", path.display()), e));
        }
        _ => {}
    }
    UnixListener::bind(path)
        .map_err(|e| Error::storage(format!("cannot listen on {}", path.display()), e))
}

/// Serves clients, until the stream stops.
pub(crate) fn serve(
    listener: UnixListener,
    orders: &Sender<Order>,
    stream: &Stream,
    group: &GroupName,
) {
    let open = AtomicUsize::new(0);
    // Their ends follow the drain's: it drops all callers.
    std::thread::scope(|scope| {
        for client in listener.incoming() {
            if stream.stopping() {
                return;
            }
            let client = match client {
                Ok(client) => client,
                Err(e) => {
                    tracing::warn!("ship.sock: {e}");
                    continue;
                }
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                let why = format!("{CLIENTS_MAX} clients are asking already: try again later");
                let _ = answer(&client, &ControlReply::Refused(why));
                continue;
            }
            let open = &open;
            let started = std::thread::Builder::new().name("ship-client".into()).spawn_scoped(
                scope,
                move || {
                    if let Err(e) = serve_client(&Arc::new(client), orders, group) {
                        tracing::debug!("a control client left: {e}");
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                },
            );
            if let Err(e) = started {
                open.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!("ship.sock: cannot serve a client: {e}");
            }
        }
    });
}

fn serve_client(
    client: &Arc<UnixStream>,
    orders: &Sender<Order>,
    group: &GroupName,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(CLIENT_WAIT_MAX))?;
    client.set_write_timeout(Some(CLIENT_WAIT_MAX))?;
    let mut line = String::new();
    BufReader::new((&**client).take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let request: ControlRequest = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => {
            let refusal = ControlReply::Refused(format!("the request is not understood: {e}"));
            return answer(client, &refusal);
        }
    };
    let asked = ControlReply::Progress { phase: ASKED.into(), backlog_bytes: 0 };
    // Fails for a client that is gone: nobody wants its request any more.
    answer(client, &asked)?;
    let ControlRequest::Cutover { max_pause_ms } = request;
    let (caller, answers) = Caller::new(client.clone());
    let order = Order { max_pause: Duration::from_millis(max_pause_ms), caller };
    if orders.send(order).is_err() {
        return answer(client, &ControlReply::Refused("the shipper is stopping".into()));
    }
    let served = pass_on(client, &answers, asked, group);
    // The drain may still have the other half: to it the caller has left from here on.
    let _ = client.shutdown(Shutdown::Both);
    served
}

/// Passes on what the drain says, and repeats it while it says nothing. Ends when the drain
/// drops the caller: after the last answer, or at its own end.
fn pass_on(
    client: &UnixStream,
    answers: &Receiver<ControlReply>,
    asked: ControlReply,
    group: &GroupName,
) -> std::io::Result<()> {
    let asked_at = Instant::now();
    let (mut last, mut said_at) = (asked, Instant::now());
    let mut taken = false;
    loop {
        match answers.recv_timeout(LOOK_EVERY) {
            Ok(reply) => {
                taken = true;
                let is_new = reply != last;
                if is_new && (said_at.elapsed() >= LOOK_EVERY || !is_same_phase(&reply, &last)) {
                    answer(client, &reply)?;
                    said_at = Instant::now();
                }
                last = reply;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if said_at.elapsed() >= HEARTBEAT_EVERY {
            answer(client, &last)?;
            said_at = Instant::now();
        }
        if !taken && asked_at.elapsed() >= UNTAKEN_MAX {
            taken = true;
            // From here on the drain finds that the caller has left. If it had taken the
            // request before, it has said so: then its answer is passed on.
            client.shutdown(Shutdown::Read)?;
            match answers.try_recv() {
                Ok(reply) => {
                    answer(client, &reply)?;
                    last = reply;
                }
                Err(_) => return answer(client, &held_up(group)),
            }
        }
    }
}

fn held_up(group: &GroupName) -> ControlReply {
    ControlReply::Unreachable(format!(
        "the proxy of group {group} does not answer, or its disk: the shipper is held up by it; \
         nothing was begun"
    ))
}

fn is_same_phase(one: &ControlReply, other: &ControlReply) -> bool {
    match (one, other) {
        (ControlReply::Progress { phase: one, .. }, ControlReply::Progress { phase, .. }) => {
            one == phase
        }
        _ => false,
    }
}

fn answer(mut client: &UnixStream, reply: &ControlReply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    client.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::TryRecvError;

    /// A client that has asked, and what the drain gets of it.
    fn asked() -> (UnixStream, Receiver<Order>, std::thread::JoinHandle<()>) {
        let (client, served) = UnixStream::pair().unwrap();
        (&client).write_all(b"{\"cutover\":{\"max_pause_ms\":1000}}\n").unwrap();
        let (orders, incoming) = channel();
        let thread = std::thread::spawn(move || {
            let _ = serve_client(&Arc::new(served), &orders, &"g".parse().unwrap());
        });
        (client, incoming, thread)
    }

    fn progress(phase: &str) -> ControlReply {
        ControlReply::Progress { phase: phase.into(), backlog_bytes: 0 }
    }

    fn next(lines: &mut impl BufRead) -> ControlReply {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_client_hears_something_at_once_and_while_the_drain_is_silent() {
        let (client, incoming, thread) = asked();
        let mut lines = BufReader::new(&client);
        assert_eq!(next(&mut lines), progress("asked"));
        let order = incoming.recv().unwrap();
        order.caller.say(progress("draining"));
        assert_eq!(next(&mut lines), progress("draining"));
        assert_eq!(next(&mut lines), progress("draining"), "nothing new, and said again");
        assert!(!order.caller.has_left());
        order.caller.say(ControlReply::Refused("no".into()));
        assert_eq!(next(&mut lines), ControlReply::Refused("no".into()));
        drop(order);
        thread.join().unwrap();
    }

    #[test]
    fn a_drain_that_is_held_up_is_told_and_does_not_carry_the_request_out_later() {
        let (client, incoming, thread) = asked();
        let last = BufReader::new(&client).lines().last().unwrap().unwrap();
        let last: ControlReply = serde_json::from_str(&last).unwrap();
        assert!(matches!(last, ControlReply::Unreachable(_)), "{last:?}");
        thread.join().unwrap();
        assert!(incoming.try_recv().unwrap().caller.has_left());
    }

    #[test]
    fn a_client_that_hangs_up_has_left() {
        let (client, incoming, thread) = asked();
        let order = incoming.recv().unwrap();
        assert!(!order.caller.has_left());
        drop(client);
        assert!(order.caller.has_left());
        drop(order);
        thread.join().unwrap();
    }

    #[test]
    fn the_request_of_a_client_that_is_gone_reaches_nobody() {
        let (client, served) = UnixStream::pair().unwrap();
        (&client).write_all(b"{\"cutover\":{\"max_pause_ms\":1000}}\n").unwrap();
        drop(client);
        let (orders, incoming) = channel();
        assert!(serve_client(&Arc::new(served), &orders, &"g".parse().unwrap()).is_err());
        assert!(matches!(incoming.try_recv(), Err(TryRecvError::Empty)));
    }
}
