//! `towline receive`: takes a group's batches, and its place after a cutover.

mod groups;

use crate::address::nbd_uri;
use crate::config::{self, Disk, ReceiveConfig};
use crate::daemon::Daemon;
use crate::exit::{Exit, sentence};
use crate::metrics::{self, Sample};
use crate::ship::security;
use crate::target_view;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use towline_block::{GroupName, VolumeName};
use towline_proxy::{ExportConfig, LatencyPolicy, ListenAddr, Reserved, Server, StartGate};
use towline_shipper::receiver::marks::KEEP_DEFAULT;
use towline_shipper::receiver::{
    self, Counters, Door, Follow, Layout, Limits, MarkPolicy, Promote, Receiver,
};
use towline_shipper::{Error, ErrorKind};

/// How often a target's server that is not there at the start is looked for.
const LOOK_FOR_TARGETS_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where shippers connect.
    #[arg(long, value_name = "HOST:PORT", required_unless_present_any = ["config", "from"])]
    listen: Option<String>,
    /// Hydrate from a store and follow it: file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(long, value_name = "STORE-URL", requires = "group")]
    from: Option<String>,
    /// State directory of this receiver, with room for staging.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<PathBuf>,
    /// Take only this group; else the first that a certificate allows.
    #[arg(long)]
    group: Option<GroupName>,
    /// Where a volume goes: a block device, a raw file that is made if missing, or an export of an
    /// NBD server (nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH).
    #[arg(long = "target", value_name = "NAME=PATH|URI", required_unless_present = "config")]
    targets: Vec<Disk>,
    /// Serve the volumes there after the cutover.
    #[arg(long, value_name = "unix:PATH|HOST:PORT", value_parser = config::listen_arg, required_unless_present = "config")]
    nbd: Vec<ListenAddr>,
    /// Folder with the certificates of `towline pki`.
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// No encryption and no identity; only on a loopback address.
    #[arg(long)]
    insecure_loopback: bool,
    /// Keys of sealed batches (`towline pki key`); with it only sealed ones are taken.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Keep a mark that can be gone back to so often (30s, 5m, 1h).
    #[arg(long, value_name = "TIME", value_parser = config::span_arg)]
    mark_every: Option<Duration>,
    /// Keep these marks so long; by default a day. Named marks stay.
    #[arg(long, value_name = "TIME", value_parser = config::span_arg)]
    keep_marks: Option<Duration>,
    /// Most disk for all marks; past it the oldest go.
    #[arg(long, value_name = "SIZE", value_parser = config::size_arg)]
    marks_bytes: Option<u64>,
    /// Serve Prometheus metrics there.
    #[arg(long, value_name = "HOST:PORT", value_parser = config::host_port_arg)]
    metrics: Option<SocketAddr>,
    /// Take everything from this TOML file instead.
    #[arg(long, value_name = "FILE", exclusive = true)]
    config: Option<PathBuf>,
}

impl Args {
    fn into_config(self) -> anyhow::Result<ReceiveConfig> {
        let config = match (self.config, self.state) {
            (Some(file), _) => config::load(&file)?,
            (None, Some(state)) => ReceiveConfig {
                listen: self.listen,
                from: self.from,
                state,
                group: self.group,
                targets: self.targets,
                nbd: self.nbd,
                pki: self.pki,
                insecure_loopback: self.insecure_loopback,
                key: self.key,
                mark_every: self.mark_every,
                keep_marks: self.keep_marks,
                marks_bytes: self.marks_bytes,
                metrics: self.metrics,
            },
            (None, None) => return Err(crate::exit::usage("give --state, or --config FILE")),
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
    let daemon = Daemon::prepare("receive")?;
    let metrics = config.metrics;
    let followed = config.from.as_ref().map(|from| format!("following {from}"));
    let Some((receiver, place)) = start_with_targets(&config, &daemon)? else {
        return Ok(Exit::Ok);
    };
    if let Some(address) = metrics {
        let (counters, place) = (Arc::clone(receiver.counters()), Arc::clone(&place));
        metrics::serve(address, move || samples(&counters, &place))?;
    }
    let listening = receiver.address().map(|address| format!("listening on {address}"));
    let doing: Vec<String> = listening.into_iter().chain(followed).collect();
    daemon.ready(&doing.join(", "));
    let has_failed = daemon.wait_while_sound(|| receiver.has_failed());
    end(receiver, &place)?;
    Ok(has_failed)
}

/// Once the servers of all targets are there; `None` when asked to end before.
fn start_with_targets(
    config: &ReceiveConfig,
    daemon: &Daemon,
) -> anyhow::Result<Option<(Receiver, Arc<Place>)>> {
    let mut said = String::new();
    loop {
        let error = match start(config.clone(), None) {
            Ok(started) => return Ok(Some(started)),
            Err(error) => error,
        };
        let is_away = |error: &Error| error.kind() == ErrorKind::Unreachable;
        if !error.downcast_ref::<Error>().is_some_and(is_away) {
            return Err(error);
        }
        let why = sentence(&error);
        if why != said {
            tracing::warn!("{why}; trying again");
            receiver::note(&Layout::of(&config.state), Some(&why));
            said = why;
        }
        if daemon.wait_for(LOOK_FOR_TARGETS_EVERY) {
            return Ok(None);
        }
    }
}

/// Clients first: what they wrote is flushed before the receiver lets go.
fn end(receiver: Receiver, place: &Place) -> anyhow::Result<()> {
    if let Some(server) = place.take() {
        server.stop()?;
    }
    receiver.stop();
    Ok(())
}

/// Starts receiving, behind `door` where one is shared with other groups.
fn start(config: ReceiveConfig, door: Option<&Door>) -> anyhow::Result<(Receiver, Arc<Place>)> {
    let exports_file = target_view::exports_file(&config.state);
    let marks = MarkPolicy {
        every: config.mark_every,
        keep: config.keep_marks.unwrap_or(KEEP_DEFAULT),
        bytes_max: config.marks_bytes.unwrap_or(u64::MAX),
    };
    let limits = Limits { marks, ..Limits::default() };
    let keys = config::keys(config.key.as_deref(), &config.state)?;
    let (reserved, server) = Default::default();
    let place = Arc::new(Place { nbd: config.nbd, reserved, server, exports_file });
    let from = match (config.from, &config.group) {
        (Some(url), Some(group)) => Some(Follow { url: url.parse()?, group: group.clone() }),
        _ => None,
    };
    let config = receiver::ReceiveConfig {
        listen: config.listen.filter(|_| door.is_none()),
        from,
        state_dir: config.state,
        group: config.group,
        targets: config.targets.into_iter().map(|t| (t.name, t.path)).collect(),
        security: security(config.pki, config.insecure_loopback),
        promote: Arc::<Place>::clone(&place),
        keys,
        limits,
    };
    let receiver = match door {
        Some(door) => Receiver::start_behind(config, door)?,
        None => Receiver::start(config)?,
    };
    Ok((receiver, place))
}

/// Where the guests go after a cutover: a server without a journal.
struct Place {
    nbd: Vec<ListenAddr>,
    /// From the start of the receiver on: a takeover does not fail for an address that is in use.
    reserved: Mutex<Option<Reserved>>,
    server: Mutex<Option<Server>>,
    /// Where `status` finds the exports.
    exports_file: PathBuf,
}

impl Place {
    fn take(&self) -> Option<Server> {
        lock(&self.server).take()
    }

    fn is_serving(&self) -> bool {
        lock(&self.server).is_some()
    }
}

impl Promote for Place {
    fn prepare(&self) -> towline_shipper::Result<()> {
        let reserved = Reserved::new(&self.nbd).map_err(|e| {
            let what =
                "the volumes could not be served after a cutover; give other --nbd addresses";
            Error::caused(ErrorKind::InvalidInput, what, e)
        })?;
        *lock(&self.reserved) = Some(reserved);
        Ok(())
    }

    fn promote(
        &self,
        volumes: &[(VolumeName, Arc<dyn towline_block::Disk>)],
    ) -> towline_shipper::Result<Vec<String>> {
        let exports = volumes.iter().map(|(name, disk)| ExportConfig {
            name: name.clone(),
            disk: disk.clone(),
            journaled: None,
        });
        let failed = |e| Error::caused(ErrorKind::Storage, "cannot serve the promoted volumes", e);
        let kept = lock(&self.reserved).take();
        let reserved = kept.map_or_else(|| Reserved::new(&self.nbd), Ok).map_err(failed)?;
        let policy = LatencyPolicy::default();
        let started = Server::start_at(exports.collect(), reserved, &StartGate::Open, policy);
        let server = started.map_err(failed)?;
        let addresses = server.addresses();
        *lock(&self.server) = Some(server);
        let uris = volumes.iter().flat_map(|(name, _)| {
            addresses.iter().map(move |address| nbd_uri(address, name.as_str()))
        });
        let uris: Vec<String> = uris.collect();
        target_view::keep_exports(&self.exports_file, &uris);
        eprintln!("towline receive: promoted, serving {}", uris.join(" "));
        Ok(uris)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names and meanings of the receiver's counters.
const COUNTERS: [(&str, &str, &str); 9] = [
    ("connections", "towline_receive_connections", "Connections that got through the handshake."),
    ("sessions", "towline_receive_sessions", "Sessions that took over."),
    ("batches", "towline_receive_batches", "Batches admitted and durable."),
    ("batch_bytes", "towline_receive_batch_bytes", "Bytes of batches admitted and durable."),
    ("stage_syncs", "towline_receive_stage_syncs", "fdatasyncs of staging."),
    ("applied_batches", "towline_receive_applied_batches", "Batches written to the targets."),
    ("apply_groups", "towline_receive_apply_groups", "Groups of batches applied under one flush."),
    ("refused", "towline_receive_refused", "Peers, batches and requests refused."),
    ("storage_errors", "towline_receive_storage_errors", "Failures of the receiver's own disks."),
];

fn samples(counters: &Counters, place: &Place) -> Vec<Sample> {
    let values = counters.snapshot();
    let value_of =
        |key: &str| values.iter().find(|(name, _)| *name == key).map_or(0, |(_, value)| *value);
    let mut samples: Vec<Sample> = COUNTERS
        .iter()
        .map(|(key, name, help)| Sample::counter(name, help, value_of(key)))
        .collect();
    samples.push(Sample::gauge(
        "towline_receive_backlog_bytes",
        "Bytes of batches that are durable and not yet at the targets.",
        counters.backlog_bytes.load(Relaxed) as f64,
    ));
    let serving = f64::from(u8::from(place.is_serving()));
    samples.push(Sample::gauge(
        "towline_receive_promoted",
        "1 while promoted volumes are served.",
        serving,
    ));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_receiver_has_a_metric() {
        for (key, _) in Counters::default().snapshot() {
            assert!(COUNTERS.iter().any(|(known, ..)| *known == key), "{key}");
        }
    }
}
