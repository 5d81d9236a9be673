//! Memory that O_DIRECT accepts.

/// Alignment of buffer address, file offset and length that satisfies O_DIRECT
/// on every disk with sectors of up to 4 KiB.
pub const DIRECT_ALIGN: usize = 4096;

/// A byte buffer whose first byte is aligned to [`DIRECT_ALIGN`]. The storage is
/// never reallocated, so the alignment holds for its whole life.
#[derive(Debug)]
pub struct AlignedBuf {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// Zeroed; usable capacity is `len` rounded up to the alignment.
    pub fn new(len: usize) -> AlignedBuf {
        let capacity = len.next_multiple_of(DIRECT_ALIGN);
        let storage = vec![0u8; capacity + DIRECT_ALIGN - 1];
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(DIRECT_ALIGN) - address;
        AlignedBuf { storage, start, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }

    /// The parts the io_uring driver takes: storage and where the data begins.
    pub(crate) fn into_parts(self) -> (Vec<u8>, usize, usize) {
        (self.storage, self.start, self.len)
    }

    pub(crate) fn from_parts((storage, start, len): (Vec<u8>, usize, usize)) -> AlignedBuf {
        AlignedBuf { storage, start, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_aligned() {
        for len in [0, 1, 4096, 65536 + 7] {
            let buf = AlignedBuf::new(len);
            assert_eq!(buf.as_slice().as_ptr().addr() % DIRECT_ALIGN, 0);
            assert_eq!(buf.len(), len);
        }
    }
}
