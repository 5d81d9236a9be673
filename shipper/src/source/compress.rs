//! How the next batch is compressed: what the operator said, or what the decision of
//! [`towline_control::compress`] makes of link, window and idle cores.

use crate::batch::{Gains, Method};
use std::time::{Duration, Instant};
use towline_control::compress::{BACKLOG_FILL, Choice, Decider, Observed};

/// The kernel counts in ticks of 10 ms: a shorter look sees nothing.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// By link backlog and idle CPU.
    #[default]
    Auto,
    Fixed(Method),
}

pub(crate) struct Compressor {
    wanted: Compression,
    decider: Decider,
    used: Choice,
    link_bytes_per_s: f64,
    idle: Idle,
}

impl Compressor {
    pub fn new(wanted: Compression) -> Compressor {
        Compressor {
            wanted,
            decider: Decider::default(),
            used: Choice::None,
            link_bytes_per_s: 0.0,
            idle: Idle::default(),
        }
    }

    /// Several times a second: what the target takes, stream bytes a second.
    pub fn observe(&mut self, link_bytes_per_s: f64) {
        self.link_bytes_per_s = link_bytes_per_s;
    }

    pub fn method(&mut self, window_fill: f64) -> Method {
        if let Compression::Fixed(method) = self.wanted {
            return method;
        }
        // An idle shipper does not look at all.
        let idle_cores = if window_fill >= BACKLOG_FILL { self.idle.look() } else { 0.0 };
        let link_bytes_per_s = self.link_bytes_per_s;
        self.used = self.decider.choose(&Observed { link_bytes_per_s, window_fill, idle_cores });
        match self.used {
            Choice::None => Method::None,
            Choice::Lz4 => Method::Lz4,
            Choice::Zstd => Method::Zstd,
        }
    }

    /// What came of the last batch.
    pub fn learn(&mut self, gains: &Gains, took: Duration) {
        let plain = gains.payload_bytes - gains.coalesced_bytes;
        self.decider.learn(self.used, plain, gains.stored_bytes, took.as_secs_f64());
    }
}

/// Idle cores of the machine, from the kernel's own count.
#[derive(Default)]
struct Idle {
    last: Option<(Instant, u64, u64)>,
    cores: f64,
}

impl Idle {
    /// Cores that were idle of late; 0 where that is not known.
    fn look(&mut self) -> f64 {
        let now = Instant::now();
        if self.last.is_some_and(|(at, ..)| now.duration_since(at) < LOOK_EVERY) {
            return self.cores;
        }
        let Some((idle, all)) = read_idle() else { return 0.0 };
        if let Some((_, idle_then, all_then)) = self.last.replace((now, idle, all)) {
            let machine = std::thread::available_parallelism().map_or(1, usize::from) as f64;
            let passed = all.saturating_sub(all_then).max(1) as f64;
            self.cores = idle.saturating_sub(idle_then) as f64 / passed * machine;
        }
        self.cores
    }
}

/// Ticks that all cores were idle, and ticks in all.
fn read_idle() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).flat_map(str::parse).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}
