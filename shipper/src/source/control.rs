//! `ship.sock`: one JSON line asks, JSON lines answer (docs/formats/link.md).
//!
//! `{"cutover":{"max_pause_ms":2000}}` -> any number of `{"progress":{...}}`, then
//! `{"done":{...}}` with a [`CutoverReport`].

use super::stream::Stream;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use towline_control::CutoverReport;

/// Longest request line.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Longest wait for a client's request.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    Cutover { max_pause_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    Progress { phase: String, backlog_bytes: u64 },
    Done(CutoverReport),
    Refused(String),
}

/// A cutover that somebody asked for; answers go to `replies`.
pub(crate) struct Order {
    pub max_pause: Duration,
    pub replies: Sender<ControlReply>,
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

/// Serves one client after the other, until the stream stops.
pub(crate) fn serve(listener: UnixListener, orders: &Sender<Order>, stream: &Stream) {
    for client in listener.incoming() {
        if stream.stopping() {
            return;
        }
        match client {
            Ok(client) => {
                if let Err(e) = serve_client(client, orders) {
                    tracing::debug!("a control client left: {e}");
                }
            }
            Err(e) => tracing::warn!("ship.sock: {e}"),
        }
    }
}

fn serve_client(mut client: UnixStream, orders: &Sender<Order>) -> std::io::Result<()> {
    client.set_read_timeout(Some(REQUEST_WAIT_MAX))?;
    let mut line = String::new();
    BufReader::new(client.try_clone()?.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let request: ControlRequest = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => {
            let refusal = ControlReply::Refused(format!("the request is not understood: {e}"));
            return answer(&mut client, &refusal);
        }
    };
    let ControlRequest::Cutover { max_pause_ms } = request;
    let (replies, answers) = channel();
    let order = Order { max_pause: Duration::from_millis(max_pause_ms), replies };
    if orders.send(order).is_err() {
        return answer(&mut client, &ControlReply::Refused("the shipper is stopping".into()));
    }
    // Ends when the drain drops the sender: after Done, Refused, or its own end.
    for reply in answers {
        answer(&mut client, &reply)?;
    }
    Ok(())
}

fn answer(client: &mut UnixStream, reply: &ControlReply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    client.write_all(&line)
}
