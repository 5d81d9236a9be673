//! Several groups of several small volumes: a proxy each, one shipper, one receiver.

use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_tests::relay::free_port;
use towline_tests::{Daemon, PATIENCE, Status, args, run, towline};

const VOLUME_BYTES: u64 = 1 << 20;

static RIGS: AtomicU32 = AtomicU32::new(0);

pub struct Groups {
    dir: tempfile::TempDir,
    prefix: String,
    volumes: usize,
    port: u16,
    proxies: Vec<Option<Daemon>>,
    ship: Option<Daemon>,
    receive: Option<Daemon>,
}

impl Groups {
    pub fn new(count: usize, volumes: usize) -> Groups {
        let prefix = format!("m{}-{}", std::process::id(), RIGS.fetch_add(1, Ordering::SeqCst));
        let groups = Groups {
            dir: tempfile::tempdir().unwrap(),
            prefix,
            volumes,
            port: free_port(),
            proxies: (0..count).map(|_| None).collect(),
            ship: None,
            receive: None,
        };
        for group in 0..count {
            for volume in 0..volumes {
                let image = std::fs::File::create(groups.source(group, volume)).unwrap();
                image.set_len(VOLUME_BYTES).unwrap();
            }
        }
        groups.write_files(count);
        groups
    }

    fn write_files(&self, count: usize) {
        let (state, targets) = (self.state(), self.dir.path().join("targets"));
        let address = self.address();
        let mut ship = format!(
            "state = {state:?}\nto = {address:?}\ninsecure_loopback = true\nnice = 0\nstreams = 3\n"
        );
        let mut receive =
            format!("state = {targets:?}\nlisten = {address:?}\ninsecure_loopback = true\n");
        for group in 0..count {
            let name = self.name(group);
            write!(ship, "[[groups]]\nname = {name:?}\n").unwrap();
            let nbd = format!("unix:{}", self.path(&format!("target{group}.nbd")).display());
            write!(receive, "[[groups]]\nname = {name:?}\nnbd = [{nbd:?}]\n").unwrap();
            for volume in 0..self.volumes {
                let path = self.target(group, volume);
                let table = format!("[[groups.target]]\nname = \"v{volume}\"\npath = {path:?}\n");
                receive.push_str(&table);
            }
        }
        std::fs::write(self.path("ship.toml"), ship).unwrap();
        std::fs::write(self.receive_file(), receive).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn receive_file(&self) -> PathBuf {
        self.path("receive.toml")
    }

    pub fn name(&self, group: usize) -> String {
        format!("{}-{group}", self.prefix)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn target_state(&self, group: usize) -> PathBuf {
        self.path("targets").join(self.name(group))
    }

    fn source(&self, group: usize, volume: usize) -> PathBuf {
        self.path(&format!("source-{group}-{volume}"))
    }

    fn target(&self, group: usize, volume: usize) -> PathBuf {
        self.path(&format!("target-{group}-{volume}"))
    }

    fn socket(&self, group: usize) -> PathBuf {
        self.path(&format!("proxy{group}.nbd"))
    }

    #[track_caller]
    pub fn start_proxy(&mut self, group: usize) {
        let address = format!("unix:{}", self.socket(group).display());
        let mut all = args!["proxy", "--group", self.name(group), "--state", self.state()];
        all.extend(args!["--nbd", address, "--ring", "4M", "--spill", "0"]);
        for volume in 0..self.volumes {
            let source = format!("v{volume}={}", self.source(group, volume).display());
            all.extend(args!["--source", source]);
        }
        self.proxies[group] = Some(Daemon::ready(&all));
    }

    #[track_caller]
    pub fn start_receive(&mut self) {
        let all = args!["receive", "--config", self.receive_file()];
        self.receive = Some(Daemon::ready(&all));
    }

    /// In order, as an upgrade does it.
    #[track_caller]
    pub fn restart_receive(&mut self) {
        let ended = self.receive.take().unwrap().terminate();
        assert!(ended.success());
        self.start_receive();
    }

    #[track_caller]
    pub fn start_ship(&mut self) {
        let all = args!["ship", "--config", self.path("ship.toml")];
        self.ship = Some(Daemon::ready(&all));
    }

    #[track_caller]
    pub fn client(&self, group: usize, volume: usize) -> Client {
        let uri = NbdUri::unix(self.socket(group), &format!("v{volume}"));
        Client::connect(&uri, Options::default()).unwrap()
    }

    #[track_caller]
    fn statuses(&self, state: &Path) -> Vec<Value> {
        let finished = run(towline(), args!["status", "--state", state, "--json"], PATIENCE);
        assert_eq!(finished.code(), 0, "{finished}");
        finished.json()["groups"].as_array().cloned().unwrap_or_default()
    }

    #[track_caller]
    pub fn target_status(&self) -> Vec<Value> {
        self.statuses(&self.path("targets"))
    }

    /// What the shipper said of a group.
    pub fn ship_says(&self, group: usize) -> String {
        let said = self.ship.as_ref().map_or_else(String::new, Daemon::said);
        let name = self.name(group);
        said.lines().filter(|line| line.contains(&name)).collect::<Vec<_>>().join("\n")
    }

    #[track_caller]
    pub fn wait_drained(&self, group: usize) {
        let own = || {
            let all = self.statuses(&self.state());
            all.into_iter().find(|status| status["group"] == self.name(group)).map(Status)
        };
        Status::wait(2 * PATIENCE, "drained", own, Status::is_drained);
    }

    /// All processes end in order; the receiver has applied what it has.
    #[track_caller]
    pub fn end(&mut self) {
        let daemons = [self.ship.take(), self.receive.take()].into_iter();
        for daemon in daemons.chain(self.proxies.iter_mut().map(Option::take)).flatten() {
            assert!(daemon.terminate().success());
        }
        self.start_receive();
        let receive = self.receive.take().unwrap();
        assert!(receive.terminate().success());
    }

    #[track_caller]
    pub fn assert_identical(&self) {
        for group in 0..self.proxies.len() {
            for volume in 0..self.volumes {
                let images = [self.source(group, volume), self.target(group, volume)];
                let [source, target] = images.map(|image| std::fs::read(image).unwrap());
                assert!(source == target, "group {group}, volume {volume}");
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // Before the directory goes.
        (self.ship, self.receive) = (None, None);
        self.proxies.clear();
        let prefix = format!("towline-{}-", self.prefix);
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                // Shared memory outlives every process: nobody else removes it.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
