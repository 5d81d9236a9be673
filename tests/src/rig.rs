//! One group under test: source and target images, and its three processes, each of
//! which can be started, killed and started again, with a relay between.

use crate::binary::named;
use crate::program::Finished;
use crate::relay::{Relay, free_port};
use crate::status::Status;
use crate::{Daemon, PATIENCE, args, run};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_bench::stamp::{Guest, GuestVolume, Order, Plan, VolumeHistory};

/// Bytes in flight to the receiver that a shipper may have to send again.
pub const WINDOW_BYTES: u64 = 16 << 20;

static RIGS: AtomicU32 = AtomicU32::new(0);

/// Images, folders and processes of one group. Everything ends with it.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub group: String,
    pub volumes: Vec<String>,
    pub ring: &'static str,
    /// Disk for what the ring cannot hold; "0": none.
    pub spill: &'static str,
    pub durability: &'static str,
    /// `--engine` of the proxy.
    pub engine: &'static str,
    /// The source of each volume is what an NBD server at `up.sock` serves.
    pub upstream: bool,
    /// Where an NBD server's exports take the place of the target images: one socket a volume.
    pub target_sockets: Vec<PathBuf>,
    /// The operator vouches for the sources: `--attach trust`.
    pub attach_trust: bool,
    /// How often the receiver makes a mark; none without it.
    pub mark_every: Option<&'static str>,
    pub receiver_address: SocketAddr,
    /// Certificates instead of `--insecure-loopback`.
    pub pki: Option<PathBuf>,
    /// `--streams` of the shipper.
    pub streams: u8,
    /// Key file: batches are sealed.
    pub key: Option<PathBuf>,
    pub relay: Relay,
    pub order: Arc<Order>,
    pub proxy: Option<Daemon>,
    pub ship: Option<Daemon>,
    pub receive: Option<Daemon>,
}

impl Rig {
    /// `volumes` sparse disks of `size_bytes` at the source and the target; no
    /// process yet.
    pub fn new(volumes: usize, size_bytes: u64) -> Rig {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Rig::with_relay(volumes, size_bytes, address, Relay::start(address))
    }

    /// As [`Rig::new`], with a relay of the test's own to `receiver_address`.
    pub fn with_relay(
        volumes: usize,
        size_bytes: u64,
        receiver_address: SocketAddr,
        relay: Relay,
    ) -> Rig {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        // The ring lies in shared memory under the group's name: never reuse one.
        let number = RIGS.fetch_add(1, Ordering::SeqCst);
        let rig = Rig {
            dir,
            group: format!("t{}-{number}", std::process::id()),
            volumes: (0..volumes).map(|n| format!("disk{n}")).collect(),
            // Small enough for a container's default of shared memory, several at once.
            ring: "16M",
            spill: "1G",
            durability: "process",
            engine: "auto",
            upstream: false,
            target_sockets: Vec::new(),
            attach_trust: false,
            mark_every: None,
            receiver_address,
            pki: None,
            streams: 1,
            key: None,
            relay,
            order: Arc::default(),
            proxy: None,
            ship: None,
            receive: None,
        };
        for volume in &rig.volumes {
            for image in [rig.source(volume), rig.target(volume)] {
                let sized = std::fs::File::create(&image).and_then(|f| f.set_len(size_bytes));
                sized.unwrap_or_else(|e| panic!("cannot make {}: {e}", image.display()));
            }
        }
        rig
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn source(&self, volume: &str) -> PathBuf {
        self.path(&format!("source-{volume}.img"))
    }

    pub fn target(&self, volume: &str) -> PathBuf {
        self.path(&format!("target-{volume}.img"))
    }

    /// State of proxy and shipper.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn source_uri(&self, volume: &str) -> NbdUri {
        NbdUri::unix(self.path("proxy.nbd"), volume)
    }

    pub fn target_uri(&self, volume: &str) -> NbdUri {
        NbdUri::unix(self.path("receive.nbd"), volume)
    }

    pub fn proxy_args(&self) -> Vec<OsString> {
        let mut all = args!["proxy", "--group", &self.group, "--state", self.state()];
        all.extend(args!["--ring", self.ring, "--nbd", unix(&self.path("proxy.nbd"))]);
        all.extend(args!["--spill", self.spill, "--durability", self.durability]);
        all.extend(args!["--engine", self.engine]);
        if self.attach_trust {
            all.extend(args!["--attach", "trust"]);
        }
        for volume in &self.volumes {
            let source: PathBuf = match self.upstream {
                true => NbdUri::unix(self.path("up.sock"), "").to_string().into(),
                false => self.source(volume),
            };
            all.extend(args!["--source", named(volume, &source)]);
        }
        all
    }

    pub fn receive_args(&self) -> Vec<OsString> {
        let mut all = args!["receive", "--listen", self.receiver_address.to_string()];
        all.extend(args!["--state", self.path("target-state")]);
        all.extend(args!["--nbd", unix(&self.path("receive.nbd"))]);
        for (number, volume) in self.volumes.iter().enumerate() {
            let target = match self.target_sockets.get(number) {
                Some(socket) => NbdUri::unix(socket, "").to_string().into(),
                None => self.target(volume),
            };
            all.extend(args!["--target", named(volume, &target)]);
        }
        all.extend(self.mark_every.into_iter().flat_map(|every| args!["--mark-every", every]));
        all.extend(self.security());
        all
    }

    pub fn ship_args(&self) -> Vec<OsString> {
        let mut all = args!["ship", "--group", &self.group, "--state", self.state()];
        all.extend(args!["--to", self.relay.address().to_string()]);
        all.extend(args!["--window", WINDOW_BYTES.to_string()]);
        all.extend(args!["--streams", self.streams.to_string()]);
        // Other tests share the processors: giving way to them would only cost time.
        all.extend(args!["--nice", "0"]);
        all.extend(self.security());
        all
    }

    fn security(&self) -> Vec<OsString> {
        let mut all = match &self.pki {
            Some(dir) => args!["--pki", dir],
            None => args!["--insecure-loopback"],
        };
        all.extend(self.key.iter().flat_map(|file| args!["--key", file]));
        all
    }

    /// Where the journal's ring lies now.
    pub fn ring_path(&self) -> PathBuf {
        let text = std::fs::read(self.state().join(&self.group).join("state.json"))
            .unwrap_or_else(|e| panic!("no state.json: {e}"));
        let state: serde_json::Value =
            serde_json::from_slice(&text).unwrap_or_else(|e| panic!("state.json: {e}"));
        state["ring"]["path"].as_str().map(PathBuf::from).expect("a ring has a path")
    }

    /// What a running process has said so far.
    pub fn said(&self, which: Process) -> String {
        let daemon = match which {
            Process::Proxy => &self.proxy,
            Process::Ship => &self.ship,
            Process::Receive => &self.receive,
        };
        daemon.as_ref().map_or_else(String::new, Daemon::said)
    }

    #[track_caller]
    pub fn start_proxy(&mut self) {
        self.proxy = Some(Daemon::ready(&self.proxy_args()));
    }

    #[track_caller]
    pub fn start_receive(&mut self) {
        self.receive = Some(Daemon::ready(&self.receive_args()));
    }

    #[track_caller]
    pub fn start_ship(&mut self) {
        self.ship = Some(Daemon::ready(&self.ship_args()));
    }

    #[track_caller]
    pub fn start_all(&mut self) {
        self.start_proxy();
        self.start_receive();
        self.start_ship();
    }

    /// `kill -9`; the process must have been running.
    #[track_caller]
    pub fn kill(&mut self, which: Process) {
        match self.slot(which).take() {
            Some(mut daemon) => {
                assert!(daemon.is_running(), "{which:?} had ended by itself: {daemon}");
                daemon.kill();
            }
            None => panic!("{which:?} does not run"),
        }
    }

    /// SIGTERM; the process must end with status 0.
    #[track_caller]
    pub fn terminate(&mut self, which: Process) {
        match self.slot(which).take() {
            Some(daemon) => {
                let status = daemon.terminate();
                assert!(status.success(), "{which:?} ended with {status} on SIGTERM");
            }
            None => panic!("{which:?} does not run"),
        }
    }

    /// SIGSTOP, until [`Rig::resume`]; the process must have been running.
    #[track_caller]
    pub fn freeze(&mut self, which: Process) {
        match self.slot(which) {
            Some(daemon) => daemon.freeze(),
            None => panic!("{which:?} does not run"),
        }
    }

    #[track_caller]
    pub fn resume(&mut self, which: Process) {
        match self.slot(which) {
            Some(daemon) => daemon.resume(),
            None => panic!("{which:?} does not run"),
        }
    }

    #[track_caller]
    pub fn start(&mut self, which: Process) {
        match which {
            Process::Proxy => self.start_proxy(),
            Process::Ship => self.start_ship(),
            Process::Receive => self.start_receive(),
        }
    }

    fn slot(&mut self, which: Process) -> &mut Option<Daemon> {
        match which {
            Process::Proxy => &mut self.proxy,
            Process::Ship => &mut self.ship,
            Process::Receive => &mut self.receive,
        }
    }

    /// A client of the proxy.
    #[track_caller]
    pub fn client(&self, volume: &str) -> Client {
        Client::connect(&self.source_uri(volume), Options::default())
            .unwrap_or_else(|e| panic!("the proxy does not serve {volume}: {e}"))
    }

    /// A guest on all volumes, which goes to the target when the source is sealed.
    #[track_caller]
    pub fn guest(&self, plan: &Plan) -> Guest {
        let histories = self.volumes.iter().enumerate().map(|(number, volume)| {
            let size = std::fs::metadata(self.source(volume)).map_or(0, |m| m.len());
            VolumeHistory::new(number as u32, volume, size)
        });
        self.guest_knowing(plan, histories.collect())
    }

    /// A guest whose disks have stamped contents from the start; call before the
    /// proxy starts.
    #[track_caller]
    pub fn prefill(&self) -> Vec<VolumeHistory> {
        let fill = |(number, volume): (usize, &String)| {
            VolumeHistory::prefilled(number as u32, volume, &self.source(volume), &self.order)
                .unwrap_or_else(|e| panic!("cannot prefill: {e}"))
        };
        self.volumes.iter().enumerate().map(fill).collect()
    }

    #[track_caller]
    pub fn guest_knowing(&self, plan: &Plan, histories: Vec<VolumeHistory>) -> Guest {
        let volumes = histories.into_iter().map(|history| GuestVolume {
            source: self.source_uri(&history.name),
            target: Some(self.target_uri(&history.name)),
            history,
        });
        Guest::start(plan, self.order.clone(), volumes.collect())
            .unwrap_or_else(|e| panic!("the guest does not start: {e}"))
    }

    /// Runs a subcommand to its end.
    #[track_caller]
    pub fn towline(&self, args: Vec<OsString>) -> Finished {
        run(crate::towline(), args, PATIENCE)
    }

    /// Names a mark at the source and waits until the target has it and stands behind it.
    #[track_caller]
    pub fn mark(&self, name: &str) {
        let base = args!["mark", &self.group, "--state", self.state(), "--name", name];
        self.towline([base, args!["--wait", "30s"]].concat()).ok();
        let state = self.path("target-state");
        self.wait_status("marked at the target", |_| {
            let list = args!["target", "list-marks", "--state", &state, "--json"];
            let listed = self.towline(list).json();
            listed["marks"].as_array().is_some_and(|marks| marks.iter().any(|m| m["mark"] == name))
        });
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        let finished =
            self.towline(args!["status", &self.group, "--state", self.state(), "--json"]);
        assert_eq!(finished.code(), 0, "{finished}");
        let group = finished.json()["groups"][0].clone();
        assert_eq!(group["group"].as_str(), Some(self.group.as_str()), "{finished}");
        Status(group)
    }

    /// Asks for the status until it is as wanted.
    #[track_caller]
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        self.wait_status_within(2 * PATIENCE, what, wanted)
    }

    #[track_caller]
    pub fn wait_status_within(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        Status::wait(timeout, what, || Some(self.status()), wanted)
    }

    #[track_caller]
    pub fn wait_live(&self) -> Status {
        self.wait_status("live", |status| status.state() == "live")
    }

    /// Waits until the target has everything; the guest must rest.
    #[track_caller]
    pub fn wait_drained(&self) -> Status {
        self.wait_status("drained", Status::is_drained)
    }

    /// Ends shipper and receiver in order, lets a receiver without a network bring
    /// its disks to what it has durably, and ends that too. Then the target's
    /// images are final.
    #[track_caller]
    pub fn settle_target(&mut self) {
        self.relay.set_refusing(true);
        for which in [Process::Ship, Process::Receive] {
            if self.slot(which).is_some() {
                self.terminate(which);
            }
        }
        self.recover_target();
    }

    /// Starts the receiver, waits until it is ready, ends it in order. The relay
    /// must refuse connections.
    #[track_caller]
    pub fn recover_target(&mut self) {
        self.start_receive();
        self.terminate(Process::Receive);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Before the directory goes.
        self.ship = None;
        self.receive = None;
        self.proxy = None;
        let prefix = format!("towline-{}-", self.group);
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                // Shared memory outlives every process: nobody else removes it.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Proxy,
    Ship,
    Receive,
}

fn unix(path: &Path) -> OsString {
    let mut text = OsString::from("unix:");
    text.push(path);
    text
}
