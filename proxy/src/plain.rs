//! Disks served by blocking calls, one thread a connection: for what is no guest's source, such
//! as a clone. The same handshake and limits as everything else; no journal, no gate.
//!
//! Requests of one connection are answered in order. A client that hangs up, or a stop, ends its
//! thread after the request in work.

use crate::accept::{Accepting, Door, Lobby};
use crate::engine::NewConnection;
use crate::error::{Error, ErrorKind, Result};
use crate::listen::{self, Bound, ListenAddr};
use crate::nbd::errno::Errno;
use crate::nbd::handshake::Export;
use crate::nbd::proto::{REQUEST_FRAME_BYTES, allocation};
use crate::nbd::reply::{self, Descriptor, ReadHead};
use crate::nbd::request::{RawRequest, Request, Terms, validate};
use crate::server::uri_of;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use towline_block::{Extent, PlainDisk, VolumeName};

/// Read or zeroed in one call of the disk.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// A running server; it stops when dropped.
pub struct PlainServer {
    addresses: Vec<String>,
    names: Vec<VolumeName>,
    accepting: Option<Accepting>,
    clients: Arc<Clients>,
}

/// Sockets and threads of the connections that are open.
#[derive(Default)]
struct Clients(Mutex<BTreeMap<u64, (OwnedFd, JoinHandle<()>)>>);

impl PlainServer {
    /// Serves `disks` on every address; the first is also the default export.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] without a disk; else why an address or thread cannot be had.
    pub fn start(
        disks: Vec<(VolumeName, Arc<dyn PlainDisk>)>,
        addresses: &[ListenAddr],
    ) -> Result<PlainServer> {
        if disks.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "there is no volume to serve"));
        }
        let bound = addresses.iter().map(listen::bind).collect::<Result<Vec<_>>>()?;
        let addresses = bound.iter().map(Bound::address).collect();
        let exports = disks.iter().map(|(name, disk)| Export {
            name: name.to_string(),
            description: format!("Towline volume {name}"),
            size_bytes: disk.size_bytes(),
            read_only: false,
        });
        let exports: Arc<[Export]> = exports.collect();
        let clients = Arc::<Clients>::default();
        let next = Arc::<AtomicU64>::default();
        let (mut names, mut doors) = (Vec::new(), Vec::new());
        for (name, disk) in disks {
            names.push(name.clone());
            let (clients, next) = (Arc::clone(&clients), Arc::clone(&next));
            let enter = move |new| clients.enter(&next, &name, &disk, new);
            doors.push(Door { enter: Box::new(enter), open: Arc::<AtomicUsize>::default() });
        }
        let lobby = Arc::new(Lobby { exports, doors, refused: AtomicU64::new(0) });
        let accepting = Some(Accepting::start(bound, lobby)?);
        Ok(PlainServer { addresses, names, accepting, clients })
    }

    /// Under which URIs the disks are served.
    pub fn uris(&self) -> Vec<String> {
        let of = |name| self.addresses.iter().map(move |address| uri_of(address, name));
        self.names.iter().flat_map(of).collect()
    }
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.end();
        }
        let clients = std::mem::take(&mut *self.clients.lock());
        for (socket, _) in clients.values() {
            // One that has hung up already has ended as well.
            let _ = SockRef::from(socket).shutdown(Shutdown::Both);
        }
        for (_, (_, thread)) in clients {
            if thread.join().is_err() {
                tracing::error!("a connection's thread panicked");
            }
        }
    }
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (OwnedFd, JoinHandle<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(
        self: &Arc<Clients>,
        next: &AtomicU64,
        name: &VolumeName,
        disk: &Arc<dyn PlainDisk>,
        new: NewConnection,
    ) -> io::Result<()> {
        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let NewConnection { fd, terms, permit } = new;
        let socket = fd.try_clone()?;
        let (name, disk, all) = (name.clone(), Arc::clone(disk), Arc::clone(self));
        // Held until the thread is noted, so that its end finds it.
        let mut clients = self.lock();
        let thread = std::thread::Builder::new().name(format!("nbd-{name}")).spawn(move || {
            let served = Client { stream: File::from(fd), terms, name, disk }.serve();
            if let Err(error) = served {
                tracing::debug!(%error, "a client has gone");
            }
            drop(permit);
            all.lock().remove(&number);
        })?;
        clients.insert(number, (socket, thread));
        Ok(())
    }
}

struct Client {
    stream: File,
    terms: Terms,
    name: VolumeName,
    disk: Arc<dyn PlainDisk>,
}

impl Client {
    fn serve(mut self) -> io::Result<()> {
        let mut head = [0; REQUEST_FRAME_BYTES];
        loop {
            self.stream.read_exact(&mut head)?;
            let Ok(Some(raw)) = RawRequest::parse(&head) else {
                return Err(io::Error::other("a client sent no NBD"));
            };
            let request = match validate(&raw, &self.terms) {
                Ok(request) => request,
                Err(refusal) => {
                    // What it cannot be asked to write is read past, of any length.
                    let rest = raw.payload_bytes() as u64;
                    io::copy(&mut (&mut self.stream).take(rest), &mut io::sink())?;
                    self.fail(raw.cookie, refusal.error, refusal.text)?;
                    continue;
                }
            };
            let done = match request {
                Request::Disconnect => return Ok(()),
                Request::Read { extent } => match self.read(&raw, extent) {
                    Ok(reply) => {
                        self.stream.write_all(&reply)?;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Request::Write { extent, fua } => {
                    let mut data = vec![0; extent.len as usize];
                    self.stream.read_exact(&mut data)?;
                    self.disk.write_at(&data, extent.offset).and_then(|()| self.flush_if(fua))
                }
                Request::Zero { extent, fua, .. } | Request::Trim { extent, fua } => {
                    let mut pieces = extent.pieces(PIECE_BYTES_MAX);
                    pieces
                        .try_for_each(|piece| self.disk.zero(piece))
                        .and_then(|()| self.flush_if(fua))
                }
                Request::Flush => self.disk.flush(),
                Request::Status { extent, .. } => {
                    // The extent's length is a u32 on the wire.
                    let all = Descriptor { len: extent.len as u32, status: allocation::DATA };
                    let mut out = Vec::new();
                    reply::block_status(raw.cookie, &[all], |part| out.extend_from_slice(part));
                    self.stream.write_all(&out)?;
                    continue;
                }
            };
            match done {
                Ok(()) => self.stream.write_all(&reply::simple(raw.cookie, None))?,
                Err(error) => {
                    tracing::error!(volume = %self.name, offset = raw.offset, %error, "a request failed");
                    self.fail(raw.cookie, Errno::from(&error), "the disk failed")?;
                }
            }
        }
    }

    fn flush_if(&self, fua: bool) -> towline_block::Result<()> {
        if fua { self.disk.flush() } else { Ok(()) }
    }

    fn read(&self, raw: &RawRequest, extent: Extent) -> towline_block::Result<Vec<u8>> {
        let head = ReadHead::new(self.terms.structured, raw.cookie, extent.offset, raw.length);
        let mut out = head.as_bytes().to_vec();
        let start = out.len();
        out.resize(start + extent.len as usize, 0);
        for piece in extent.pieces(PIECE_BYTES_MAX) {
            let at = start + (piece.offset - extent.offset) as usize;
            self.disk.read_at(&mut out[at..at + piece.len as usize], piece.offset)?;
        }
        Ok(out)
    }

    fn fail(&mut self, cookie: u64, error: Errno, text: &str) -> io::Result<()> {
        let mut out = Vec::new();
        reply::error(self.terms.structured, cookie, error, text, |part| {
            out.extend_from_slice(part)
        });
        self.stream.write_all(&out)
    }
}

#[cfg(test)]
mod tests;
