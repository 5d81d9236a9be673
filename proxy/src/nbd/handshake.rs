//! The server's side of option haggling: bytes of one option in, bytes of its
//! replies out. Reading, writing and time limits are the caller's.

use super::option_data::{Queries, parse_info, parse_queries};
use super::proto::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED,
    EXPORT_NAME_PADDING_BYTES, GREETING_MAGIC, Greeting, OPTION_MAGIC, OptionFrame,
    OptionReplyFrame, PAYLOAD_BYTES_MAX, handshake_flag, info, option, option_reply,
    transmission_flag,
};
use super::request::Terms;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Data of an option that is looked at. The largest that a client has a use for
/// are a name of 4 KiB and a dozen context queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longer options up to this are skipped and answered; beyond, the client is
/// taken for hostile and dropped.
pub const OPTION_SKIP_BYTES_MAX: u32 = 4 << 20;
/// Context queries looked at in one option.
const QUERIES_MAX: usize = 256;

/// What a client may ask for.
#[derive(Clone, Debug)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub size_bytes: u64,
    pub read_only: bool,
}

impl Export {
    fn transmission_flags(&self, structured: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        flags |= match self.read_only {
            true => flag::READ_ONLY,
            false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES,
        };
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
    }
}

/// What haggling ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Index of the export.
    pub export: usize,
    pub terms: Terms,
}

/// What the caller does after sending the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read another option.
    Option,
    /// Transmission begins.
    Enter(Agreed),
    /// Close; not an error.
    Close,
}

/// The client broke a rule after which nothing it sends can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    pub option: u32,
    pub length: u32,
}

impl OptionHead {
    pub fn parse(bytes: &[u8; size_of::<OptionFrame>()]) -> Result<OptionHead, Broken> {
        let frame = OptionFrame::read_from_bytes(bytes).map_err(|_| Broken("short option"))?;
        if frame.magic.get() != OPTION_MAGIC {
            return Err(Broken("an option without its magic number"));
        }
        let head = OptionHead { option: frame.option.get(), length: frame.length.get() };
        if head.length > OPTION_SKIP_BYTES_MAX {
            return Err(Broken("an option of an absurd length"));
        }
        Ok(head)
    }

    /// Whether its data is to be skipped and [`Negotiation::too_big`] called.
    pub fn is_too_big(&self) -> bool {
        self.length > OPTION_BYTES_MAX
    }
}

/// The first bytes a server sends.
pub fn greeting() -> [u8; size_of::<Greeting>()] {
    zerocopy::transmute!(Greeting {
        magic: GREETING_MAGIC.into(),
        option_magic: OPTION_MAGIC.into(),
        flags: handshake_flag::OFFERED.into(),
    })
}

/// One client's haggling. At least one export; the first is the default.
pub struct Negotiation {
    exports: Arc<[Export]>,
    no_zeroes: bool,
    structured: bool,
    /// Export for which `base:allocation` was selected last.
    allocation_of: Option<usize>,
}

impl Negotiation {
    /// Begins with the client's answer to the greeting.
    pub fn new(exports: Arc<[Export]>, client_flags: [u8; 4]) -> Result<Negotiation, Broken> {
        let flags = u32::from_be_bytes(client_flags);
        if flags & !u32::from(handshake_flag::OFFERED) != 0 {
            return Err(Broken("unknown client flags"));
        }
        let no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        Ok(Negotiation { exports, no_zeroes, structured: false, allocation_of: None })
    }

    /// Handles one option and appends all its replies to `out`.
    pub fn option(
        &mut self,
        head: &OptionHead,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Next, Broken> {
        let mut reply = Replies { option: head.option, out };
        match head.option {
            option::EXPORT_NAME => return self.export_name(data, reply.out),
            option::GO | option::INFO => return Ok(self.info(head.option, data, &mut reply)),
            option::ABORT => {
                reply.ack();
                return Ok(Next::Close);
            }
            option::LIST if data.is_empty() => self.list(&mut reply),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply.ack();
            }
            option::STARTTLS if data.is_empty() => {
                reply.error(option_reply::ERR_UNSUP, "this server does not offer TLS");
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS => {
                reply.error(option_reply::ERR_INVALID, "this option has no data");
            }
            option::LIST_META_CONTEXT => self.list_contexts(data, &mut reply),
            option::SET_META_CONTEXT => self.set_contexts(data, &mut reply),
            _ => reply.error(option_reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Option)
    }

    /// Answers an option whose data was skipped.
    pub fn too_big(&mut self, head: &OptionHead, out: &mut Vec<u8>) -> Result<Next, Broken> {
        match head.option {
            option::EXPORT_NAME => return Err(Broken("an export name of an absurd length")),
            option::SET_META_CONTEXT => self.allocation_of = None,
            _ => {}
        }
        let mut reply = Replies { option: head.option, out };
        reply.error(option_reply::ERR_TOO_BIG, "option data too long");
        Ok(Next::Option)
    }

    /// Takes back an entry into transmission that was not sent yet, with the
    /// reason. `Err` when the option has no way to tell it.
    pub fn refuse_entry(
        &self,
        head: &OptionHead,
        kind: u32,
        text: &'static str,
        out: &mut Vec<u8>,
    ) -> Result<Next, Broken> {
        out.clear();
        if head.option == option::EXPORT_NAME {
            return Err(Broken(text));
        }
        Replies { option: head.option, out }.error(kind, text);
        Ok(Next::Option)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        match name {
            [] => Some(0),
            name => self.exports.iter().position(|export| export.name.as_bytes() == name),
        }
    }

    fn agreed(&self, index: usize) -> Agreed {
        let export = &self.exports[index];
        Agreed {
            export: index,
            terms: Terms {
                size_bytes: export.size_bytes,
                read_only: export.read_only,
                structured: self.structured,
                allocation: self.allocation_of == Some(index),
            },
        }
    }

    fn size_and_flags(&self, export: &Export) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&export.size_bytes.to_be_bytes());
        bytes[8..].copy_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        bytes
    }

    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> Result<Next, Broken> {
        let index = self.find(name).ok_or(Broken("no such export"))?;
        let export = &self.exports[index];
        out.extend_from_slice(&self.size_and_flags(export));
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(Next::Enter(self.agreed(index)))
    }

    fn info(&self, asked_by: u32, data: &[u8], reply: &mut Replies<'_>) -> Next {
        let Some((name, wanted)) = parse_info(data) else {
            reply.error(option_reply::ERR_INVALID, "malformed request for an export");
            return Next::Option;
        };
        let Some(index) = self.find(name) else {
            reply.error(option_reply::ERR_UNKNOWN, "no such export");
            return Next::Option;
        };
        let export = &self.exports[index];
        reply.info(info::EXPORT, &self.size_and_flags(export));
        for kind in [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE] {
            if !wanted.clone().any(|wanted| wanted == kind) {
                continue;
            }
            match kind {
                info::NAME => reply.info(kind, export.name.as_bytes()),
                info::DESCRIPTION => reply.info(kind, export.description.as_bytes()),
                _ => reply.info(kind, &block_sizes()),
            }
        }
        reply.ack();
        if asked_by == option::GO { Next::Enter(self.agreed(index)) } else { Next::Option }
    }

    fn list(&self, reply: &mut Replies<'_>) {
        for export in self.exports.iter() {
            let length = (export.name.len() as u32).to_be_bytes();
            let (name, description) = (export.name.as_bytes(), export.description.as_bytes());
            reply.put(option_reply::SERVER, &[&length, name, description]);
        }
        reply.ack();
    }

    fn list_contexts(&self, data: &[u8], reply: &mut Replies<'_>) {
        if let Some((_, queries)) = self.contexts(data, reply) {
            let matches = |query: &&[u8]| *query == b"base:" || is_allocation(query);
            if queries.is_empty() || queries.iter().any(matches) {
                reply.context(0);
            }
            reply.ack();
        }
    }

    fn set_contexts(&mut self, data: &[u8], reply: &mut Replies<'_>) {
        // Whatever comes of it, what was selected before no longer is.
        self.allocation_of = None;
        if let Some((index, queries)) = self.contexts(data, reply) {
            if queries.iter().any(is_allocation) {
                self.allocation_of = Some(index);
                reply.context(ALLOCATION_CONTEXT_ID);
            }
            reply.ack();
        }
    }

    /// Export and queries of a context option, or `None` and an error reply.
    fn contexts<'a>(
        &self,
        data: &'a [u8],
        reply: &mut Replies<'_>,
    ) -> Option<(usize, Vec<&'a [u8]>)> {
        if !self.structured {
            reply.error(option_reply::ERR_INVALID, "negotiate structured replies first");
            return None;
        }
        let Some(Queries { export, queries }) = parse_queries(data) else {
            reply.error(option_reply::ERR_INVALID, "malformed context queries");
            return None;
        };
        if queries.len() > QUERIES_MAX {
            reply.error(option_reply::ERR_TOO_BIG, "too many context queries");
            return None;
        }
        let index = self.find(export);
        if index.is_none() {
            reply.error(option_reply::ERR_UNKNOWN, "no such export");
        }
        Some((index?, queries))
    }
}

fn is_allocation(query: &&[u8]) -> bool {
    *query == ALLOCATION_CONTEXT.as_bytes()
}

fn block_sizes() -> [u8; 12] {
    let sizes = [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX];
    zerocopy::transmute!(sizes.map(u32::to_be_bytes))
}

/// Appends replies to one option.
struct Replies<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn put(&mut self, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let frame = OptionReplyFrame::new(self.option, kind, length as u32);
        self.out.extend_from_slice(frame.as_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    fn ack(&mut self) {
        self.put(option_reply::ACK, &[]);
    }

    fn error(&mut self, kind: u32, text: &str) {
        self.put(kind, &[text.as_bytes()]);
    }

    fn info(&mut self, kind: u16, payload: &[u8]) {
        self.put(option_reply::INFO, &[&kind.to_be_bytes(), payload]);
    }

    fn context(&mut self, id: u32) {
        self.put(option_reply::META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION_CONTEXT.as_bytes()]);
    }
}

#[cfg(test)]
mod tests;
