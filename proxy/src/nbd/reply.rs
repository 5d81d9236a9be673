//! Replies of the transmission phase, as frames to append to a send buffer.

use super::errno::Errno;
use super::proto::{
    ALLOCATION_CONTEXT_ID, ChunkFrame, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC, SimpleReplyFrame, chunk,
};
use zerocopy::IntoBytes;

/// Longest head of a reply that carries data: chunk frame and offset.
pub const READ_HEAD_BYTES_MAX: usize = size_of::<ChunkFrame>() + 8;

/// A reply without data: success, or an error where structured replies are off.
/// Allowed to anything but READ when they are on.
pub fn simple(cookie: u64, error: Option<Errno>) -> [u8; size_of::<SimpleReplyFrame>()] {
    let frame = SimpleReplyFrame {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.map_or(0, Errno::to_wire).into(),
        cookie: cookie.into(),
    };
    zerocopy::transmute!(frame)
}

fn chunk_frame(cookie: u64, kind: u16, length: u32) -> ChunkFrame {
    ChunkFrame {
        magic: STRUCTURED_REPLY_MAGIC.into(),
        // Every reply here is one chunk, which is therefore the last.
        flags: chunk::FLAG_DONE.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        length: length.into(),
    }
}

/// What precedes the data of a successful READ of `len` bytes.
pub struct ReadHead {
    bytes: [u8; READ_HEAD_BYTES_MAX],
    len: usize,
}

impl ReadHead {
    pub fn new(structured: bool, cookie: u64, offset: u64, len: u32) -> ReadHead {
        let mut head = ReadHead { bytes: [0; READ_HEAD_BYTES_MAX], len: 0 };
        if !structured {
            head.put(&simple(cookie, None));
        } else if len == 0 {
            // A data chunk must describe at least one byte.
            head.put(chunk_frame(cookie, chunk::NONE, 0).as_bytes());
        } else {
            head.put(chunk_frame(cookie, chunk::OFFSET_DATA, len + 8).as_bytes());
            head.put(&offset.to_be_bytes());
        }
        head
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Appends an error reply: with its text where structured replies are on.
pub fn error(structured: bool, cookie: u64, error: Errno, text: &str, mut put: impl FnMut(&[u8])) {
    if !structured {
        put(&simple(cookie, Some(error)));
        return;
    }
    let text = clip(text);
    put(chunk_frame(cookie, chunk::ERROR, 6 + text.len() as u32).as_bytes());
    put(&error.to_wire().to_be_bytes());
    put(&(text.len() as u16).to_be_bytes());
    put(text.as_bytes());
}

/// At most the protocol's longest string, cut between characters.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

/// A run of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub len: u32,
    pub status: u32,
}

/// Appends the answer to BLOCK_STATUS in the one context there is.
pub fn block_status(cookie: u64, descriptors: &[Descriptor], mut put: impl FnMut(&[u8])) {
    let length = 4 + 8 * descriptors.len() as u32;
    put(chunk_frame(cookie, chunk::BLOCK_STATUS, length).as_bytes());
    put(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    for descriptor in descriptors {
        put(&descriptor.len.to_be_bytes());
        put(&descriptor.status.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_reply_is_these_bytes() {
        let bytes = simple(0x0102_0304_0506_0708, Some(Errno::NoSpace));
        assert_eq!(bytes, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_structured_read_is_one_last_chunk_of_offset_and_data() {
        let head = ReadHead::new(true, 7, 0x1000, 512);
        let mut expected = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1];
        expected.extend(7u64.to_be_bytes());
        expected.extend(520u32.to_be_bytes());
        expected.extend(0x1000u64.to_be_bytes());
        assert_eq!(head.as_bytes(), expected);
    }

    #[test]
    fn a_structured_read_of_nothing_has_no_data_chunk() {
        let head = ReadHead::new(true, 7, 0x1000, 0);
        assert_eq!(&head.as_bytes()[4..8], [0, 1, 0, 0]);
        assert_eq!(head.as_bytes().len(), 20);
    }

    #[test]
    fn an_error_text_is_cut_at_the_protocols_limit_between_characters() {
        let mut out = Vec::new();
        let text = "ä".repeat(STRING_BYTES_MAX);
        error(true, 1, Errno::Io, &text, |part| out.extend_from_slice(part));
        let len = usize::from(u16::from_be_bytes([out[24], out[25]]));
        assert!(len <= STRING_BYTES_MAX);
        assert_eq!(out.len(), 26 + len);
        std::str::from_utf8(&out[26..]).unwrap();
    }

    #[test]
    fn without_structured_replies_an_error_has_no_text() {
        let mut out = Vec::new();
        error(false, 1, Errno::Inval, "why", |part| out.extend_from_slice(part));
        assert_eq!(out, simple(1, Some(Errno::Inval)));
    }

    #[test]
    fn a_block_status_names_its_context_and_runs() {
        let mut out = Vec::new();
        let runs = [Descriptor { len: 4096, status: 3 }, Descriptor { len: 512, status: 0 }];
        block_status(9, &runs, |part| out.extend_from_slice(part));
        assert_eq!(&out[4..8], [0, 1, 0, 5]);
        assert_eq!(&out[16..24], [0, 0, 0, 20, 0, 0, 0, 1]);
        assert_eq!(&out[24..], [0, 0, 16, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0]);
    }
}
