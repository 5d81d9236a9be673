//! A rig, its devices, and what is counted.

use crate::DISK_BYTES;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use towline_bench::stamp::{Pattern, Plan};
use towline_block::BLOCK_BYTES;
use towline_journal::GroupDir;
use towline_journal::progress::{Figure, Progress};
use towline_tests::rig::Process;
use towline_tests::{Daemon, Finished, Rig, args};

/// The least: an export of these disks has dozens.
pub const PACK_BYTES: u64 = 1 << 20;

/// Beside the data of changes: frames, tables and acknowledgements of a session or two.
const TALK_BYTES: u64 = 64 << 10;

pub struct Lab {
    pub rig: Rig,
    pub devices: Vec<PathBuf>,
    /// Sealed and signed.
    is_protected: bool,
}

/// A guest whose writes a debug build takes as they come.
pub fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        rate_per_s: Some(300.0),
        pattern: Pattern::Zipf(0.6),
        reconnect_wait: Duration::from_millis(5),
        ..Plan::default()
    }
}

impl Lab {
    /// Two volumes and so many devices, nothing protected.
    pub fn new(devices: usize) -> Lab {
        let rig = Rig::new(2, DISK_BYTES);
        let devices: Vec<PathBuf> = (0..devices).map(|n| rig.path(&format!("device{n}"))).collect();
        devices.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        Lab { rig, devices, is_protected: false }
    }

    /// With certificates and a key of the group's.
    pub fn protected(devices: usize) -> Lab {
        let mut lab = Lab::new(devices);
        let (pki, key) = (lab.rig.path("pki"), lab.rig.path("erp.key"));
        let group = lab.rig.group.clone();
        for all in [
            args!["pki", "init", &pki],
            args!["pki", "issue", &pki, "--receiver"],
            args!["pki", "issue", &pki, "--group", &group],
            args!["pki", "key", &key],
        ] {
            lab.rig.towline(all).ok();
        }
        (lab.rig.pki, lab.rig.key) = (Some(pki), Some(key));
        lab.is_protected = true;
        lab
    }

    fn protection(&self) -> Vec<OsString> {
        match (self.is_protected, &self.rig.pki, &self.rig.key) {
            (true, Some(pki), Some(key)) => args!["--pki", pki, "--key", key],
            _ => args!["--unsigned"],
        }
    }

    pub fn export_args(&self, devices: &[PathBuf]) -> Vec<OsString> {
        let to = devices.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(",");
        let mut all = args!["device", "export", "--group", &self.rig.group];
        all.extend(args!["--state", self.rig.state(), "--to", to, "--nice", "0", "--json"]);
        all.extend(args!["--pack-size", PACK_BYTES.to_string()]);
        all.extend(self.protection());
        if !self.is_protected {
            all.extend(args!["--unsealed"]);
        }
        all
    }

    /// An export that is under way.
    #[track_caller]
    pub fn start_export(&self, and: Vec<OsString>) -> Daemon {
        Daemon::ready(&[self.export_args(&self.devices), and].concat())
    }

    #[track_caller]
    pub fn export(&self) -> serde_json::Value {
        let finished = self.rig.towline(self.export_args(&self.devices)).exits(0);
        let report = finished.json();
        assert_eq!(report["finished"], true, "{finished}");
        report
    }

    pub fn verify(&self, devices: &[PathBuf]) -> Finished {
        let mut all = args!["device", "verify", "--json"];
        all.extend(devices.iter().map(OsString::from));
        all.extend(self.protection());
        self.rig.towline(all)
    }

    pub fn import_args(&self, devices: &[PathBuf]) -> Vec<OsString> {
        let mut all = args!["device", "import", "--json", "--state", self.rig.path("target-state")];
        all.extend(devices.iter().map(OsString::from));
        for volume in &self.rig.volumes {
            let target = self.rig.target(volume);
            all.extend(args!["--target", format!("{volume}={}", target.display())]);
        }
        all.extend(self.protection());
        all
    }

    pub fn import(&self, devices: &[PathBuf], and: Vec<OsString>) -> Finished {
        self.rig.towline([self.import_args(devices), and].concat())
    }

    /// Where pack `number` lies.
    pub fn pack(&self, number: usize) -> PathBuf {
        let name = format!("{}/packs/{number:08}.pack", self.rig.group);
        let found = self.devices.iter().map(|dir| dir.join(&name)).find(|path| path.exists());
        found.unwrap_or_else(|| panic!("pack {number} is on no device"))
    }

    /// The first line of a device's manifest.
    pub fn manifest(&self, device: usize) -> serde_json::Value {
        let path = self.devices[device].join(&self.rig.group).join("manifest");
        let text = std::fs::read_to_string(&path).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    }

    /// Writes at least `count` blocks of 64 KiB, each once, spread over the first volume.
    pub fn change(&self, count: u64, byte: u8) -> u64 {
        let every = DISK_BYTES / BLOCK_BYTES / count * BLOCK_BYTES;
        self.write_each(BLOCK_BYTES, every, byte)
    }

    /// Writes so many bytes at every multiple of `every` of the first volume. Returns their sum.
    pub fn write_each(&self, bytes: u64, every: u64, byte: u8) -> u64 {
        let places = DISK_BYTES / every;
        self.write(bytes, (0..places).map(|place| place * every), byte);
        places * bytes
    }

    /// Writes so many whole blocks, one behind the other.
    pub fn write_first(&self, blocks: u64) {
        self.write(BLOCK_BYTES, (0..blocks).map(|block| block * BLOCK_BYTES), 1);
    }

    /// Data that no compression makes smaller.
    fn write(&self, bytes: u64, offsets: impl Iterator<Item = u64>, byte: u8) {
        let mut client = self.rig.client("disk0");
        let mut random = u64::from(byte) + 1;
        for offset in offsets {
            let next = || {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (random >> 56) as u8
            };
            let data: Vec<u8> = std::iter::repeat_with(next).take(bytes as usize).collect();
            client.write(offset, &data).unwrap();
        }
        client.flush().unwrap();
    }

    /// Until the source knows what the target lacks: before that it seems to lack nothing.
    #[track_caller]
    pub fn start_shipping(&mut self) {
        self.rig.start_receive();
        self.rig.start_ship();
        let ship = self.rig.ship.as_mut().unwrap();
        ship.wait_for_line(|line| line.contains("attached to the journal"));
    }

    /// Receiver and shipper, until the target has everything. Asserts that no more crossed
    /// the network than what had to.
    #[track_caller]
    pub fn ship_only(&mut self, needed_bytes: u64) {
        let before = self.rig.relay.forwarded_bytes();
        self.start_shipping();
        self.rig.wait_drained();
        let sent = self.rig.relay.forwarded_bytes() - before;
        let bound = needed_bytes + needed_bytes / 20 + TALK_BYTES;
        assert!(sent <= bound, "{sent} bytes crossed the network, {needed_bytes} had to");
        println!("{sent} bytes crossed the network, {needed_bytes} had to");
    }

    /// What the target says that it lacks.
    #[track_caller]
    pub fn lacking_bytes(&self) -> u64 {
        let state = self.rig.path("target-state");
        let status = self.rig.towline(args!["status", "--state", state, "--json"]).exits(0);
        status.json()["groups"][0]["lacking_bytes"].as_u64().unwrap()
    }

    /// Data put into batches by all shippers and exports so far, as stored.
    pub fn stored_bytes(&self) -> u64 {
        let group = self.rig.group.parse().unwrap();
        let page = Progress::view(&GroupDir::of(&self.rig.state(), &group).progress_path());
        page.unwrap().map_or(0, |page| page.get(Figure::StoredBytes))
    }

    /// The end of a run that loses nothing.
    #[track_caller]
    pub fn assert_ends_identical(&mut self) {
        self.rig.wait_drained();
        self.rig.settle_target();
        self.rig.terminate(Process::Proxy);
        self.rig.assert_identical();
    }
}
