//! Real NBD clients against `towline proxy`, journaling as in production.

mod clones;
mod ext4;
mod fio;
mod nbdcopy;
mod nbdinfo;
mod nbdsh;
mod peer;
mod peers;
mod qemu_img;
mod qemu_io;
mod targets;
mod upstream;

use std::path::Path;
use towline_tests::Rig;

const DISK_BYTES: u64 = 64 << 20;

/// A proxy with one empty disk, without a shipper: everything a client needs.
fn served() -> Rig {
    served_by("auto")
}

fn served_by(engine: &'static str) -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.engine = engine;
    rig.start_proxy();
    rig
}

fn uri(rig: &Rig) -> String {
    rig.source_uri("disk0").to_string()
}

/// Bytes of which no two blocks are equal, equal for equal seeds.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng, SeedableRng};
    // One random piece, told apart by its place: random bytes for all of it would
    // take seconds without optimisation.
    let mut piece = [0; 4096];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut piece);
    let mut bytes = vec![0; len];
    for (index, chunk) in bytes.chunks_mut(piece.len()).enumerate() {
        piece[..8].copy_from_slice(&(index as u64 ^ seed << 32).to_le_bytes());
        chunk.copy_from_slice(&piece[..chunk.len()]);
    }
    bytes
}

fn write_file(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}

/// The source image is at all times what the guest wrote: a plain file.
#[track_caller]
fn assert_source_starts_with(rig: &Rig, bytes: &[u8]) {
    let source = std::fs::read(rig.source("disk0")).unwrap_or_else(|e| panic!("no source: {e}"));
    if source.get(..bytes.len()) != Some(bytes) {
        let at = source.iter().zip(bytes).position(|(a, b)| a != b);
        panic!("the source differs from what was written, first at {at:?}");
    }
}
