//! What a configuration may ask for: flags and files end here alike.

use super::{Disk, Durability, ProxyConfig, ReceiveConfig, ShipConfig, SpillPlace};
use crate::exit::usage;
use std::path::PathBuf;
use towline_block::size::format_size;
use towline_journal::activity::COOL_EVERY_RANGE;
use towline_journal::spill::SPILL_START_PERCENTS;
use towline_proxy::ListenAddr;
use towline_shipper::source::{STREAMS_MAX, WINDOW_BYTES_MIN};
use towline_shipper::store::StoreUrl;

/// Volume ids are 16 bits in every format.
const VOLUMES_MAX: usize = 1 << 16;

/// setpriority(2).
const NICE_MAX: u8 = 19;

impl ProxyConfig {
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

impl ShipConfig {
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
