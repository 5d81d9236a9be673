//! The demo's machine room: proxy, receiver and shipper as processes of their own,
//! the network between them, and the cable from the guest to its disk.

use super::plan::{FS, GROUP, Plan};
use super::process::{Daemon, Recipe};
use super::relay::Relay;
use crate::report::GroupStatus;
use crate::view;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use towline_bench::nbd_client::NbdUri;
use towline_block::GroupName;
use towline_control::CutoverReport;
use towline_shipper::batch::Keyring;
use towline_shipper::pki;

/// Longest pause the demo's guest accepts: generous, for the machine may be small
/// and busy. The summary shows the real one.
const MAX_PAUSE: &str = "5s";

pub struct Lab<'a> {
    plan: &'a Plan,
    group: GroupName,
    pub proxy: Daemon,
    pub receive: Daemon,
    pub ship: Option<Daemon>,
    ship_recipe: Recipe,
    /// Between shipper and receiver.
    pub network: Relay,
    /// From the guest's mounted file system to its disk.
    pub cable: Relay,
    target_nbd: SocketAddr,
}

impl<'a> Lab<'a> {
    /// Makes certificates and starts receiver and proxy; the shipper waits for
    /// [`Lab::start_shipping`].
    pub fn start(plan: &'a Plan) -> anyhow::Result<Lab<'a>> {
        let group: GroupName = GROUP.parse()?;
        pki::init(&plan.pki(), false)?;
        pki::issue_receiver(&plan.pki(), false)?;
        pki::issue_group(&plan.pki(), &group, false)?;
        let [listen, source_nbd, target_nbd] = [free_port()?, free_port()?, free_port()?];
        let network = Relay::start(Some(listen))?;
        let receive = receive_recipe(plan, listen, target_nbd).start()?;
        let proxy = proxy_recipe(plan, source_nbd).start()?;
        Ok(Lab {
            plan,
            group,
            proxy,
            receive,
            ship: None,
            ship_recipe: ship_recipe(plan, network.address()),
            network,
            cable: Relay::start(Some(source_nbd))?,
            target_nbd,
        })
    }

    pub fn start_shipping(&mut self) -> anyhow::Result<()> {
        self.ship = Some(self.ship_recipe.start()?);
        Ok(())
    }

    pub fn ship(&mut self) -> anyhow::Result<&mut Daemon> {
        self.ship.as_mut().context("the shipper was not started")
    }

    /// A daemon that ended by itself ends the demo, with its last words.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        let daemons = [Some(&mut self.proxy), Some(&mut self.receive), self.ship.as_mut()];
        for daemon in daemons.into_iter().flatten() {
            if !daemon.is_alive() {
                bail!("{}", daemon.obituary());
            }
        }
        Ok(())
    }

    /// What `towline status` shows.
    pub fn status(&self) -> anyhow::Result<GroupStatus> {
        let groups =
            view::groups(&self.plan.source_state(), Some(&self.group), &Keyring::default())?;
        groups.into_iter().next().context("status shows no group")
    }

    pub fn source_uri(&self, volume: &str) -> NbdUri {
        NbdUri::unix(self.plan.source_socket(), volume)
    }

    pub fn target_uri(&self, volume: &str) -> NbdUri {
        NbdUri::unix(self.plan.target_socket(), volume)
    }

    /// The mounted guest's disk is at the target from now on.
    pub fn plug_cable_into_target(&self) {
        self.cable.point_at(Some(self.target_nbd));
    }

    /// Runs `towline cutover`, as a person would.
    pub fn cutover(&self) -> anyhow::Result<CutoverReport> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let output = Command::new(binary)
            .args(["cutover", GROUP, "--json", "--max-pause", MAX_PAUSE, "--state"])
            .arg(self.plan.source_state())
            .stdin(Stdio::null())
            .output()
            .context("cannot run towline cutover")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("towline cutover ended with {}: {}", output.status, said.trim())
        })
    }

    /// Ends all daemons in order.
    pub fn end(self) -> anyhow::Result<()> {
        let daemons = [self.ship, Some(self.proxy), Some(self.receive)];
        daemons.into_iter().flatten().try_for_each(Daemon::end)
    }
}

fn proxy_recipe(plan: &Plan, nbd: SocketAddr) -> Recipe {
    let mut args: Vec<OsString> = vec!["proxy".into(), "--group".into(), GROUP.into()];
    args.extend(["--state".into(), plan.source_state().into()]);
    for volume in &plan.volumes {
        args.extend(["--source".into(), named(volume.name, &volume.source)]);
    }
    args.extend(["--nbd".into(), prefixed("unix:", &plan.source_socket())]);
    args.extend(["--nbd".into(), nbd.to_string().into()]);
    Recipe { name: "proxy", args, log: plan.dir.join("proxy.log") }
}

fn receive_recipe(plan: &Plan, listen: SocketAddr, nbd: SocketAddr) -> Recipe {
    let mut args: Vec<OsString> =
        vec!["receive".into(), "--listen".into(), listen.to_string().into()];
    args.extend(["--state".into(), plan.target_state().into()]);
    args.extend(["--pki".into(), plan.pki().into()]);
    for volume in &plan.volumes {
        args.extend(["--target".into(), named(volume.name, &volume.target)]);
    }
    args.extend(["--nbd".into(), prefixed("unix:", &plan.target_socket())]);
    args.extend(["--nbd".into(), nbd.to_string().into()]);
    Recipe { name: "receive", args, log: plan.dir.join("receive.log") }
}

fn ship_recipe(plan: &Plan, to: SocketAddr) -> Recipe {
    let mut args: Vec<OsString> = vec!["ship".into(), "--group".into(), GROUP.into()];
    args.extend(["--state".into(), plan.source_state().into()]);
    args.extend(["--to".into(), to.to_string().into()]);
    args.extend(["--pki".into(), plan.pki().into()]);
    Recipe { name: "ship", args, log: plan.dir.join("ship.log") }
}

fn named(name: &str, path: &std::path::Path) -> OsString {
    prefixed(&format!("{name}="), path)
}

fn prefixed(prefix: &str, path: &std::path::Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

/// A port that is free now; a daemon restarted after `kill -9` takes it again.
fn free_port() -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// The export name of the mounted volume.
pub const FS_EXPORT: &str = FS;
