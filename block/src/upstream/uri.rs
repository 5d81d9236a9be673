//! Where an export is: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port registered for the protocol.
const PORT: u16 = 10809;
/// Longest export name of the protocol.
const EXPORT_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Unix(PathBuf),
    /// A name or an address, without the brackets of IPv6, and the port.
    Tcp(String, u16),
}

/// An export at an address. `Display` gives one form for all that mean the same.
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

    /// Whether a text means a URI rather than a path.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with("nbd:")
            || text.starts_with("nbd+")
            || text.starts_with("nbds") && text.contains("://")
    }
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<NbdUri> {
        parse(text).map_err(|why| {
            let what = format!(
                "{text} is not usable as an NBD export ({why}): write nbd://HOST:PORT/EXPORT or \
                 nbd+unix:///EXPORT?socket=PATH"
            );
            Error::new(ErrorKind::InvalidInput, what)
        })
    }
}

fn parse(text: &str) -> std::result::Result<NbdUri, &'static str> {
    if text.starts_with("nbds") {
        return Err("TLS to such a server is not supported");
    }
    if let Some(rest) = text.strip_prefix("nbd+unix://") {
        let (path, query) = rest.split_once('?').ok_or("no ?socket=")?;
        let export = path.strip_prefix('/').ok_or("a host where none belongs")?;
        let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
        let socket = unescape(socket.ok_or("no ?socket=")?)?;
        if socket.is_empty() {
            return Err("an empty socket=");
        }
        return named(Address::Unix(socket.into()), export);
    }
    let rest = text.strip_prefix("nbd://").ok_or("an unknown scheme")?;
    let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match place.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or("a [ without its ]")?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    if host.is_empty() || host.contains('@') {
        return Err("no host, or a user before it");
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| "a port that is no number")?,
        None if port.is_empty() => PORT,
        None => return Err("something between the host and its port"),
    };
    named(Address::Tcp(host.to_owned(), port), export)
}

fn named(address: Address, export: &str) -> std::result::Result<NbdUri, &'static str> {
    let export = unescape(export)?;
    if export.len() > EXPORT_BYTES_MAX {
        return Err("an export's name of more than 4096 bytes");
    }
    Ok(NbdUri { address, export })
}

fn unescape(text: &str) -> std::result::Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|hex| char::from(hex).to_digit(16));
        bytes.push(match byte {
            b'%' => match (digit(), digit()) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err("a broken % escape"),
            },
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| "an escape that is no UTF-8")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
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
    fn forms_of_one_place_are_one_uri() {
        for (text, same) in [
            ("nbd://h", "nbd://h:10809/"),
            ("nbd://h:1/a%62", "nbd://h:1/ab"),
            ("nbd://[::1]:5/x", "nbd://[::1]:5/x"),
            ("nbd://[::1]", "nbd://[::1]:10809/"),
            ("nbd+unix:///d?x=1&socket=/run/%61.s", "nbd+unix:///d?socket=/run/a.s"),
            ("nbd+unix:///?socket=/a b", "nbd+unix:///?socket=/a%20b"),
        ] {
            assert_eq!(text.parse::<NbdUri>().unwrap().to_string(), same);
            assert_eq!(same.parse::<NbdUri>().unwrap().to_string(), same);
        }
    }

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
    fn what_is_no_uri_is_refused_with_the_form_to_write() {
        for text in [
            "",
            "http://x",
            "nbd://",
            "nbd:h",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbd+unix://h/x?socket=/s",
            "nbd://h:p/x",
            "nbd://[::1/x",
            "nbd://[::1]5",
            "nbd://h/%4",
            "nbd://h/%ff",
            "nbds://h/x",
            "nbd://u@h/x",
        ] {
            let error = text.parse::<NbdUri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains("nbd+unix:///EXPORT"), "{error}");
        }
    }

    #[test]
    fn paths_are_not_taken_for_uris() {
        for text in ["/images/nbd://x", "./nbd", "nbd.img", "nbdsomething"] {
            assert!(!NbdUri::is_meant_by(text), "{text}");
        }
        for text in ["nbd://h", "nbd+unix:///x", "nbds://h", "nbds+unix:///x", "nbd:h:1"] {
            assert!(NbdUri::is_meant_by(text), "{text}");
        }
    }
}
