//! Copies that stay fast wherever their ends lie.
//!
//! glibc before 2.40 copies more than about 2 KiB with `rep movsb`. On AMD's processors since Zen 3
//! that takes 10 to 25 times as long where the destination lies less than 32 bytes behind the
//! source within their pages (glibc bug 30994): 2 GB/s instead of 55 in the cache. Headers
//! of a few bytes put payloads exactly there. Shorter copies go another way, at full speed.

/// What no version of glibc takes for large.
const PIECE_BYTES: usize = 2048;
const PAGE_BYTES: usize = 4096;
/// From here on the distance does no harm.
const SLOW_BELOW: usize = 32;

/// Bytes to copy at once, at most, between these addresses.
pub fn at_once(into: *const u8, from: *const u8) -> usize {
    match into.addr().wrapping_sub(from.addr()) % PAGE_BYTES {
        1..SLOW_BELOW => PIECE_BYTES,
        _ => usize::MAX,
    }
}

/// As `into.copy_from_slice(from)`.
///
/// # Panics
/// When the lengths differ.
pub fn copy(into: &mut [u8], from: &[u8]) {
    assert_eq!(into.len(), from.len(), "as many bytes as there is room for");
    let at_once = at_once(into.as_ptr(), from.as_ptr());
    if from.len() <= at_once {
        return into.copy_from_slice(from);
    }
    for (into, from) in into.chunks_mut(at_once).zip(from.chunks(at_once)) {
        into.copy_from_slice(from);
    }
}

/// As `into.extend_from_slice(from)`.
pub fn append(into: &mut Vec<u8>, from: &[u8]) {
    into.reserve(from.len());
    let at_once = at_once(into.spare_capacity_mut().as_ptr().cast(), from.as_ptr());
    if from.len() <= at_once {
        return into.extend_from_slice(from);
    }
    from.chunks(at_once).for_each(|piece| into.extend_from_slice(piece));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AlignedBuf;

    #[test]
    fn any_distance_and_length_is_copied_whole() {
        let bytes: Vec<u8> = (0..20_000).map(|i: u32| (i * 7 % 251) as u8).collect();
        let mut from = AlignedBuf::new(3 * PAGE_BYTES);
        let mut into = AlignedBuf::new(4 * PAGE_BYTES);
        for distance in [0, 1, 5, 16, 31, 32, 100, 4095] {
            for len in [0, 1, 2047, 2048, 2049, 4096, 4097, 3 * PAGE_BYTES] {
                let from = &mut from.as_mut_slice()[..len];
                from.copy_from_slice(&bytes[..len]);
                into.as_mut_slice().fill(0xee);
                copy(&mut into.as_mut_slice()[distance..distance + len], from);
                let into = into.as_slice();
                assert!(into[distance..distance + len] == bytes[..len], "{distance} {len}");
                assert!(into[..distance].iter().all(|byte| *byte == 0xee), "{distance} {len}");
                assert!(into[distance + len..].iter().all(|byte| *byte == 0xee));
                let mut vec = vec![1; distance];
                append(&mut vec, from);
                assert!(vec[distance..] == bytes[..len] && vec.len() == distance + len);
            }
        }
    }

    #[test]
    fn only_the_slow_distances_are_cut() {
        let page = AlignedBuf::new(2 * PAGE_BYTES);
        let at = |offset: usize| page.as_slice()[offset..].as_ptr();
        for (into, from, expected) in [
            (0, 0, usize::MAX),
            (1, 0, PIECE_BYTES),
            (31, 0, PIECE_BYTES),
            (32, 0, usize::MAX),
            (0, 1, usize::MAX),
            (16, 4096, PIECE_BYTES),
            (4096 + 16, 0, PIECE_BYTES),
            (4, 4090, PIECE_BYTES),
        ] {
            assert_eq!(at_once(at(into), at(from)), expected, "{into} from {from}");
        }
    }
}
