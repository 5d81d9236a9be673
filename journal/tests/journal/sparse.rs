//! A file's content of which only sectors that are not zero are held; copies share them. So
//! the many images of a segment of 64 MiB cost little more than what differs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What a disk writes whole.
pub(crate) const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

const ZERO: Sector = [0; SECTOR_BYTES];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    len: usize,
    /// By their index in the file.
    sectors: BTreeMap<usize, Arc<Sector>>,
}

impl Sparse {
    pub(crate) fn of(bytes: &[u8]) -> Sparse {
        let mut content = Sparse::default();
        content.put(0, bytes);
        content
    }

    pub(crate) fn read(path: &Path) -> Sparse {
        Sparse::of(&std::fs::read(path).unwrap())
    }

    /// What lies behind the end reads as zero.
    pub(crate) fn put(&mut self, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (index, within) = (at / SECTOR_BYTES, at % SECTOR_BYTES);
            let (piece, rest) = bytes.split_at(bytes.len().min(SECTOR_BYTES - within));
            let old = self.sectors.get(&index).map_or(&ZERO, |sector| sector);
            if old[within..within + piece.len()] != *piece {
                let mut sector = *old;
                sector[within..within + piece.len()].copy_from_slice(piece);
                match sector == ZERO {
                    true => self.sectors.remove(&index),
                    false => self.sectors.insert(index, Arc::new(sector)),
                };
            }
            (at, bytes) = (at + piece.len(), rest);
            self.len = self.len.max(at);
        }
    }

    pub(crate) fn get(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let (index, within) =
                ((at + bytes.len()) / SECTOR_BYTES, (at + bytes.len()) % SECTOR_BYTES);
            let sector = self.sectors.get(&index).map_or(&ZERO, |sector| sector);
            let end = SECTOR_BYTES.min(within + len - bytes.len());
            bytes.extend_from_slice(&sector[within..end]);
        }
        bytes
    }

    /// Makes the file anew.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        for (index, sector) in &self.sectors {
            let at = index * SECTOR_BYTES;
            file.write_all_at(&sector[..SECTOR_BYTES.min(self.len - at)], at as u64)?;
        }
        file.set_len(self.len as u64)
    }
}

#[test]
fn what_was_put_is_read_and_written() {
    let mut plain = vec![0u8; 5000];
    let mut content = Sparse::of(&plain);
    assert!(content.sectors.is_empty());
    for (at, len, byte) in [(0, 1, 1), (511, 2, 2), (1000, 2000, 3), (1024, 512, 0), (4900, 99, 4)]
    {
        plain[at..at + len].fill(byte);
        content.put(at, &vec![byte; len]);
    }
    assert_eq!(content, Sparse::of(&plain));
    assert_eq!(content.get(0, 5100), [plain.as_slice(), &[0; 100]].concat());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    content.write(&path).unwrap();
    assert!(std::fs::read(&path).unwrap() == plain);
    assert_eq!(Sparse::read(&path), content);
}
