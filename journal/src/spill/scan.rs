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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Kind, RECORD_PAYLOAD_BYTES_MAX, Slot, SlotState, commit_word};
    use crate::record::Record;
    use crate::spill::span::{Place, SpanBuilder};
    use towline_block::{Extent, VolumeId};

    const UUID: [u8; 16] = [1; 16];
    const RING: [u8; 16] = [2; 16];

    /// One record of 1 MiB a span, of which only the header's page is written.
    fn span(seq: u64, serial: u64, offset: u64) -> (Vec<u8>, u64) {
        let extent = Extent::new(seq << 20, RECORD_PAYLOAD_BYTES_MAX);
        let mut slot = Slot::new(Kind::Write, VolumeId(0), extent, seq);
        slot.payload_position = 0.into();
        slot.header_crc = slot.checksum(seq).into();
        slot.commit = commit_word(seq, SlotState::Done).into();
        let record = Record::decode(seq, &slot).unwrap();
        let mut builder = SpanBuilder::new(Vec::new());
        assert!(builder.push(&record, &slot, |_| {}));
        let (group_uuid, ring_id) = (UUID, RING);
        let place = Place { group_uuid, ring_id, incarnation: 1, epoch: 1, serial, offset };
        let built = builder.finish(&place);
        let page = built.storage[built.start..built.start + SPAN_ALIGN as usize].to_vec();
        (page, built.bytes as u64)
    }

    /// Fills segments; returns records and spans, one each.
    fn fill(dir: &Path, segments: u32) -> u64 {
        let mut seq = 0;
        for number in 0..segments {
            let file = File::create(segment_path(dir, number)).unwrap();
            file.set_len(SEGMENT_BYTES).unwrap();
            let mut offset = 0;
            while offset + crate::spill::layout::SPAN_BYTES_MAX <= SEGMENT_BYTES {
                let (page, bytes) = span(seq + 1, u64::from(number) + 1, offset);
                file.write_all_at(&page, offset).unwrap();
                (seq, offset) = (seq + 1, offset + bytes);
            }
            file.sync_all().unwrap();
        }
        seq
    }

    /// TOWLINE_SCAN_SEGMENTS=256 measures a spill of 16 GiB.
    #[test]
    fn headers_alone_tell_what_a_spill_holds() {
        let count = std::env::var("TOWLINE_SCAN_SEGMENTS").map_or(3, |n| n.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let records = fill(dir.path(), count);
        let scanned = scan(dir.path(), &UUID, &RING, 0).unwrap();
        assert_eq!((scanned.spans, scanned.segments.files), (records, count));
        assert!(scanned.covers(0, records) && !scanned.covers(0, records + 1));
        assert_eq!(scanned.segments.next_serial, u64::from(count) + 1);
        let in_first = scanned.segments.live[0].last_seq;
        let later = scan(dir.path(), &UUID, &RING, in_first).unwrap();
        assert_eq!(later.segments.free, [0]);
        assert!(later.covers(in_first, records) && !later.covers(in_first - 1, records));
        let other = scan(dir.path(), &UUID, &[9; 16], 0).unwrap();
        assert_eq!((other.segments.live.len(), other.segments.free.len()), (0, count as usize));
    }

    #[test]
    fn a_damaged_header_ends_its_segment_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let records = fill(dir.path(), 2);
        let (_, bytes) = span(1, 1, 0);
        let first = std::fs::OpenOptions::new().write(true).open(segment_path(dir.path(), 0));
        let first = first.unwrap();
        first.write_all_at(&[0xff], 5 * bytes + 40).unwrap();
        let scanned = scan(dir.path(), &UUID, &RING, 0).unwrap();
        assert_eq!(scanned.segments.live[0].last_seq, 5);
        assert!(scanned.covers(0, 5) && !scanned.covers(0, records));
        first.write_all_at(&[2], 8).unwrap();
        let refused = scan(dir.path(), &UUID, &RING, 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Newer);
    }
}
