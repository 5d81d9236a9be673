//! `towline ship`: drains a group's journal to its receiver or into a store.

mod groups;

use crate::config::{self, Compress, ShipConfig};
use crate::daemon::Daemon;
use crate::exit::{Exit, usage};
use crate::metrics::{self, Sample};
use crate::progress::Progress;
use crate::view;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use towline_block::GroupName;
use towline_block::sys::give_way;
use towline_control::rate::Window;
use towline_journal::progress::{Figure, Progress as Page};
use towline_journal::state::GroupDir;
use towline_shipper::batch::Method;
use towline_shipper::pki;
use towline_shipper::security::Security;
use towline_shipper::source::{self, Compression, Link, STREAMS_MAX, Shipper};
use towline_shipper::store::{self, StoreUrl};

/// A saturated host serves its guests first: five steps are a third of a guest's share. With
/// ten, a tenth, a shipper on one full processor did not even get its connection up.
pub const NICE_DEFAULT: u8 = 5;

/// How often the baseline's progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group to ship.
    #[arg(long, required_unless_present = "config")]
    group: Option<GroupName>,
    /// State directory, the same as the proxy's.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<PathBuf>,
    /// The receiver, or a store: file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(long, value_name = "HOST:PORT|STORE-URL", required_unless_present = "config")]
    to: Option<String>,
    /// Folder with the certificates of `towline pki`.
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// No encryption and no identity; only for a receiver on this machine.
    #[arg(long)]
    insecure_loopback: bool,
    /// Most bytes sent and not yet durable at the target; without it twice bandwidth times
    /// delay and what both ends work on in 50 ms, 4 MiB to 256 MiB. Less than two of the largest
    /// batches (17 MiB) counts as that.
    #[arg(long, value_name = "SIZE", value_parser = config::size_arg)]
    window: Option<u64>,
    /// Connections to the receiver at a time, 1 to 8: several on a link that loses packets.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(STREAMS_MAX)))]
    streams: u8,
    /// Most bytes a second on the network, until `towline throttle` says otherwise.
    #[arg(long, value_name = "SIZE", value_parser = config::rate_arg)]
    rate: Option<u64>,
    /// Most operations a second: writes, zeroes and comparisons at the target.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Another limit at other times, in UTC, such as "mon-fri 08:00-18:00 20M" or
    /// "sat,sun 00:00-24:00 none"; the first that has begun counts.
    #[arg(long = "window-limit", value_name = "DAYS FROM-TO LIMIT")]
    windows: Vec<Window>,
    /// Seal batches with the newest key of this file (`towline pki key`).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t)]
    compress: Compress,
    /// Give way to the guests of this host: nice value of the shipper, 0 to 19.
    #[arg(long, value_name = "N", default_value_t = NICE_DEFAULT, value_parser = clap::value_parser!(u8).range(0..=19))]
    nice: u8,
    /// Serve Prometheus metrics there.
    #[arg(long, value_name = "HOST:PORT", value_parser = config::host_port_arg)]
    metrics: Option<SocketAddr>,
    /// Take everything from this TOML file instead.
    #[arg(long, value_name = "FILE", exclusive = true)]
    config: Option<PathBuf>,
}

impl Args {
    fn into_config(self) -> anyhow::Result<ShipConfig> {
        let config = match (self.config, self.group, self.state, self.to) {
            (Some(file), ..) => config::load(&file)?,
            (None, Some(group), Some(state), Some(to)) => ShipConfig {
                group,
                state,
                to,
                pki: self.pki,
                insecure_loopback: self.insecure_loopback,
                window: self.window,
                streams: Some(self.streams),
                rate: self.rate,
                ops: self.ops,
                windows: self.windows,
                link_rate: None,
                link_ops: None,
                link_windows: Vec::new(),
                key: self.key,
                compress: self.compress,
                nice: Some(self.nice),
                metrics: self.metrics,
            },
            _ => {
                return Err(usage("give --group, --state and --to, or --config FILE"));
            }
        };
        config.check()?;
        Ok(config)
    }
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some(file) = &args.config
        && config::names_groups(file)?
    {
        return groups::run(&config::load(file)?);
    }
    let config = args.into_config()?;
    check_identity(&config)?;
    // Before the first thread is started, which inherits it.
    if let Err(error) = give_way(config.nice.unwrap_or(NICE_DEFAULT).into()) {
        tracing::warn!(%error, "the shipper runs at the priority of everything else");
    }
    let daemon = Daemon::prepare("ship")?;
    let shipper = start(&config, link(&config))?;
    let dir = GroupDir::of(&config.state, &config.group);
    let page = Arc::new(Page::view(&dir.progress_path())?);
    if let Some(address) = config.metrics {
        let page = Arc::clone(&page);
        let group = config.group.to_string();
        metrics::serve(address, move || {
            page.as_ref().as_ref().map_or_else(Vec::new, |p| samples(p, &group))
        })?;
    }
    daemon.ready(&format!("group {} to {}", config.group, config.to));
    let mut progress = Progress::new(format!("baseline of {}", config.group));
    while !daemon.wait_for(LOOK_EVERY) {
        if let Some(page) = page.as_ref() {
            progress.show(&view::baseline(page));
        }
        if shipper.has_failed() {
            shipper.stop();
            eprintln!("towline ship: a part of it has ended by a fault of its own, see above");
            return Ok(Exit::Failed);
        }
    }
    drop(progress);
    shipper.stop();
    Ok(Exit::Ok)
}

/// What the groups of one process share.
fn link(config: &ShipConfig) -> Link {
    Link::new(config.link_plan(), &config.state)
}

fn start(config: &ShipConfig, link: Link) -> anyhow::Result<Shipper> {
    Ok(Shipper::start(source::ShipConfig {
        group: config.group.clone(),
        state_dir: config.state.clone(),
        to: config.to.clone(),
        security: security(config.pki.clone(), config.insecure_loopback),
        window_bytes: config.window.or(window(&config.to)),
        streams: config.streams.unwrap_or(1),
        rate: config.group_plan(),
        link,
        compression: compression(config.compress),
        keys: config::keys(config.key.as_deref(), &config.state)?,
    })?)
}

/// A store's; on the way to a receiver it is measured.
fn window(to: &str) -> Option<u64> {
    StoreUrl::is_meant(to).then_some(store::WINDOW_BYTES_DEFAULT)
}

/// What no retry would cure is told at once: a missing certificate, an address that
/// must not be spoken to without one. A name that is not in DNS yet may come.
fn check_identity(config: &ShipConfig) -> anyhow::Result<()> {
    if StoreUrl::is_meant(&config.to) {
        return Ok(());
    }
    let Some(dir) = &config.pki else {
        let beyond = config.to.to_socket_addrs().ok().into_iter().flatten();
        return match beyond.into_iter().find(|address| !address.ip().is_loopback()) {
            Some(address) => Err(usage(format!(
                "{address} is not a loopback address: --insecure-loopback is for one machine only; \
                 use --pki DIR (see `towline pki init`)"
            ))),
            None => Ok(()),
        };
    };
    let own = pki::group_files(dir, &config.group);
    for file in [&pki::ca_files(dir).certificate, &own.certificate, &own.key] {
        if let Err(error) = std::fs::File::open(file) {
            return Err(usage(format!(
                "cannot read {} ({error}): make it by `towline pki issue {} --group {}` and bring it \
                 here",
                file.display(),
                dir.display(),
                config.group
            )));
        }
    }
    Ok(())
}

/// [`config::ShipConfig::check`] has seen to it that exactly one is given, or none for a
/// store, where it is not looked at.
pub fn security(pki: Option<PathBuf>, _insecure_loopback: bool) -> Security {
    pki.map_or(Security::InsecureLoopback, Security::Pki)
}

pub fn compression(wanted: Compress) -> Compression {
    match wanted {
        Compress::Auto => Compression::Auto,
        Compress::None => Compression::Fixed(Method::None),
        Compress::Lz4 => Compression::Fixed(Method::Lz4),
        Compress::Zstd => Compression::Fixed(Method::Zstd),
    }
}

fn samples(page: &Page, group: &str) -> Vec<Sample> {
    let counter =
        |name, help, figure| Sample::counter(name, help, page.get(figure)).with("group", group);
    let gauge = |name, help, value: f64| Sample::gauge(name, help, value).with("group", group);
    let bytes = |figure| page.get(figure) as f64;
    vec![
        counter(
            "towline_ship_sent_bytes",
            "Stream bytes handed to the network.",
            Figure::SentStreamBytes,
        ),
        counter(
            "towline_ship_durable_bytes",
            "Stream bytes the target durably has.",
            Figure::DurableStreamBytes,
        ),
        counter(
            "towline_ship_resent_bytes",
            "Stream bytes sent more than once.",
            Figure::ResentBytes,
        ),
        counter(
            "towline_ship_block_bytes",
            "Data of blocks shipped, before framing.",
            Figure::BlockBytes,
        ),
        counter(
            "towline_ship_record_bytes",
            "Data of records shipped, before framing.",
            Figure::RecordBytes,
        ),
        counter(
            "towline_ship_batches_durable",
            "Number of the last durable batch.",
            Figure::DurableNumber,
        ),
        counter("towline_ship_sessions", "Network sessions opened.", Figure::Sessions),
        counter("towline_ship_payload_bytes", "Payload bytes put into batches.", Figure::CutBytes),
        counter(
            "towline_ship_coalesced_bytes",
            "Of these, overwritten within their batch and not shipped.",
            Figure::CoalescedBytes,
        ),
        counter(
            "towline_ship_stored_bytes",
            "What the rest was stored as, compressed or not.",
            Figure::StoredBytes,
        ),
        Sample::gauge(
            "towline_ship_encode_seconds",
            "Time spent on coalescing, compressing and hashing batches.",
            bytes(Figure::EncodeNs) / 1e9,
        )
        .with("group", group),
        gauge(
            "towline_ship_connected",
            "1 while a session with the target stands.",
            bytes(Figure::Connected),
        ),
        gauge(
            "towline_ship_window_bytes",
            "Most bytes sent and not yet durable.",
            bytes(Figure::WindowBytes),
        ),
        gauge(
            "towline_ship_rate_bytes_per_second",
            "Limit in force for the group; 0: none.",
            bytes(Figure::RateBytesPerS),
        ),
        gauge(
            "towline_ship_link_rate_bytes_per_second",
            "Limit in force for the link that the shipper's groups share; 0: none.",
            bytes(Figure::LinkBytesPerS),
        ),
        gauge(
            "towline_lag_seconds",
            "Age of the oldest change the target lacks.",
            bytes(Figure::LagMs) / 1e3,
        ),
        gauge("towline_lag_bytes", "Bytes of changes the target lacks.", bytes(Figure::LagBytes)),
        gauge("towline_baseline_done_bytes", "Baseline done.", bytes(Figure::BaselineDoneBytes)),
        gauge(
            "towline_baseline_total_bytes",
            "Bytes of volumes the baseline covers.",
            bytes(Figure::BaselineTotalBytes),
        ),
        gauge(
            "towline_target_has_point",
            "1 while the target can be brought to a point.",
            bytes(Figure::HasPoint),
        ),
    ]
}
