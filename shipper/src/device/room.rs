//! Which device the next pack goes to, from what is free on each.

use super::{RESERVE_BYTES, ROOM_BYTES_MIN};
use crate::batch::BATCH_BYTES_MAX;

/// A device with less than this free is full: what is reserved, and the least room.
pub(super) const KEPT_BYTES: u64 = RESERVE_BYTES + ROOM_BYTES_MIN;

/// Of a device in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// On its file system; `None` while it is not there.
    pub free_bytes: Option<u64>,
    /// Of this export on it.
    pub used_bytes: u64,
}

/// Why no device can have the next pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    NoneThere,
    /// Those that are there are full; others are not there.
    Away,
    Full,
}

/// How large the next pack may become; `None`: the device is full.
pub(super) fn pack_room(free_bytes: u64) -> Option<u64> {
    let room = free_bytes.saturating_sub(RESERVE_BYTES);
    // A pack may be one batch larger.
    (room >= ROOM_BYTES_MIN).then(|| room - BATCH_BYTES_MAX as u64)
}

/// What packs of any size surely find room for: the last one may leave less than
/// [`ROOM_BYTES_MIN`], which is not used.
pub(super) fn usable(free_bytes: u64) -> u64 {
    free_bytes.saturating_sub(KEPT_BYTES)
}

/// Of those with room the one with the least on it, and how large the pack may become.
pub(super) fn choose(rooms: &[Room]) -> Result<(usize, u64), Lack> {
    let with_room = rooms.iter().enumerate().filter_map(|(index, room)| {
        let bytes = pack_room(room.free_bytes?)?;
        Some((room.used_bytes, index, bytes))
    });
    if let Some((_, index, bytes)) = with_room.min() {
        return Ok((index, bytes));
    }
    let away = rooms.iter().filter(|room| room.free_bytes.is_none()).count();
    Err(match away {
        0 => Lack::Full,
        all if all == rooms.len() => Lack::NoneThere,
        _ => Lack::Away,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Option<u64> = Some(KEPT_BYTES - 1);
    const ROOM: Option<u64> = Some(KEPT_BYTES);

    fn chosen(rooms: &[(Option<u64>, u64)]) -> Result<usize, Lack> {
        let room = |(free_bytes, used_bytes): &(Option<u64>, u64)| Room {
            free_bytes: *free_bytes,
            used_bytes: *used_bytes,
        };
        choose(&rooms.iter().map(room).collect::<Vec<_>>()).map(|(index, _)| index)
    }

    #[test]
    fn the_device_with_the_least_on_it_that_has_room_is_next() {
        assert_eq!(chosen(&[(ROOM, 9), (ROOM, 8), (ROOM, 8)]), Ok(1));
        assert_eq!(chosen(&[(ROOM, 9), (FULL, 0), (None, 0)]), Ok(0));
    }

    #[test]
    fn full_is_final_only_when_no_device_is_away() {
        assert_eq!(chosen(&[(FULL, 1), (FULL, 2)]), Err(Lack::Full));
        assert_eq!(chosen(&[(FULL, 1), (None, 2)]), Err(Lack::Away));
        assert_eq!(chosen(&[(None, 1), (None, 2)]), Err(Lack::NoneThere));
    }

    #[test]
    fn a_pack_with_its_last_batch_leaves_the_reserve_free() {
        let free = RESERVE_BYTES + 3 * ROOM_BYTES_MIN;
        let largest = pack_room(free).unwrap() + BATCH_BYTES_MAX as u64;
        assert_eq!(free - largest, RESERVE_BYTES);
    }

    /// What packs take of a device before it is full.
    fn taken(free_bytes: u64, pack_bytes: u64) -> u64 {
        let mut taken = 0;
        while let Some(room) = pack_room(free_bytes - taken) {
            taken += room.min(pack_bytes);
        }
        taken
    }

    #[test]
    fn what_is_usable_is_taken_before_a_device_is_full() {
        for free_bytes in (0..40).map(|n| n * (ROOM_BYTES_MIN / 4 + 4097)) {
            for pack_bytes in [1 << 20, ROOM_BYTES_MIN - 1, ROOM_BYTES_MIN + 1, 1 << 32] {
                let (usable, taken) = (usable(free_bytes), taken(free_bytes, pack_bytes));
                assert!(taken >= usable, "{free_bytes}, {pack_bytes}: {taken} of {usable}");
            }
        }
        // A device of 100 MiB takes no pack, so none of it counts.
        assert_eq!(usable(100 << 20), 0);
    }
}
