//! The network between shipper and receiver, and what can go wrong with it: resets,
//! a black hole, refused connections, and frames that are changed on the way.
//!
//! Frames are those of `docs/formats/wire.md`: a header of 16 bytes with magic,
//! kind and body length. Changing them works without TLS only, as it should.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const FRAME_HEADER_BYTES: usize = 16;

/// A batch, in either direction of a frame's `kind`.
pub const FRAME_BATCH: u16 = 3;
pub const FRAME_PROMOTE: u16 = 5;
pub const FRAME_DECISION: u16 = 7;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToReceiver,
    ToShipper,
}

/// Gets each frame whole (header and body) with its kind; gives the frames that go
/// on in its place: none, another, several.
pub type Tamper = dyn FnMut(Direction, u16, Vec<u8>) -> Vec<Vec<u8>> + Send;

#[derive(Debug, Default)]
struct Mode {
    /// Bytes wait; connections stay up.
    black_hole: bool,
    /// New connections are closed at once.
    refuse: bool,
    /// New connections end after so many bytes of one direction.
    cut: Option<(Direction, u64)>,
    /// Connections that ended so.
    cuts: u64,
    stopped: bool,
    connections: Vec<TcpStream>,
}

struct Shared {
    mode: Mutex<Mode>,
    changed: Condvar,
    tamper: Option<Mutex<Box<Tamper>>>,
    accepted: AtomicU64,
    forwarded_bytes: AtomicU64,
}

/// A relay on a port of its own to a fixed address.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Passes everything on until told otherwise.
    pub fn start(to: SocketAddr) -> Relay {
        Relay::launch(to, None)
    }

    /// Shows every frame to `tamper`.
    pub fn tampering(
        to: SocketAddr,
        tamper: impl FnMut(Direction, u16, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Relay {
        Relay::launch(to, Some(Mutex::new(Box::new(tamper))))
    }

    fn launch(to: SocketAddr, tamper: Option<Mutex<Box<Tamper>>>) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0")
            .unwrap_or_else(|e| panic!("cannot listen on loopback: {e}"));
        let address =
            listener.local_addr().unwrap_or_else(|e| panic!("a listener without an address: {e}"));
        let shared = Arc::new(Shared {
            mode: Mutex::default(),
            changed: Condvar::new(),
            tamper,
            accepted: AtomicU64::new(0),
            forwarded_bytes: AtomicU64::new(0),
        });
        let relay = Relay { address, shared: shared.clone() };
        std::thread::spawn(move || accept(&listener, to, &shared));
        relay
    }

    /// What `towline ship --to` gets.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections with RST.
    pub fn reset_all(&self) {
        for stream in lock(&self.shared.mode).connections.drain(..) {
            // Gone already is as good.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Nothing passes any more, in either direction, and nobody is told.
    pub fn set_black_hole(&self, on: bool) {
        lock(&self.shared.mode).black_hole = on;
        self.shared.changed.notify_all();
    }

    /// New connections end at once; existing ones are reset.
    pub fn set_refusing(&self, on: bool) {
        lock(&self.shared.mode).refuse = on;
        if on {
            self.reset_all();
        }
    }

    /// From now on each new connection ends once so many bytes went through it in that
    /// direction; `None`: no more.
    pub fn set_cut(&self, cut: Option<(Direction, u64)>) {
        lock(&self.shared.mode).cut = cut;
    }

    /// Connections that were cut so.
    pub fn cuts(&self) -> u64 {
        lock(&self.shared.mode).cuts
    }

    /// Connections that were let through.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes that went through, both ways.
    pub fn forwarded_bytes(&self) -> u64 {
        self.shared.forwarded_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        lock(&self.shared.mode).stopped = true;
        self.shared.changed.notify_all();
        self.reset_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, shared: &Arc<Shared>) {
    for near in listener.incoming() {
        let Ok(near) = near else { continue };
        let cut = {
            let mode = lock(&shared.mode);
            if mode.stopped {
                return;
            }
            if mode.refuse {
                continue;
            }
            mode.cut
        };
        let Ok(far) = TcpStream::connect(to) else { continue };
        for stream in [&near, &far] {
            // Without it small frames would wait for each other's acknowledgements.
            let _ = stream.set_nodelay(true);
        }
        let copies = [near.try_clone(), near.try_clone(), far.try_clone(), far.try_clone()];
        let [Ok(near_read), Ok(near_keep), Ok(far_read), Ok(far_keep)] = copies else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        lock(&shared.mode).connections.extend([near_keep, far_keep]);
        for (from, into, direction) in
            [(near_read, far, Direction::ToReceiver), (far_read, near, Direction::ToShipper)]
        {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let left = cut.filter(|(cut, _)| *cut == direction).map(|(_, after)| after);
                let mut pump = Pump { from, into, direction, shared, left };
                // Either side's end is the end of both.
                let _ = pump.run();
                let _ = pump.into.shutdown(Shutdown::Both);
                let _ = pump.from.shutdown(Shutdown::Both);
            });
        }
    }
}

struct Pump {
    from: TcpStream,
    into: TcpStream,
    direction: Direction,
    shared: Arc<Shared>,
    /// Bytes until it is cut.
    left: Option<u64>,
}

impl Pump {
    fn run(&mut self) -> std::io::Result<()> {
        if self.shared.tamper.is_some() {
            return self.run_frames();
        }
        let mut buf = vec![0; 64 << 10];
        loop {
            let n = self.from.read(&mut buf)?;
            if n == 0 {
                return Ok(());
            }
            self.forward(&buf[..n])?;
        }
    }

    fn run_frames(&mut self) -> std::io::Result<()> {
        loop {
            let mut frame = vec![0; FRAME_HEADER_BYTES];
            self.from.read_exact(&mut frame)?;
            let kind = u16::from_le_bytes([frame[4], frame[5]]);
            let len = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
            frame.resize(FRAME_HEADER_BYTES + len as usize, 0);
            self.from.read_exact(&mut frame[FRAME_HEADER_BYTES..])?;
            let frames = match &self.shared.tamper {
                Some(tamper) => lock(tamper)(self.direction, kind, frame),
                None => vec![frame],
            };
            for frame in frames {
                self.forward(&frame)?;
            }
        }
    }

    fn forward(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut mode = lock(&self.shared.mode);
        while mode.black_hole && !mode.stopped {
            mode = self.shared.changed.wait(mode).unwrap_or_else(PoisonError::into_inner);
        }
        drop(mode);
        let passes = self.left.map_or(bytes.len() as u64, |left| left.min(bytes.len() as u64));
        self.shared.forwarded_bytes.fetch_add(passes, Ordering::SeqCst);
        self.into.write_all(&bytes[..passes as usize])?;
        if let Some(left) = &mut self.left {
            *left -= passes;
            if *left == 0 {
                lock(&self.shared.mode).cuts += 1;
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap_or_else(|e| panic!("no free port on loopback: {e}"))
        .port()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut stream, &mut copy);
                });
            }
        });
        address
    }

    fn roundtrip(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn a_cut_lets_so_many_bytes_through_and_no_more() {
        let relay = Relay::start(echo());
        relay.set_cut(Some((Direction::ToReceiver, 5)));
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(roundtrip(&mut stream, b"1234").unwrap(), b"1234");
        // The fifth byte passes, or is lost with the connection; the sixth never does.
        assert!(roundtrip(&mut stream, b"56").is_err());
        assert_eq!(relay.cuts(), 1);
        relay.set_cut(None);
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(roundtrip(&mut stream, &[7; 100]).unwrap(), [7; 100]);
    }

    fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = b"TWLF".to_vec();
        frame.extend_from_slice(&kind.to_le_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn what_goes_in_comes_out_until_a_reset() {
        let relay = Relay::start(echo());
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(roundtrip(&mut stream, b"hello").unwrap(), b"hello");
        assert_eq!((relay.forwarded_bytes(), relay.accepted()), (10, 1));
        relay.reset_all();
        assert!(roundtrip(&mut stream, b"again").is_err());
    }

    #[test]
    fn a_black_hole_keeps_bytes_and_connections() {
        let relay = Relay::start(echo());
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        roundtrip(&mut stream, b"x").unwrap();
        relay.set_black_hole(true);
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(roundtrip(&mut stream, b"y").is_err(), "nothing comes back");
        stream.set_read_timeout(None).unwrap();
        relay.set_black_hole(false);
        let mut late = [0; 1];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"y");
    }

    #[test]
    fn a_refusing_relay_lets_nobody_through() {
        let relay = Relay::start(echo());
        relay.set_refusing(true);
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        assert!(roundtrip(&mut stream, b"x").is_err());
        assert_eq!(relay.accepted(), 0);
        relay.set_refusing(false);
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        roundtrip(&mut stream, b"x").unwrap();
    }

    #[test]
    fn frames_are_shown_whole_and_can_be_dropped_and_doubled() {
        let relay = Relay::tampering(echo(), |direction, kind, frame| match (direction, kind) {
            (Direction::ToReceiver, 3) => vec![frame.clone(), frame],
            (Direction::ToReceiver, 5) => Vec::new(),
            _ => vec![frame],
        });
        let mut stream = TcpStream::connect(relay.address()).unwrap();
        for kind in [5, 3, 8] {
            stream.write_all(&frame(kind, &[kind as u8; 100_000])).unwrap();
        }
        for kind in [3u16, 3, 8] {
            let mut back = vec![0; FRAME_HEADER_BYTES + 100_000];
            stream.read_exact(&mut back).unwrap();
            assert!(back == frame(kind, &[kind as u8; 100_000]), "kind {kind}");
        }
    }
}
