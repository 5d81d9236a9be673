//! A page-cache source: what the cache has does not wait for what it lacks.

use super::*;
use std::process::Command as Program;

const BLOCK: u32 = 4096;
/// The block that is in the page cache, in [`cold`].
const WARM: u64 = 256 << 10;
const COLD: u64 = 0;

/// A bench whose disk is full of 7, of which the page cache has one block; `None` where
/// the cache cannot be emptied.
fn cold() -> Option<Bench> {
    let mut bench = bench();
    let path = bench._dir.path().join("d");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let of = format!("of={}", path.display());
    let args = [&of, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"];
    assert!(Program::new("dd").args(args).status().unwrap().success());
    let volume = &mut bench.engine.core.volume;
    let mut block = [0; BLOCK as usize];
    while !volume.read_now(&mut block, WARM).unwrap() {
        std::thread::yield_now();
    }
    if volume.read_now(&mut block, 1 << 19).unwrap() {
        println!("skipped: the file system of temporary files keeps its page cache");
        return None;
    }
    Some(bench)
}

impl Bench {
    /// One round that takes what these clients have sent, all of it together.
    fn round_with(&mut self, sent: &[Vec<u8>]) -> Vec<UnixStream> {
        let clients = sent.iter().map(|sent| client(&mut self.engine, sent)).collect();
        // The first one asks the kernel for their bytes.
        for _ in 0..2 {
            self.engine.round(&mut Vec::new()).unwrap();
        }
        clients
    }

    fn answer(&mut self, client: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut seen = 0;
        while seen < len {
            match client.read(&mut bytes[seen..]) {
                Ok(0) => panic!("closed after {seen} bytes"),
                Ok(n) => seen += n,
                Err(_) => self.engine.round(&mut Vec::new()).unwrap(),
            }
        }
        bytes
    }
}

fn read_at(cookie: u64, offset: u64) -> Vec<u8> {
    request_at(command::READ, 0, cookie, offset, BLOCK)
}

fn is_unanswered(client: &mut UnixStream) -> bool {
    client.read(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_cached_read_waits_for_no_uncached_one_that_came_before() {
    let Some(mut bench) = cold() else { return };
    let mut clients = bench.round_with(&[read_at(1, COLD), read_at(2, WARM)]);
    assert!(is_unanswered(&mut clients[0]), "the disk was waited for");
    let mut reply = [0; 16 + BLOCK as usize];
    clients[1].read_exact(&mut reply).unwrap();
    assert!(reply[16..] == [7; BLOCK as usize]);
    let reply = bench.answer(&mut clients[0], 16 + BLOCK as usize);
    assert!(reply[..16] == simple(1, None) && reply[16..] == [7; BLOCK as usize]);
}

#[test]
fn a_cached_read_waits_for_no_flush_that_came_before() {
    let mut bench = bench();
    std::fs::write(bench._dir.path().join("d"), vec![7; 1 << 20]).unwrap();
    let mut clients = bench.round_with(&[request(command::FLUSH, 0, 1, 0), read_at(2, WARM)]);
    assert!(is_unanswered(&mut clients[0]), "the flush was waited for");
    let mut reply = [0; 16 + BLOCK as usize];
    clients[1].read_exact(&mut reply).unwrap();
    assert_eq!(bench.answer(&mut clients[0], 16), simple(1, None));
}

#[test]
fn changes_wait_for_the_uncached_read_that_they_overlap_and_then_are_made() {
    let Some(mut bench) = cold() else { return };
    let write = |cookie, at: u64| request_at(command::WRITE, 0, cookie, at, BLOCK);
    let zero = request_at(command::WRITE_ZEROES, 0, 3, COLD, BLOCK);
    let mut clients = bench.round_with(&[
        read_at(1, COLD),
        write(2, COLD + u64::from(BLOCK) / 2),
        zero,
        write(4, WARM),
    ]);
    for waiting in &mut clients[..3] {
        assert!(is_unanswered(waiting));
    }
    assert_eq!(bench.answer(&mut clients[3], 16), simple(4, None));
    assert_eq!(bench.engine.core.pending.waiters.len(), 2);
    let reply = bench.answer(&mut clients[0], 16 + BLOCK as usize);
    assert!(reply[16..] == [7; BLOCK as usize], "the read saw a change that came later");
    for cookie in [2, 3] {
        assert_eq!(bench.answer(&mut clients[cookie - 1], 16), simple(cookie as u64, None));
    }
    let image = std::fs::read(bench._dir.path().join("d")).unwrap();
    assert!(image[..BLOCK as usize * 3 / 2] == [0; BLOCK as usize * 3 / 2]);
    assert!(image[BLOCK as usize * 3 / 2..][..16] == [7; 16]);
}
