//! `link-relay`: a long link between two TUN devices, for `scripts/bench-link`.
//!
//! Packets of one device come out of the other later, no faster than the link carries
//! them, and not all of them. The devices are standard input and output, opened by
//! whoever starts it: nothing here needs a right or an ioctl.
//!
//! `link-relay DELAY_MS BITS_PER_S QUEUE_BYTES LOSS CUT_FILE < TUN > TUN`: the delay is
//! that of one way, the loss a share of packets (0 to 1) that `SEED` decides; while the
//! file exists nothing passes at all. Ends when a device does.

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than any packet of a TUN device.
const PACKET_BYTES_MAX: usize = 64 << 10;

/// How often the cut is looked for.
const CUT_LOOK: Duration = Duration::from_millis(5);

/// Of the first direction; the other one's is one more.
const SEED: u64 = 1;

#[derive(Clone, Copy)]
struct Link {
    delay: Duration,
    bits_per_s: f64,
    queue_bytes: usize,
    loss: f64,
}

/// A direction: what is on its way, by the time it arrives.
#[derive(Default)]
struct Way {
    packets: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    came: Condvar,
}

/// When packets leave a link that carries so many bits a second, and which find its
/// queue full.
struct Shaper {
    link: Link,
    free_at: Instant,
}

impl Shaper {
    /// When a packet that comes at `now` arrives; `None`: the queue is full.
    fn arrival(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let starts = self.free_at.max(now);
        let waiting = (starts - now).as_secs_f64() * self.link.bits_per_s / 8.0;
        if waiting > self.link.queue_bytes as f64 {
            return None;
        }
        let takes = Duration::from_secs_f64(bytes as f64 * 8.0 / self.link.bits_per_s);
        self.free_at = starts + takes;
        Some(self.free_at + self.link.delay)
    }
}

/// Takes packets off a device until it ends.
fn take(mut device: File, way: &Way, link: Link, cut: &AtomicBool, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut shaper = Shaper { link, free_at: Instant::now() };
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while let Ok(len @ 1..) = device.read(&mut buffer) {
        let lost = random.random_bool(link.loss) || cut.load(Ordering::Relaxed);
        if let Some(at) = shaper.arrival(Instant::now(), len).filter(|_| !lost) {
            let packet = buffer.get(..len).unwrap_or_default().to_vec();
            way.packets.lock().unwrap_or_else(PoisonError::into_inner).push_back((at, packet));
            way.came.notify_one();
        }
    }
}

/// Gives packets to a device when they are due.
fn give(mut device: File, way: &Way, cut: &AtomicBool) {
    loop {
        let packet = {
            let mut packets = way.packets.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let now = Instant::now();
                let wait = match packets.front() {
                    Some((at, _)) if *at <= now => break packets.pop_front(),
                    Some((at, _)) => *at - now,
                    None => Duration::from_secs(3600),
                };
                let woken = way.came.wait_timeout(packets, wait);
                packets = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        let Some((_, packet)) = packet else { continue };
        if cut.load(Ordering::Relaxed) {
            continue;
        }
        // A device that is down loses the packet, as a link does.
        let _ = device.write(&packet);
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [delay_ms, bits_per_s, queue_bytes, loss, cut_file] = &words[..] else {
        anyhow::bail!("link-relay DELAY_MS BITS_PER_S QUEUE_BYTES LOSS CUT_FILE < TUN > TUN");
    };
    let link = Link {
        delay: Duration::from_secs_f64(delay_ms.parse::<f64>().context("DELAY_MS")? / 1000.0),
        bits_per_s: bits_per_s.parse().context("BITS_PER_S")?,
        queue_bytes: queue_bytes.parse().context("QUEUE_BYTES")?,
        loss: loss.parse().context("LOSS")?,
    };
    anyhow::ensure!((0.0..=1.0).contains(&link.loss), "LOSS is a share, 0 to 1");
    let cut_file = PathBuf::from(cut_file);
    let device = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let near = || device(std::io::stdin().as_fd());
    let far = || device(std::io::stdout().as_fd());
    let cut = Arc::new(AtomicBool::new(false));
    let mut takers = Vec::new();
    for (seed, from, to) in [(SEED, near()?, far()?), (SEED + 1, far()?, near()?)] {
        let way = Arc::new(Way::default());
        let (taken, cut_here) = (Arc::clone(&way), Arc::clone(&cut));
        let taker = std::thread::spawn(move || take(from, &taken, link, &cut_here, seed));
        takers.push(taker);
        let cut = Arc::clone(&cut);
        std::thread::spawn(move || give(to, &way, &cut));
    }
    while !takers.iter().any(std::thread::JoinHandle::is_finished) {
        cut.store(cut_file.exists(), Ordering::Relaxed);
        std::thread::sleep(CUT_LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_no_faster_than_the_link_and_a_full_queue_drops() {
        let now = Instant::now();
        let link = Link {
            delay: Duration::from_millis(40),
            bits_per_s: 8e6,
            queue_bytes: 2000,
            loss: 0.0,
        };
        let mut shaper = Shaper { link, free_at: now };
        let after = |at: Option<Instant>| at.map(|at| (at - now).as_millis());
        // A byte takes a microsecond: the first 1000 arrive after 1 ms and the delay.
        assert_eq!(after(shaper.arrival(now, 1000)), Some(41));
        assert_eq!(after(shaper.arrival(now, 1000)), Some(42));
        assert_eq!(after(shaper.arrival(now, 1000)), Some(43));
        assert_eq!(after(shaper.arrival(now, 1000)), None, "3000 bytes wait before it");
        let later = now + Duration::from_millis(10);
        assert_eq!(after(shaper.arrival(later, 1000)), Some(51), "the link was idle");
    }
}
