//! Loads for the activity map's curve: made ones, and traces where they are at hand.

use std::io::Read;
use std::path::Path;

/// A write: microseconds, offset, bytes.
pub type Write = (u64, u64, u64);

/// 4 KiB writes a second of the made loads: 40 MB/s.
const WRITES_PER_S: u64 = 10_000;
const SECONDS: u64 = 120;
pub const BLOCK: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Sequential,
    /// Exponent 1; hot blocks lie anywhere.
    Zipf,
    Uniform,
}

/// A load: its name, the disk's size, its writes in order of time.
pub struct Load {
    pub name: String,
    pub disk_bytes: u64,
    pub writes: Vec<Write>,
}

pub fn made(shape: Shape, working_set: u64) -> Load {
    let blocks = working_set / BLOCK;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let write = |index: u64| {
        let block = match shape {
            Shape::Sequential => index % blocks,
            Shape::Uniform => draw() % blocks,
            Shape::Zipf => {
                let share = (draw() >> 11) as f64 / (1_u64 << 53) as f64;
                let rank = (blocks as f64).powf(share) as u64;
                rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks
            }
        };
        (index * 1_000_000 / WRITES_PER_S, block * BLOCK, BLOCK)
    };
    let name = format!("{shape:?}, {} GiB", working_set >> 30).to_lowercase();
    let writes = (0..WRITES_PER_S * SECONDS).map(write).collect();
    Load { name: name.replace("gib", "GiB"), disk_bytes: working_set, writes }
}

/// The traces of a folder that are long enough to say something: an own capture of SQLite
/// on ext4 (`t_us,op,offset,length`), and records of 32 bytes as VMware's vscsiStats has
/// them (number, length, segments, command, version, block, microseconds).
pub fn traces(dir: &Path) -> Vec<Load> {
    let mut loads = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let writes = if name.ends_with(".vscsi") {
            std::fs::read(&path).map(|bytes| vscsi(&bytes)).unwrap_or_default()
        } else if name.ends_with(".csv.gz") {
            csv(&unpacked(&path))
        } else {
            continue;
        };
        let end = writes.iter().map(|(_, offset, len)| offset + len).max().unwrap_or(0);
        if end > 0 {
            let short = name.split('.').next().unwrap_or(&name);
            loads.push(Load { name: short.to_owned(), disk_bytes: end, writes });
        }
    }
    loads.sort_by(|a, b| a.name.cmp(&b.name));
    loads
}

fn vscsi(bytes: &[u8]) -> Vec<Write> {
    const WRITE_10: u16 = 0x2a;
    let field = |record: &[u8], at: usize| -> u64 {
        record[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
    };
    let write = |record: &[u8]| {
        let command = u16::from_le_bytes([record[12], record[13]]);
        let len = field(record, 0) >> 32;
        let (block, at) = (field(record, 16), field(record, 24));
        (command == WRITE_10).then_some((at, block * 512, len))
    };
    let mut writes: Vec<Write> = bytes.chunks_exact(32).filter_map(write).collect();
    writes.sort_unstable();
    let first = writes.first().map_or(0, |write| write.0);
    writes.iter_mut().for_each(|write| write.0 -= first);
    writes
}

fn csv(text: &str) -> Vec<Write> {
    let write = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let [at, op, offset, len] = fields[..] else { return None };
        let number = |field: &str| field.parse::<u64>().ok();
        matches!(op, "W" | "Z").then_some((number(at)?, number(offset)?, number(len)?))
    };
    text.lines().filter_map(write).collect()
}

/// By the system's gzip; empty where that fails.
fn unpacked(path: &Path) -> String {
    let mut text = String::new();
    let child = std::process::Command::new("gzip")
        .arg("-dc")
        .arg(path)
        .stdout(std::process::Stdio::piped())
        .spawn();
    if let Ok(mut child) = child {
        if let Some(out) = &mut child.stdout {
            let _ = out.read_to_string(&mut text);
        }
        let _ = child.wait();
    }
    text
}
