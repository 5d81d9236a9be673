//! The two buffers of a connection, and the bound on what all of them may grow to.
//!
//! Both are vectors whose whole length is initialised once and then reused, with
//! the used part kept as numbers: growing a vector's length for every request
//! would clear memory that is overwritten right after.

use super::execute::{SYNC_REPLY_BYTES_MAX, SYNCS_MAX, TURN_BYTES};
use towline_block::sys::uring::Window;

/// Size that every buffer starts with and returns to: 32 pipelined requests of
/// 4 KiB and then some, small enough for the second-level cache.
pub const BUFFER_BYTES: usize = 256 << 10;
/// Up to this a grown buffer is kept while it is used: requests of 1 MiB, which
/// copying clients send, must not allocate each time.
pub const BUFFER_KEEP_BYTES: usize = 4 << 20;
/// Batches that did not need a grown buffer before it shrinks.
const CALM_BATCHES: u32 = 64;

/// Room that an output keeps beside what is asked for: flushes under way are
/// answered into it at any time, however full it is.
const SYNC_REPLIES_BYTES: usize = SYNCS_MAX as usize * SYNC_REPLY_BYTES_MAX;

/// What a buffer of so many bytes takes from the volume's [`LargeMemory`].
fn charge_of(bytes: usize) -> usize {
    bytes.saturating_sub(BUFFER_KEEP_BYTES)
}

/// The memory that large requests of one volume share. A request that does not fit
/// waits until another has been answered.
pub struct LargeMemory {
    /// Below zero when answers of requests at the source were larger than it.
    free_bytes: isize,
    /// Something was given back since the last look.
    freed: bool,
}

/// Eight requests of the largest size at a time for a volume: more would only
/// queue at the same disk.
const LARGE_BYTES_MAX: isize = 8 * (32 << 20);

impl LargeMemory {
    pub fn new() -> LargeMemory {
        LargeMemory { free_bytes: LARGE_BYTES_MAX, freed: false }
    }

    fn resize(&mut self, from: usize, to: usize) -> bool {
        let (from, to) = (charge_of(from), charge_of(to));
        if to > from && (to - from) as isize > self.free_bytes {
            return false;
        }
        self.charge(from, to);
        true
    }

    fn charge(&mut self, from: usize, to: usize) {
        self.free_bytes += from as isize - to as isize;
        self.freed |= to < from;
    }

    /// Whether a large read may be sent to the source.
    pub fn has_free(&self) -> bool {
        self.free_bytes > 0
    }

    /// Whether those who wait for memory should try again.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

/// Received bytes, of which a part is parsed already.
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    calm: u32,
}

impl Input {
    pub fn new() -> Input {
        Input { bytes: vec![0; BUFFER_BYTES], start: 0, end: 0, calm: 0 }
    }

    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "parsed more than was received");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Makes room for a request of `total` bytes from the first unread one on.
    /// False when the volume's memory has no room for that now.
    #[must_use]
    pub fn make_room(&mut self, total: usize, memory: &mut LargeMemory) -> bool {
        self.relax(total, memory);
        if total > self.bytes.len() {
            let to = if total <= BUFFER_KEEP_BYTES { total.next_power_of_two() } else { total };
            if !memory.resize(self.bytes.len(), to) {
                return false;
            }
            let mut larger = vec![0; to];
            larger[..self.end - self.start].copy_from_slice(self.unread());
            self.bytes = larger;
            (self.start, self.end) = (0, self.end - self.start);
        } else if self.start + total > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        true
    }

    /// Gives back what is not needed any more: at once from a very large size, else
    /// after a while.
    fn relax(&mut self, total: usize, memory: &mut LargeMemory) {
        let is_very_large = self.bytes.len() > BUFFER_KEEP_BYTES;
        let needed = if is_very_large { BUFFER_KEEP_BYTES } else { BUFFER_BYTES };
        if self.bytes.len() == BUFFER_BYTES || total > needed {
            self.calm = 0;
            return;
        }
        self.calm += 1;
        let unread = self.end - self.start;
        let to = total.next_power_of_two().clamp(BUFFER_BYTES, BUFFER_KEEP_BYTES);
        if (is_very_large || self.calm >= CALM_BATCHES) && unread <= to {
            let mut smaller = vec![0; to];
            smaller[..unread].copy_from_slice(self.unread());
            self.discard_capacity(memory);
            *self = Input { bytes: smaller, start: 0, end: unread, calm: 0 };
        }
    }

    fn discard_capacity(&mut self, memory: &mut LargeMemory) {
        let fits = memory.resize(self.bytes.len(), 0);
        assert!(fits, "giving memory back always fits");
        self.bytes = Vec::new();
    }

    /// Hands the free part to the kernel: all of it, or what one receive may move. A fast
    /// sender fills a longer one while it is copied, and the others wait.
    pub fn lend(&mut self) -> Window {
        let len = (self.bytes.len() - self.end).min(TURN_BYTES);
        Window::new(std::mem::take(&mut self.bytes), self.end, len)
    }

    /// Takes the buffer back with `received` more bytes in it.
    pub fn take_back(&mut self, window: Window, received: usize) {
        self.bytes = window.buf;
        self.end += received;
    }

    /// The free part, as [`Input::lend`], without giving the buffer away.
    pub fn space(&mut self) -> &mut [u8] {
        let len = (self.bytes.len() - self.end).min(TURN_BYTES);
        &mut self.bytes[self.end..][..len]
    }

    /// The first `received` bytes of the free part were filled.
    pub fn fill(&mut self, received: usize) {
        self.end += received;
        assert!(self.end <= self.bytes.len(), "received more than there was room for");
    }

    /// Frees the buffer of a closed connection.
    pub fn close(&mut self, memory: &mut LargeMemory) {
        (self.start, self.end) = (0, 0);
        self.discard_capacity(memory);
    }
}

/// Replies not sent yet.
pub struct Output {
    bytes: Vec<u8>,
    len: usize,
}

impl Default for Output {
    fn default() -> Output {
        Output { bytes: vec![0; BUFFER_BYTES], len: 0 }
    }
}

impl Output {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `len` more bytes and the replies of all flushes under way, as
    /// [`Input::make_room`].
    #[must_use]
    pub fn make_room(&mut self, len: usize, memory: &mut LargeMemory) -> bool {
        let total = self.len + len + SYNC_REPLIES_BYTES;
        if total <= self.bytes.len() {
            return true;
        }
        let to = if total <= BUFFER_KEEP_BYTES { total.next_power_of_two() } else { total };
        if !memory.resize(self.bytes.len(), to) {
            return false;
        }
        self.grow(to);
        true
    }

    /// As [`Output::make_room`], whatever the memory has: for the answer of a request that
    /// was let through, of which the source's permits bound the bytes.
    pub fn force_room(&mut self, len: usize, memory: &mut LargeMemory) {
        if self.make_room(len, memory) {
            return;
        }
        let to = self.len + len + SYNC_REPLIES_BYTES;
        memory.charge(charge_of(self.bytes.len()), charge_of(to));
        self.grow(to);
    }

    /// A fresh buffer costs no clearing of what is overwritten anyway.
    fn grow(&mut self, to: usize) {
        let mut larger = vec![0; to];
        larger[..self.len].copy_from_slice(&self.bytes[..self.len]);
        self.bytes = larger;
    }

    /// Appends a reply without data. They need no room made: between two batches
    /// they are few, and flushes have theirs.
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if end > self.bytes.len() {
            assert!(end <= BUFFER_KEEP_BYTES, "a reply of {} bytes without room", bytes.len());
            self.grow(end.next_power_of_two());
        }
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// The next `len` bytes, for which room was made, to be filled by the caller.
    pub fn put_space(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        &mut self.bytes[start..self.len]
    }

    /// Forgets everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncated beyond the end");
        self.len = len;
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Hands everything but the first `sent` bytes to the kernel.
    pub fn lend(&mut self, sent: usize) -> Window {
        let len = std::mem::take(&mut self.len) - sent;
        Window::new(std::mem::take(&mut self.bytes), sent, len)
    }

    /// Everything was sent.
    pub fn clear(&mut self, memory: &mut LargeMemory) {
        self.len = 0;
        if self.bytes.len() > BUFFER_KEEP_BYTES {
            *self = Output::recycle(std::mem::take(&mut self.bytes), memory);
        }
    }

    /// An empty buffer from one that was sent; very large ones are not kept.
    pub fn recycle(bytes: Vec<u8>, memory: &mut LargeMemory) -> Output {
        if bytes.len() <= BUFFER_KEEP_BYTES {
            return Output { bytes, len: 0 };
        }
        Output { bytes, len: 0 }.close(memory);
        Output::default()
    }

    pub fn close(self, memory: &mut LargeMemory) {
        let fits = memory.resize(self.bytes.len(), 0);
        assert!(fits, "giving memory back always fits");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(input: &mut Input, bytes: &[u8]) {
        let mut window = input.lend();
        assert!(window.len >= bytes.len());
        window.buf[window.start..window.start + bytes.len()].copy_from_slice(bytes);
        input.take_back(window, bytes.len());
    }

    #[test]
    fn unread_bytes_survive_growing_moving_and_shrinking() {
        let mut memory = LargeMemory::new();
        let mut input = Input::new();
        receive(&mut input, b"xxabc");
        input.consume(2);
        assert!(input.make_room(BUFFER_BYTES, &mut memory));
        assert_eq!(input.unread(), b"abc");
        assert!(input.make_room(5 << 20, &mut memory));
        assert_eq!(input.unread(), b"abc");
        assert_eq!(memory.free_bytes, LARGE_BYTES_MAX - (1 << 20));
        assert!(!memory.take_freed());
        assert!(input.make_room((1 << 20) + 28, &mut memory));
        assert_eq!(input.unread(), b"abc");
        assert_eq!(input.bytes.len(), 2 << 20);
        assert!(memory.take_freed());
        assert_eq!(memory.free_bytes, LARGE_BYTES_MAX);
    }

    #[test]
    fn a_buffer_in_use_is_kept_and_shrinks_when_calm() {
        let mut memory = LargeMemory::new();
        let mut input = Input::new();
        assert!(input.make_room(1 << 20, &mut memory));
        for _ in 1..CALM_BATCHES {
            assert!(input.make_room(28, &mut memory));
        }
        assert_eq!(input.bytes.len(), 1 << 20);
        assert!(input.make_room(28, &mut memory));
        assert_eq!(input.bytes.len(), BUFFER_BYTES);
    }

    #[test]
    fn replies_to_all_flushes_under_way_fit_behind_any_read() {
        for read in [1, BUFFER_BYTES, (1 << 20) + 1, BUFFER_KEEP_BYTES - 100, 32 << 20] {
            let mut memory = LargeMemory::new();
            let mut output = Output::default();
            output.put(&vec![1; (1 << 20) - 1]);
            assert!(output.make_room(read, &mut memory));
            output.put_space(read);
            for _ in 0..SYNCS_MAX {
                output.put(&[2; SYNC_REPLY_BYTES_MAX]);
            }
            output.close(&mut memory);
            assert_eq!(memory.free_bytes, LARGE_BYTES_MAX);
        }
    }

    #[test]
    fn large_requests_share_a_bound_and_give_it_back() {
        let mut memory = LargeMemory::new();
        let mut outputs = Vec::new();
        loop {
            let mut output = Output::default();
            if !output.make_room(32 << 20, &mut memory) {
                break;
            }
            outputs.push(output);
        }
        assert_eq!(outputs.len(), LARGE_BYTES_MAX as usize / ((32 << 20) - BUFFER_KEEP_BYTES));
        let recycled = Output::recycle(outputs.pop().unwrap().lend(0).buf, &mut memory);
        assert_eq!(recycled.bytes.len(), BUFFER_BYTES);
        assert!(memory.take_freed());
        assert!(Output::default().make_room(32 << 20, &mut memory));
    }
}
