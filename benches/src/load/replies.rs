//! Simple NBD replies from a stream of bytes, in bulk; the payload of reads is
//! passed over.

use crate::error::{Error, ErrorKind, Result};

const REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
const HEADER_BYTES: usize = 16;

/// Where the parser stands: inside a header, or inside a payload.
#[derive(Debug, Default)]
pub(super) struct Replies {
    header: [u8; HEADER_BYTES],
    filled: usize,
    /// A read's cookie and how much of its payload is still to come.
    payload: Option<(u64, usize)>,
}

impl Replies {
    /// Takes the next bytes of the stream. `payload_of` gives how many bytes follow a
    /// good reply to this cookie, `None` if it is not in flight; `done` is told of
    /// each request whose last byte is there.
    ///
    /// # Errors
    /// `Protocol` for what is no reply, `Reply` for an error reply.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        payload_of: impl Fn(u64) -> Option<usize>,
        mut done: impl FnMut(u64),
    ) -> Result<()> {
        while !bytes.is_empty() {
            if let Some((cookie, left)) = self.payload {
                let passed = left.min(bytes.len());
                bytes = &bytes[passed..];
                self.payload = (passed < left).then_some((cookie, left - passed));
                if self.payload.is_none() {
                    done(cookie);
                }
                continue;
            }
            let taken = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEADER_BYTES {
                break;
            }
            self.filled = 0;
            let cookie = self.cookie()?;
            match payload_of(cookie) {
                Some(0) => done(cookie),
                Some(len) => self.payload = Some((cookie, len)),
                None => return Err(protocol(format!("a reply to cookie {cookie}, not in flight"))),
            }
        }
        Ok(())
    }

    fn cookie(&self) -> Result<u64> {
        let (magic, rest) = self.header.split_at(4);
        if magic != REPLY_MAGIC {
            return Err(protocol("what came is not a simple reply".into()));
        }
        let word = |from: usize| u32::from_be_bytes(std::array::from_fn(|i| rest[from + i]));
        let errno = word(0);
        if errno != 0 {
            let text = format!("the server refused a request with error {errno}");
            return Err(Error::new(ErrorKind::Reply(errno), text));
        }
        Ok(u64::from(word(4)) << 32 | u64::from(word(8)))
    }
}

fn protocol(what: String) -> Error {
    Error::new(ErrorKind::Protocol, what)
}
