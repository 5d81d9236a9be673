//! The daemons' configuration: one struct each, filled by flags or by a TOML file.
//!
//! Both ways end in the same `check`, so a file cannot ask for what flags refuse.
//! Unknown keys are refused with file, line and key.

mod check;
mod file;
mod groups;
mod sources;
mod words;

pub use file::{load, names_groups};
pub use groups::{ReceiveGroups, ShipGroups};
pub use sources::Disk;
pub use words::{host_port_arg, listen_arg, rate_arg, size_arg, span_arg, spill_arg};

use crate::exit::usage;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use towline_block::GroupName;
use towline_control::rate::{Limit, Plan, Window};
use towline_journal::AttachPolicy;
use towline_proxy::ListenAddr;
use towline_shipper::batch::{Keyring, keyfile};
use words::{listen_addrs, rate, size, socket_addr, span, spill};

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
}

impl ReceiveConfig {
    /// Of the group, for messages.
    pub fn name(&self) -> String {
        self.group.as_ref().map_or_else(|| "any".to_owned(), GroupName::to_string)
    }
}

impl ShipConfig {
    pub fn group_plan(&self) -> Plan {
        let base = Limit { bytes_per_s: self.rate, ops_per_s: self.ops };
        Plan { base, windows: self.windows.clone() }
    }

    pub fn link_plan(&self) -> Plan {
        let base = Limit { bytes_per_s: self.link_rate, ops_per_s: self.link_ops };
        Plan { base, windows: self.link_windows.clone() }
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

#[cfg(test)]
mod tests;
