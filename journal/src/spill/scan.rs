//! Finds out what a `spill/` folder holds: reads span headers only. Used by the owner
//! at start; payloads are verified when they are shipped.

use super::index::{Segment, Segments, SpanFigures, segment_path};
use super::layout::{SEGMENT_BYTES, SPAN_ALIGN};
use super::span::{SpanFault, SpanHead};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that read headers: a disk answers several at once, and 16 GiB are 16384
/// headers.
const SCAN_THREADS: usize = 8;

/// What was found for one ring.
#[derive(Debug, Default)]
pub struct Scanned {
    pub segments: Segments,
    /// Spans whose header was read.
    pub spans: u64,
}

/// One file's content.
struct FileFound {
    file: u32,
    /// Serial of its first span, of whatever ring.
    serial: u64,
    segment: Option<Segment>,
    spans: u64,
}

/// Reads all segments of the folder. Those of another ring, or whose records are all
/// at or below `acked`, are free.
///
/// # Errors
/// [`ErrorKind::Newer`] when a segment was written by a newer Towline.
pub fn scan(dir: &Path, group_uuid: &[u8; 16], ring_id: &[u8; 16], acked: u64) -> Result<Scanned> {
    let mut files = Vec::new();
    while segment_path(dir, files.len() as u32).exists() {
        files.push(files.len() as u32);
    }
    let next = AtomicUsize::new(0);
    let read = || -> Result<Vec<FileFound>> {
        let mut found = Vec::new();
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push(read_file(dir, *file, group_uuid, ring_id)?);
        }
        Ok(found)
    };
    let results: Vec<Result<Vec<FileFound>>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..SCAN_THREADS.min(files.len())).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|t| t.join().expect("a scan never panics")).collect()
    });
    let mut found = Vec::new();
    for result in results {
        found.extend(result?);
    }
    let mut scanned = Scanned::default();
    scanned.segments.files = files.len() as u32;
    scanned.segments.next_serial = found.iter().map(|f| f.serial).max().unwrap_or(0) + 1;
    scanned.spans = found.iter().map(|f| f.spans).sum();
    let mut live = Vec::new();
    let mut serials = vec![0; files.len()];
    for file in &found {
        serials[file.file as usize] = file.serial;
    }
    for file in found {
        match file.segment.filter(|segment| segment.last_seq > acked) {
            Some(segment) => live.push(segment),
            None => scanned.segments.free.push(file.file),
        }
    }
    // What was in flight when the last owner was killed lands in its newest segment:
    // that one is used again last.
    let age = |file: &u32| serials.get(*file as usize).copied();
    scanned.segments.free.sort_by_key(|file| std::cmp::Reverse(age(file)));
    live.sort_by_key(|segment| segment.serial);
    scanned.segments.live = live.into();
    Ok(scanned)
}

impl Scanned {
    /// Whether every record of `acked + 1 ..= spilled` is there.
    pub fn covers(&self, acked: u64, spilled: u64) -> bool {
        let mut reached = acked;
        for segment in &self.segments.live {
            if segment.first_seq > reached + 1 || reached >= spilled {
                break;
            }
            reached = reached.max(segment.last_seq);
        }
        reached >= spilled
    }
}

fn read_file(
    dir: &Path,
    file: u32,
    group_uuid: &[u8; 16],
    ring_id: &[u8; 16],
) -> Result<FileFound> {
    let path = segment_path(dir, file);
    let mut found = FileFound { file, serial: 0, segment: None, spans: 0 };
    let Ok(opened) = File::open(&path) else { return Ok(found) };
    let mut page = vec![0; SPAN_ALIGN as usize];
    let mut offset = 0;
    while offset < SEGMENT_BYTES && opened.read_exact_at(&mut page, offset).is_ok() {
        let head = match SpanHead::parse(&page, offset) {
            Ok(head) => head,
            Err(SpanFault::Newer) => {
                let what =
                    format!("{} was written by a newer Towline: use that one", path.display());
                return Err(Error::new(ErrorKind::Newer, what));
            }
            Err(_) => break,
        };
        let header = &head.header;
        if offset == 0 {
            found.serial = header.serial.get();
            if head.is_of(group_uuid, ring_id) {
                found.segment = Some(Segment::new(file, header.serial.get()));
            }
        }
        let Some(segment) = &mut found.segment else { break };
        let continues = head.is_of(group_uuid, ring_id)
            && header.serial.get() == segment.serial
            && (offset == 0 || header.first_seq.get() > segment.last_seq);
        // After a gap in the numbers the target had what is missing; before it, too.
        if !continues {
            break;
        }
        segment.add(&SpanFigures {
            first_seq: header.first_seq.get(),
            last_seq: header.last_seq.get(),
            bytes: u64::from(header.span_bytes.get()),
            unix_ns: header.unix_ns.get(),
            touched: &head.touched,
        });
        found.spans += 1;
        offset += u64::from(header.span_bytes.get());
    }
    Ok(found)
}
