//! `towline proxy`: serves a group's volumes and journals every change.
//!
//! Joins disks, journal, server and link; starts their threads and ends them in
//! the order that loses nothing: clients first, then sources, then the journal.

mod figures;

use crate::address::nbd_uri;
use crate::config::{
    self, Attach, Cache, Disk, Durability, Engine, Latency, ProxyConfig, SpillPlace,
};
use crate::daemon::Daemon;
use crate::exit::{Exit, usage};
use crate::metrics;
use anyhow::Context;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use towline_block::{Access, GroupName, Upstream, VolumeId, probe};
use towline_journal::activity::COOL_EVERY;
use towline_journal::spill::SPILL_START_PERCENT;
use towline_journal::state::Seal;
use towline_journal::{Journal, Options, Source, SpillOptions, unix_now_ns};
use towline_proxy::{ExportConfig, Journaled, LinkServer, ListenAddr, Server, StartGate};

/// Where rings live unless told otherwise: memory that outlives a process.
const RING_DIR: &str = "/dev/shm";

/// How long a killed proxy's last writes may take to end; the kernel keeps its
/// locks until then.
const OWNER_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the group: volumes that move together.
    #[arg(long, required_unless_present = "config")]
    group: Option<GroupName>,
    /// State directory; the group gets a folder in it.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<PathBuf>,
    /// A raw image file, a block device or an export of another NBD server; the first is also the default export.
    #[arg(long = "source", value_name = "[NAME=]PATH|NBD-URI", required_unless_present = "config")]
    sources: Vec<Disk>,
    /// Serve NBD there.
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = config::listen_arg, required_unless_present = "config")]
    nbd: Vec<ListenAddr>,
    /// Size of the journal in memory [default: 256M, 1/8 of memory or half of what is free there, the least].
    #[arg(long, value_name = "SIZE", value_parser = config::size_arg)]
    ring: Option<u64>,
    /// Where the journal in memory lives.
    #[arg(long, value_name = "DIR")]
    ring_dir: Option<PathBuf>,
    /// What a flush waits for besides the source.
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Disk for changes that the journal in memory cannot hold, or a block device for them alone; 0: none. Taken in whole segments of 64M, the rest of SIZE is not used: 160M is 128M, less than 64M none. A segment is used again once the target has all of it, and each start of the proxy begins a new one: less than 128M makes no sense [default: 16G or 1/4 of what is free in the state directory, the least].
    #[arg(long, value_name = "SIZE|DEVICE", value_parser = config::spill_arg)]
    spill: Option<SpillPlace>,
    /// Take that device whatever it holds now.
    #[arg(long)]
    spill_overwrite: bool,
    /// Percent of the journal in memory beyond which its oldest changes go to disk [default: 50].
    #[arg(long, value_name = "PERCENT")]
    spill_start: Option<u8>,
    /// With --durability flush or write: never answer before the journal is on disk, however long that takes.
    #[arg(long)]
    strict: bool,
    /// A power loss compares what was written within this time, once to twice [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = config::span_arg)]
    cool_every: Option<Duration>,
    /// What to make of sources that may have changed while no proxy ran.
    #[arg(long, value_enum, default_value_t)]
    attach: Attach,
    /// How sources are read and written.
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
    /// Whether sources are used through the page cache or past it [default: as the engine and the source's kind say].
    #[arg(long, value_enum)]
    cache: Option<Cache>,
    /// How much of a core may be spent on answering the guest sooner.
    #[arg(long, value_enum, default_value_t)]
    latency: Latency,
    /// Serve Prometheus metrics there.
    #[arg(long, value_name = "HOST:PORT", value_parser = config::host_port_arg)]
    metrics: Option<SocketAddr>,
    /// Take everything from this TOML file instead.
    #[arg(long, value_name = "FILE", exclusive = true)]
    config: Option<PathBuf>,
}

impl Args {
    fn into_config(self) -> anyhow::Result<ProxyConfig> {
        let config = match (self.config, self.group, self.state) {
            (Some(file), ..) => config::load(&file)?,
            (None, Some(group), Some(state)) => ProxyConfig {
                group,
                state,
                sources: self.sources,
                nbd: self.nbd,
                ring: self.ring,
                ring_dir: self.ring_dir,
                durability: self.durability,
                spill: self.spill,
                spill_overwrite: self.spill_overwrite,
                spill_start: self.spill_start,
                strict: self.strict,
                cool_every: self.cool_every,
                attach: self.attach,
                engine: self.engine,
                cache: self.cache,
                latency: self.latency,
                metrics: self.metrics,
            },
            _ => return Err(usage("give --group and --state, or --config FILE")),
        };
        config.check()?;
        Ok(config)
    }
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let config = args.into_config()?;
    let daemon = Daemon::prepare("proxy")?;
    let (journal, seal) = open_journal(&config)?;
    let server = start_server(&config, &journal, seal)?;
    let link =
        LinkServer::start(&journal.dir().proxy_socket(), server.group(), Arc::clone(&journal))?;
    let figures = figures::Publisher::start(Arc::clone(&journal), server.figures().to_vec())?;
    if let Some(address) = config.metrics {
        let (journal, volumes) = (Arc::clone(&journal), server.figures().to_vec());
        metrics::serve(address, move || figures::samples(&journal, &volumes))?;
    }
    daemon.ready(&format!("group {} on {}", config.group, server.addresses().join(" ")));
    let exit = daemon.wait_while_sound(|| server.has_failed());
    let served = server.stop();
    drop(figures);
    drop(link);
    served.context("the sources' last writes may not be durable")?;
    journal.stop()?;
    Ok(exit)
}

fn open_journal(config: &ProxyConfig) -> anyhow::Result<(Arc<Journal>, Option<Seal>)> {
    let mut sources = Vec::new();
    for source in &config.sources {
        let disk = open_source(source, config)?;
        sources.push(Source { name: source.name.clone(), disk });
    }
    let (bytes, device) = match &config.spill {
        None => (None, None),
        Some(SpillPlace::Bytes(bytes)) => (Some(*bytes), None),
        Some(SpillPlace::Device(path)) => (None, Some(path.clone())),
    };
    let (journal, report) = Journal::open(Options {
        group: config.group.clone(),
        state_dir: config.state.clone(),
        ring_dir: config.ring_dir.clone().unwrap_or_else(|| PathBuf::from(RING_DIR)),
        ring_bytes: config.ring,
        sources,
        attach: config.attach.into(),
        spill: SpillOptions {
            bytes,
            device,
            overwrite: config.spill_overwrite,
            durability: config.durability.into(),
            strict: config.strict,
            start_percent: config.spill_start.map_or(SPILL_START_PERCENT, u64::from),
        },
        cool_every: config.cool_every.unwrap_or(COOL_EVERY),
        clock: unix_now_ns,
    })?;
    if report.restarted {
        tracing::warn!(group = %config.group, "{}", report.summary);
    } else {
        tracing::info!(group = %config.group, "{}", report.summary);
    }
    Ok((journal, report.seal))
}

fn open_source(
    source: &Disk,
    config: &ProxyConfig,
) -> anyhow::Result<Arc<dyn towline_block::Disk>> {
    if let Some(uri) = &source.upstream {
        let upstream = Upstream::open(uri.clone())?;
        check_size(source, towline_block::Disk::size_bytes(&upstream))?;
        tracing::info!(volume = %source.name, terms = ?upstream.terms(), "upstream server opened");
        return Ok(Arc::new(upstream));
    }
    let probe = probe::open(&source.path, Access::Own { wait: OWNER_WAIT }, config.wish())?;
    check_size(source, towline_block::Disk::size_bytes(&probe.disk))?;
    tracing::info!(
        volume = %source.name, engine = ?probe.engine, cache = ?probe.disk.cache(),
        reason = probe.reason, "source opened"
    );
    Ok(Arc::new(probe.disk))
}

fn check_size(source: &Disk, bytes: u64) -> anyhow::Result<()> {
    match bytes {
        0 => Err(usage(format!("source {} is empty: {}", source.name, source.path.display()))),
        _ => Ok(()),
    }
}

fn start_server(
    config: &ProxyConfig,
    journal: &Arc<Journal>,
    seal: Option<Seal>,
) -> anyhow::Result<Server> {
    let export = |(index, source): (usize, &Source)| ExportConfig {
        name: source.name.clone(),
        disk: Arc::clone(&source.disk),
        journaled: Some(Journaled { journal: Arc::clone(journal), id: VolumeId(index as u16) }),
    };
    let exports = journal.sources().iter().enumerate().map(export).collect();
    let server = Server::start_with(
        exports,
        &config.nbd,
        &StartGate::of_seal(seal.as_ref()),
        config.latency.into(),
    )?;
    let addresses = server.addresses();
    let uris =
        |source: &Source| addresses.iter().map(|at| nbd_uri(at, source.name.as_str())).collect();
    // A full disk keeps no guest from its own.
    if let Err(error) = journal.set_exports(&journal.sources().iter().map(uris).collect::<Vec<_>>())
    {
        tracing::warn!(%error, "status does not show where the volumes are served");
    }
    Ok(server)
}
