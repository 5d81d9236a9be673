//! What a full segment holds, behind its spans: a start then reads two places of a segment
//! and not the header of each span, of which commits of a few kilobytes make thousands.
//! Pure; no I/O. Without a sound trailer the headers count (docs/formats/spill.md).

use super::index::Segment;
use super::layout::*;
use super::runs::Run;
use super::span::{Place, SpanHead};
use super::stretch::Stretches;
use super::touched::TouchedSet;
use crate::format::SLOT_BYTES;
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = size_of::<Trailer>();
const ENTRY: usize = size_of::<RunEntry>();
/// So many runs and ranges, together, fit behind the header. Random writes of 4 KiB, each
/// into a block of its own, stay below it.
const ENTRIES_MAX: usize = (TRAILER_BYTES as usize - HEADER) / ENTRY;
/// Records that a segment has room for.
const RECORDS_MAX: u64 = SPANS_END / SLOT_BYTES;

const _: () = assert!(ENTRY == TOUCHED_ENTRY_BYTES);

/// The trailer of a segment, in whole pages; `None` when there is too much to say.
pub fn encode(segment: &Segment, place: &Place) -> Option<Vec<u8>> {
    let touched = segment.touched.merged();
    if segment.runs.len() + touched.len() > ENTRIES_MAX {
        return None;
    }
    let mut header = Trailer {
        magic: TRAILER_MAGIC,
        version: SPILL_VERSION.into(),
        run_count: (segment.runs.len() as u32).into(),
        touched_count: (touched.len() as u32).into(),
        reserved: 0.into(),
        group_uuid: place.group_uuid,
        ring_id: place.ring_id,
        serial: segment.serial.into(),
        first_seq: segment.first_seq.into(),
        last_seq: segment.last_seq.into(),
        first_ns: segment.first_ns.into(),
        last_ns: segment.last_ns.into(),
        bytes: segment.bytes.into(),
        reserved_2: [0; 20],
        crc: 0.into(),
    };
    let mut entries = Vec::with_capacity((segment.runs.len() + touched.len()) * ENTRY);
    for run in &segment.runs {
        let entry = RunEntry { first: run.first.into(), last: run.last.into() };
        entries.extend_from_slice(entry.as_bytes());
    }
    for touched in &touched {
        entries.extend_from_slice(TouchedEntry::of(touched).as_bytes());
    }
    header.crc = header.checksum(&entries).into();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&entries);
    bytes.resize(bytes.len().next_multiple_of(SPAN_ALIGN as usize), 0);
    Some(bytes)
}

/// The segment that begins with `first`, if `bytes` are its trailer and sound.
pub fn parse(bytes: &[u8], first: &SpanHead, file: u32) -> Option<Segment> {
    let (header, rest) = Trailer::ref_from_prefix(bytes).ok()?;
    let (runs, ranges) = (header.run_count.get() as usize, header.touched_count.get() as usize);
    let entries = rest.get(..runs.checked_add(ranges)?.checked_mul(ENTRY)?)?;
    let begins = &first.header;
    let sound = header.magic == TRAILER_MAGIC
        && header.version.get() == SPILL_VERSION
        && header.crc.get() == header.checksum(entries)
        && first.is_of(&header.group_uuid, &header.ring_id)
        && header.serial == begins.serial
        && header.first_seq == begins.first_seq
        && header.bytes.get() <= SEGMENT_BYTES
        && header.reserved.get() == 0
        && header.reserved_2 == [0; 20];
    if !sound {
        return None;
    }
    let (runs, ranges) = entries.split_at(runs * ENTRY);
    let run = |entry: &RunEntry| Run { first: entry.first.get(), last: entry.last.get() };
    let runs: Vec<Run> = <[RunEntry]>::ref_from_bytes(runs).ok()?.iter().map(run).collect();
    if !are_sound(&runs, header.first_seq.get(), header.last_seq.get()) {
        return None;
    }
    let mut touched = TouchedSet::default();
    touched.extend(
        &<[TouchedEntry]>::ref_from_bytes(ranges)
            .ok()?
            .iter()
            .map(TouchedEntry::touched)
            .collect::<Vec<_>>(),
    );
    let (bytes, first_ns, last_ns) =
        (header.bytes.get(), header.first_ns.get(), header.last_ns.get());
    Some(Segment {
        file,
        serial: header.serial.get(),
        first_seq: header.first_seq.get(),
        last_seq: header.last_seq.get(),
        bytes,
        first_ns,
        last_ns,
        stretches: Stretches::of_runs(&runs, bytes, first_ns, last_ns),
        runs,
        touched,
    })
}

/// Whether the runs rise from the first record to the last, and are no more records than a
/// segment has room for.
fn are_sound(runs: &[Run], first_seq: u64, last_seq: u64) -> bool {
    let ends = runs.first().zip(runs.last()).map(|(first, last)| (first.first, last.last));
    ends == Some((first_seq, last_seq))
        && runs.iter().all(|run| run.first <= run.last)
        && runs.windows(2).all(|two| two[0].last < two[1].first)
        && runs
            .iter()
            .fold(0, |sum: u64, run| sum.saturating_add((run.last - run.first).saturating_add(1)))
            <= RECORDS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::touched::Touched;
    use towline_block::VolumeId;
    use zerocopy::FromZeros;

    /// What the document's worked example says.
    fn segment() -> (Segment, Place) {
        let mut segment = Segment::new(0, 7);
        (segment.first_seq, segment.last_seq, segment.bytes) = (5, 9, 8192);
        (segment.first_ns, segment.last_ns) = (1, 3);
        segment.runs = vec![Run { first: 5, last: 5 }, Run { first: 7, last: 9 }];
        segment.touched.extend(&[Touched { volume: VolumeId(1), first_block: 0, blocks: 1 }]);
        let (group_uuid, ring_id) = ([1; 16], [2; 16]);
        (segment, Place { group_uuid, ring_id, incarnation: 2, epoch: 1, serial: 7, offset: 0 })
    }

    fn first() -> SpanHead {
        let head = SpanHeader::new_zeroed();
        let (serial, first_seq) = (7.into(), 5.into());
        let (group_uuid, ring_id) = ([1; 16], [2; 16]);
        let header = SpanHeader { serial, first_seq, group_uuid, ring_id, ..head };
        SpanHead { header, touched: Vec::new() }
    }

    #[test]
    fn the_worked_example_is_what_the_code_writes() {
        let (segment, place) = segment();
        let bytes = encode(&segment, &place).unwrap();
        assert_eq!(bytes.len(), SPAN_ALIGN as usize);
        let document = include_str!("../../../docs/formats/spill.md");
        for (index, line) in bytes[..HEADER + 3 * ENTRY].chunks(32).enumerate() {
            let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect();
            let words: Vec<String> = line.chunks(8).map(word).collect();
            let row = format!("{:04x}  {}", index * 32, words.join(" "));
            assert!(document.contains(&row), "the document lacks\n{row}");
        }
        assert!(bytes[HEADER + 3 * ENTRY..].iter().all(|byte| *byte == 0));
        let found = parse(&bytes, &first(), 0).unwrap();
        assert_eq!((found.runs, found.touched.merged()), (segment.runs, segment.touched.merged()));
    }

    #[test]
    fn runs_that_no_segment_can_hold_do_not_count_whatever_their_checksum() {
        let run = |first, last| Run { first, last };
        let most = 5 + RECORDS_MAX - 1;
        for (runs, last_seq, is_sound) in [
            (vec![run(5, 9)], 9, true),
            (vec![run(5, most)], most, true),
            (vec![run(5, most + 1)], most + 1, false),
            (vec![run(5, u64::MAX)], u64::MAX, false),
            (vec![run(5, 5), run(u64::MAX, u64::MAX)], u64::MAX, true),
            (vec![run(0, u64::MAX), run(7, 9)], 9, false),
            (vec![run(5, 7), run(7, 9)], 9, false),
            (vec![run(5, 4), run(7, 9)], 9, false),
            (vec![run(6, 9)], 9, false),
            (vec![run(5, 8)], 9, false),
            (Vec::new(), 9, false),
        ] {
            let (mut segment, place) = segment();
            segment.last_seq = last_seq;
            segment.runs.clone_from(&runs);
            let bytes = encode(&segment, &place).unwrap();
            assert_eq!(parse(&bytes, &first(), 0).is_some(), is_sound, "{runs:?}");
        }
    }
}
