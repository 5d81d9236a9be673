//! Requests of the transmission phase: from bytes to a request that is valid for
//! its export, or to the error the protocol asks for. Validated once, here.

use super::errno::Errno;
use super::proto::{
    PAYLOAD_BYTES_MAX, REQUEST_FRAME_BYTES, REQUEST_MAGIC, RequestFrame, command, command_flag,
};
use towline_block::Extent;
use zerocopy::FromBytes;

/// What was agreed for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub size_bytes: u64,
    pub read_only: bool,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub allocation: bool,
}

/// A request as it came, nothing checked but its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// The stream is not at a request: nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic;

impl RawRequest {
    /// The request at the start of `bytes`; `None` when its header is not
    /// complete yet. A wrong magic is told as soon as its bytes are there.
    pub fn parse(bytes: &[u8]) -> Result<Option<RawRequest>, BadMagic> {
        let magic = REQUEST_MAGIC.to_be_bytes();
        let seen = bytes.len().min(magic.len());
        if bytes[..seen] != magic[..seen] {
            return Err(BadMagic);
        }
        let Ok((frame, _)) = RequestFrame::read_from_prefix(bytes) else {
            return Ok(None);
        };
        Ok(Some(RawRequest {
            flags: frame.flags.get(),
            command: frame.command.get(),
            cookie: frame.cookie.get(),
            offset: frame.offset.get(),
            length: frame.length.get(),
        }))
    }

    /// Bytes that follow the header. Only WRITE carries any, valid or not.
    pub fn payload_bytes(&self) -> usize {
        match self.command {
            command::WRITE => self.length as usize,
            _ => 0,
        }
    }

    /// Header and payload.
    pub fn total_bytes(&self) -> usize {
        REQUEST_FRAME_BYTES + self.payload_bytes()
    }

    fn extent(&self) -> Extent {
        Extent::new(self.offset, u64::from(self.length))
    }
}

/// A request that may be executed as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read { extent: Extent },
    Write { extent: Extent, fua: bool },
    Zero { extent: Extent, fua: bool, no_hole: bool },
    Trim { extent: Extent, fua: bool },
    Flush,
    Status { extent: Extent, one: bool },
    Disconnect,
}

impl Request {
    /// Whether the gate of the group has a say: it changes or orders content.
    pub fn is_gated(&self) -> bool {
        matches!(
            self,
            Request::Write { .. } | Request::Zero { .. } | Request::Trim { .. } | Request::Flush
        )
    }
}

/// Why a request is not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub error: Errno,
    pub text: &'static str,
}

const fn refusal(error: Errno, text: &'static str) -> Refusal {
    Refusal { error, text }
}

const UNKNOWN_COMMAND: Refusal = refusal(Errno::Inval, "unknown command");
const UNKNOWN_FLAG: Refusal = refusal(Errno::Inval, "flag not valid for this command");
const TOO_LONG: Refusal = refusal(Errno::Inval, "longer than the largest payload of 32 MiB");
const READ_PAST_END: Refusal = refusal(Errno::Inval, "reaches past the end of the export");
const WRITE_PAST_END: Refusal = refusal(Errno::NoSpace, "reaches past the end of the export");
const READ_ONLY: Refusal = refusal(Errno::Perm, "the export is read-only");
const NOT_NEGOTIATED: Refusal = refusal(Errno::Inval, "no metadata context was negotiated");
const EMPTY_STATUS: Refusal = refusal(Errno::Inval, "block status of no bytes");
const FLUSH_RANGE: Refusal = refusal(Errno::Inval, "a flush has no offset and no length");

/// Checks a request against what was agreed. Order of the checks: flags, then
/// permission, then size, then range.
pub fn validate(raw: &RawRequest, terms: &Terms) -> Result<Request, Refusal> {
    let extent = raw.extent();
    let fua = raw.flags & command_flag::FUA != 0;
    match raw.command {
        command::READ => {
            let df = if terms.structured { command_flag::DF } else { 0 };
            allow(raw, df)?;
            within_payload(raw)?;
            within(extent, terms, READ_PAST_END)?;
            Ok(Request::Read { extent })
        }
        command::WRITE => {
            allow(raw, 0)?;
            writable(terms)?;
            within_payload(raw)?;
            within(extent, terms, WRITE_PAST_END)?;
            Ok(Request::Write { extent, fua })
        }
        command::WRITE_ZEROES => {
            allow(raw, command_flag::NO_HOLE)?;
            writable(terms)?;
            within(extent, terms, WRITE_PAST_END)?;
            let no_hole = raw.flags & command_flag::NO_HOLE != 0;
            Ok(Request::Zero { extent, fua, no_hole })
        }
        command::TRIM => {
            allow(raw, 0)?;
            writable(terms)?;
            within(extent, terms, READ_PAST_END)?;
            Ok(Request::Trim { extent, fua })
        }
        command::FLUSH => {
            allow(raw, 0)?;
            if raw.offset != 0 || raw.length != 0 {
                return Err(FLUSH_RANGE);
            }
            Ok(Request::Flush)
        }
        command::BLOCK_STATUS => {
            allow(raw, command_flag::REQ_ONE)?;
            if !terms.structured || !terms.allocation {
                return Err(NOT_NEGOTIATED);
            }
            within(extent, terms, READ_PAST_END)?;
            if extent.is_empty() {
                return Err(EMPTY_STATUS);
            }
            Ok(Request::Status { extent, one: raw.flags & command_flag::REQ_ONE != 0 })
        }
        command::DISC => Ok(Request::Disconnect),
        _ => Err(UNKNOWN_COMMAND),
    }
}

/// FUA is valid for every command once offered, the rest by command.
fn allow(raw: &RawRequest, flags: u16) -> Result<(), Refusal> {
    if raw.flags & !(flags | command_flag::FUA) != 0 {
        return Err(UNKNOWN_FLAG);
    }
    Ok(())
}

fn writable(terms: &Terms) -> Result<(), Refusal> {
    if terms.read_only {
        return Err(READ_ONLY);
    }
    Ok(())
}

fn within_payload(raw: &RawRequest) -> Result<(), Refusal> {
    if raw.length > PAYLOAD_BYTES_MAX {
        return Err(TOO_LONG);
    }
    Ok(())
}

fn within(extent: Extent, terms: &Terms, otherwise: Refusal) -> Result<(), Refusal> {
    if !extent.within(terms.size_bytes) {
        return Err(otherwise);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
