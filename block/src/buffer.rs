//! Memory that O_DIRECT accepts.

use crate::sys::uring::Window;

/// Alignment of buffer address, file offset and length that satisfies O_DIRECT
/// on every disk with sectors of up to 4 KiB.
pub const DIRECT_ALIGN: usize = 4096;

/// A byte buffer whose first byte is aligned to [`DIRECT_ALIGN`]. The storage is
/// never reallocated, so the alignment holds for its whole life.
/// The default is empty and takes no memory.
#[derive(Debug, Default)]
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

    /// Hands `len` bytes from `from` on to the io_uring driver.
    ///
    /// # Panics
    /// If they do not lie inside the buffer.
    pub fn lend(self, from: usize, len: usize) -> Window {
        assert!(from + len <= self.len, "{len} bytes from {from} of a buffer of {}", self.len);
        Window::new(self.storage, self.start + from, len)
    }

    /// The buffer of which [`AlignedBuf::lend`] made this window, all of it.
    pub fn take_back(window: Window) -> AlignedBuf {
        let storage = window.buf;
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(DIRECT_ALIGN) - address;
        let len = (storage.len() + 1).saturating_sub(DIRECT_ALIGN);
        AlignedBuf { storage, start, len }
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

    #[test]
    fn a_lent_buffer_comes_back_as_it_went() {
        let mut buf = AlignedBuf::new(2 * DIRECT_ALIGN);
        buf.as_mut_slice()[DIRECT_ALIGN] = 7;
        let address = buf.as_slice().as_ptr();
        let back = AlignedBuf::take_back(buf.lend(DIRECT_ALIGN, 512));
        assert_eq!((back.as_slice().as_ptr(), back.len()), (address, 2 * DIRECT_ALIGN));
        assert_eq!(back.as_slice()[DIRECT_ALIGN], 7);
    }
}
