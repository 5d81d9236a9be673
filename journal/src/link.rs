//! The link between shipper and proxy: one JSON object a line each way over the
//! group's `proxy.sock`, descriptors with the reply to `attach`. Neither side
//! names the other; both name these types. `docs/formats/link.md`.

use crate::attach::{Attached, Claim};
use crate::error::{Error, ErrorKind, Result};
use crate::resume::Durable;
use crate::state::Seal;
use crate::sys::{recv_with_fds, send_with_fds};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use towline_block::{GroupName, MarkName, VolumeId};

pub const LINK_VERSION: u32 = 1;
/// Longest message: an attach reply with the largest number of volumes is 16 KiB, claims
/// of [`CLAIM_RUNS_MAX`] runs as much.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The most runs that one request claims.
pub const CLAIM_RUNS_MAX: u32 = 64;

/// What the shipper asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A new session: the target durably has this. Ends older sessions.
    Attach { version: u32, target: Durable },
    /// Dirty blocks of a volume, at or after a block: so many at most, in at most so many
    /// runs. Without `runs_max` one, answered by `claimed`; else `claims`.
    Claim {
        volume: VolumeId,
        from_block: u64,
        blocks_max: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        runs_max: Option<u32>,
    },
    /// The target durably has all records and claims up to here.
    Ack { seq: u64, claims: u64 },
    /// The stream has passed every Q: append HEAL if nothing is dirty or claimed.
    Heal,
    /// A record in the spill is lost or damaged: make dirty what it may have touched.
    Damaged { seq: u64, reason: String },
    /// A record of the history is lost or damaged: the stream leaves it there and goes on
    /// with the ring's first record; what the rest of the history touches is compared.
    HistoryEnded { seq: u64, reason: String },
    /// A record in the ring is damaged: make everything dirty.
    Resync { reason: String },
    /// The target lacks these blocks (volume, first block, count), whatever it has else:
    /// make them dirty.
    Lacks { runs: Vec<(u16, u64, u64)> },
    /// Append a MARK record of this name.
    Mark { name: MarkName },
    /// Hold all writes of the group for at most this long.
    Hold { attempt: u64, max_ms: u64 },
    /// End the hold: writes go on.
    Release { attempt: u64 },
    /// Flush the sources and seal the held group.
    Seal { attempt: u64 },
    /// The target durably aborted: lift the seal.
    Unseal { attempt: u64 },
    /// The target durably promoted: refuse writes for good.
    Commit { attempt: u64, epoch: u32, exports: Vec<String> },
}

/// What the proxy answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// With descriptors: the ring, then one reader for each volume, in order.
    Attached {
        group: GroupName,
        attached: Attached,
        seal: Option<Seal>,
    },
    /// The target was promoted in a later epoch.
    Superseded,
    Claimed(Option<Claim>),
    /// In the order of their blocks and numbers.
    Claims(Vec<Claim>),
    /// Number of the HEAL record; none while anything is dirty or claimed.
    Healed(Option<u64>),
    /// The RESYNC record from which the stream goes on, and the claims it counts as
    /// complete there.
    Resynced {
        start_seq: u64,
        claims_upto: u64,
    },
    /// The stream breaks at the damaged record and passes all up to here.
    Skipped {
        upto: u64,
    },
    /// Number of the MARK record.
    Marked {
        seq: u64,
    },
    /// All writes wait; this is the last record.
    Held {
        seq: u64,
    },
    Sealed {
        seq: u64,
    },
    Ok,
    /// The request was refused; the text says why.
    Refused(String),
}

/// One end of a connection.
pub struct Link {
    socket: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Link {
    /// # Errors
    /// [`ErrorKind::Missing`] when no proxy listens there.
    pub fn connect(path: &Path) -> Result<Link> {
        let socket = UnixStream::connect(path).map_err(|e| {
            Error::io(format!("no proxy answers at {}", path.display()), e)
                .with_kind(ErrorKind::Missing)
        })?;
        Ok(Link::new(socket))
    }

    pub fn new(socket: UnixStream) -> Link {
        Link { socket, buffer: Vec::new(), fds: Vec::new() }
    }

    /// Bound on waiting for the other end; `None`: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        self.socket
            .set_read_timeout(timeout)
            .and_then(|()| self.socket.set_write_timeout(timeout))
            .map_err(|e| Error::io("cannot set the link's timeout", e))
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends one message, descriptors with its first byte.
    pub fn send<T: Serialize>(&mut self, message: &T, fds: &[&dyn AsFd]) -> Result<()> {
        let mut line = serde_json::to_vec(message).expect("a message is plain data");
        line.push(b'\n');
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut sent = 0;
        while sent < line.len() {
            let with = if sent == 0 { &fds[..] } else { &[] };
            sent += send_with_fds(&self.socket, &line[sent..], with).map_err(lost)?;
        }
        Ok(())
    }

    /// The next message and the descriptors that came with it; `None` at the end.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let message = serde_json::from_slice(&line).map_err(|e| {
                    Error::new(ErrorKind::Damaged, format!("the link carries no message: {e}"))
                })?;
                return Ok(Some((message, std::mem::take(&mut self.fds))));
            }
            if self.buffer.len() > MESSAGE_BYTES_MAX {
                return Err(Error::new(ErrorKind::Damaged, "a message on the link is too long"));
            }
            let mut piece = [0; 4096];
            match recv_with_fds(&self.socket, &mut piece, &mut self.fds).map_err(lost)? {
                0 => return Ok(None),
                bytes => self.buffer.extend_from_slice(&piece[..bytes]),
            }
        }
    }

    /// Sends a request and waits for its reply.
    pub fn call(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>)> {
        self.send(request, &[])?;
        self.receive()?.ok_or_else(|| {
            Error::new(ErrorKind::Missing, "the proxy closed the link: it was stopped or replaced")
        })
    }
}

fn lost(error: std::io::Error) -> Error {
    Error::io("the link to the other process broke", error).with_kind(ErrorKind::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_cross_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut left, mut right) = (Link::new(left), Link::new(right));
        let file = tempfile::tempfile().unwrap();
        left.send(&Request::Heal, &[]).unwrap();
        left.send(&Request::Ack { seq: 1, claims: 2 }, &[&file]).unwrap();
        assert_eq!(right.receive::<Request>().unwrap().unwrap().0, Request::Heal);
        let (message, fds) = right.receive::<Request>().unwrap().unwrap();
        assert_eq!(message, Request::Ack { seq: 1, claims: 2 });
        assert!(fds.len() <= 1);
        drop(left);
        assert!(right.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn garbage_and_endless_lines_are_errors() {
        use std::io::Write;
        let (left, right) = UnixStream::pair().unwrap();
        let mut right = Link::new(right);
        (&left).write_all(b"{nonsense}\n").unwrap();
        assert_eq!(right.receive::<Request>().unwrap_err().kind(), ErrorKind::Damaged);
        let writer = std::thread::spawn(move || {
            let _ = (&left).write_all(&vec![b'x'; 2 * MESSAGE_BYTES_MAX]);
        });
        assert_eq!(right.receive::<Request>().unwrap_err().kind(), ErrorKind::Damaged);
        drop(right);
        writer.join().unwrap();
    }
}
