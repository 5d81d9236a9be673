//! Where an export is: `nbd://host:port/export` and
//! `nbd+unix:///export?socket=/path`.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port that the protocol's registration names.
const DEFAULT_PORT: u16 = 10809;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Unix(PathBuf),
    /// Host name or address, without the brackets of IPv6, and port.
    Tcp(String, u16),
}

/// An export at an address. `Display` gives the URI back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    pub address: Address,
    pub export: String,
}

impl NbdUri {
    pub fn unix(socket: impl AsRef<Path>, export: &str) -> NbdUri {
        NbdUri { address: Address::Unix(socket.as_ref().into()), export: export.into() }
    }

    pub fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri { address: Address::Tcp(host.into(), port), export: export.into() }
    }
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<NbdUri> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{text} is not an NBD URI ({why}): write nbd://HOST:PORT/EXPORT or \
                     nbd+unix:///EXPORT?socket=PATH"
                ),
            )
        };
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (path, query) = rest.split_once('?').ok_or_else(|| bad("no ?socket="))?;
            let export = path.strip_prefix('/').ok_or_else(|| bad("a host before the export"))?;
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))
                .ok_or_else(|| bad("no socket="))?;
            let export = unescape(export).ok_or_else(|| bad("a broken % escape"))?;
            let socket = unescape(socket).ok_or_else(|| bad("a broken % escape"))?;
            return Ok(NbdUri::unix(socket, &export));
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(|| bad("unknown scheme"))?;
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(authority).ok_or_else(|| bad("a port that is no number"))?;
        if host.is_empty() {
            return Err(bad("no host"));
        }
        let export = unescape(export).ok_or_else(|| bad("a broken % escape"))?;
        Ok(NbdUri::tcp(host, port, &export))
    }
}

fn split_port(authority: &str) -> Option<(&str, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None => after.is_empty().then_some((host, DEFAULT_PORT)),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => Some((authority, DEFAULT_PORT)),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

fn escape(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    text.chars().fold(String::new(), |mut out, c| {
        if plain(c) {
            out.push(c);
        } else {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    })
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = escape(&self.export);
        match &self.address {
            Address::Unix(socket) => {
                write!(f, "nbd+unix:///{export}?socket={}", escape(&socket.to_string_lossy()))
            }
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Address::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_survives_being_printed_and_read_again() {
        for uri in [
            NbdUri::unix("/tmp/a b?.sock", "disk0"),
            NbdUri::unix("/tmp/x", ""),
            NbdUri::tcp("127.0.0.1", 10809, "päth/with space"),
            NbdUri::tcp("::1", 1, "x"),
        ] {
            assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), uri, "{uri}");
        }
    }

    #[test]
    fn forms_that_other_tools_print_are_read() {
        let uri: NbdUri = "nbd://localhost".parse().unwrap();
        assert_eq!(uri, NbdUri::tcp("localhost", DEFAULT_PORT, ""));
        let uri: NbdUri = "nbd+unix:///d?socket=/run/%61.sock".parse().unwrap();
        assert_eq!(uri, NbdUri::unix("/run/a.sock", "d"));
    }

    #[test]
    fn what_is_no_uri_is_refused_with_the_right_form() {
        for text in ["", "http://x", "nbd://", "nbd+unix:///x", "nbd://h:p/x", "nbd://h/%4"] {
            let error = text.parse::<NbdUri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains("nbd+unix:///"), "{error}");
        }
    }
}
