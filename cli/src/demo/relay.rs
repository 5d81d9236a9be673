//! A TCP relay on loopback that stands for the network between two processes:
//! it can be pointed elsewhere, unplugged, reset and turned into a black hole.
//!
//! A black hole holds bytes back instead of dropping them: that is what TCP shows
//! to both ends when packets vanish for a while and are sent again.

use anyhow::Context;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Piece in which bytes are passed on.
const PIECE_BYTES: usize = 64 << 10;

/// How long a connection attempt to the far end may take.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    wire: Mutex<Wire>,
    changed: Condvar,
    ended: AtomicBool,
}

struct Wire {
    /// Where new connections go; `None` is an unplugged cable.
    far: Option<SocketAddr>,
    hole: bool,
    /// Both sockets of every connection, to reset them.
    open: Vec<(u64, TcpStream, TcpStream)>,
    next: u64,
}

impl Relay {
    pub fn start(far: Option<SocketAddr>) -> anyhow::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot open a port on 127.0.0.1 for the demo's network")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            wire: Mutex::new(Wire { far, hole: false, open: Vec::new(), next: 0 }),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        spawn("relay", move || serve(&listener, &serving))?;
        Ok(Relay { address, shared })
    }

    /// Where the near end connects.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection and sends new ones to `far`, or nowhere.
    pub fn point_at(&self, far: Option<SocketAddr>) {
        self.shared.lock().far = far;
        self.reset();
    }

    /// Breaks every open connection at once, both ends seeing a reset.
    pub fn reset(&self) {
        let open = std::mem::take(&mut self.shared.lock().open);
        for (_, near, far) in &open {
            abort(near);
            abort(far);
        }
    }

    /// From now on nothing passes, and nothing is said about it; or all passes again.
    pub fn set_black_hole(&self, on: bool) {
        self.shared.lock().hole = on;
        self.shared.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.set_black_hole(false);
        self.point_at(None);
        // Wakes the listener's accept, which then sees the end.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT_WAIT);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait_until_open(&self) {
        let mut wire = self.lock();
        while wire.hole {
            wire = self.changed.wait(wire).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for near in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(near) = near else { continue };
        let shared = Arc::clone(shared);
        // A connection that cannot be carried is dropped: its owner tries again.
        let _ = spawn("relay-connection", move || drop(carry(near, &shared)));
    }
}

fn carry(near: TcpStream, shared: &Arc<Shared>) -> anyhow::Result<()> {
    shared.wait_until_open();
    let target = shared.lock().far;
    let Some(target) = target else {
        abort(&near);
        return Ok(());
    };
    let far = TcpStream::connect_timeout(&target, CONNECT_WAIT).inspect_err(|_| abort(&near))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let id = {
        let mut wire = shared.lock();
        if wire.far != Some(target) {
            abort(&near);
            abort(&far);
            return Ok(());
        }
        let id = wire.next;
        wire.next += 1;
        wire.open.push((id, near.try_clone()?, far.try_clone()?));
        id
    };
    let (back_from, back_to) = (far.try_clone()?, near.try_clone()?);
    let back_shared = Arc::clone(shared);
    let back = spawn("relay-back", move || pass(back_from, back_to, &back_shared))?;
    pass(near, far, shared);
    let _ = back.join();
    shared.lock().open.retain(|(other, _, _)| *other != id);
    Ok(())
}

/// Passes bytes one way until either end is gone.
fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match from.read(&mut piece) {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        shared.wait_until_open();
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Closes with a reset instead of an orderly end.
fn abort(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Both);
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .with_context(|| format!("cannot start the thread {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream
                        .read_exact(&mut byte)
                        .and_then(|()| stream.write_all(&byte))
                        .is_ok()
                    {}
                });
            }
        });
        address
    }

    fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    }

    #[test]
    fn a_reset_breaks_open_connections_and_new_ones_work() {
        let relay = Relay::start(Some(echo())).unwrap();
        let mut old = TcpStream::connect(relay.address()).unwrap();
        round_trip(&mut old).unwrap();
        relay.reset();
        assert!(round_trip(&mut old).is_err());
        let mut new = TcpStream::connect(relay.address()).unwrap();
        round_trip(&mut new).unwrap();
    }

    #[test]
    fn a_black_hole_is_silent_and_loses_nothing_when_it_ends() {
        let relay = Relay::start(Some(echo())).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        round_trip(&mut stream).unwrap();
        relay.set_black_hole(true);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(round_trip(&mut stream).is_err());
        relay.set_black_hole(false);
        stream.set_read_timeout(None).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn an_unplugged_cable_answers_nobody() {
        let relay = Relay::start(None).unwrap();
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert!(round_trip(&mut stream).is_err());
        relay.point_at(Some(echo()));
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        round_trip(&mut stream).unwrap();
    }
}
