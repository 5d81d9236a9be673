//! System calls, one after the other.

use super::{BLOCK, Engine, STAGED_BYTES};
use std::fs::File;
use std::os::unix::fs::FileExt;
use towline_block::AlignedBuf;

pub struct Inline {
    file: File,
    buf: AlignedBuf,
}

impl Engine for Inline {
    fn new(file: File) -> Inline {
        Inline { file, buf: AlignedBuf::new(STAGED_BYTES) }
    }

    fn write(&mut self, blocks: &[u64], _depth: usize) {
        for at in blocks {
            self.file.write_all_at(&self.buf.as_slice()[..BLOCK], *at).expect("a write");
        }
    }

    fn read(&mut self, blocks: &[u64], _depth: usize) {
        for at in blocks {
            self.file.read_exact_at(&mut self.buf.as_mut_slice()[..BLOCK], *at).expect("a read");
        }
    }

    fn stage(&mut self, offset: u64, bytes: usize) {
        self.file.write_all_at(&self.buf.as_slice()[..bytes], offset).expect("a write");
        self.file.sync_data().expect("a flush");
    }
}
