use super::*;
use crate::ring::RingSpec;
use proptest::prelude::*;
use towline_block::BLOCK_BYTES;

const BLOCKS: u64 = 200;

fn ring() -> (tempfile::TempDir, Ring) {
    let dir = tempfile::tempdir().unwrap();
    let spec = RingSpec {
        group_name: "g".into(),
        group_uuid: [1; 16],
        ring_id: [2; 16],
        boot_id: [3; 16],
        epoch: 1,
        incarnation: 1,
        base_incarnation: 0,
        base_seq: 0,
        base_claims: 0,
        payload_bytes: 4 << 20,
        created_unix_ns: 0,
        volumes: vec![("a".into(), BLOCKS * BLOCK_BYTES - 5)],
    };
    let (ring, _) = Ring::create(&dir.path().join("ring"), &spec).unwrap();
    (dir, ring)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a plain vector of flags: bits, counts and claimable runs.
    #[test]
    fn the_map_is_a_vector_of_flags(
        steps in prop::collection::vec((0..6u8, 0..BLOCKS, 0..BLOCKS), 1..60)
    ) {
        let (_dir, ring) = ring();
        let map = VolumeMap::new(&ring, VolumeId(0));
        let mut model = vec![vec![false; BLOCKS as usize]; 3];
        for (op, first, count) in steps {
            let blocks = BlockRange::new(first, count.min(BLOCKS - first));
            let all_bits = [Bits::Dirty, Bits::Claimed, Bits::Suspect];
            let (bits, value) = (all_bits[usize::from(op % 3)], op < 3);
            let flags = &mut model[usize::from(op % 3)];
            let range = blocks.first as usize..blocks.end() as usize;
            let expected = flags[range.clone()].iter().filter(|f| **f != value).count() as u64;
            let changed = if value { map.set(bits, blocks) } else { map.clear(bits, blocks) };
            prop_assert_eq!(changed, expected);
            flags[range.clone()].fill(value);
            prop_assert_eq!(map.all_set(bits, blocks), value || range.is_empty());
            for (bits, flags) in all_bits.iter().zip(&model) {
                let count = flags.iter().filter(|f| **f).count() as u64;
                prop_assert_eq!(ring.get(bits.counter()), count);
            }
            let free = |b: usize| model[0][b] && !model[1][b];
            let start = (first as usize..BLOCKS as usize).find(|b| free(*b));
            let expected = start.map(|start| {
                let suspect = model[2][start];
                let ends = |b: &usize| !free(*b) || model[2][*b] != suspect;
                let end = (start..BLOCKS as usize).find(ends).unwrap_or(BLOCKS as usize);
                (BlockRange::new(start as u64, (end - start).min(70) as u64), suspect)
            });
            prop_assert_eq!(map.claimable(first, 70), expected);
            let pending: Vec<bool> =
                (0..BLOCKS as usize).map(|b| model[0][b] || model[1][b]).collect();
            let mut from_runs = vec![false; BLOCKS as usize];
            for run in runs_of(&map.pending_words(), BLOCKS) {
                from_runs[run.first as usize..run.end() as usize].fill(true);
            }
            prop_assert_eq!(from_runs, pending);
        }
    }
}
