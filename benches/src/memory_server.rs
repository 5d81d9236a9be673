//! An NBD server of one disk in memory with faults on demand, for this crate's own
//! tests. Serves each connection in order on a thread of its own.

use crate::nbd_client::NbdUri;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use towline_block::upstream::proto::OptionReplyFrame;

/// What the server does wrong. All off by default.
#[derive(Debug, Default)]
pub struct Faults {
    /// Every write and zero request is refused with this number, unless 0.
    pub refuse_errno: AtomicU32,
    /// Every n-th write is acknowledged and thrown away, unless 0.
    pub lose_every: AtomicU64,
    /// Every n-th request ends the connection before its reply, unless 0.
    pub hang_up_every: AtomicU64,
    /// Take no requests until cleared.
    pub hold: AtomicBool,
}

pub struct MemoryServer {
    pub uri: NbdUri,
    pub disk: Arc<Mutex<Vec<u8>>>,
    pub faults: Arc<Faults>,
    stop: Arc<AtomicBool>,
}

impl MemoryServer {
    pub fn start(socket: &Path, size: usize, structured: bool) -> MemoryServer {
        let server = MemoryServer {
            uri: NbdUri::unix(socket, "disk0"),
            disk: Arc::new(Mutex::new(vec![0; size])),
            faults: Arc::default(),
            stop: Arc::default(),
        };
        let listener = UnixListener::bind(socket).unwrap();
        let (disk, faults, stop) =
            (server.disk.clone(), server.faults.clone(), server.stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (disk, faults) = (disk.clone(), faults.clone());
                std::thread::spawn(move || {
                    let mut session =
                        Session { stream: stream.unwrap(), disk, faults, structured: false };
                    let _ = session.serve(structured);
                });
            }
        });
        server
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let crate::nbd_client::Address::Unix(path) = &self.uri.address {
            let _ = UnixStream::connect(path);
        }
    }
}

struct Session {
    stream: UnixStream,
    disk: Arc<Mutex<Vec<u8>>>,
    faults: Arc<Faults>,
    structured: bool,
}

impl Session {
    fn serve(&mut self, offer_structured: bool) -> io::Result<()> {
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.bytes::<4>()?;
        loop {
            let head = self.bytes::<16>()?;
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let len = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                8 if offer_structured => {
                    self.structured = true;
                    self.option_reply(option, 1, &[])?;
                }
                7 if data[4..].starts_with(b"disk0") => {
                    let mut info = vec![0, 0];
                    info.extend_from_slice(&(self.disk.lock().unwrap().len() as u64).to_be_bytes());
                    info.extend_from_slice(&0b0110_1101u16.to_be_bytes());
                    self.option_reply(option, 3, &info)?;
                    self.option_reply(option, 1, &[])?;
                    return self.transmit();
                }
                7 => self.option_reply(option, 1 << 31 | 6, b"only disk0 is here")?,
                _ => self.option_reply(option, 1 << 31 | 1, &[])?,
            }
        }
    }

    fn transmit(&mut self) -> io::Result<()> {
        let mut count = 0;
        let mut writes = 0;
        loop {
            let head = self.bytes::<28>()?;
            while self.faults.hold.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let command = head[7];
            let cookie: [u8; 8] = head[8..16].try_into().unwrap();
            let offset = u64::from_be_bytes(head[16..24].try_into().unwrap());
            let len = u32::from_be_bytes(head[24..28].try_into().unwrap()) as usize;
            let mut data = vec![0; if command == 1 { len } else { 0 }];
            self.stream.read_exact(&mut data)?;
            if command == 2 {
                return Ok(());
            }
            count += 1;
            writes += u64::from(command == 1);
            let every = |n: &AtomicU64, at: u64| {
                let n = n.load(Ordering::SeqCst);
                n != 0 && at.is_multiple_of(n)
            };
            let lost = command == 1 && every(&self.faults.lose_every, writes);
            if every(&self.faults.hang_up_every, count) {
                return Ok(());
            }
            let refuse = self.faults.refuse_errno.load(Ordering::SeqCst);
            if refuse != 0 && matches!(command, 1 | 6) {
                self.error(cookie, refuse, "the group is sealed")?;
                continue;
            }
            let payload = {
                let mut disk = self.disk.lock().unwrap();
                let range = (offset as usize)..(offset as usize).saturating_add(len);
                match (disk.get_mut(range), command) {
                    (None, _) => Err(libc::EINVAL as u32),
                    (Some(at), 0) => Ok(at.to_vec()),
                    (Some(at), 1) => {
                        if !lost {
                            at.copy_from_slice(&data);
                        }
                        Ok(Vec::new())
                    }
                    (Some(at), 4 | 6) => {
                        at.fill(0);
                        Ok(Vec::new())
                    }
                    _ => Ok(Vec::new()),
                }
            };
            match payload {
                Ok(payload) => self.reply(cookie, offset, &payload)?,
                Err(errno) => self.error(cookie, errno, "outside the disk")?,
            }
        }
    }

    /// Reads come as chunks: holes for zeroes, data in pieces, NONE at the end.
    fn reply(&mut self, cookie: [u8; 8], offset: u64, payload: &[u8]) -> io::Result<()> {
        if !self.structured {
            self.stream
                .write_all(&[&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], &cookie[..]].concat())?;
            return self.stream.write_all(payload);
        }
        let mut at = offset;
        for piece in payload.chunks(100_000) {
            if piece.iter().all(|b| *b == 0) {
                let body = [&at.to_be_bytes()[..], &(piece.len() as u32).to_be_bytes()].concat();
                self.chunk(cookie, 0, 2, &body)?;
            } else {
                self.chunk(cookie, 0, 1, &[&at.to_be_bytes()[..], piece].concat())?;
            }
            at += piece.len() as u64;
        }
        self.chunk(cookie, 1, 0, &[])
    }

    fn error(&mut self, cookie: [u8; 8], errno: u32, text: &str) -> io::Result<()> {
        if !self.structured {
            let errno = errno.to_be_bytes();
            return self
                .stream
                .write_all(&[&[0x67, 0x44, 0x66, 0x98], &errno[..], &cookie[..]].concat());
        }
        let len = (text.len() as u16).to_be_bytes();
        self.chunk(cookie, 1, 0x8001, &[&errno.to_be_bytes(), &len[..], text.as_bytes()].concat())
    }

    fn chunk(&mut self, cookie: [u8; 8], flags: u16, kind: u16, body: &[u8]) -> io::Result<()> {
        let mut out = vec![0x66, 0x8e, 0x33, 0xef];
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&cookie);
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(body);
        self.stream.write_all(&out)
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let frame = OptionReplyFrame::new(option, kind, data.len() as u32);
        self.stream.write_all(&[&frame.to_bytes()[..], data].concat())
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut buf = [0; N];
        self.stream.read_exact(&mut buf)?;
        Ok(buf)
    }
}
