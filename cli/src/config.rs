//! The daemons' configuration: one struct each, filled by flags or by a TOML file.
//!
//! Both ways end in the same `check`, so a file cannot ask for what flags refuse.
//! Unknown keys are refused with file, line and key.

mod file;
mod groups;
mod sources;

pub use file::{load, names_groups};
pub use groups::{ReceiveGroups, ShipGroups};
pub use sources::Disk;

use crate::exit::usage;
use serde::{Deserialize, Deserializer};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;
use towline_block::GroupName;
use towline_block::size::format_size;
use towline_control::rate::{BYTES_PER_S_MIN, Limit, Plan, Window};
use towline_journal::AttachPolicy;
use towline_journal::activity::COOL_EVERY_RANGE;
use towline_journal::spill::SPILL_START_PERCENTS;
use towline_proxy::ListenAddr;
use towline_shipper::batch::{Keyring, keyfile};
use towline_shipper::source::{STREAMS_MAX, WINDOW_BYTES_MIN};
use towline_shipper::store::StoreUrl;

/// Volume ids are 16 bits in every format.
const VOLUMES_MAX: usize = 1 << 16;

/// `towline proxy`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    pub group: GroupName,
    pub state: PathBuf,
    #[serde(rename = "source")]
    pub sources: Vec<Disk>,
    #[serde(deserialize_with = "listen_addrs")]
    pub nbd: Vec<ListenAddr>,
    #[serde(default, deserialize_with = "size")]
    pub ring: Option<u64>,
    pub ring_dir: Option<PathBuf>,
    #[serde(default)]
    pub durability: Durability,
    #[serde(default, deserialize_with = "spill")]
    pub spill: Option<SpillPlace>,
    #[serde(default)]
    pub spill_overwrite: bool,
    pub spill_start: Option<u8>,
    #[serde(default)]
    pub strict: bool,
    #[serde(default, deserialize_with = "span")]
    pub cool_every: Option<Duration>,
    #[serde(default)]
    pub attach: Attach,
    #[serde(default)]
    pub engine: Engine,
    pub cache: Option<Cache>,
    #[serde(default)]
    pub latency: Latency,
    #[serde(default, deserialize_with = "socket_addr")]
    pub metrics: Option<SocketAddr>,
}

/// What the spill may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpillPlace {
    /// So much of the state directory's disk.
    Bytes(u64),
    /// A block device, or a file of a fixed size.
    Device(PathBuf),
}

/// `towline receive`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiveConfig {
    pub listen: Option<String>,
    /// A store to hydrate from and to follow.
    pub from: Option<String>,
    pub state: PathBuf,
    pub group: Option<GroupName>,
    #[serde(rename = "target")]
    pub targets: Vec<Disk>,
    #[serde(deserialize_with = "listen_addrs")]
    pub nbd: Vec<ListenAddr>,
    pub pki: Option<PathBuf>,
    #[serde(default)]
    pub insecure_loopback: bool,
    /// Key file of sealed batches.
    pub key: Option<PathBuf>,
    #[serde(default, deserialize_with = "span")]
    pub mark_every: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    pub keep_marks: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    pub marks_bytes: Option<u64>,
    #[serde(default, deserialize_with = "socket_addr")]
    pub metrics: Option<SocketAddr>,
}

/// `towline ship`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShipConfig {
    pub group: GroupName,
    pub state: PathBuf,
    /// HOST:PORT, looked up anew at every connection attempt, or the URL of a store.
    pub to: String,
    pub pki: Option<PathBuf>,
    #[serde(default)]
    pub insecure_loopback: bool,
    #[serde(default, deserialize_with = "size")]
    pub window: Option<u64>,
    /// 1 to 8.
    #[serde(default)]
    pub streams: Option<u8>,
    #[serde(default, deserialize_with = "rate")]
    pub rate: Option<u64>,
    pub ops: Option<u64>,
    /// Other limits at other times, `DAYS FROM-TO LIMIT` in UTC.
    #[serde(default)]
    pub windows: Vec<Window>,
    /// Shared by all groups of this process.
    #[serde(default, deserialize_with = "rate")]
    pub link_rate: Option<u64>,
    pub link_ops: Option<u64>,
    #[serde(default)]
    pub link_windows: Vec<Window>,
    /// Key file; the newest key seals.
    pub key: Option<PathBuf>,
    #[serde(default)]
    pub compress: Compress,
    /// 0 to 19.
    #[serde(default)]
    pub nice: Option<u8>,
    #[serde(default, deserialize_with = "socket_addr")]
    pub metrics: Option<SocketAddr>,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Where the link is what shipping waits for, cores are idle and it gains: the one that ships most.
    #[default]
    Auto,
    None,
    /// Fast, for links up to about 3 Gbit/s.
    Lz4,
    /// Smaller, for links up to about 1 Gbit/s.
    Zstd,
}

/// What an acknowledgement of a guest's flush waits for besides the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: the journal survives the death of every process, not a power cut.
    #[default]
    Process,
    /// A flush waits until the journal is on disk, too: it survives a power cut.
    Flush,
    /// Every write waits until its record is on disk.
    Write,
}

/// How sources are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// As the source's kind says; the log tells which and why.
    #[default]
    Auto,
    /// Through the page cache, one operation after the other.
    Inline,
    /// Past the page cache, many operations at once.
    Uring,
}

/// Whether sources are used through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Through it.
    Page,
    /// Past it (O_DIRECT).
    Direct,
}

/// How much of a core may be spent on answering the guest sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Latency {
    /// Look for the next request up to 50 us before sleeping, while that pays off and the core is idle otherwise.
    #[default]
    Balanced,
    /// Look up to 200 us.
    Lowest,
    /// Sleep whenever there is nothing to do.
    Frugal,
}

/// What to make of sources that may have changed while no proxy ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// Go on where it can be shown that nothing changed, else compare everything with the target.
    #[default]
    Auto,
    /// The operator vouches that nobody else wrote them.
    Trust,
    /// Compare everything with the target.
    Resync,
}

impl From<Durability> for towline_journal::Durability {
    fn from(durability: Durability) -> towline_journal::Durability {
        match durability {
            Durability::Process => towline_journal::Durability::Process,
            Durability::Flush => towline_journal::Durability::Flush,
            Durability::Write => towline_journal::Durability::Write,
        }
    }
}

impl From<Latency> for towline_proxy::LatencyPolicy {
    fn from(latency: Latency) -> towline_proxy::LatencyPolicy {
        match latency {
            Latency::Balanced => towline_proxy::LatencyPolicy::Balanced,
            Latency::Lowest => towline_proxy::LatencyPolicy::Lowest,
            Latency::Frugal => towline_proxy::LatencyPolicy::Frugal,
        }
    }
}

impl From<Attach> for AttachPolicy {
    fn from(attach: Attach) -> AttachPolicy {
        match attach {
            Attach::Auto => AttachPolicy::Auto,
            Attach::Trust => AttachPolicy::Trust,
            Attach::Resync => AttachPolicy::Resync,
        }
    }
}

impl ProxyConfig {
    /// What the probe of a source is asked for.
    pub fn wish(&self) -> towline_block::Wish {
        towline_block::Wish {
            engine: match self.engine {
                Engine::Auto => None,
                Engine::Inline => Some(towline_block::Engine::Inline),
                Engine::Uring => Some(towline_block::Engine::Uring),
            },
            cache: self.cache.map(|cache| match cache {
                Cache::Page => towline_block::Cache::Page,
                Cache::Direct => towline_block::Cache::Direct,
            }),
        }
    }

    pub fn check(&self) -> anyhow::Result<()> {
        check_disks(&self.sources, "source")?;
        self.wish().cache().map_err(|error| usage(error.to_string()))?;
        if self.durability != Durability::Process && self.spill == Some(SpillPlace::Bytes(0)) {
            return Err(usage(
                "durability flush and write put the journal on disk: they need a spill, give a \
                 larger --spill or none",
            ));
        }
        if self.spill_overwrite && !matches!(self.spill, Some(SpillPlace::Device(_))) {
            return Err(usage(
                "spill-overwrite says what may be done to a device: give its path to --spill",
            ));
        }
        if self.strict && self.durability == Durability::Process {
            return Err(usage(
                "strict says how long answers wait for the journal's disk, and with durability \
                 process none does: give --durability flush or write, or drop --strict",
            ));
        }
        if let Some(percent) = self.spill_start
            && !SPILL_START_PERCENTS.contains(&u64::from(percent))
        {
            return Err(usage(format!(
                "spill-start {percent} is not usable: give a percentage from {} to {}",
                SPILL_START_PERCENTS.start(),
                SPILL_START_PERCENTS.end()
            )));
        }
        if let Some(every) = self.cool_every
            && !COOL_EVERY_RANGE.contains(&every)
        {
            return Err(usage(format!(
                "cool-every {every:?} is not usable: give a time from {:?} to {:?}",
                COOL_EVERY_RANGE.start(),
                COOL_EVERY_RANGE.end()
            )));
        }
        check_listens(&self.nbd)
    }
}

impl ReceiveConfig {
    /// Of the group, for messages.
    pub fn name(&self) -> String {
        self.group.as_ref().map_or_else(|| "any".to_owned(), GroupName::to_string)
    }

    pub fn check(&self) -> anyhow::Result<()> {
        check_disks(&self.targets, "target")?;
        check_listens(&self.nbd)?;
        if let Some(from) = &self.from {
            from.parse::<StoreUrl>()?;
            if self.group.is_none() {
                return Err(usage(format!("which group of {from} is wanted? give --group G")));
            }
        }
        match (&self.listen, &self.from) {
            (Some(_), _) => check_security(self.pki.as_ref(), self.insecure_loopback),
            (None, Some(_)) => check_no_security(self.pki.as_ref(), self.insecure_loopback),
            (None, None) => Err(usage(
                "nothing to receive from: give --listen HOST:PORT for shippers, or --from \
                 STORE-URL, or both",
            )),
        }
    }
}

/// setpriority(2).
const NICE_MAX: u8 = 19;

impl ShipConfig {
    pub fn group_plan(&self) -> Plan {
        let base = Limit { bytes_per_s: self.rate, ops_per_s: self.ops };
        Plan { base, windows: self.windows.clone() }
    }

    pub fn link_plan(&self) -> Plan {
        let base = Limit { bytes_per_s: self.link_rate, ops_per_s: self.link_ops };
        Plan { base, windows: self.link_windows.clone() }
    }

    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(nice) = self.nice.filter(|nice| *nice > NICE_MAX) {
            return Err(usage(format!("nice = {nice} is not usable: give 0 to {NICE_MAX}")));
        }
        if let Some(streams) = self.streams.filter(|n| !(1..=STREAMS_MAX).contains(n)) {
            return Err(usage(format!(
                "streams = {streams} is not usable: give 1 to {STREAMS_MAX}"
            )));
        }
        if self.ops == Some(0) || self.link_ops == Some(0) {
            return Err(usage(
                "no operation a second would stand still: give 1 or more, or none for no limit; to \
                 pause, stop the shipper",
            ));
        }
        if self.window == Some(0) {
            return Err(usage(format!(
                "a window of 0 lets nothing out: give at least {}, or nothing for one that is measured",
                format_size(WINDOW_BYTES_MIN)
            )));
        }
        if StoreUrl::is_meant(&self.to) {
            self.to.parse::<StoreUrl>()?;
            return check_no_security(self.pki.as_ref(), self.insecure_loopback);
        }
        check_host_port(&self.to)?;
        check_security(self.pki.as_ref(), self.insecure_loopback)
    }
}

fn check_disks(disks: &[Disk], kind: &str) -> anyhow::Result<()> {
    if disks.is_empty() {
        return Err(usage(format!("no {kind} is given: name at least one, as --{kind} NAME=PATH")));
    }
    if disks.len() > VOLUMES_MAX {
        return Err(usage(format!("{} {kind}s are more than {VOLUMES_MAX}", disks.len())));
    }
    for (index, disk) in disks.iter().enumerate() {
        if disks[..index].iter().any(|other| other.name == disk.name) {
            return Err(usage(format!(
                "two {kind}s are named {}: give each its own name, as --{kind} NAME=PATH",
                disk.name
            )));
        }
        if let Some(other) = disks[..index].iter().find(|other| other.is_at_place_of(disk)) {
            return Err(usage(format!(
                "{kind}s {} and {} are one and the same, {}: each volume needs a disk of its own",
                other.name,
                disk.name,
                disk.path.display()
            )));
        }
    }
    Ok(())
}

fn check_listens(nbd: &[ListenAddr]) -> anyhow::Result<()> {
    if nbd.is_empty() {
        return Err(usage("no NBD address is given: add --nbd unix:PATH or --nbd HOST:PORT"));
    }
    Ok(())
}

fn check_security(pki: Option<&PathBuf>, insecure_loopback: bool) -> anyhow::Result<()> {
    match (pki, insecure_loopback) {
        (Some(_), false) | (None, true) => Ok(()),
        (Some(_), true) => {
            Err(usage("both a pki folder and insecure-loopback are given: keep one of them"))
        }
        (None, false) => Err(usage(
            "no certificates are given: make them by `towline pki init` and `towline pki issue` \
             and give the folder as --pki DIR (or --insecure-loopback for a trial on one machine)",
        )),
    }
}

/// A store has no certificates: what protects a group there is its key.
fn check_no_security(pki: Option<&PathBuf>, insecure_loopback: bool) -> anyhow::Result<()> {
    match pki.is_none() && !insecure_loopback {
        true => Ok(()),
        false => Err(usage(
            "pki and insecure-loopback are for the network between shipper and receiver; towards a \
             store batches are protected by sealing: give --key FILE instead",
        )),
    }
}

/// The keys of a file; none without one.
///
/// # Errors
/// The file is not usable, or lies in `state`, beside the data that it protects.
pub fn keys(file: Option<&Path>, state: &Path) -> anyhow::Result<Keyring> {
    let Some(file) = file else { return Ok(Keyring::default()) };
    let is_beside = match (file.canonicalize(), state.canonicalize()) {
        (Ok(file), Ok(state)) => file.starts_with(state),
        _ => false,
    };
    if is_beside {
        return Err(usage(format!(
            "the key file {} lies in the state directory {}, beside what it seals: whoever takes the \
             one has the other; keep it elsewhere",
            file.display(),
            state.display()
        )));
    }
    Ok(keyfile::load(file)?)
}

/// Of a peer that may not be in DNS yet.
fn check_host_port(text: &str) -> anyhow::Result<()> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = |host: &str| {
        let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
        !host.is_empty() && !is_bare_ipv6 && !host.contains(char::is_whitespace)
    };
    match text.rsplit_once(':') {
        Some((host, port)) if is_host(host) && is_port(port) => Ok(()),
        _ => Err(usage(format!(
            "{text:?} is no receiver's address: write HOST:PORT, such as 10.0.0.7:4790, or the URL of a \
             store, such as s3://BUCKET/PREFIX"
        ))),
    }
}

/// Looks up HOST:PORT; the first address counts.
pub fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
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

fn socket_addr<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    resolve(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
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

fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let bytes = size(from)?;
    bytes.map(checked_rate).transpose().map_err(serde::de::Error::custom)
}

fn spill<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SpillPlace>, D::Error> {
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

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    span_arg(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn listen_addrs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ListenAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| listen_arg(text).map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests;
