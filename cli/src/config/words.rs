//! Values as people write them, on the command line and in files.

use super::SpillPlace;
use crate::exit::usage;
use serde::{Deserialize, Deserializer};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use towline_block::size::format_size;
use towline_control::rate::BYTES_PER_S_MIN;
use towline_proxy::ListenAddr;

/// Looks up HOST:PORT; the first address counts.
fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    let found = text.to_socket_addrs().map_err(|e| {
        usage(format!(
            "address {text:?} is not usable ({e}): write HOST:PORT, such as 10.0.0.7:4790"
        ))
    })?;
    found.into_iter().next().ok_or_else(|| usage(format!("address {text:?} has no entry in DNS")))
}

/// For clap: [`resolve`] with the error as text.
pub fn host_port_arg(text: &str) -> Result<SocketAddr, String> {
    resolve(text).map_err(|e| e.to_string())
}

/// For clap: a size with unit.
pub fn size_arg(text: &str) -> Result<u64, String> {
    towline_block::size::parse_size(text).map_err(|e| e.to_string())
}

/// For clap: bytes a second.
pub fn rate_arg(text: &str) -> Result<u64, String> {
    checked_rate(size_arg(text)?)
}

fn checked_rate(bytes_per_s: u64) -> Result<u64, String> {
    match bytes_per_s >= BYTES_PER_S_MIN {
        true => Ok(bytes_per_s),
        false => Err(format!(
            "{bytes_per_s} bytes a second are too few: give at least {}; to pause, stop the shipper, which \
             goes on later where it was",
            format_size(BYTES_PER_S_MIN)
        )),
    }
}

/// For clap: a size, or the path of a device.
pub fn spill_arg(text: &str) -> Result<SpillPlace, String> {
    if text.contains('/') {
        return Ok(SpillPlace::Device(text.into()));
    }
    size_arg(text)
        .map(SpillPlace::Bytes)
        .map_err(|error| format!("{error}; a device is given by its whole path"))
}

/// For clap: a span of time with unit.
pub fn span_arg(text: &str) -> Result<Duration, String> {
    let span = crate::when::parse_span(text).filter(|ns| *ns > 0).map(Duration::from_nanos);
    span.ok_or_else(|| format!("{text:?} is no span of time: write one as 30s, 5m, 12h or 7d"))
}

/// For clap: an address to serve NBD on.
pub fn listen_arg(text: &str) -> Result<ListenAddr, String> {
    text.parse::<ListenAddr>().map_err(|e| e.to_string())
}

pub fn socket_addr<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    resolve(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(from)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => size_arg(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

pub fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let bytes = size(from)?;
    bytes.map(checked_rate).transpose().map_err(serde::de::Error::custom)
}

pub fn spill<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SpillPlace>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Place {
        Bytes(u64),
        Text(String),
    }
    match Place::deserialize(from)? {
        Place::Bytes(bytes) => Ok(Some(SpillPlace::Bytes(bytes))),
        Place::Text(text) => spill_arg(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

pub fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    span_arg(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

pub fn listen_addrs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ListenAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| listen_arg(text).map_err(serde::de::Error::custom)).collect()
}
