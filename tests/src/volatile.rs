//! A disk with a volatile write cache that loses power on demand, served over NBD on a
//! unix socket to an emulator.
//!
//! What was written is seen at once and kept only when a flush that came after it (or
//! FUA) was answered. At a cut each block of each write since survives or is lost by the
//! throw of a seeded die: so writes are also lost out of order, as a real cache loses
//! them. The unit is [`ATOM_BYTES`]: media that tear it are not modelled here (the
//! formats' own tests do).

use rand::RngExt;
use rand::rngs::StdRng;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use towline_block::upstream::proto::OptionReplyFrame;

/// What survives or is lost as one: a physical sector of today's disks, and ext4's block.
pub const ATOM_BYTES: u64 = 4096;

/// Longest request taken: what NBD asks any server to take.
const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// What the disk makes of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    Kept,
    /// Answered and not done: the negative control of every power cut test.
    Swallowed,
}

/// The disk and its server, which takes no more connections when it is dropped.
pub struct VolatileDisk {
    socket: PathBuf,
    media: Arc<Mutex<Media>>,
    gone: Arc<AtomicBool>,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Flushes that were answered since the power came.
    pub flushes: u64,
    /// Atoms written since the last of them.
    pub atoms: u64,
    /// Those of them that are gone.
    pub lost: u64,
}

struct Media {
    /// As reads see it.
    now: Vec<u8>,
    /// As a cut would leave it at least.
    durable: Vec<u8>,
    /// Since the last flush, in order.
    cached: Vec<Cached>,
    flushes: Flushes,
    flush_count: u64,
    /// Rises at a cut: connections of before are dead.
    power: u64,
}

struct Cached {
    offset: usize,
    data: Vec<u8>,
    fua: bool,
}

impl VolatileDisk {
    /// A disk that holds what `image` holds, served on `socket` until dropped.
    pub fn serve(image: &Path, socket: &Path, flushes: Flushes) -> io::Result<VolatileDisk> {
        let durable = std::fs::read(image)?;
        let media = Arc::new(Mutex::new(Media {
            now: durable.clone(),
            durable,
            cached: Vec::new(),
            flushes,
            flush_count: 0,
            power: 0,
        }));
        let listener = UnixListener::bind(socket)?;
        let gone = Arc::<AtomicBool>::default();
        let disk = VolatileDisk {
            socket: socket.to_owned(),
            media: Arc::clone(&media),
            gone: Arc::clone(&gone),
        };
        std::thread::spawn(move || {
            // Ends at the first connection after the disk is gone: the drop makes it.
            for stream in listener.incoming().map_while(Result::ok) {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                let power = lock(&media).power;
                let media = Arc::clone(&media);
                std::thread::spawn(move || {
                    // The emulator is killed in the middle of anything.
                    let _ = Session { stream, media, power }.serve();
                });
            }
        });
        Ok(disk)
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Power goes: nobody of before writes any more, and each cached atom survives with
    /// the probability `survival`.
    pub fn cut(&self, die: &mut StdRng, survival: f64) -> Lost {
        let mut media = lock(&self.media);
        media.power += 1;
        let mut lost = Lost { flushes: media.flush_count, ..Lost::default() };
        media.flush_count = 0;
        for write in std::mem::take(&mut media.cached) {
            let mut at = write.offset;
            let end = at + write.data.len();
            while at < end {
                let atom_end = (at as u64 / ATOM_BYTES + 1) * ATOM_BYTES;
                let until = end.min(atom_end as usize);
                lost.atoms += 1;
                if write.fua || die.random::<f64>() < survival {
                    let piece = &write.data[at - write.offset..until - write.offset];
                    media.durable[at..until].copy_from_slice(piece);
                } else {
                    lost.lost += 1;
                }
                at = until;
            }
        }
        media.now = media.durable.clone();
        lost
    }

    /// Writes what is durable into a sparse file.
    pub fn copy_durable(&self, to: &Path) -> io::Result<()> {
        let media = lock(&self.media);
        let file = std::fs::File::create(to)?;
        file.set_len(media.durable.len() as u64)?;
        let zeroes = [0; ATOM_BYTES as usize];
        for (index, atom) in media.durable.chunks(ATOM_BYTES as usize).enumerate() {
            if *atom != zeroes[..atom.len()] {
                file.write_all_at(atom, index as u64 * ATOM_BYTES)?;
            }
        }
        Ok(())
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        // Wakes the listener; if it cannot, it ends with the process.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Media {
    fn write(&mut self, offset: usize, data: Vec<u8>, fua: bool) {
        self.now[offset..offset + data.len()].copy_from_slice(&data);
        let fua = fua && self.flushes == Flushes::Kept;
        self.cached.push(Cached { offset, data, fua });
    }

    fn flush(&mut self) {
        self.flush_count += 1;
        if self.flushes == Flushes::Kept {
            for write in std::mem::take(&mut self.cached) {
                let end = write.offset + write.data.len();
                self.durable[write.offset..end].copy_from_slice(&write.data);
            }
        }
    }
}

/// One connection of an emulator: NBD's fixed newstyle, simple replies, in order.
struct Session {
    stream: UnixStream,
    media: Arc<Mutex<Media>>,
    power: u64,
}

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
/// Flags, FLUSH, FUA.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;
const COMMAND_FUA: u16 = 1;

impl Session {
    fn serve(&mut self) -> io::Result<()> {
        // Fixed newstyle, no zeroes.
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.bytes::<4>()?;
        let size = (lock(&self.media).now.len() as u64).to_be_bytes();
        loop {
            let head = self.bytes::<16>()?;
            let option = u32::from_be_bytes(part(&head, 8));
            let len = u32::from_be_bytes(part(&head, 12));
            let mut data = vec![0; len.min(REQUEST_BYTES_MAX) as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                OPT_EXPORT_NAME => {
                    self.stream.write_all(&[&size[..], &EXPORT_FLAGS.to_be_bytes()].concat())?;
                    return self.transmit();
                }
                OPT_GO => {
                    let info = [&[0, 0], &size[..], &EXPORT_FLAGS.to_be_bytes()].concat();
                    self.option_reply(option, REP_INFO, &info)?;
                    // Least, preferred and largest size of a request.
                    let sizes = [1, ATOM_BYTES as u32, REQUEST_BYTES_MAX].map(u32::to_be_bytes);
                    self.option_reply(option, REP_INFO, &[&[0, 3], &sizes.concat()[..]].concat())?;
                    self.option_reply(option, REP_ACK, &[])?;
                    return self.transmit();
                }
                OPT_ABORT => return self.option_reply(option, REP_ACK, &[]),
                _ => self.option_reply(option, REP_ERR_UNSUP, &[])?,
            }
        }
    }

    fn transmit(&mut self) -> io::Result<()> {
        loop {
            let head = self.bytes::<28>()?;
            let flags = u16::from_be_bytes(part(&head, 4));
            let command = u16::from_be_bytes(part(&head, 6));
            let cookie: [u8; 8] = part(&head, 8);
            let offset = u64::from_be_bytes(part(&head, 16));
            let len = u32::from_be_bytes(part(&head, 24));
            let is_write = command == 1;
            let mut data = vec![0; if is_write { len.min(REQUEST_BYTES_MAX) as usize } else { 0 }];
            self.stream.read_exact(&mut data)?;
            if command == 2 {
                return Ok(());
            }
            let answer = {
                let mut media = lock(&self.media);
                if media.power != self.power {
                    return Ok(());
                }
                let end = offset.checked_add(u64::from(len)).filter(|_| len <= REQUEST_BYTES_MAX);
                let inside = end.is_some_and(|end| end <= media.now.len() as u64);
                let (at, len) = (offset as usize, len as usize);
                match command {
                    3 => {
                        media.flush();
                        Ok(Vec::new())
                    }
                    0 if inside => Ok(media.now[at..at + len].to_vec()),
                    1 if inside => {
                        media.write(at, data, flags & COMMAND_FUA != 0);
                        Ok(Vec::new())
                    }
                    _ => Err(libc::EINVAL as u32),
                }
            };
            let (error, payload) = match answer {
                Ok(payload) => (0u32, payload),
                Err(errno) => (errno, Vec::new()),
            };
            let mut reply = vec![0x67, 0x44, 0x66, 0x98];
            reply.extend_from_slice(&error.to_be_bytes());
            reply.extend_from_slice(&cookie);
            reply.extend_from_slice(&payload);
            self.stream.write_all(&reply)?;
        }
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

fn lock(media: &Mutex<Media>) -> MutexGuard<'_, Media> {
    media.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use towline_bench::nbd_client::{Client, NbdUri, Options, Request};

    const SIZE: u64 = 1 << 20;

    fn disk(flushes: Flushes) -> (tempfile::TempDir, VolatileDisk, Client) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let disk = VolatileDisk::serve(&image, &dir.path().join("sock"), flushes).unwrap();
        let client = Client::connect(&NbdUri::unix(disk.socket(), ""), Options::default()).unwrap();
        (dir, disk, client)
    }

    fn first_bytes(disk: &VolatileDisk) -> Vec<u8> {
        lock(&disk.media).now.chunks(ATOM_BYTES as usize).map(|atom| atom[0]).collect()
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_or_fua_and_loses_a_part_of_the_rest_out_of_order() {
        let (_dir, disk, mut client) = disk(Flushes::Kept);
        let mut die = StdRng::seed_from_u64(3);
        for block in 0..8 {
            client.write(block * ATOM_BYTES, &[1; ATOM_BYTES as usize]).unwrap();
        }
        client.flush().unwrap();
        for block in 0..100 {
            client.write(block * ATOM_BYTES, &[2; ATOM_BYTES as usize]).unwrap();
        }
        let data = &[3; ATOM_BYTES as usize];
        let request = Request::Write { offset: 100 * ATOM_BYTES, data, fua: true };
        client.roundtrip(request).unwrap();
        assert_eq!(client.read(0, 1).unwrap(), [2], "seen before it is durable");
        let lost = disk.cut(&mut die, 0.5);
        assert_eq!((lost.flushes, lost.atoms), (1, 101));
        let shown = first_bytes(&disk);
        assert!(shown[..8].iter().all(|byte| [1, 2].contains(byte)), "{shown:?}");
        assert_eq!(shown[100], 3);
        let kept = |byte: &&u8| **byte == 2;
        let survived = shown[..100].iter().filter(kept).count() as u64;
        assert_eq!(survived, 100 - lost.lost);
        assert!((20..80).contains(&survived), "{survived}");
        let first_gap = shown[8..].iter().position(|byte| *byte == 0).unwrap();
        assert!(shown[8 + first_gap..100].contains(&2), "something later survived");
        assert!(client.read(0, 1).is_err(), "the old connection is dead");
    }

    #[test]
    fn a_disk_that_swallows_flushes_loses_what_it_said_it_had() {
        let (_dir, disk, mut client) = disk(Flushes::Swallowed);
        client.write(0, &[1; 4096]).unwrap();
        client.flush().unwrap();
        disk.cut(&mut StdRng::seed_from_u64(1), 0.0);
        assert_eq!(first_bytes(&disk)[0], 0);
    }
}
