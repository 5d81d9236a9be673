//! Fixed newstyle negotiation: structured replies if wanted and offered, then GO.

use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR_BIT: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// The longest option reply read. An error text or an export's description may be
/// 4096 bytes by the protocol; more than this is no negotiation.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// What the server said about the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    pub size_bytes: u64,
    /// Transmission flags as sent; the methods below read them.
    pub flags: u16,
    /// Smallest request and its alignment; 1 when the server did not say.
    pub block_bytes_min: u32,
    pub block_bytes_preferred: u32,
    pub payload_bytes_max: u32,
}

impl ExportInfo {
    fn has(&self, bit: u16) -> bool {
        self.flags & (1 << bit) != 0
    }
    pub fn is_read_only(&self) -> bool {
        self.has(1)
    }
    pub fn can_flush(&self) -> bool {
        self.has(2)
    }
    pub fn can_fua(&self) -> bool {
        self.has(3)
    }
    pub fn can_trim(&self) -> bool {
        self.has(5)
    }
    pub fn can_write_zeroes(&self) -> bool {
        self.has(6)
    }
    pub fn can_multi_conn(&self) -> bool {
        self.has(8)
    }
}

/// Negotiates `export`; returns what it is and whether replies are structured.
pub(super) fn negotiate(
    stream: &mut Stream,
    export: &str,
    want_structured: bool,
    timeout: Duration,
) -> Result<(ExportInfo, bool)> {
    let mut wire = Wire { stream, timeout };
    let mut greeting = [0; 18];
    wire.read(&mut greeting)?;
    if greeting[..16] != GREETING[..] {
        return Err(protocol("the server's greeting is not that of an NBD server"));
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(protocol("the server does not offer the fixed newstyle handshake"));
    }
    let client_flags = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
    wire.write(&[&client_flags.to_be_bytes()])?;

    let structured = want_structured && {
        wire.option(OPT_STRUCTURED_REPLY, &[])?;
        let reply = wire.reply(OPT_STRUCTURED_REPLY)?;
        reply.kind == REP_ACK
    };

    let mut ask = Vec::with_capacity(export.len() + 8);
    ask.extend_from_slice(&(export.len() as u32).to_be_bytes());
    ask.extend_from_slice(export.as_bytes());
    ask.extend_from_slice(&1u16.to_be_bytes());
    ask.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    wire.option(OPT_GO, &ask)?;
    let mut info = ExportInfo { block_bytes_min: 1, ..ExportInfo::default() };
    let mut described = false;
    loop {
        let reply = wire.reply(OPT_GO)?;
        match reply.kind {
            REP_ACK if described => return Ok((info, structured)),
            REP_ACK => return Err(protocol("the server agreed without describing the export")),
            REP_INFO => described |= read_info(&reply.data, &mut info)?,
            kind if kind & REP_ERROR_BIT != 0 => return Err(refused(export, kind, &reply.data)),
            kind => {
                return Err(protocol(&format!("unexpected reply {kind} to the export request")));
            }
        }
    }
}

/// Takes one INFO reply; says whether it was the one that describes the export.
fn read_info(data: &[u8], info: &mut ExportInfo) -> Result<bool> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?))
    };
    let short = || protocol("an export description of the wrong length");
    let [high, low, ..] = *data else { return Err(short()) };
    match u16::from_be_bytes([high, low]) {
        INFO_EXPORT => {
            let body: [u8; 12] = data.try_into().map_err(|_| short())?;
            let [_, _, size @ .., flags_high, flags_low] = body;
            info.size_bytes = u64::from_be_bytes(size);
            info.flags = u16::from_be_bytes([flags_high, flags_low]);
            Ok(true)
        }
        INFO_BLOCK_SIZE => {
            info.block_bytes_min = word(2).ok_or_else(short)?;
            info.block_bytes_preferred = word(6).ok_or_else(short)?;
            info.payload_bytes_max = word(10).ok_or_else(short)?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn refused(export: &str, kind: u32, text: &[u8]) -> Error {
    let reason = match kind & !REP_ERROR_BIT {
        2 => "declined by policy",
        5 => "TLS required",
        6 => "no such export",
        7 => "server shutting down",
        _ => "refused",
    };
    let text = String::from_utf8_lossy(text);
    let colon = if text.is_empty() { "" } else { ": " };
    Error::new(ErrorKind::Refused, format!("export \"{export}\": {reason}{colon}{text}"))
}

fn protocol(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, what)
}

struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

struct Wire<'a> {
    stream: &'a mut Stream,
    timeout: Duration,
}

impl Wire<'_> {
    fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let len = (data.len() as u32).to_be_bytes();
        self.write(&[OPTION_MAGIC, &option.to_be_bytes(), &len, data])
    }

    fn reply(&mut self, option: u32) -> Result<OptionReply> {
        let mut header = [0; 20];
        self.read(&mut header)?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let magic = u64::from(word(0)) << 32 | u64::from(word(4));
        let (answered, kind, len) = (word(8), word(12), word(16));
        if magic != OPTION_REPLY_MAGIC || answered != option || len > OPTION_REPLY_BYTES_MAX {
            return Err(protocol("an option reply that is none"));
        }
        let mut data = vec![0; len as usize];
        self.read(&mut data)?;
        Ok(OptionReply { kind, data })
    }

    fn read(&mut self, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            match self.stream.receive(buf) {
                Ok(0) => return Err(ended()),
                Ok(n) => buf = &mut buf[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::socket("no answer in the handshake", e)),
            }
        }
        Ok(())
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        let bytes = parts.concat();
        let mut rest = bytes.as_slice();
        let deadline = Instant::now() + self.timeout;
        while !rest.is_empty() {
            match self.stream.send(&[IoSlice::new(rest)]) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(e) => return Err(Error::socket("cannot send in the handshake", e)),
            }
        }
        Ok(())
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Disconnected, "the server ended the connection in the handshake")
}
