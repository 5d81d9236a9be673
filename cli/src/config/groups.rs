//! Several groups in one file: what all have in common, then a table for each.

use super::{
    Compress, Disk, ReceiveConfig, ShipConfig, listen_addrs, rate, size, socket_addr, span,
};
use crate::exit::usage;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use towline_block::GroupName;
use towline_control::rate::Window;
use towline_proxy::ListenAddr;

/// Groups of one process: each has threads of its own.
const GROUPS_MAX: usize = 64;

/// `towline receive` for several groups behind one address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiveGroups {
    pub listen: Option<String>,
    /// Each group has a folder of its own in it.
    pub state: PathBuf,
    pub pki: Option<PathBuf>,
    #[serde(default)]
    pub insecure_loopback: bool,
    /// Of all groups that name no other.
    pub key: Option<PathBuf>,
    #[serde(default, deserialize_with = "span")]
    pub mark_every: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    pub keep_marks: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    pub marks_bytes: Option<u64>,
    #[serde(default, deserialize_with = "socket_addr")]
    pub metrics: Option<SocketAddr>,
    groups: Vec<ReceiveGroup>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiveGroup {
    name: GroupName,
    from: Option<String>,
    #[serde(rename = "target")]
    targets: Vec<Disk>,
    #[serde(deserialize_with = "listen_addrs")]
    nbd: Vec<ListenAddr>,
    key: Option<PathBuf>,
    #[serde(default, deserialize_with = "span")]
    mark_every: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    keep_marks: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    marks_bytes: Option<u64>,
}

/// `towline ship` for several groups of one state directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShipGroups {
    pub state: PathBuf,
    /// Of all groups that name no other.
    to: Option<String>,
    pki: Option<PathBuf>,
    #[serde(default)]
    insecure_loopback: bool,
    #[serde(default, deserialize_with = "size")]
    window: Option<u64>,
    #[serde(default)]
    streams: Option<u8>,
    #[serde(default, deserialize_with = "rate")]
    link_rate: Option<u64>,
    link_ops: Option<u64>,
    #[serde(default)]
    link_windows: Vec<Window>,
    key: Option<PathBuf>,
    #[serde(default)]
    compress: Compress,
    #[serde(default)]
    pub nice: Option<u8>,
    #[serde(default, deserialize_with = "socket_addr")]
    pub metrics: Option<SocketAddr>,
    groups: Vec<ShipGroup>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShipGroup {
    name: GroupName,
    to: Option<String>,
    #[serde(default, deserialize_with = "size")]
    window: Option<u64>,
    #[serde(default)]
    streams: Option<u8>,
    #[serde(default, deserialize_with = "rate")]
    rate: Option<u64>,
    ops: Option<u64>,
    #[serde(default)]
    windows: Vec<Window>,
    key: Option<PathBuf>,
    compress: Option<Compress>,
}

fn check_names<'a>(names: impl Iterator<Item = &'a GroupName>) -> anyhow::Result<()> {
    let mut names: Vec<_> = names.collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    match count {
        0 => Err(usage("no group is given: add a [[groups]] table for each")),
        _ if count > GROUPS_MAX => {
            Err(usage(format!("{count} groups are more than {GROUPS_MAX}: use several processes")))
        }
        _ if names.len() < count => Err(usage("two groups have one name: give each its own")),
        _ => Ok(()),
    }
}

impl ReceiveGroups {
    /// What each group would be configured as alone.
    ///
    /// # Errors
    /// What [`ReceiveConfig::check`] refuses; two groups of one name or one NBD address.
    pub fn configs(&self) -> anyhow::Result<Vec<ReceiveConfig>> {
        check_names(self.groups.iter().map(|group| &group.name))?;
        let mut served: Vec<&ListenAddr> = Vec::new();
        for address in self.groups.iter().flat_map(|group| &group.nbd) {
            if served.contains(&address) {
                let what = "two groups are served at one NBD address: give each group its own";
                return Err(usage(format!("{what} ({address})")));
            }
            served.push(address);
        }
        let config = |group: &ReceiveGroup| {
            let config = ReceiveConfig {
                listen: self.listen.clone(),
                from: group.from.clone(),
                state: self.state.join(group.name.as_str()),
                group: Some(group.name.clone()),
                targets: group.targets.clone(),
                nbd: group.nbd.clone(),
                pki: self.pki.clone(),
                insecure_loopback: self.insecure_loopback,
                key: group.key.clone().or_else(|| self.key.clone()),
                mark_every: group.mark_every.or(self.mark_every),
                keep_marks: group.keep_marks.or(self.keep_marks),
                marks_bytes: group.marks_bytes.or(self.marks_bytes),
                metrics: None,
            };
            config.check().map(|()| config)
        };
        self.groups.iter().map(config).collect()
    }
}

impl ShipGroups {
    /// What each group would be configured as alone.
    ///
    /// # Errors
    /// What [`ShipConfig::check`] refuses; two groups of one name; one without a receiver.
    pub fn configs(&self) -> anyhow::Result<Vec<ShipConfig>> {
        check_names(self.groups.iter().map(|group| &group.name))?;
        let config = |group: &ShipGroup| {
            let to = group.to.clone().or_else(|| self.to.clone());
            let config = ShipConfig {
                group: group.name.clone(),
                state: self.state.clone(),
                to: to.ok_or_else(|| {
                    usage(format!("where does group {} go? give it, or all, a `to`", group.name))
                })?,
                pki: self.pki.clone(),
                insecure_loopback: self.insecure_loopback,
                window: group.window.or(self.window),
                streams: group.streams.or(self.streams),
                rate: group.rate,
                ops: group.ops,
                windows: group.windows.clone(),
                link_rate: self.link_rate,
                link_ops: self.link_ops,
                link_windows: self.link_windows.clone(),
                key: group.key.clone().or_else(|| self.key.clone()),
                compress: group.compress.unwrap_or(self.compress),
                nice: self.nice,
                metrics: None,
            };
            config.check().map(|()| config)
        };
        self.groups.iter().map(config).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{load, names_groups};
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    const RECEIVE: &str = r#"
listen = "127.0.0.1:4790"
state = "/var/lib/towline"
insecure_loopback = true
mark_every = "15m"

[[groups]]
name = "erp"
nbd = ["unix:/run/erp.sock"]
mark_every = "5m"
[[groups.target]]
name = "system"
path = "/images/system.raw"

[[groups]]
name = "mail"
nbd = ["unix:/run/mail.sock"]
[[groups.target]]
path = "/images/mail.raw"
"#;

    #[test]
    fn groups_have_folders_of_their_own_and_what_is_common_where_they_name_no_other() {
        let file = file(RECEIVE);
        assert!(names_groups(file.path()).unwrap());
        let configs = load::<ReceiveGroups>(file.path()).unwrap().configs().unwrap();
        let states: Vec<_> = configs.iter().map(|config| config.state.to_str().unwrap()).collect();
        assert_eq!(states, ["/var/lib/towline/erp", "/var/lib/towline/mail"]);
        let marks: Vec<_> =
            configs.iter().map(|config| config.mark_every.unwrap().as_secs()).collect();
        assert_eq!(marks, [300, 900]);
        assert_eq!(configs[1].targets[0].name.as_str(), "disk0");
    }

    #[test]
    fn groups_that_collide_are_refused() {
        for (from, to, said) in [
            ("name = \"mail\"", "name = \"erp\"", "two groups have one name"),
            ("unix:/run/mail.sock", "unix:/run/erp.sock", "one NBD address"),
            ("insecure_loopback = true", "", "certificates"),
        ] {
            let file = file(&RECEIVE.replace(from, to));
            let error = load::<ReceiveGroups>(file.path()).unwrap().configs().unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn a_shippers_groups_share_the_link_and_have_rates_of_their_own() {
        let text = r#"
state = "/var/lib/towline"
to = "127.0.0.1:4790"
insecure_loopback = true
link_rate = "100M"
compress = "none"
[[groups]]
name = "erp"
rate = "20M"
[[groups]]
name = "mail"
to = "127.0.0.1:4791"
compress = "lz4"
"#;
        let configs = load::<ShipGroups>(file(text).path()).unwrap().configs().unwrap();
        let rates: Vec<_> = configs.iter().map(|config| (config.rate, config.link_rate)).collect();
        assert_eq!(rates, [(Some(20 << 20), Some(100 << 20)), (None, Some(100 << 20))]);
        assert_eq!(configs[1].to, "127.0.0.1:4791");
        assert_eq!((configs[0].compress, configs[1].compress), (Compress::None, Compress::Lz4));
        let file = file(&text.replace("to = \"127.0.0.1:4790\"\n", ""));
        let error = load::<ShipGroups>(file.path()).unwrap().configs().unwrap_err();
        assert!(error.to_string().contains("where does group erp go"), "{error}");
    }
}
