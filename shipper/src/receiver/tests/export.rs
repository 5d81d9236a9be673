//! An NBD server with a volatile cache that dies between any two requests and is back at once.
//!
//! What was written since a disk's last flush survives its death or is lost by the throw of a
//! seeded die, request by request.

use super::history::random;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use towline_block::NbdUri;
use towline_block::sys::socket::receive_now;
use towline_block::upstream::proto::{OptionReplyFrame, transmission_flag};

/// What the server says of its exports.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub flags: u16,
    pub align: u32,
    pub payload_bytes_max: u32,
    /// Requests that it has at a time, and carries out in any order.
    pub at_once: usize,
}

pub const FLAGS: u16 = transmission_flag::HAS_FLAGS | transmission_flag::SEND_FLUSH;

impl Default for Offer {
    fn default() -> Offer {
        let flags = FLAGS | transmission_flag::SEND_WRITE_ZEROES;
        Offer { flags, align: 1, payload_bytes_max: 1 << 20, at_once: 1 }
    }
}

/// When it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Before this request is carried out, counted from 0.
    Before(u64),
    /// Carried out, and never answered.
    After(u64),
}

#[derive(Default)]
struct Disk {
    now: Vec<u8>,
    durable: Vec<u8>,
    cached: Vec<(usize, Vec<u8>)>,
}

struct Media {
    disks: Vec<Disk>,
    offer: Offer,
    requests: u64,
    deaths: Vec<Death>,
    die: u64,
    /// Rises when it dies: connections of before are dead.
    life: u64,
    /// Connections that are hung up on before it serves again.
    absent: u64,
    /// This request fails, and those after it on its connection are not carried out before
    /// [`Exports::release`].
    fails: Option<u64>,
    /// It does not fail.
    spares: bool,
    is_held: bool,
}

/// Serves `disk0`, `disk1` and so on until dropped.
pub struct Exports {
    socket: PathBuf,
    media: Arc<Mutex<Media>>,
    gone: Arc<AtomicBool>,
}

impl Exports {
    pub fn serve(dir: &Path, sizes: &[u64], offer: Offer) -> Exports {
        let blank = |size: &u64| Disk {
            now: vec![0; *size as usize],
            durable: vec![0; *size as usize],
            cached: Vec::new(),
        };
        let media = Arc::new(Mutex::new(Media {
            disks: sizes.iter().map(blank).collect(),
            offer,
            requests: 0,
            deaths: Vec::new(),
            die: 1,
            life: 0,
            absent: 0,
            fails: None,
            spares: false,
            is_held: false,
        }));
        let socket = dir.join("nbd");
        let listener = UnixListener::bind(&socket).unwrap();
        let gone = Arc::<AtomicBool>::default();
        let exports = Exports { socket, media: Arc::clone(&media), gone: Arc::clone(&gone) };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                let mut locked = media.lock().unwrap();
                if locked.absent > 0 {
                    locked.absent -= 1;
                    continue;
                }
                let life = locked.life;
                drop(locked);
                let media = Arc::clone(&media);
                let session = Session { stream, media, life, disk: 0, has_failed: false };
                // The client goes away in the middle of anything, and so does the server.
                std::thread::spawn(move || {
                    let _ = session.serve();
                });
            }
        });
        exports
    }

    pub fn uri(&self, index: usize) -> NbdUri {
        let socket = self.socket.display();
        format!("nbd+unix:///disk{index}?socket={socket}").parse().unwrap()
    }

    fn media(&self) -> MutexGuard<'_, Media> {
        self.media.lock().unwrap()
    }

    /// Requests so far, of all connections.
    pub fn requests(&self) -> u64 {
        self.media().requests
    }

    pub fn dies(&self, death: Death, die: u64) {
        let mut media = self.media();
        media.deaths.push(death);
        media.die = die;
    }

    pub fn deaths_left(&self) -> usize {
        self.media().deaths.len()
    }

    /// Dies now; so many connections are hung up on before it is back.
    pub fn kill(&self, absent: u64) {
        self.media().kill();
        self.hang_up(absent);
    }

    /// Hangs up on the next connections.
    pub fn hang_up(&self, absent: u64) {
        self.media().absent = absent;
    }

    /// The server takes its time with all of this connection after the next request.
    pub fn hold(&self) {
        self.fail_and_hold();
        self.media().spares = true;
    }

    /// The next request fails, and the server takes its time with the rest of that connection.
    pub fn fail_and_hold(&self) {
        let mut media = self.media();
        media.fails = Some(media.requests);
        media.is_held = true;
    }

    pub fn release(&self) {
        self.media().is_held = false;
    }

    pub fn durable(&self, index: usize) -> Vec<u8> {
        self.media().disks[index].durable.clone()
    }

    pub fn resize(&self, index: usize, size: usize) {
        self.media().disks[index].now.resize(size, 0);
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
    }
}

impl Media {
    fn kill(&mut self) {
        self.life += 1;
        let die = &mut self.die;
        for disk in &mut self.disks {
            for (at, data) in disk.cached.drain(..) {
                if random(die) & 1 == 1 {
                    disk.durable[at..at + data.len()].copy_from_slice(&data);
                }
            }
            disk.now = disk.durable.clone();
        }
    }

    fn is_death(&mut self, death: Death) -> bool {
        let found = self.deaths.iter().position(|other| *other == death);
        found.map(|at| self.deaths.remove(at)).is_some()
    }

    /// The answer's data, or an error number.
    fn carry_out(&mut self, disk: usize, request: &Request) -> Result<Vec<u8>, u32> {
        let disk = &mut self.disks[disk];
        let (at, len) = (request.offset as usize, request.len as usize);
        let align = self.offer.align as usize;
        let is_flush = request.command == 3;
        if !is_flush && (at + len > disk.now.len() || at % align != 0 || len % align != 0) {
            return Err(libc::EINVAL as u32);
        }
        let data = match request.command {
            0 => return Ok(disk.now[at..at + len].to_vec()),
            1 => request.data.clone(),
            6 => vec![0; len],
            3 => {
                for (at, data) in disk.cached.drain(..) {
                    disk.durable[at..at + data.len()].copy_from_slice(&data);
                }
                return Ok(Vec::new());
            }
            _ => return Err(libc::EINVAL as u32),
        };
        disk.now[at..at + len].copy_from_slice(&data);
        disk.cached.push((at, data));
        Ok(Vec::new())
    }
}

struct Request {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
    data: Vec<u8>,
}

impl Request {
    /// The first one of `input`, once it is there as a whole.
    fn take(input: &mut Vec<u8>) -> Option<Request> {
        const HEAD_BYTES: usize = 28;
        let head = input.get(..HEAD_BYTES)?;
        let (command, len) = (u16::from_be_bytes(part(head, 6)), number32(head, 24));
        let data_bytes = if command == 1 { len as usize } else { 0 };
        let (cookie, offset) = (part(head, 8), u64::from_be_bytes(part(head, 16)));
        let data = input.get(HEAD_BYTES..HEAD_BYTES + data_bytes)?.to_vec();
        input.drain(..HEAD_BYTES + data_bytes);
        Some(Request { command, cookie, offset, len, data })
    }
}

struct Session {
    stream: UnixStream,
    media: Arc<Mutex<Media>>,
    life: u64,
    disk: usize,
    has_failed: bool,
}

impl Session {
    fn serve(mut self) -> io::Result<()> {
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.bytes::<4>()?;
        loop {
            let head = self.bytes::<16>()?;
            let (option, len) = (number32(&head, 8), number32(&head, 12));
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            if option != 7 {
                self.option_reply(option, (1 << 31) | 1, &[])?;
                continue;
            }
            let name_len = number32(&data, 0) as usize;
            self.disk = usize::from(data[3 + name_len] - b'0');
            let (offer, size) = {
                let media = self.media.lock().unwrap();
                (media.offer, media.disks[self.disk].now.len() as u64)
            };
            let info = [&[0, 0], &size.to_be_bytes()[..], &offer.flags.to_be_bytes()].concat();
            self.option_reply(option, 3, &info)?;
            let sizes = [offer.align, offer.align.max(4096), offer.payload_bytes_max];
            let sizes = sizes.map(u32::to_be_bytes).concat();
            self.option_reply(option, 3, &[&[0, 3], &sizes[..]].concat())?;
            self.option_reply(option, 1, &[])?;
            return self.transmit();
        }
    }

    fn transmit(&mut self) -> io::Result<()> {
        let at_once = self.media.lock().unwrap().offer.at_once;
        let (mut input, mut waiting) = (Vec::new(), Vec::new());
        loop {
            while waiting.len() < at_once
                && let Some(request) = Request::take(&mut input)
            {
                waiting.push(request);
            }
            if waiting.len() < at_once && self.receive(&mut input, waiting.is_empty())? {
                continue;
            }
            let next = random(&mut self.media.lock().unwrap().die) as usize % waiting.len();
            if !self.answer(&waiting.swap_remove(next))? {
                return Ok(());
            }
        }
    }

    /// Waits for bytes, or a moment for what may follow; false when nothing came.
    fn receive(&mut self, input: &mut Vec<u8>, wait: bool) -> io::Result<bool> {
        let mut buf = vec![0; 256 << 10];
        let got = if wait {
            Some(self.stream.read(&mut buf)?)
        } else {
            std::thread::sleep(Duration::from_micros(100));
            receive_now(&self.stream, &mut buf)?
        };
        if got == Some(0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&buf[..got.unwrap_or(0)]);
        Ok(got.is_some())
    }

    /// False once the server has died.
    fn answer(&mut self, request: &Request) -> io::Result<bool> {
        while self.has_failed && self.media.lock().unwrap().is_held {
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = {
            let mut media = self.media.lock().unwrap();
            if media.life != self.life {
                return Ok(false);
            }
            let number = media.requests;
            media.requests += 1;
            if media.is_death(Death::Before(number)) {
                media.kill();
                return Ok(false);
            }
            self.has_failed |= media.fails == Some(number);
            let answer = match media.fails.take_if(|fails| *fails == number) {
                Some(_) if !media.spares => Err(libc::EIO as u32),
                _ => media.carry_out(self.disk, request),
            };
            if media.is_death(Death::After(number)) {
                media.kill();
                return Ok(false);
            }
            answer
        };
        let (error, data) = match answer {
            Ok(data) => (0u32, data),
            Err(errno) => (errno, Vec::new()),
        };
        let magic = 0x6744_6698_u32.to_be_bytes();
        let error = error.to_be_bytes();
        self.stream.write_all(&[&magic[..], &error, &request.cookie, &data].concat())?;
        Ok(true)
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

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(part(bytes, at))
}
